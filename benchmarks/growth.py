"""What an image costs before and beside training, as there are more of them.   run.py starts it once for each number"""

from child import asked, format_duration, report

_, given = asked()
from fungi_fastai.data.cache import build_cache  # noqa: E402
from fungi_fastai.data.images import canvas_size  # noqa: E402
from fungi_fastai.data.scan import scan
from fungi_fastai.data.problems import exclude, has_problem, find_problems  # noqa: E402
from fungi_fastai.data.loaders import make_loaders  # noqa: E402
from fungi_fastai.data.sources import Source  # noqa: E402
from fungi_fastai.data.splits import split  # noqa: E402

found = {}


def timed(name, work):
    began = format_duration()
    result = work()
    found[name] = format_duration() - began
    return result


source = Source.of(given['folder'])
scan(source.read()[:20], progress=False, cache=False)  # brings imports that the measurement shall not hold
table = timed('read', source.read)
items = timed('scan', lambda: scan(table, progress=False, cache=False))  # `inspect_image` at each, then `find_problems` all
timed('duplicates', lambda: find_problems(items))
found['look'] = max(0.0, found['scan'] - found['duplicates'])
used = exclude(items)
part = timed('split', lambda: split(used, 0.15, 0.15, 42))
items = used.assign(split=part)
side = given['size']
shown = items[items.split != 'test']
cache = timed('cache', lambda: build_cache(shown, canvas_size(side), progress=False))
loader = make_loaders(items, side, 64, cache=cache).train
next(iter(loader))
seen = timed('epoch', lambda: sum(len(x) for x, _ in loader))
counts = dict(
    read=len(table),
    look=len(table),
    duplicates=len(table),
    scan=len(table),
    split=len(items),
    cache=len(shown),
    epoch=seen,
)
report(
    images=len(table),
    near_duplicates=int(has_problem(used, 'near_duplicate').sum()),
    seconds=found,
    **{f'{name}_ms': 1000 * found[name] / counts[name] for name in counts},
)
