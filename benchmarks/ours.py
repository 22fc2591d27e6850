"""This library, called as its users call it"""

import pandas as pd

from fungi_fastai.data.scan import scan
from fungi_fastai.training.recipe import Recipe


def our_items(file) -> pd.DataFrame:
    "Items from a CSV with the columns path, label and split, scanned as by `prepare_items`, but not split again"
    table = pd.read_csv(file)
    return scan(table, progress=False, cache=False).assign(split=table.split)


def our_recipe(parameters: dict, **changes) -> Recipe:
    "The default recipe with the given network, image size and batch size, from random weights"
    fields = {key: parameters[key] for key in ('arch', 'size', 'bs') if key in parameters}
    return Recipe().but(**fields | dict(pretrained=False) | changes)
