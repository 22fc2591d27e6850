"A training whose batches do not fit into memory continues with smaller ones; what a GPU does is simulated on the CPU"

import warnings

import pytest
import torch

with warnings.catch_warnings():  # fastai's own import warns with today's torch and pandas
    warnings.simplefilter('ignore')
    from fastai.callback.core import Callback

    from fungi_fastai.core.errors import TrainingError
    from fungi_fastai.data.loaders import _prefetch
    from fungi_fastai.training.fit import fit, make_learner
    from fungi_fastai.training.recipe import Recipe


class SmallMemory(Callback):
    "A GPU that holds a number of images: a larger training batch fails as on CUDA"

    def __init__(self, images, error=None):
        self.images, self.steps = images, []
        self.error = error or torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB')

    def after_pred(self):
        if self.training and len(self.y) > self.images:
            raise self.error
        if self.training:
            self.steps.append((len(self.y), self.accumulate.steps))


@pytest.fixture
def recipe(photos):
    return Recipe().but(
        source=photos, arch='convmixer_16_1', pretrained=False, size=32, bs=8, epochs=2, device='cpu', mixup=0.2
    )


def test_the_batches_are_halved_and_the_step_stays(recipe, tmp_path):
    error = RuntimeError("DefaultCPUAllocator: can't allocate memory")
    learn, memory = make_learner(recipe, progress=False), SmallMemory(2, error)
    rows = fit(learn, tmp_path, cbs=[memory])
    assert set(memory.steps) == {(2, 4)}  # 8, then 4 failed; four batches of 2 are one step
    assert [row['epoch'] for row in rows] == [1, 2] and learn.dls.train.bs == 2
    assert learn.loss_func.__class__.__name__ != 'method'  # MixUp put the loss back


def test_it_is_announced(recipe, tmp_path, capsys):
    fit(make_learner(recipe.but(mixup=0), progress=True), tmp_path, cbs=[SmallMemory(4)])
    printed = capsys.readouterr().err
    assert 'does not suffice for batches of 8' in printed and 'batches of 4 and a step after every 2' in printed


def test_advice_when_even_two_images_do_not_fit(recipe, tmp_path):
    with pytest.raises(TrainingError, match='does not suffice for batches of 8 images at 32 pixels.*smaller --size'):
        fit(make_learner(recipe, progress=False), tmp_path, cbs=[SmallMemory(1)])


def test_other_errors_are_not_taken_for_it(recipe, tmp_path):
    with pytest.raises(RuntimeError, match='device-side assert'):
        fit(make_learner(recipe, progress=False), tmp_path, cbs=[SmallMemory(4, RuntimeError('device-side assert'))])


def test_batches_that_are_prepared_in_advance_keep_their_order():
    batches = ((torch.full((2,), i), torch.tensor([i])) for i in range(7))
    assert [int(x[0]) + int(y) for x, y in _prefetch(batches, torch.device('cpu'))] == [2 * i for i in range(7)]


def test_an_error_of_the_reading_thread_arrives():
    def batches():
        yield (torch.zeros(1),)
        raise OSError('the disk is gone')

    prepared = _prefetch(batches(), torch.device('cpu'))
    next(prepared)
    with pytest.raises(OSError, match='the disk is gone'):
        next(prepared)
