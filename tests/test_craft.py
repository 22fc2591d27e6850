"Gradient accumulation, EMA, MixUp, CutMix and balanced classes, where they could fail silently"

import itertools
import random
import warnings

import numpy as np
import pytest
import torch
from conftest import tiny
from torch import nn

with warnings.catch_warnings():  # fastai's own import warns with today's torch and pandas
    warnings.simplefilter('ignore')
    import fastai.callback.progress  # noqa: F401  (gives a Learner its `no_bar`)
    from fastai.callback.core import Callback
    from fastai.callback.training import GradientAccumulation
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    from fastai.learner import Learner
    from fastai.optimizer import SGD, Adam

    from fungi_fastai.data.loaders import balanced_order
    from fungi_fastai.data.splits import split_groups
    from fungi_fastai.training.accumulation import Accumulate
    from fungi_fastai.training.checkpoints import read_saved_weights
    from fungi_fastai.training.fit import make_learner, prepare_items
    from fungi_fastai.training.precision import Precision
    from fungi_fastai.training.recipe import Recipe
    from fungi_fastai.training.regularization import EMACallback

pytestmark = pytest.mark.usefixtures('place', 'ready')


# --- accumulation


class Watched(Callback):
    "Weights before the first step and after each step, and the displayed losses"

    def before_fit(self):
        self.weights, self.losses = [self.now()], []

    def now(self):
        return torch.cat([p.detach().flatten().clone() for p in self.model.parameters()])

    def after_step(self):
        self.weights.append(self.now())

    def after_batch(self):
        if self.training:
            self.losses.append(self.learn.loss.item())


def trained(bs, *cbs, n=12, epochs=1, precision='fp32', opt_func=SGD, lr=0.5):
    "A small network without BatchNorm after `n` images in a fixed order; it learns fast, so that a wrong step shows"
    torch.manual_seed(0)
    images, classes = torch.randn(n, 3, 8, 8), torch.arange(n) % 3
    loader = DataLoader(list(zip(images, classes, strict=True)), bs=bs, device='cpu')
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 3))
    learn = Learner(
        DataLoaders(loader, loader),
        model,
        nn.CrossEntropyLoss(),
        opt_func=opt_func,
        lr=lr,
        cbs=[Precision(precision), *cbs, watched := Watched()],
    )
    with learn.no_bar(), learn.no_logging():
        learn.fit(epochs)
    return watched


def difference(a, b):
    return float((a - b).abs().max())


@pytest.mark.parametrize(
    'n', [12, 13, 10, 7]
)  # complete, one image too many, an incomplete step, an incomplete batch in it
@pytest.mark.parametrize('steps', [2, 3])
def test_accumulation_equals_the_large_batch(n, steps):
    ours, large = trained(2, Accumulate(steps), n=n, epochs=2), trained(2 * steps, n=n, epochs=2)
    assert len(ours.weights) == len(large.weights)
    assert max(difference(a, b) for a, b in zip(ours.weights, large.weights, strict=True)) < 1e-5
    assert difference(large.weights[0], large.weights[-1]) > 1e-2


@pytest.mark.parametrize('clip', [0.01, 0.3])
def test_the_norm_is_clipped_once_a_step(clip):
    ours, large = trained(3, Accumulate(2, clip)), trained(6, Accumulate(1, clip))
    assert max(difference(a, b) for a, b in zip(ours.weights, large.weights, strict=True)) < 1e-5
    moved = [float((b - a).norm()) for a, b in itertools.pairwise(large.weights)]
    assert all(m <= 0.5 * clip * 1.001 for m in moved) and max(moved) == pytest.approx(0.5 * clip, rel=1e-3)


def test_accumulation_in_bfloat16():
    ours, large, exact = trained(3, Accumulate(4), precision='bf16'), trained(12, precision='bf16'), trained(12)
    assert difference(ours.weights[-1], large.weights[-1]) < 0.1 * difference(exact.weights[0], exact.weights[-1])


def test_the_displayed_loss_is_that_of_each_batch():
    assert trained(3, Accumulate(4), lr=0.0).losses == pytest.approx(trained(3, lr=0.0).losses)


@pytest.mark.parametrize(
    'n, bs, images',
    [
        (7, 2, 4),  # the remaining images are never applied, or carried into the next epoch
        (6, 3, 4),  # counts images: 4 are reached only with the second batch, and a mean of 3 is divided by 4/3
        (9, 4, 8),  # the smaller last batch
    ],
)
def test_where_fastais_accumulation_differs_from_the_large_batch(n, bs, images):
    steps = -(-images // bs)
    large = trained(bs * steps, n=n, epochs=2)
    assert difference(trained(bs, GradientAccumulation(images), n=n, epochs=2).weights[-1], large.weights[-1]) > 1e-3
    assert difference(trained(bs, Accumulate(steps), n=n, epochs=2).weights[-1], large.weights[-1]) < 1e-5


# --- EMA of the weights


def test_the_average_is_validated_and_the_trained_weights_continue():
    ema, records = EMACallback(0.9), []

    class Record(Callback):
        order = EMACallback.order + 1

        def before_validate(self):
            records.append((self.model[0].weight.detach().clone(), ema.trained['0.weight']))

        def after_epoch(self):
            records.append((self.model[0].weight.detach().clone(), None))

    trained(3, ema, Record(), epochs=2, opt_func=Adam, lr=1e-2)
    for (validated, current), (after, _) in zip(records[::2], records[1::2], strict=True):
        assert difference(validated, current) > 1e-4 and torch.equal(after, current)
    plain = trained(3, epochs=2, opt_func=Adam, lr=1e-2)
    assert torch.equal(plain.weights[-1][:216].view(8, 3, 3, 3), records[-1][0])  # training itself is unchanged
    expected = plain.weights[0][:216]
    for t, weights in enumerate(plain.weights[1:], 1):
        decay = min(0.9, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * weights[:216]
    assert difference(expected.view(8, 3, 3, 3), ema.average['0.weight']) < 1e-6


def test_a_run_saves_the_average(photos, tmp_path):
    from fungi_fastai import train_flowers

    changes = tiny | dict(epochs=2)
    one, other = (
        train_flowers(photos, out=tmp_path / name, progress=False, ema=ema, **changes)
        for name, ema in (('a', 0.0), ('b', 0.9))
    )
    a, b = (read_saved_weights(r.folder / 'model.safetensors')[0] for r in (one, other))
    assert a.keys() == b.keys() and any(difference(a[k].float(), b[k].float()) > 1e-4 for k in a)
    # the saved weights are those that were validated
    assert other.metrics['valid']['accuracy'] == pytest.approx(
        other.history.accuracy[other.history.accuracy.idxmax()], abs=0.2
    )


# --- MixUp and CutMix


@pytest.mark.parametrize(
    'changes', [dict(mixup=0.4), dict(cutmix=1.0), dict(mixup=0.4, cutmix=1.0, label_smoothing=0.1, balance='loss')]
)
def test_a_run_with_mixup_and_cutmix(photos, tmp_path, changes):
    from fungi_fastai import train_flowers

    run = train_flowers(photos, out=tmp_path / 'run', progress=False, **tiny | dict(epochs=2), **changes)
    plain = train_flowers(photos, out=tmp_path / 'plain', progress=False, **tiny | dict(epochs=2))
    assert np.isfinite(run.history.train_loss).all() and not np.allclose(
        run.history.train_loss, plain.history.train_loss
    )


# --- balance


def uneven(photos, **changes):
    "A learner of a data set whose classes have 12, 12, 12, 4 and 4 images"
    recipe = Recipe(source=str(photos), group=r'(\d+)_\d', **tiny | dict(bs=4) | changes)
    items = prepare_items(recipe, progress=False)
    few = items[items.label.isin(['roses', 'tulips']) & (items.split == 'train')]
    dropped = few[~few.index.isin(few.groupby('label').head(2).index)]
    items.loc[dropped.index, 'split'] = ''
    return make_learner(recipe, items, progress=False)


@pytest.mark.parametrize('how', ['oversample', 'weighted'])
def test_classes_are_drawn_in_balance_and_no_validation_duplicate_is_trained_on(photos, how):
    learn = uneven(photos, balance=how)
    opener = next(t for t in learn.dls.train_ds.tls[0].tfms.fs if hasattr(t, 'read'))
    read, drawn = opener.read, []
    opener.read = lambda source: drawn.append(source) or read(source)
    codes = torch.cat([y for _ in range(6) for _, y in learn.dls.train])
    fractions = np.bincount(codes) / len(codes)
    assert abs(fractions - 0.2).max() < (0.03 if how == 'oversample' else 0.1), fractions
    rows = learn.run_state.items.assign(split_group=split_groups(learn.run_state.items)).set_index('path')
    assert drawn and set(drawn) <= set(rows.index[rows.split == 'train'])
    held_out = rows[rows.split.isin(['valid', 'test'])]
    assert (
        len(held_out)
        and not set(held_out.split_group) & set(rows.split_group[drawn])
        and not set(held_out.sha) & set(rows.sha[drawn])
    )
    n_images = sum(len(x) for x, _ in learn.dls.train)
    assert n_images == len(learn.dls.train) * learn.dls.train.bs
    assert (
        len(learn.dls.train.new(shuffle=False, drop_last=False).get_idxs())
        == (learn.run_state.items.split == 'train').sum()
    )  # for predictions


def test_balanced_on_features_too(photos):
    from fungi_fastai.training.features import on_features

    learn = uneven(photos, balance='oversample')
    with on_features(learn):
        codes = torch.cat([y for _ in range(4) for _, y in learn.dls.train])
    assert abs(np.bincount(codes) / len(codes) - 0.2).max() < 0.05


def test_balanced_orders_of_random_classes():
    for seed in range(50):
        rng = random.Random(seed)
        codes = np.array([rng.randrange(rng.randint(1, 6)) for _ in range(rng.randint(1, 60))])
        counts, order = np.bincount(codes), balanced_order(codes, 'oversample', rng)
        assert set(order) == set(range(len(codes)))
        assert (np.bincount(codes[order])[counts > 0] == counts.max()).all()
        times = np.bincount(order, minlength=len(codes))
        assert all(np.ptp(times[codes == c]) <= 1 for c in np.flatnonzero(counts))
        drawn = balanced_order(codes, 'weighted', rng)
        assert len(drawn) == len(codes) and set(drawn) <= set(range(len(codes)))


# --- everything together, killed and resumed

everything = dict(
    epochs=6,
    frozen_epochs=2,
    optimizer='lamb',
    schedule='plateau',
    step_size=1,
    warmup=0.2,
    accumulate=2,
    clip=1.0,
    ema=0.9,
    mixup=0.3,
    cutmix=1.0,
    balance='oversample',
    loss='focal',
    layer_decay=0.7,
    bs=4,
)


@pytest.mark.parametrize('epochs', [1, 2, 4])
def test_resumed_with_everything_in_use(photos, tmp_path, epochs):
    "Stopped after an epoch, as if killed, and resumed by another Learner: bitwise the weights of the uninterrupted run"
    from fungi_fastai.runs.train import train

    recipe = Recipe(name='flowers', source=str(photos), **tiny | everything)
    uninterrupted = train(recipe, tmp_path / 'uninterrupted', progress=False)

    class Kill(Callback):
        order = 1000

        def after_epoch(self):
            if len(self.history.rows) == epochs:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / 'cut', progress=False, cbs=[Kill()])
    cut = train(recipe, tmp_path / 'cut', progress=False)
    a, b = (read_saved_weights(r.folder / 'model.safetensors')[0] for r in (uninterrupted, cut))
    assert all(torch.equal(a[k], b[k]) for k in a)
    columns = ['epoch', 'phase', 'train_loss', 'valid_loss', 'accuracy', 'macro_f1', 'lr']
    assert uninterrupted.history[columns].equals(cut.history[columns])
