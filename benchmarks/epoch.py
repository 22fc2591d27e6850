"""One epoch of training, all layers: plain fastai, ours, and the limit that our own steps set.   run.py starts it"""

from child import asked, format_duration, report

who, given = asked()


def plain():
    import pandas as pd
    from plain import plain_learner, plain_loaders
    from steps import timed_epochs

    dls = plain_loaders(pd.read_csv(given['table']), given['size'], given['bs'], given['workers'])
    watch = timed_epochs(plain_learner(dls, given['arch']), 1)
    report(seconds=watch.seconds[0], rate=watch.count / watch.seconds[0], images=watch.count)


def our_learner():
    "The Learner, and the seconds it took to build the cache of decoded images"
    from ours import our_items, our_recipe

    from fungi_fastai.data.cache import build_cache
    from fungi_fastai.data.images import canvas_size
    from fungi_fastai.training.fit import make_learner

    recipe, items = our_recipe(given), our_items(given['table'])
    began = format_duration()
    build_cache(items, canvas_size(recipe.size), recipe.resize, progress=False)
    return make_learner(recipe, items, progress=False), format_duration() - began


def ours():
    import statistics

    from steps import timed_epochs

    learn, building = our_learner()
    watch = timed_epochs(learn, given['epochs'])
    first, later = building + watch.seconds[0], statistics.median(watch.seconds[1:])
    report(
        seconds=later,
        rate=watch.count / later,
        first_seconds=first,
        first_rate=watch.count / first,
        cache_seconds=building,
        images=watch.count,
        epochs=watch.seconds,
        precision=learn.precision.mode,
    )


def limit():
    "The same network, optimizer, precision and memory format on one batch that is in memory already, as many steps as the epoch has"
    import torch
    from steps import one_step

    learn, _ = our_learner()
    one_step(learn)
    x, y = learn.dls.train.one_batch()
    x, y = x.as_subclass(torch.Tensor).contiguous(memory_format=torch.channels_last), y.as_subclass(torch.Tensor)
    steps, model = len(learn.dls.train), learn.model.train()
    began = format_duration()
    for _ in range(steps):
        with learn.precision.context(x.device):
            seen = model(x)
        learn.loss_func(seen.float(), y).backward()
        learn.opt.step()
        learn.opt.zero_grad()
    seconds = format_duration() - began
    report(
        seconds=seconds, rate=steps * len(x) / seconds, images=steps * len(x), precision=learn.precision.mode
    )


dict(fastai=plain, fastai_workers=plain, ours=ours, limit=limit)[who]()
