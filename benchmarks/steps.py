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


def step_rate(learn, channels_last=True, compile_mode='', n=30) -> float:
    "Images a second of training steps on one ready batch; compiled if a mode of `torch.compile` is given"
    import torch

    x, y = learn.dls.train.one_batch()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x, y = x.as_subclass(torch.Tensor).contiguous(memory_format=layout), y.as_subclass(torch.Tensor)
    model = learn.model.train().to(memory_format=layout)
    forward = torch.compile(model, mode=compile_mode) if compile_mode else model

    def step():
        with learn.precision.autocast(x.device) if compile_mode else learn.precision.forward_context(x):
            output = forward(x)
        learn.loss_func(output.float(), y).backward()
        learn.opt.step()
        learn.opt.zero_grad()

    for _ in range(3):
        step()
    start = synchronized_time()
    for _ in range(n):
        step()
    return round(n * len(x) / (synchronized_time() - start), 1)
