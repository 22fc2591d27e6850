"""fastai callbacks that time training: of ours and of plain fastai alike"""

from child import format_duration
from fastai.callback.core import Callback, CancelTrainException


class OneStep(Callback):
    "Ends an epoch's training after its first step"

    order = 90

    def after_batch(self):
        if self.training:
            raise CancelTrainException


class Stopwatch(Callback):
    "Seconds of the training set of each epoch: all batches, loading included; no validation"

    order = -90

    def before_fit(self):
        self.seconds, self.count = [], 0

    def before_train(self):
        self.began, self.count = format_duration(), 0

    def after_batch(self):
        self.count += len(self.y) if self.training else 0

    def after_train(self):
        self.seconds.append(format_duration() - self.began)


def one_step(learn):
    "Train one step: it sets model, optimizer and libraries up, and counts for nobody"
    history = [cb for cb in learn.cbs if cb.name == 'history']  # ours, which keeps whole epochs
    with learn.no_bar(), learn.no_logging(), learn.removed_cbs(history):
        learn.fit_one_cycle(1, cbs=OneStep())


def timed_epochs(learn, epochs: int) -> Stopwatch:
    "Train: one step that does not count, then all epochs"
    one_step(learn)
    watch = Stopwatch()
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(epochs, cbs=watch)
    return watch
