"""The training loader alone: JPEGs in, augmented batches out; nothing is trained.   run.py starts it"""

from child import asked, format_duration, report

who, given = asked()
import pandas as pd  # noqa: E402

found = {}
if who.startswith('fastai'):
    from plain import plain_loaders

    loader = plain_loaders(pd.read_csv(given['table']), given['size'], given['bs'], given['workers']).train
else:
    from ours import our_items

    from fungi_fastai.data.cache import build_cache
    from fungi_fastai.data.images import canvas_size
    from fungi_fastai.data.loaders import make_loaders

    items, cache = our_items(given['table']), None
    if who == 'ours_cached':
        began = format_duration()
        cache = build_cache(items, canvas_size(given['size']), progress=False)
        found['build_seconds'] = format_duration() - began
        found['build_rate'] = len(items) / found['build_seconds']
    loader = make_loaders(items, given['size'], given['bs'], cache=cache).train

next(iter(loader))  # the first batch also sets things up
passes = []
for _ in range(given['passes']):
    began = format_duration()
    count = sum(len(x) for x, _ in loader)
    passes.append(format_duration() - began)
report(seconds=passes[-1], rate=count / passes[-1], passes=passes, images=count, **found)
