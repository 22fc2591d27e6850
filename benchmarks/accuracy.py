"""Time to a validation accuracy from pretrained weights: plain `fine_tune`, and ours. run.py starts it.

Both train and validate on the same images: our split for the seed of the round."""

from child import parse_arguments, report, synchronized_time

contender, parameters = parse_arguments()
from fungi_fastai.training.recipes import MUSHROOMS  # noqa: E402

recipe = MUSHROOMS.but(
    source=parameters['source'],
    arch=parameters['arch'],
    size=parameters['size'],
    seed=parameters['seed'],
    **(dict(weights=parameters['weights']) if parameters['weights'] else dict(pretrained=False)),
)


def plain():
    from fastai.vision.all import Callback, accuracy, set_seed
    from plain import plain_learner, plain_loaders

    from fungi_fastai.training.fit import prepare_items

    items = prepare_items(recipe, progress=False)  # not timed: plain fastai needs no time for its simpler split

    class AccuracyHistory(Callback):
        order, history = 90, []

        def after_epoch(self):
            self.history.append((synchronized_time() - start, float(self.recorder.values[-1][-1])))

    set_seed(parameters['seed'])
    start = synchronized_time()
    learn = plain_learner(
        plain_loaders(items, parameters['size'], workers=parameters['workers']),
        parameters['arch'],
        parameters['weights'],
        metrics=accuracy,
    )
    with learn.no_bar(), learn.no_logging():
        learn.fine_tune(parameters['epochs'], cbs=AccuracyHistory())
    return AccuracyHistory.history, synchronized_time() - start


def ours():
    from fungi_fastai.runs.train import train
    from fungi_fastai.training.callbacks import History

    history, add = [], History.add

    def timed_add(self, **row):
        add(self, **row)
        history.append((synchronized_time() - start, self.rows[-1]['accuracy']))

    History.add = timed_add
    start = synchronized_time()
    train(recipe, out='run', progress=False)
    return history, synchronized_time() - start


history, total = (ours if contender == 'ours' else plain)()
report(history=[dict(seconds=s, accuracy=a) for s, a in history], total_seconds=total)
