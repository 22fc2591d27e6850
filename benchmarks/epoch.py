"""One epoch of training, all layers: plain fastai, ours, and the limit of our own training steps. run.py starts it."""

from child import parse_arguments, report, synchronized_time

contender, parameters = parse_arguments()


def plain():
    import pandas as pd
    from plain import plain_learner, plain_loaders
    from steps import timed_epochs

    dls = plain_loaders(pd.read_csv(parameters['table']), parameters['size'], parameters['bs'], parameters['workers'])
    learn = plain_learner(dls, parameters['arch'])
    if parameters.get('half_precision'):
        learn.to_fp16()
    stopwatch = timed_epochs(learn, 1)
    report(seconds=stopwatch.seconds[0], rate=stopwatch.count / stopwatch.seconds[0], images=stopwatch.count)


def our_learner():
    "The Learner, and the seconds that building the cache of decoded images took"
    from ours import our_items, our_recipe

    from fungi_fastai.data.cache import build_cache
    from fungi_fastai.data.images import canvas_size
    from fungi_fastai.training.fit import make_learner

    recipe, items = our_recipe(parameters), our_items(parameters['table'])
    start = synchronized_time()
    build_cache(items, canvas_size(recipe.size), recipe.resize, progress=False)
    return make_learner(recipe, items, progress=False), synchronized_time() - start


def ours():
    import statistics

    from steps import timed_epochs

    learn, cache_seconds = our_learner()
    stopwatch = timed_epochs(learn, parameters['epochs'])
    first, later = cache_seconds + stopwatch.seconds[0], statistics.median(stopwatch.seconds[1:])
    report(
        seconds=later,
        rate=stopwatch.count / later,
        first_seconds=first,
        first_rate=stopwatch.count / first,
        cache_seconds=cache_seconds,
        images=stopwatch.count,
        epochs=stopwatch.seconds,
        precision=learn.precision.mode,
    )


def limit():
    "The steps of an epoch on one batch in memory, with the same network, optimizer, precision and memory format"
    from steps import one_step, step_rate

    learn, _ = our_learner()
    one_step(learn)
    steps, bs = len(learn.dls.train), learn.dls.train.bs
    rate = step_rate(learn, n=steps)
    report(seconds=steps * bs / rate, rate=rate, images=steps * bs, precision=learn.precision.mode)


dict(fastai=plain, fastai_workers=plain, ours=ours, limit=limit)[contender]()
