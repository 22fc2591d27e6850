"""The cost of an image outside training, for growing numbers of images. run.py starts it once for each number."""

from child import parse_arguments, report, synchronized_time

_, parameters = parse_arguments()
from fungi_fastai.data.cache import build_cache  # noqa: E402
from fungi_fastai.data.images import canvas_size  # noqa: E402
from fungi_fastai.data.loaders import make_loaders  # noqa: E402
from fungi_fastai.data.problems import exclude, find_problems, has_problem  # noqa: E402
from fungi_fastai.data.scan import scan  # noqa: E402
from fungi_fastai.data.sources import Source  # noqa: E402
from fungi_fastai.data.splits import split  # noqa: E402

seconds = {}


def timed(name, function):
    start = synchronized_time()
    result = function()
    seconds[name] = synchronized_time() - start
    return result


source = Source.of(parameters['folder'])
scan(source.read()[:20], progress=False, cache=False)  # so that imports are not measured
table = timed('read', source.read)
items = timed(
    'scan', lambda: scan(table, progress=False, cache=False)
)  # `inspect_image` at each, then `find_problems` all
timed('duplicates', lambda: find_problems(items))
seconds['look'] = max(0.0, seconds['scan'] - seconds['duplicates'])
used = exclude(items)
sets = timed('split', lambda: split(used, 0.15, 0.15, 42))
items = used.assign(split=sets)
size = parameters['size']
cached_items = items[items.split != 'test']
cache = timed('cache', lambda: build_cache(cached_items, canvas_size(size), progress=False))
loader = make_loaders(items, size, 64, cache=cache).train
next(iter(loader))
n_loaded = timed('epoch', lambda: sum(len(x) for x, _ in loader))
counts = dict(
    read=len(table),
    look=len(table),
    duplicates=len(table),
    scan=len(table),
    split=len(items),
    cache=len(cached_items),
    epoch=n_loaded,
)
report(
    images=len(table),
    near_duplicates=int(has_problem(used, 'near_duplicate').sum()),
    seconds=seconds,
    **{f'{name}_ms': 1000 * seconds[name] / counts[name] for name in counts},
)
