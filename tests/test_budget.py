"A run that is given minutes: it ends with them, its schedule is completed, and a kill does not lengthen them"

import time

import numpy as np
import pytest
from conftest import flags, tiny, wait_for

from fungi_fastai.core.errors import UserError
from fungi_fastai.training.recipe import Recipe, as_seconds

small = {k: v for k, v in tiny.items() if k != 'epochs'}


@pytest.mark.parametrize(
    'said, meant', {'300': 300, '5m': 300, '90s': 90, '1h30m': 5400, '2.5m': 150, '1 min': 60}.items()
)
def test_time_as_people_write_it(said, did_you_mean):
    assert as_seconds(said) == did_you_mean
    assert Recipe().but(budget=said).budget == did_you_mean


@pytest.mark.parametrize('said', ('5x', 'soon', '-1m', 'nan', 'inf', ''))
def test_no_span_of_time(fungi, photos, tmp_path, said):
    fungi('train', 'flowers', '--source', photos, '--out', tmp_path / 'run', f'--budget={said}', code=2)
    assert not (tmp_path / 'run').exists()


def test_head_epochs_cannot_be_counted_on_a_budget():
    with pytest.raises(UserError, match='frozen_epochs'):
        Recipe(budget=60, frozen_epochs=1)


@pytest.fixture(scope='module')
def timed(ready, photos, tmp_path_factory):
    "A run of 12 seconds, and how long it took"
    from fungi_fastai import train_flowers

    began = time.monotonic()
    run = train_flowers(photos, out=tmp_path_factory.mktemp('timed') / 'run', progress=False, budget=12, **small)
    return run, time.monotonic() - began


def test_the_time_is_used_and_kept(timed):
    run, seconds = timed
    assert 6 < seconds < 25, seconds  # of a machine that other tests work on too
    assert (run.history.phase == 'all layers').sum() >= 2
    assert run.history.train_loss.dropna().size == (run.history.phase == 'all layers').sum(), (
        'the epoch that was cut has a loss too'
    )


def test_the_schedule_is_completed_on_the_clock(timed):
    rates = timed[0].history.lr.dropna()
    assert rates.iat[-1] < 1e-3 * rates.max()
    assert np.argmax(rates) < len(rates) * 0.6, 'one-cycle rises in the first quarter'


def test_what_was_asked_and_what_was_planned(timed, fungi, photos):
    run, _ = timed
    assert run.asked.epochs == Recipe().epochs and run.recipe.budget == run.asked.budget == 12
    assert run.recipe.epochs > Recipe().epochs, 'tiny images are quick'
    same = ('train', 'flowers', '--source', photos, '--out', run.folder, '--budget', '12s', *flags(**small))
    before = run.folder.joinpath('metrics.json').stat().st_mtime_ns
    fungi(*same)
    fungi(*same, '--epochs', '7', code=2)
    fungi(*same[:-1], 'cuda', '--budget', '13', code=2)
    assert run.folder.joinpath('metrics.json').stat().st_mtime_ns == before
    assert '--budget 12' in run.report().read_text()


def test_too_little_for_an_epoch_leaves_the_probe(photos, ready, tmp_path):
    from fungi_fastai.training.budget import Speed, plan
    from fungi_fastai.training.fit import prepare_items

    items = prepare_items(Recipe(source=str(photos), group=''), progress=False)
    slow = Speed(read=0.01, look=0.1, learn=10.0, report=5.0, size=224)
    found = plan(Recipe(), items, slow, 60.0)
    assert found.epochs == 0 and 'probe alone' in found.why
    assert plan(Recipe(pretrained=False), items, slow, 60.0).epochs == 1, (
        'from scratch there is no probe to fall back upon'
    )


def test_killed_and_continued_it_keeps_its_budget(process, photos, tmp_path):
    from fungi_fastai.runs.run import Run
    from fungi_fastai.training.checkpoints import read_state

    state = tmp_path / 'run' / 'checkpoint' / 'state.safetensors'
    call = ('train', 'flowers', '--source', str(photos), '--budget', '20', *flags(**small), '--out', tmp_path / 'run')
    one = process(*call)
    wait_for(state.exists, one)
    one.kill()
    one.join()
    kept, _ = read_state(state)
    assert 0 < kept['used'] < 20 and 0 < kept['gone'] < 1
    done, plan = len(kept['history']), (tmp_path / 'run' / 'plan.json').read_text()
    began = time.monotonic()
    last = process(*call)
    last.join()
    assert last.exitcode == 0, last.log.read_text()
    run = Run.load(tmp_path / 'run')
    assert time.monotonic() - began < 20 - kept['used'] + 15, 'the second part has what the first left'
    assert run.history.epoch.tolist() == list(range(1, len(run.history) + 1)) and len(run.history) > done
    assert run.history.lr.iat[-1] < 1e-3 * run.history.lr.max()
    assert plan.split('"ends"')[0] == (tmp_path / 'run' / 'plan.json').read_text().split('"ends"')[0], (
        'continued, not planned again'
    )


def test_resume_takes_the_plan_that_was_made(process, fungi, photos, tmp_path):
    state = tmp_path / 'run' / 'checkpoint' / 'state.safetensors'
    one = process(
        'train', 'flowers', '--source', str(photos), '--budget', '15', *flags(**small), '--out', tmp_path / 'run'
    )
    wait_for(state.exists, one)
    one.kill()
    one.join()
    fungi('train', '--resume', tmp_path / 'run')
    fungi('watch', tmp_path / 'run', '--once')


def test_the_best_network_at_hand(fungi, photos, tmp_path):
    "Two networks with weights: the choice is one of them, and said; with none it begins from scratch"
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
    said = fungi(*same).err
    run = Run.load(tmp_path / 'run')
    assert f'{run.recipe.arch} of the 2 tried' in said and run.recipe.weights == str(
        tmp_path / 'weights' / f'{run.recipe.arch}.made_here.safetensors'
    )
    assert run.asked.arch == 'auto' and run.recipe.size == 32 and run.recipe.epochs == 0
    fungi(*same)
    assert (
        'not a folder'
        in fungi(
            *same[:-8],
            '--out',
            tmp_path / 'other',
            '--weights',
            tmp_path / 'weights' / 'mobilenetv2_035.made_here.safetensors',
            code=2,
        ).err
    )
    assert not (tmp_path / 'other').exists()


def test_nothing_at_hand(fungi, photos, tmp_path):
    from fungi_fastai.training.budget import from_scratch, make_plan
    from fungi_fastai.training.fit import prepare_items

    (tmp_path / 'weights').mkdir()
    recipe = Recipe(
        source=str(photos), group='', arch='auto', weights=str(tmp_path / 'weights'), size=32, bs=8, epochs=1
    )
    found = make_plan(recipe, prepare_items(recipe, progress=False))
    assert (found.arch, found.pretrained, found.weights, found.lr) == (
        from_scratch,
        False,
        '',
        1e-2,
    ) and 'from scratch' in found.why
    assert make_plan(recipe.but(lr=0.003), prepare_items(recipe, progress=False)).lr == 0.003


@pytest.mark.filterwarnings('ignore::fungi_fastai.evaluation.calibration.CalibrationWarning')
def test_the_head_is_refit_where_that_validates_better(photos, ready, tmp_path):
    from fungi_fastai import train_flowers
    from fungi_fastai.evaluation.calibration import apply_temperature, fit_temperature
    from fungi_fastai.evaluation.metrics import Evaluation
    from fungi_fastai.training.checkpoints import read_weights

    runs = {
        refit: train_flowers(
            photos, out=tmp_path / f'refit {refit}', progress=False, refit_head=refit, **tiny | dict(epochs=3)
        )
        for refit in (False, True)
    }
    validated = {refit: Evaluation.of(run.predictions[run.predictions.split == 'valid']) for refit, run in runs.items()}

    def loss(one):
        return -np.log(
            apply_temperature(one.probs, fit_temperature(one.probs, one.targets))[
                np.arange(len(one.targets)), one.targets
            ]
        ).mean()

    losses = {refit: loss(one) for refit, one in validated.items()}
    again, weights = (
        runs[True].metrics['head_refit'],
        {refit: read_weights(run.folder / 'model.safetensors')[0] for refit, run in runs.items()},
    )
    same = {k: bool((weights[False][k] == v).all()) for k, v in weights[True].items()}
    assert all(equal for k, equal in same.items() if 'linear' not in k), 'the backbone stays as it was trained'
    assert not runs[False].metrics['head_refit']
    assert again == (not all(same.values())) and (
        losses[True] < losses[False] + 0.005 if again else losses[True] == losses[False]
    )


def test_a_head_that_is_too_sure_of_itself_stays_before_one_that_says_nothing(photos, ready, monkeypatch):
    import torch

    from fungi_fastai.models.networks import backbone_head
    from fungi_fastai.training.recipes import FLOWERS
    from fungi_fastai.training import fit as fitting

    learn = fitting.make_learner(FLOWERS.but(source=photos, **tiny), progress=False)
    head = backbone_head(learn.model)[1]
    fitting.probe_head(learn)
    for one in head.parameters():
        one.data.mul_(100)
    sure = {k: v.clone() for k, v in head.state_dict().items()}
    learn.history.rows = [dict(epoch=1, train_loss=1.0)]

    def silent(learn, **_):
        for one in head.parameters():
            one.data.zero_()

    monkeypatch.setattr(fitting, 'probe_head', silent)
    fitting._finish(learn)
    assert not learn.head_refit and all(torch.equal(sure[k], v) for k, v in head.state_dict().items())


@pytest.mark.parametrize('changes', (dict(loss='focal'), dict(hidden=8), dict(head='fastai')))
def test_a_head_with_an_aim_of_its_own_stays(photos, ready, tmp_path, changes):
    from fungi_fastai import train_flowers

    assert not train_flowers(photos, out=tmp_path / 'run', progress=False, **tiny | changes).metrics['head_refit']


def test_mirror_images_are_what_the_body_sees_in_them(photos, ready):
    from PIL import Image, ImageOps

    from fungi_fastai.training.recipes import FLOWERS
    from fungi_fastai.training.fit import make_learner
    from fungi_fastai.training.features import backbone_features, known_features

    learn = make_learner(FLOWERS.but(source=photos, **tiny, cache=False), progress=False)
    seen, _ = known_features(learn, flipped=True)
    rows = learn.items[learn.items.split == 'train']
    few = rows.assign(path=[ImageOps.mirror(Image.open(path)) for path in rows.path])
    assert np.allclose(seen['mirrored'][0], backbone_features(learn, few), atol=2e-2) and not np.allclose(
        seen['mirrored'], seen['train'], atol=2e-2
    )


@pytest.mark.parametrize('seconds, mirrored', ((600, 1.0), (0.01, 0.0)))
def test_a_probe_sees_mirror_images_only_where_there_is_time(photos, small_run, tmp_path, seconds, flipped):
    from fungi_fastai.training.recipes import FLOWERS
    from fungi_fastai.training.budget import OnTime, Plan
    from fungi_fastai.training.fit import fit, make_learner

    weights = str(small_run.folder / 'model.safetensors')
    learn = make_learner(
        FLOWERS.but(source=photos, **tiny | dict(pretrained=True, weights=weights, epochs=0)), progress=False
    )
    plan = Plan(tiny['arch'], weights, True, 0.01, 32, 0, 1.0, 0.0, 0.0, '')
    fit(learn, tmp_path, on_time=OnTime(time.monotonic(), seconds, plan))
    assert ('mirrored' in learn.seen_by_backbone) == bool(flipped)


def test_a_part_of_the_mirror_images_goes_with_its_classes(photos, ready):
    from fungi_fastai.training.recipes import FLOWERS
    from fungi_fastai.training.fit import make_learner
    from fungi_fastai.training.features import forget_features, known_features

    learn = make_learner(FLOWERS.but(source=photos, **tiny, cache=False), progress=False)
    some, codes = known_features(learn, flipped=0.5)
    trained = learn.items[learn.items.split == 'train']
    part = trained.sample(round(0.5 * len(trained)), random_state=learn.recipe.seed)
    assert codes['mirrored'].tolist() == part.label.map(learn.dls.vocab.o2i).tolist() and len(
        some['mirrored'][0]
    ) == len(part)
    forget_features(learn)
    every, _ = known_features(learn, flipped=1.0)
    assert np.allclose(
        some['mirrored'][0], every['mirrored'][0][[trained.index.get_loc(i) for i in part.index]], atol=1e-5
    )
