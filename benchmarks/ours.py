"""The library itself, as its users call it"""

import pandas as pd

from fungi_fastai.data.scan import scan
from fungi_fastai.training.recipe import Recipe


def our_items(file) -> pd.DataFrame:
    "Items from a CSV with the columns path, label and split: looked at as `prepare_items` does, but not split again"
    table = pd.read_csv(file)
    return scan(table, progress=False, cache=False).assign(split=table.split)


def our_recipe(asked: dict, **changes) -> Recipe:
    "The default recipe with the asked network, size and batch size, from random weights"
    known = {k: asked[k] for k in ('arch', 'size', 'bs') if k in asked}
    return Recipe().but(**known | dict(pretrained=False) | changes)
