"""The training loader alone, from JPEGs to augmented batches; nothing is trained. run.py starts it."""

from child import parse_arguments, report, synchronized_time

contender, parameters = parse_arguments()
import pandas as pd  # noqa: E402

cache_results = {}
if contender.startswith('fastai'):
    from plain import plain_loaders

    loader = plain_loaders(
        pd.read_csv(parameters['table']), parameters['size'], parameters['bs'], parameters['workers']
    ).train
else:
    from ours import our_items

    from fungi_fastai.data.cache import build_cache
    from fungi_fastai.data.images import canvas_size
    from fungi_fastai.data.loaders import make_loaders

    items, cache = our_items(parameters['table']), None
    if contender == 'ours_cached':
        start = synchronized_time()
        cache = build_cache(items, canvas_size(parameters['size']), progress=False)
        cache_results['build_seconds'] = synchronized_time() - start
        cache_results['build_rate'] = len(items) / cache_results['build_seconds']
    loader = make_loaders(items, parameters['size'], parameters['bs'], cache=cache).train

next(iter(loader))  # the first batch includes the setup
passes = []
for _ in range(parameters['passes']):
    start = synchronized_time()
    count = sum(len(x) for x, _ in loader)
    passes.append(synchronized_time() - start)
report(seconds=passes[-1], rate=count / passes[-1], passes=passes, images=count, **cache_results)
