"""fastai callbacks that time the training of ours and of plain fastai"""

from child import synchronized_time
from fastai.callback.core import Callback, CancelTrainException


class OneStep(Callback):
    "Ends an epoch's training after its first step"

    order = 90

    def after_batch(self):
        if self.training:
            raise CancelTrainException


class Stopwatch(Callback):
    "Seconds of each epoch's training, including loading, without validation"

    order = -90

    def before_fit(self):
        self.seconds, self.count = [], 0

    def before_train(self):
        self.start, self.count = synchronized_time(), 0

    def after_batch(self):
        self.count += len(self.y) if self.training else 0

    def after_train(self):
        self.seconds.append(synchronized_time() - self.start)


def one_step(learn):
    "Train one step that is not measured: it sets up model, optimizer and libraries"
    history = [cb for cb in learn.cbs if cb.name == 'history']  # ours, which expects complete epochs
    with learn.no_bar(), learn.no_logging(), learn.removed_cbs(history):
        learn.fit_one_cycle(1, cbs=OneStep())


def timed_epochs(learn, epochs: int) -> Stopwatch:
    "Train one step that is not measured, then all epochs"
    one_step(learn)
    stopwatch = Stopwatch()
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(epochs, cbs=stopwatch)
    return stopwatch
