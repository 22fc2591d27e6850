"Schedules: a resumed training has the learning rates of an uninterrupted one, and errors are clear"

import shutil
import warnings

import numpy as np
import pytest
import torch
from torch import nn

with warnings.catch_warnings():  # fastai's own import warns with today's torch and pandas
    warnings.simplefilter('ignore')
    import fastai.callback.progress  # noqa: F401  (gives a Learner its `no_bar`)
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    from fastai.learner import Learner
    from fastai.losses import CrossEntropyLossFlat
    from fastai.optimizer import sgd_step

    from fungi_fastai.training.callbacks import EpochCallback, History, training_metrics
    from fungi_fastai.training.checkpoints import KeepBest, SaveState, read_state, restore_state
    from fungi_fastai.training.optimizers import StepOptimizer, make_optimizer
    from fungi_fastai.training.schedules import (
        lr_factor,
        make_scheduler,
        plateau_reductions,
        plot_schedule,
        plot_schedules,
    )
from fungi_fastai.core.errors import UserError
from fungi_fastai.training.recipe import Recipe, choices


def make(optimizer='adam', cbs=None):
    torch.manual_seed(0)
    x = torch.randn(80, 4)
    y = (x[:, 0] * x[:, 1] + torch.randn(80) > 0).long()
    rows = list(zip(x, y, strict=True))
    dls = DataLoaders(DataLoader(rows[:60], bs=10, shuffle=True), DataLoader(rows[60:], bs=20), device='cpu')
    dls.train.rng.seed(1)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    opt_func = make_optimizer(optimizer) if isinstance(optimizer, str) else optimizer
    return Learner(
        dls,
        model,
        CrossEntropyLossFlat(),
        opt_func,
        metrics=training_metrics(),
        cbs=[History()] if cbs is None else cbs,
        splitter=lambda m: [list(m[0].parameters()), list(m[2].parameters())],
    )


def fit(learn, recipe, epochs=6, learning_rates=(1e-3, 1e-2), start_epoch=0, cbs=()):
    with learn.no_bar(), learn.no_logging():
        learn.fit(epochs, cbs=[make_scheduler(recipe, list(learning_rates), epochs), *cbs], start_epoch=start_epoch)
    return learn


class KeepStates(EpochCallback):
    "A copy of each epoch's state"

    order = SaveState.order + 1

    def epoch_done(self):
        shutil.copy(self.save_state.file, self.save_state.file.with_suffix(f'.{self.epoch + 1}'))


@pytest.mark.parametrize('schedule', choices['schedule'])
def test_a_resumed_training_has_the_same_learning_rates_and_weights(schedule, tmp_path):
    recipe = Recipe(
        schedule=schedule, monitor='valid_loss', step_size=1, warmup=0.0 if schedule == 'one-cycle' else 0.2
    )
    keep = lambda name: [KeepBest(tmp_path / f'{name}.best'), SaveState(tmp_path / f'{name}.state')]
    through = fit(make(), recipe, cbs=[*keep('a'), KeepStates()])
    for done in (1, 4):
        state, tensors = read_state(tmp_path / f'a.{done}')
        resumed = make()
        cbs = keep(f'b{done}')
        restore_state(resumed, state, tensors)
        resumed.history.rows = state['history']
        fit(resumed, recipe, start_epoch=done, cbs=cbs)
        assert resumed.recorder.lrs == through.recorder.lrs[6 * done :]
        for name, values in resumed.recorder.hps.items():
            assert values == through.recorder.hps[name][6 * done :]
        for p, q in zip(through.model.parameters(), resumed.model.parameters(), strict=True):
            assert torch.equal(p, q)
    if schedule == 'plateau':
        assert len({row['lr'] for row in through.history.rows}) > 1, (
            'the learning rate was never reduced: the test proves nothing'
        )


def test_one_cycle_equals_fastais_bit_by_bit():
    ours, theirs = fit(make(), Recipe()), make()
    with theirs.no_bar(), theirs.no_logging():
        theirs.fit_one_cycle(6, [1e-3, 1e-2])
    assert ours.recorder.hps == theirs.recorder.hps
    for p, q in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        assert torch.equal(p, q)
    assert np.allclose(ours.recorder.lrs, 1e-2 * lr_factor(Recipe(), np.arange(36) / 36, 6), atol=1e-9)


@pytest.mark.parametrize('optimizer', choices['optimizer'])
def test_learning_rates_of_all_groups_and_momentum_in_one_cycle_only(optimizer):
    learn = fit(make(optimizer), Recipe(schedule='cosine', warmup=0.1), 2)
    moms = {hyper.get('mom') for hyper in learn.opt.hypers}
    assert learn.opt.hypers[1]['lr'] == pytest.approx(10 * learn.opt.hypers[0]['lr']) and list(learn.recorder.hps) == [
        'lr'
    ]
    assert learn.recorder.lrs[0] == 0
    assert moms == {make_optimizer(optimizer)(list(learn.model.parameters()), lr=1.0).hypers[0]['mom']}
    fit(learn, Recipe(), 2)
    assert set(learn.recorder.hps) == {'lr', 'mom'} and learn.opt.hypers[0]['mom'] != moms


def test_an_optimizer_without_momentum():
    plain = lambda params, lr: StepOptimizer(params, [sgd_step], lr=lr)
    learn = fit(make(plain), Recipe(), 1)
    assert list(learn.recorder.hps) == ['lr'] and 'mom' not in learn.opt.hypers[0]


def test_one_learning_rate_for_all_groups():
    learn = fit(make(), Recipe(), 1, learning_rates=[1e-2])
    assert learn.opt.hypers[0]['lr'] == learn.opt.hypers[1]['lr']


def test_plateau_counts_the_epochs_of_its_own_fit():
    recipe = Recipe(schedule='plateau', monitor='accuracy', step_size=1, gamma=0.1)
    learn = make()

    class ConstantAccuracy(EpochCallback):
        order = History.order + 1

        def epoch_done(self):
            self.history.rows[-1]['accuracy'] = 0.5

    for _ in range(2):  # the second starts at the full learning rate
        fit(learn, recipe, 3, cbs=[ConstantAccuracy()])
        assert [row['lr'] for row in learn.history.rows[-3:]] == pytest.approx([1e-2, 1e-2, 1e-3])
    learn.history.phase = 'head'  # as does another phase
    fit(learn, recipe, 2, cbs=[ConstantAccuracy()])
    assert learn.history.rows[-2]['lr'] == pytest.approx(1e-2)


def test_plateau_reductions():
    recipe = Recipe(step_size=2, monitor='macro_f1')
    assert [plateau_reductions(scores, recipe) for scores in ([], [0.1], [0.1, 0.1])] == [0, 0, 0]
    assert plateau_reductions([0.1, 0.2, 0.3, 0.2, 0.3], recipe) == 1
    assert plateau_reductions([0.3] + [0.1] * 5, recipe) == 2  # after the second and the fourth of the five
    assert (
        plateau_reductions([0.3] + [0.1] * 5, recipe.but(monitor='valid_loss')) == 2
    )  # 0.1 is better, then four without improvement
    assert plateau_reductions([0.3, 0.2, 0.2, 0.1, 0.1], recipe.but(monitor='valid_loss')) == 0


@pytest.mark.parametrize('schedule', choices['schedule'])
@pytest.mark.parametrize('warmup', [0.0, 0.15])
def test_every_schedule_stays_between_0_and_1(schedule, warmup):
    recipe = Recipe(schedule=schedule, warmup=warmup, cycles=7)
    for epochs in (1, 2, 49):
        values = lr_factor(recipe, np.linspace(0, 1, 500), epochs)
        assert (values >= 0).all() and values.max() <= 1 + 1e-12
        assert warmup or values.max() == pytest.approx(1, abs=0.01)
        assert isinstance(lr_factor(recipe, 0.5, epochs), float)


def test_steps_and_restarts_start_at_the_first_batch_despite_rounding():
    for epochs, batches in ((49, 3), (30, 11), (7, 130)):
        step = Recipe(schedule='step', step_size=1, gamma=0.9)
        cyclic = Recipe(schedule='cyclic', cycles=epochs, gamma=0.9, final_lr=1.0)
        for epoch in range(epochs):
            progress = epoch / epochs
            for _ in range(batches):
                factors = [lr_factor(recipe, min(progress, 1.0), epochs) for recipe in (step, cyclic)]
                assert factors[0] == factors[1] == pytest.approx(0.9**epoch)
                progress += 1.0 / (batches * epochs)  # as fastai sums it up


@pytest.mark.parametrize(
    'call, message',
    [
        (lambda: lr_factor(Recipe(), -0.1), '0 to 1'),
        (lambda: lr_factor(Recipe(), [0, 2]), '0 to 1'),
        (lambda: lr_factor(Recipe(), float('nan')), '0 to 1'),
        (lambda: make_scheduler(Recipe(), [1e-3], 0), '1 or more'),
        (lambda: make_scheduler(Recipe(), [], 3), 'learning rates are'),
        (lambda: make_scheduler(Recipe(), [float('nan')], 3), 'learning rates are'),
        (lambda: make_scheduler(Recipe(), [-1.0], 3), 'learning rates are'),
        (lambda: make_scheduler(Recipe(schedule='smooth', final_lr=0.0), [1e-3], 3), 'final_lr is 0'),
        (lambda: plot_schedules(['triangle']), 'triangle'),
        (lambda: plot_schedules([]), 'No schedule'),
        (lambda: plot_schedule(Recipe(), 0), '1 or more'),
        (lambda: fit(make(), Recipe(), learning_rates=[1e-3] * 3), '3 learning rates were given for 2 groups'),
        (lambda: fit(make(cbs=[]), Recipe(schedule='plateau')), 'reads the scores'),
    ],
)
def test_errors(call, message):
    with pytest.raises(UserError, match=message):
        call()
