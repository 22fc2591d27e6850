"A run with a time budget: it ends in time, its schedule is completed, and an interruption does not lengthen it"

import json
import time
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
from conftest import TickingClock, call_command, flags, tiny, wait_for

from fungi_fastai.core.errors import UserError
from fungi_fastai.training.recipe import Recipe, parse_duration

small = {name: value for name, value in tiny.items() if name != 'epochs'}


def call_with_ticking_clock(tick, *arguments):
    "The command, in a process of its own, with a ticking clock"
    from fungi_fastai.training import budget

    budget.clock = TickingClock(tick)
    call_command(*arguments)


@pytest.mark.parametrize(
    'text, seconds', {'300': 300, '5m': 300, '90s': 90, '1h30m': 5400, '2.5m': 150, '1 min': 60}.items()
)
def test_durations_as_people_write_them(text, seconds):
    assert parse_duration(text) == seconds
    assert Recipe().but(budget=text).budget == seconds


@pytest.mark.parametrize('text', ('5x', 'soon', '-1m', 'nan', 'inf', ''))
def test_not_a_duration(fungi, photos, tmp_path, text):
    fungi('train', 'flowers', '--source', photos, '--out', tmp_path / 'run', f'--budget={text}', code=2)
    assert not (tmp_path / 'run').exists()


def test_frozen_epochs_cannot_be_counted_on_a_budget():
    with pytest.raises(UserError, match='frozen_epochs'):
        Recipe(budget=60, frozen_epochs=1)


@pytest.fixture(scope='module')
def timed(ready, photos, tmp_path_factory):
    "A run of 12 seconds by a ticking clock, the clock, and the real seconds from the last epoch to the end"
    from fungi_fastai import train_flowers
    from fungi_fastai.training import budget

    clock = TickingClock(0.15)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget, 'clock', clock)
        run = train_flowers(photos, out=tmp_path_factory.mktemp('timed') / 'run', progress=False, budget=12, **small)
    return run, clock, time.time() - (run.folder / 'history.csv').stat().st_mtime


def test_the_time_is_used_and_the_budget_kept(timed):
    run, clock, seconds_after_training = timed
    reserve = json.loads((run.folder / 'plan.json').read_text())['reserve']
    assert 6 < clock.seconds <= 12
    assert 12 - reserve <= clock.seconds + 0.5, 'the training uses all that is not reserved'
    assert seconds_after_training < reserve + 13, seconds_after_training  # other tests use the machine too
    n_epochs = (run.history.phase == 'all layers').sum()
    assert n_epochs >= 2
    assert run.history.train_loss.dropna().size == n_epochs, 'the shortened epoch has a training loss too'


def test_the_schedule_is_completed_on_the_clock(timed):
    rates = timed[0].history.lr.dropna()
    assert rates.iat[-1] < 1e-3 * rates.max()
    assert np.argmax(rates) < len(rates) * 0.6, 'one-cycle rises in the first quarter'


def test_the_requested_and_the_planned_recipe(timed, fungi, photos):
    run = timed[0]
    assert run.requested_recipe.epochs == Recipe().epochs and run.recipe.budget == run.requested_recipe.budget == 12
    assert run.recipe.epochs > Recipe().epochs, 'tiny images are fast'
    same = ('train', 'flowers', '--source', photos, '--out', run.folder, '--budget', '12s', *flags(**small))
    before = run.folder.joinpath('metrics.json').stat().st_mtime_ns
    fungi(*same)
    fungi(*same, '--epochs', '7', code=2)
    fungi(*same[:-1], 'cuda', '--budget', '13', code=2)
    assert run.folder.joinpath('metrics.json').stat().st_mtime_ns == before
    assert '--budget 12' in run.report().read_text()


def a_machine(slower=1.0):
    "The speed of `tf_efficientnet_lite0` on one core, or of a core that is `slower` times as slow"
    from fungi_fastai.training.speed import Speed

    return Speed(0.006, 0.02, 0.08, 6.0, 224, last_inference=0.004, last_step=0.017).slower(slower)


def some_items(n):
    return pd.DataFrame(dict(split=['train'] * (7 * n // 10) + ['valid'] * (3 * n // 20) + ['test'] * (3 * n // 20)))


def test_too_little_for_an_epoch_leaves_the_probe():
    from fungi_fastai.training.budget import best_plan
    from fungi_fastai.training.speed import Speed

    slow = Speed(read=0.01, inference=0.1, train_step=100.0, report=5.0, size=224)
    plan = best_plan(Recipe(), some_items(100), slow, 60.0)
    assert plan.epochs == 0 and 'probe alone' in plan.reason
    assert best_plan(Recipe(pretrained=False), some_items(100), slow, 60.0).epochs == 1, 'no probe from scratch'


def test_what_takes_seconds_is_done_although_the_time_is_over():
    from fungi_fastai.training.budget import best_plan

    few, many = (best_plan(Recipe(), some_items(n), a_machine(), 0.0) for n in (200, 200_000))
    assert few.fraction == 1 and few.epochs == 0 and 'time is over' in few.reason
    assert 0.05 <= many.fraction < 0.1


@pytest.mark.parametrize('slower', (1, 2, 4, 8))
@pytest.mark.parametrize('seconds', (60, 120, 300, 1200))
def test_more_time_or_a_faster_machine_is_never_worse(seconds, slower):
    from fungi_fastai.training.budget import best_plan

    plan, longer, faster = (
        best_plan(Recipe(), some_items(800), a_machine(factor), time_left)
        for factor, time_left in ((slower, seconds), (slower, 2 * seconds), (slower / 2, seconds))
    )
    assert plan.score <= min(longer.score, faster.score) + 1e-9
    assert plan.fraction == 1 or longer.fraction > plan.fraction


def test_the_layers_that_train_are_planned_or_given():
    from fungi_fastai.training.budget import Plan, best_plan

    def planned(seconds=300, **changes):
        return best_plan(Recipe(**changes), some_items(800), a_machine(), seconds)

    assert planned(trainable='all').trainable == 'all' != planned(trainable='last').trainable
    assert {planned(mixup=0.2).trainable, planned(activation_views=0).trainable} == {'all'}
    plan = planned(trainable='last')
    assert 'last stages' in plan.reason and plan.epochs > planned(trainable='all', size=plan.size).epochs
    assert plan.apply(Recipe()).trainable == 'last'
    assert Plan.of(json.loads(json.dumps(asdict(plan)))) == replace(plan, networks=[])


def test_the_head_alone_gets_pixels_and_cheap_epochs():
    "A frozen backbone learns nothing from epochs at 64 pixels"
    from fungi_fastai.training.budget import best_plan

    def planned(**changes):
        plan = best_plan(Recipe(**changes), some_items(800), a_machine(), 300)
        return plan.size, plan.epochs

    assert planned(trainable='head') == (320, 0), 'its probe is the solution'
    assert planned(trainable='head', head_init='random') == (320, 50)
    size, epochs = planned(trainable='all', head_init='random')
    assert size >= 224 and 1 <= epochs < 10, 'a pretrained backbone, too'


def test_the_epochs_of_the_head_alone_end_before_the_clock(ready, photos, tmp_path, monkeypatch):
    from fungi_fastai import train_flowers
    from fungi_fastai.training import budget

    clock = TickingClock(0.01)
    start = clock()
    monkeypatch.setattr(budget, 'clock', clock)
    recipe = small | dict(
        arch='tf_efficientnet_lite0', pretrained=True, trainable='head', head_init='random', budget=600
    )
    run = train_flowers(photos, out=tmp_path / 'run', progress=False, **recipe)
    history = pd.read_csv(run.folder / 'history.csv')
    assert len(history) == 50 and clock() - start < 300
    rates = history.lr.to_numpy()
    assert rates[-1] < 0.01 * rates.max(), 'the schedule is complete'


def planned_again(monkeypatch, before, now, seconds=120.0, **changes):
    "The plan of a machine that is `before` times as slow, and the plan after it became `now` times as slow"
    from fungi_fastai.training import budget

    recipe, items = Recipe(budget=seconds, **changes), some_items(800)
    plan = budget.best_plan(recipe, items, a_machine(before), seconds)
    monkeypatch.setattr(budget, 'inference_seconds', lambda _: a_machine(now).at(plan.size).inference)
    return plan, budget.plan_again(plan, recipe, items, None, 0.9 * seconds)


def test_a_machine_that_grows_quiet_is_used(monkeypatch):
    busy, quiet = planned_again(monkeypatch, before=30, now=1)
    assert busy.epochs == 0 and busy.fraction < 1
    assert quiet.epochs >= 1 and quiet.fraction == 1 and quiet.size >= busy.size
    assert busy.reason in quiet.reason and 'Planned again' in quiet.reason
    busy, quiet = planned_again(monkeypatch, before=6, now=1)
    assert quiet.score > busy.score and quiet.size > busy.size


def test_a_machine_that_becomes_slow_gets_less_to_do(monkeypatch):
    quiet, busy = planned_again(monkeypatch, before=1, now=6)
    assert busy.size < quiet.size and busy.reserve < 60


def test_a_machine_that_stays_as_it_is_keeps_its_plan(monkeypatch):
    for changes in ({}, dict(size=160), dict(epochs=0), dict(trainable='all')):
        plan, again = planned_again(monkeypatch, before=1, now=1.05, **changes)
        assert again.apply(Recipe()) == plan.apply(Recipe()) and again.reason == plan.reason


@pytest.mark.parametrize('later, ends', ((1.0, 80), (3.0, 49), (0.5, 90)))
def test_the_training_ends_earlier_on_a_machine_that_slows_down(monkeypatch, later, ends):
    "Of 100 seconds 20 are reserved; after 40 seconds each batch takes `later` instead of 1 second"
    from types import SimpleNamespace

    from fungi_fastai.training import budget

    now = 0.0
    monkeypatch.setattr(budget, 'clock', lambda: now)
    plan = budget.Plan('', '', True, 0.01, 32, 1, 1.0, reserve=20.0, score=0.0, reason='')
    time_budget = budget.TimeBudget(0.0, 100.0, plan)
    time_budget.learn = SimpleNamespace(training=True)
    time_budget.before_fit()
    time_budget.before_train()
    progress = []
    while not time_budget.is_over:
        now += 1.0 if now < 40 else later
        time_budget.before_batch()
        progress.append(time_budget.learn.pct_train)
    assert progress == sorted(progress) and progress[-1] == 1
    assert now + 20 * later <= 110 and abs(now - ends) <= 1, now


@pytest.mark.slow
def test_a_killed_run_resumes_and_keeps_its_budget(started, photos, tmp_path):
    from fungi_fastai.runs.run import Run
    from fungi_fastai.training.checkpoints import read_state

    file, plan_file = tmp_path / 'run' / 'checkpoint' / 'state.safetensors', tmp_path / 'run' / 'plan.json'
    call = ('train', 'flowers', '--source', str(photos), '--budget', '20', *flags(**small), '--out', tmp_path / 'run')
    first = started(call_with_ticking_clock, 0.1, *call)
    wait_for(file.exists, first)
    first.kill()
    first.join()
    state, _ = read_state(file)
    assert 0 < state['seconds_used'] < 20 and 0 < state['fraction_done'] < 1
    n_epochs, plan = len(state['history']), plan_file.read_text()
    began = time.monotonic()
    last = started(call_with_ticking_clock, 0.1, *call)
    last.join()
    assert last.exitcode == 0, last.log.read_text()
    run = Run.load(tmp_path / 'run')
    assert time.monotonic() - began < 20 - state['seconds_used'] + 15, 'the second process has what the first left'
    assert state['seconds_used'] < run.metrics['seconds'] <= 20
    assert run.history.epoch.tolist() == list(range(1, len(run.history) + 1)) and len(run.history) > n_epochs
    assert run.history.lr.iat[-1] < 1e-3 * run.history.lr.max()
    assert plan.split('"ends"')[0] == plan_file.read_text().split('"ends"')[0], 'resumed, not planned again'


@pytest.mark.slow
def test_resume_uses_the_saved_plan(started, fungi, photos, tmp_path, monkeypatch):
    from fungi_fastai.training import budget

    file = tmp_path / 'run' / 'checkpoint' / 'state.safetensors'
    call = ('train', 'flowers', '--source', str(photos), '--budget', '15', *flags(**small), '--out', tmp_path / 'run')
    first = started(call_with_ticking_clock, 0.1, *call)
    wait_for(file.exists, first)
    first.kill()
    first.join()
    monkeypatch.setattr(budget, 'clock', TickingClock(0.1))
    fungi('train', '--resume', tmp_path / 'run')
    fungi('watch', tmp_path / 'run', '--once')


@pytest.mark.parametrize(
    'n, minutes, sizes', [(2845, 5, (96, 128)), (2845, 60, (256, 288, 320)), (550, 5, (288, 320)), (5120, 5, (64, 96))]
)
def test_pixels_or_epochs(n, minutes, sizes):
    "On a quiet core: with thousands of images, epochs at 96 or 128 pixels are worth more than many epochs at 64"
    from fungi_fastai.training.budget import best_plan
    from fungi_fastai.training.speed import Speed

    items = pd.DataFrame(dict(split=['train'] * n + ['valid'] * (n // 5) + ['test'] * (n // 5)))
    speed = Speed(2e-3, 1 / 66, 1 / 16.4, 6.0, 224, 1 / 169, 1 / 35.8)
    plan = best_plan(Recipe(arch='tf_efficientnet_lite0'), items, speed, 60 * minutes - 15)
    assert plan.size in sizes and plan.epochs > 3


def test_the_best_available_network(fungi, photos, tmp_path):
    "With weights for two networks, one of them is chosen, and the log says so"
    import timm
    from safetensors.torch import save_file

    from fungi_fastai.runs.run import Run

    (tmp_path / 'weights').mkdir()
    for arch in ('mobilenetv3_small_050', 'mobilenetv2_035'):
        save_file(timm.create_model(arch).state_dict(), tmp_path / 'weights' / f'{arch}.made_here.safetensors')
    same = (
        'train',
        'flowers',
        '--source',
        photos,
        '--out',
        tmp_path / 'run',
        '--arch',
        'auto',
        '--weights',
        tmp_path / 'weights',
        '--size',
        '32',
        '--epochs',
        '0',
        '--bs',
        '8',
    )
    log = fungi(*same).err
    run = Run.load(tmp_path / 'run')
    networks = json.loads((tmp_path / 'run' / 'plan.json').read_text())['networks']
    best = max(networks, key=lambda one: one['expected'])
    assert len(networks) >= 2 and 'mobilenetv2_035' in log
    assert f'{best["arch"]} has the highest expected accuracy of {len(networks)} networks' in log
    chosen = next(one for one in networks if one['arch'] == run.recipe.arch)
    below = best['expected'] - chosen['expected']
    assert below < (0.02 if '+' in best['arch'] else 0.01) and run.recipe.weights == chosen['weights']
    assert (chosen is best) != (f'{chosen["arch"]} is {100 * below:.1f} points below it' in log)
    assert run.requested_recipe.arch == 'auto' and run.recipe.size == 32 and run.recipe.epochs == 0
    fungi(*same)
    assert (
        'not a folder'
        in fungi(
            *same[:4],
            '--arch',
            'auto',
            '--out',
            tmp_path / 'other',
            '--weights',
            tmp_path / 'weights' / 'mobilenetv2_035.made_here.safetensors',
            code=2,
        ).err
    )
    assert not (tmp_path / 'other').exists()


def test_no_weights_available(fungi, photos, tmp_path, monkeypatch):
    from fungi_fastai.training import selection
    from fungi_fastai.training.fit import prepare_items
    from fungi_fastai.training.selection import make_plan, scratch_arch

    (tmp_path / 'weights').mkdir()
    recipe = Recipe(source=str(photos), group='', arch='auto', size=32, bs=8, epochs=1)
    with pytest.raises(UserError, match='holds no weights of a network'):
        make_plan(recipe.but(weights=str(tmp_path / 'weights')), prepare_items(recipe, progress=False))
    monkeypatch.setattr(selection, 'available_backbones', lambda _: {})
    plan = make_plan(recipe, prepare_items(recipe, progress=False))
    assert (plan.arch, plan.pretrained, plan.weights, plan.lr) == (scratch_arch, False, '', 1e-2)
    assert 'none are installed' in plan.reason and 'expect a low accuracy' in plan.reason
    assert make_plan(recipe.but(lr=0.003), prepare_items(recipe, progress=False)).lr == 0.003


@pytest.mark.filterwarnings('ignore::fungi_fastai.evaluation.calibration.CalibrationWarning')
def test_the_head_is_refit_where_that_validates_better(photos, ready, tmp_path):
    from fungi_fastai import train_flowers
    from fungi_fastai.evaluation.calibration import apply_temperature, fit_temperature
    from fungi_fastai.evaluation.metrics import Evaluation
    from fungi_fastai.training.checkpoints import read_saved_weights

    runs = {
        refit: train_flowers(
            photos, out=tmp_path / f'refit {refit}', progress=False, **tiny | dict(epochs=3, refit_head=refit)
        )
        for refit in (False, True)
    }
    validated = {refit: Evaluation.of(run.predictions[run.predictions.split == 'valid']) for refit, run in runs.items()}

    def loss(one):
        probs = apply_temperature(one.probs, fit_temperature(one.probs, one.targets))
        return -np.log(probs[np.arange(len(one.targets)), one.targets]).mean()

    losses = {refit: loss(one) for refit, one in validated.items()}
    weights = {refit: read_saved_weights(run.folder / 'model.safetensors')[0] for refit, run in runs.items()}
    equal = {name: bool((weights[False][name] == tensor).all()) for name, tensor in weights[True].items()}
    assert all(is_equal for name, is_equal in equal.items() if 'linear' not in name), 'the backbone stays as trained'
    assert not runs[False].metrics['head_refit']
    head_refit = runs[True].metrics['head_refit']
    assert head_refit == (not all(equal.values()))
    assert losses[True] < losses[False] + 0.005 if head_refit else losses[True] == losses[False]


def test_an_overconfident_head_is_kept_rather_than_one_without_information(photos, ready, monkeypatch):
    import torch

    from fungi_fastai.models.networks import backbone_and_head
    from fungi_fastai.training import refit
    from fungi_fastai.training.fit import make_learner
    from fungi_fastai.training.recipes import FLOWERS

    learn = make_learner(FLOWERS.but(source=photos, **tiny | dict(refit_head=True)), progress=False)
    head = backbone_and_head(learn.model)[1]
    refit.probe_head(learn)
    for weight in head.parameters():
        weight.data.mul_(100)
    overconfident = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    learn.history.rows = [dict(epoch=1, train_loss=1.0)]

    def zero_head(learn, **_):
        for weight in head.parameters():
            weight.data.zero_()

    monkeypatch.setattr(refit, 'probe_head', zero_head)
    refit.refit_head(learn)
    assert not learn.run_state.head_refit
    assert all(torch.equal(overconfident[name], tensor) for name, tensor in head.state_dict().items())


@pytest.mark.parametrize('changes', (dict(loss='focal'), dict(hidden=8), dict(head='fastai')))
def test_other_losses_and_heads_are_not_refit(photos, ready, tmp_path, changes):
    from fungi_fastai import train_flowers

    changes = tiny | dict(refit_head=True) | changes
    assert not train_flowers(photos, out=tmp_path / 'run', progress=False, **changes).metrics['head_refit']


def test_features_of_horizontal_flips(photos, ready):
    from PIL import Image, ImageOps

    from fungi_fastai.training.features import backbone_features, cached_features
    from fungi_fastai.training.fit import make_learner
    from fungi_fastai.training.recipes import FLOWERS

    learn = make_learner(FLOWERS.but(source=photos, **tiny, cache=False), progress=False)
    features, _ = cached_features(learn, flipped=True)
    rows = learn.run_state.items[learn.run_state.items.split == 'train']
    flipped = rows.assign(path=[ImageOps.mirror(Image.open(path)) for path in rows.path])
    assert np.allclose(features['flipped'][0], backbone_features(learn, flipped), atol=2e-2)
    assert not np.allclose(features['flipped'], features['train'], atol=2e-2)


@pytest.mark.parametrize('seconds, flipped', ((600, True), (0.01, False)))
def test_a_probe_uses_horizontal_flips_only_if_there_is_time(photos, small_run, tmp_path, seconds, flipped):
    from fungi_fastai.training.budget import Plan, TimeBudget
    from fungi_fastai.training.fit import fit, make_learner
    from fungi_fastai.training.recipes import FLOWERS

    weights = str(small_run.folder / 'model.safetensors')
    learn = make_learner(
        FLOWERS.but(source=photos, **tiny | dict(pretrained=True, weights=weights, epochs=0)), progress=False
    )
    plan = Plan(tiny['arch'], weights, True, 0.01, 32, 0, 1.0, reserve=0.0, score=0.0, reason='')
    fit(learn, tmp_path, time_budget=TimeBudget(time.monotonic(), seconds, plan))
    assert ('flipped' in learn.run_state.features) == flipped


def test_a_probe_that_was_faster_than_planned_is_followed_by_a_training(photos, small_run, tmp_path, monkeypatch):
    from fungi_fastai import train_flowers
    from fungi_fastai.runs import planned
    from fungi_fastai.training import budget

    monkeypatch.setattr(budget, 'clock', TickingClock(0.15))
    make_plan, plan_again, calls = planned.make_plan, planned.plan_again, []

    def pessimistic(*arguments):
        return replace(make_plan(*arguments), epochs=0)

    def first_time_as_before(plan, *arguments):
        calls.append(plan)
        return plan if len(calls) == 1 else plan_again(plan, *arguments)

    monkeypatch.setattr(planned, 'make_plan', pessimistic)
    monkeypatch.setattr(planned, 'plan_again', first_time_as_before)
    weights = str(small_run.folder / 'model.safetensors')
    options = {**small, 'pretrained': True, 'weights': weights}
    run = train_flowers(photos, out=tmp_path / 'run', progress=False, budget=20, **options)
    assert run.history.phase.iat[0] == 'probe' and run.history.train_loss.notna().any()
    assert run.history.epoch.tolist() == list(range(len(run.history)))
    assert run.recipe.epochs and json.loads((run.folder / 'plan.json').read_text())['epochs'] == run.recipe.epochs
    assert run.metrics['seconds'] <= 20.5


def test_a_fraction_of_the_horizontal_flips_keeps_its_classes(photos, ready):
    from fungi_fastai.training.features import cached_features, clear_features
    from fungi_fastai.training.fit import make_learner
    from fungi_fastai.training.recipes import FLOWERS

    learn = make_learner(FLOWERS.but(source=photos, **tiny, cache=False), progress=False)
    some, targets = cached_features(learn, flipped=0.5)
    training = learn.run_state.items[learn.run_state.items.split == 'train']
    half = training.sample(round(0.5 * len(training)), random_state=learn.run_state.recipe.seed)
    assert targets['flipped'].tolist() == half.label.map(learn.dls.vocab.o2i).tolist()
    assert len(some['flipped'][0]) == len(half)
    clear_features(learn)
    every, _ = cached_features(learn, flipped=1.0)
    indices = [training.index.get_loc(i) for i in half.index]
    assert np.allclose(some['flipped'][0], every['flipped'][0][indices], atol=1e-5)
