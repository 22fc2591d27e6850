"""How long until a validation accuracy is reached, from pretrained weights: plain `fine_tune`, and ours.   run.py starts it

Both train on the same images and validate on the same ones: the split of ours for the round's seed."""

from child import asked, format_duration, report

who, given = asked()
from fungi_fastai.training.recipes import MUSHROOMS  # noqa: E402

recipe = MUSHROOMS.but(
    source=given['source'],
    arch=given['arch'],
    size=given['size'],
    seed=given['seed'],
    **(dict(weights=given['weights']) if given['weights'] else dict(pretrained=False)),
)


def plain():
    from fastai.vision.all import Callback, accuracy, set_seed
    from plain import plain_learner, plain_loaders

    from fungi_fastai.training.fit import prepare_items

    items = prepare_items(recipe, progress=False)  # not timed: plain fastai checks and splits in no time, and worse

    class Reached(Callback):
        order, history = 90, []

        def after_epoch(self):
            self.history.append((format_duration() - began, float(self.recorder.values[-1][-1])))

    set_seed(given['seed'])
    began = format_duration()
    learn = plain_learner(
        plain_loaders(items, given['size'], workers=given['workers']), given['arch'], given['weights'], metrics=accuracy
    )
    with learn.no_bar(), learn.no_logging():
        learn.fine_tune(given['epochs'], cbs=Reached())
    return Reached.history, format_duration() - began


def ours():
    from fungi_fastai.runs.train import train
    from fungi_fastai.training.callbacks import History

    history, add = [], History.add

    def noted(self, **row):
        add(self, **row)
        history.append((format_duration() - began, self.rows[-1]['accuracy']))

    History.add = noted
    began = format_duration()
    train(recipe, out='run', progress=False)
    return history, format_duration() - began


history, total = (ours if who == 'ours' else plain)()
report(history=[dict(seconds=s, accuracy=a) for s, a in history], total_seconds=total)
