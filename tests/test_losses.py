"Losses: rounding, fastai's tensor subclasses, MixUp and CutMix, and interrupted fits"

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

with warnings.catch_warnings():  # fastai's own import warns with today's torch and pandas
    warnings.simplefilter('ignore')
    import fastai.callback.progress  # noqa: F401  (gives a Learner its `no_bar`)
    from fastai.callback.core import Callback, CancelFitException
    from fastai.callback.mixup import CutMix, MixUp
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    from fastai.learner import Learner
    from fastai.losses import CrossEntropyLossFlat
    from fastai.torch_core import TensorCategory, TensorImage

    from fungi_fastai.training.losses import LossMode, make_loss
from fungi_fastai.core.errors import UserError
from fungi_fastai.training.recipe import Recipe, choices

counts = np.array([60, 25, 15])
kinds = [(loss, balance) for loss in choices['loss'] for balance in ('none', 'loss')]


def batch(n=40, spread=3.0, dtype=torch.double):
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(n, 3, generator=generator) * spread).to(dtype), torch.randint(3, (n,), generator=generator)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
@pytest.mark.parametrize('reduction', ['mean', 'sum', 'none'])
def test_cross_entropy_equals_fastais(smoothing, reduction):
    logits, targets = batch(dtype=torch.float32)
    a, b = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    ours, theirs = (
        make_loss(Recipe(label_smoothing=smoothing), counts),
        CrossEntropyLossFlat(label_smoothing=smoothing, reduction=reduction),
    )
    ours.reduction = reduction
    loss, expected = ours(a, targets), theirs(b, targets)
    assert torch.equal(loss, torch.Tensor(expected))
    loss.sum().backward()
    expected.sum().backward()
    assert torch.equal(a.grad, b.grad)
    assert torch.equal(ours.activation(logits), theirs.activation(logits)) and torch.equal(
        ours.decodes(logits), theirs.decodes(logits)
    )


@pytest.mark.parametrize('loss, balance', kinds)
def test_reductions_tensor_subclasses_and_accumulation(loss, balance):
    logits, targets = batch()
    ours = make_loss(Recipe(loss=loss, balance=balance, label_smoothing=0.1), counts)
    mean = ours(logits, targets)
    loss_of_subclasses = ours(logits.as_subclass(TensorImage), targets.as_subclass(TensorCategory))
    assert torch.equal(loss_of_subclasses, mean) and type(loss_of_subclasses) is torch.Tensor
    assert torch.equal(ours(logits, targets.int()), mean)
    halves = (
        ours(logits[:10], targets[:10]) * 10 + ours(logits[10:], targets[10:]) * 30
    ) / 40  # as accumulated batches
    assert torch.allclose(halves, mean, atol=1e-12)
    ours.reduction = 'none'
    each = ours(logits, targets)
    ours.reduction = 'sum'
    assert (
        each.shape == (40,) and torch.allclose(each.mean(), mean) and torch.allclose(each.sum(), ours(logits, targets))
    )
    ours.reduction = 'mean'
    assert torch.equal(ours.eval()(logits, targets), cross_entropy(logits, targets))
    assert not ours.state_dict()


def test_gradients():
    logits, targets = batch(8)
    for recipe in (
        Recipe(loss='focal'),
        Recipe(loss='focal', balance='loss', label_smoothing=0.1),
        Recipe(loss='logit-adjusted', balance='loss'),
    ):
        assert torch.autograd.gradcheck(
            lambda z, recipe=recipe: make_loss(recipe, counts)(z, targets), logits.clone().requires_grad_()
        )
    z = logits.clone().requires_grad_()
    make_loss(Recipe(loss='seesaw'), counts)(z, targets).backward()
    p = logits.softmax(-1).numpy()
    expected = np.zeros((8, 3))
    for i, y in enumerate(targets.tolist()):  # the factors are constants (section 3.2 of the paper)
        s = [1.0 if j == y else min(1, counts[j] / counts[y]) ** 0.8 * max(1, p[i, j] / p[i, y]) ** 2 for j in range(3)]
        expected[i] = s * p[i] / (s * p[i]).sum()
        expected[i, y] -= 1
    assert np.allclose(z.grad.numpy(), expected / 8, atol=1e-12)


@pytest.mark.parametrize('loss, balance', kinds)
@pytest.mark.parametrize('spread', [1e-6, 1.0, 1e4])
@pytest.mark.parametrize('numbers', [counts, [100, 0, 3]])
def test_everything_stays_finite(loss, balance, spread, numbers):
    logits, targets = batch(spread=spread, dtype=torch.float32)
    for smoothing in (0.0, 0.1):
        z = logits.clone().requires_grad_()
        value = make_loss(Recipe(loss=loss, balance=balance, label_smoothing=smoothing), numbers)(z, targets)
        value.backward()
        assert value.isfinite() and z.grad.isfinite().all()


@pytest.mark.parametrize('loss', choices['loss'])
def test_balanced_classes_need_no_correction(loss):
    logits, targets = batch(spread=0.1)
    plain = make_loss(Recipe(loss=loss), [20, 20, 20])(logits, targets)
    assert torch.allclose(make_loss(Recipe(loss=loss, balance='loss'), [20, 20, 20])(logits, targets), plain)
    if loss == 'logit-adjusted':
        assert torch.allclose(plain, cross_entropy(logits, targets))


@pytest.mark.parametrize('wrong', [[], [5], [5, -1], [0, 0], [[5, 5]], [5, float('nan')]])
def test_wrong_counts(wrong):
    with pytest.raises(UserError, match='images of each class'):
        make_loss(Recipe(), wrong)


def make(recipe, cbs=()):
    torch.manual_seed(0)
    y = torch.arange(60) % 3
    x = torch.randn(60, 3, 8, 8) + y[:, None, None, None]
    rows = [(TensorImage(a), TensorCategory(b)) for a, b in zip(x, y, strict=True)]
    dls = DataLoaders(DataLoader(rows[:40], bs=10, shuffle=True), DataLoader(rows[40:], bs=20), device='cpu')
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    return Learner(dls, model, make_loss(recipe, counts), cbs=[LossMode(), *cbs])


class CompareLosses(Callback):
    "Compare the training losses with losses computed by hand"

    order, run_valid = 10, False  # after fastai's mixers

    def __init__(self, recipe):
        self.recipe, self.batches = recipe, 0

    def after_loss(self):
        by_hand = make_loss(self.recipe, counts)
        by_hand.reduction = 'none'
        mixer = next((cb for cb in self.learn.cbs if isinstance(cb, MixUp | CutMix)), None)
        loss = by_hand(self.pred, self.y)
        if mixer is not None:
            loss = torch.lerp(by_hand(self.pred, *mixer.yb1), loss, torch.Tensor(mixer.lam))
        assert torch.allclose(loss.mean(), self.learn.loss)
        self.batches += 1


@pytest.mark.parametrize('mixer', [None, MixUp, CutMix])
@pytest.mark.parametrize('loss, balance', [(loss, balance) for loss, balance in kinds if loss != 'seesaw'])
def test_mixup_and_cutmix_in_a_fit(loss, balance, mixer):
    recipe = Recipe(loss=loss, balance=balance, label_smoothing=0.05)
    learn = make(recipe, [mixer(1.0)] if mixer else [])
    before = learn.loss_func
    watch = CompareLosses(recipe)
    with learn.no_bar(), learn.no_logging():
        learn.fit(2, 1e-2, cbs=watch)
    assert watch.batches == 8 and learn.loss_func is before and before.training and before.reduction == 'mean'
    valid_loss = learn.recorder.values[-1][1]
    with learn.no_bar():
        probs, targets, losses = learn.get_preds(with_loss=True)
    assert torch.allclose(probs.sum(1), torch.ones(20))
    with torch.no_grad():
        logits = learn.model.eval()(torch.stack([torch.Tensor(x) for x, _ in learn.dls.valid.dataset]))
    expected = cross_entropy(logits, torch.Tensor(targets).long(), reduction='none')
    assert torch.allclose(torch.Tensor(losses), expected, atol=1e-6) and valid_loss == pytest.approx(
        float(expected.mean()), abs=1e-6
    )


class Stop(Callback):
    order = 20

    def __init__(self, where, error):
        self.where, self.error = where, error

    def before_batch(self):
        if self.training == (self.where == 'training') and self.iter == 0:
            raise self.error


@pytest.mark.parametrize('where', ['training', 'validation'])
@pytest.mark.parametrize('error', [CancelFitException(), KeyboardInterrupt()])
def test_a_fit_that_ends_early_leaves_the_loss_ready_for_the_next(where, error):
    recipe = Recipe(loss='logit-adjusted')
    learn = make(recipe)
    try:
        with learn.no_bar(), learn.no_logging():
            learn.fit(1, 1e-2, cbs=Stop(where, error))
    except KeyboardInterrupt:
        pass
    for cb in list(learn.cbs):
        if isinstance(cb, Stop):
            learn.remove_cb(cb)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-2, cbs=CompareLosses(recipe))
