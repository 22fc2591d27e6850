"Weight averaging over folds: the mean, the predictions of each fold, a kill in the middle, and a time budget"

import io
import json

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TickingClock, flags, tiny, wait_for

from fungi_fastai.core.errors import TrainingError
from fungi_fastai.runs.snapshot import is_training
from fungi_fastai.runs.watch import watch
from fungi_fastai.training.recipe import Recipe

pytestmark = pytest.mark.usefixtures('place', 'ready')


def saved_weights(folder):
    from fungi_fastai.training.checkpoints import read_saved_weights

    return read_saved_weights(folder / 'model.safetensors')[0]


@pytest.fixture(scope='module')
def begun(photos, ready, home, tmp_path_factory):
    "The recipe of this file: it starts from a network that was trained on the same images"
    from fungi_fastai import train_flowers

    run = train_flowers(
        photos, out=tmp_path_factory.mktemp('begun') / 'run', progress=False, **tiny | dict(epochs=4), test=0.0
    )
    return tiny | dict(
        pretrained=True,
        weights=str(run.folder / 'model.safetensors'),
        average_folds=3,
        epochs=2,
        group=r'([^/]+)_[^_]+$',
    )


@pytest.fixture(scope='module')
def averaged(photos, begun, tmp_path_factory):
    "A run of three folds, not to be changed"
    from fungi_fastai import train_flowers

    return train_flowers(photos, out=tmp_path_factory.mktemp('averaged') / 'run', progress=False, **begun)


def test_weights_are_the_mean_of_the_folds(averaged):
    whole, parts = saved_weights(averaged.folder), [saved_weights(averaged.folder / f'fold-{n}') for n in (1, 2, 3)]
    for name, one in whole.items():
        if one.is_floating_point():
            assert torch.allclose(one, torch.stack([part[name] for part in parts]).mean(0), atol=1e-7), name
    assert any(not torch.equal(parts[0][name], parts[1][name]) for name in whole)


def test_each_image_is_validated_by_the_network_that_has_not_seen_it(averaged):
    from fungi_fastai import Run

    items, predictions = averaged.items, averaged.predictions
    taken = items[items.split.isin(['train', 'valid'])]
    assert sorted(predictions.path[predictions.split == 'valid']) == sorted(taken['path'])
    assert set(predictions.path[predictions.split == 'test']) == set(items.path[items.split == 'test'])
    assert (taken[taken.group != ''].groupby('group').left_out.nunique() == 1).all(), 'a specimen is in one fold'
    by_path = predictions.set_index('path').filter(like='p_')
    for n in range(3):
        run = Run.load(averaged.folder / f'fold-{n + 1}')
        own = run.predictions[run.predictions.split == 'valid']
        assert set(own.path) == set(taken.path[taken.left_out == n])
        assert set(own.path).isdisjoint(run.items.path[run.items.split == 'train'])
        assert np.allclose(own.filter(like='p_'), by_path.loc[own.path])


def test_the_test_set_is_predicted_by_the_averaged_network(averaged):
    from fungi_fastai import Run

    held = averaged.items[averaged.items.split == 'test']
    saved = averaged.predictions.set_index('path').loc[held['path']].filter(like='p_')
    assert np.allclose(Run.load(averaged.folder).probabilities(held), saved, atol=1e-5)


def test_metrics_report_and_command(averaged, fungi):
    alone = [
        pd.read_parquet(averaged.folder / f'fold-{n}' / 'predictions.parquet').query('split == "test"')
        for n in (1, 2, 3)
    ]
    assert [one['accuracy'] for one in averaged.metrics['folds']] == pytest.approx(
        [(one.label == one.predicted).mean() for one in alone]
    )
    taken = averaged.items.split.isin(['train', 'valid']).sum()
    assert averaged.metrics['n_train'] == averaged.metrics['valid']['n_test'] == taken
    page = (averaged.folder / 'report.html').read_text('utf8')
    assert (
        'mean of 3 networks' in averaged.verdict
        and 'mean of 3 networks' in page
        and f'{taken} images in 3 folds' in page
    )
    assert averaged.history.epoch.tolist() == [0, 1, 2] and averaged.history.valid_loss.notna().all()
    assert not (averaged.folder / 'fold-1' / 'report.html').exists()
    command = json.loads((averaged.folder / 'fold-2' / 'environment.json').read_text())['command']
    assert (
        command.startswith('fungi train flowers') and command.endswith('# network 2') and '--average-folds 3' in command
    )
    shown = fungi('predict', averaged.folder, averaged.items.path.iloc[0]).out
    assert averaged.items.path.iloc[0] in shown


def test_it_is_exported_as_one_network(averaged, tmp_path):
    from fungi_fastai.deploy.predictor import Predictor

    bundle = averaged.export(tmp_path / 'bundle', images=64, progress=False)  # more than are tested on
    held = averaged.items[averaged.items.split == 'test']
    predicted = Predictor.load(bundle).predict(held['path'].tolist())
    assert [one.label for one in predicted] == averaged.predictions.set_index('path').predicted[held['path']].tolist()
    assert f'{averaged.metrics["n_train"]} images in 3 folds' in (bundle / 'README.md').read_text('utf8')


@pytest.mark.slow
def test_the_same_call_continues_after_a_kill(process, photos, begun, averaged, tmp_path):
    call = ('train', 'flowers', '--source', str(photos), *flags(**begun), '--out', tmp_path / 'run')
    for number, file in enumerate(
        ('metrics.json', 'checkpoint/state.safetensors')
    ):  # in the middle of each of two networks
        one = process(*call)
        wait_for((tmp_path / 'run' / f'fold-{number + 1}' / file).exists, one)
        one.kill()
        one.join()
        assert not (tmp_path / 'run' / 'metrics.json').exists()
    (tmp_path / 'run/.lock').unlink()  # the killed process left it; a fresh one counts as locked for three seconds
    last, log = process(*call), io.StringIO()
    wait_for(lambda: is_training(tmp_path / 'run'), last)
    assert watch(tmp_path / 'run', every=0.05, stream=log) == 0
    assert (
        'network 2 of 3' in log.getvalue()
        and 'network 3 of 3' in log.getvalue()
        and 'mean of 3 networks' in log.getvalue()
    )
    last.join()
    assert last.exitcode == 0, last.log.read_text()
    assert all(
        torch.equal(one, saved_weights(averaged.folder)[name]) for name, one in saved_weights(tmp_path / 'run').items()
    )


@pytest.mark.slow
def test_a_budget_is_for_all_of_them(photos, begun, tmp_path, monkeypatch):
    from fungi_fastai import Run, train_flowers
    from fungi_fastai.training import budget

    clock = TickingClock(0.15)
    monkeypatch.setattr(budget, 'clock', clock)
    run = train_flowers(photos, out=tmp_path / 'run', progress=False, budget=24, **begun)
    assert 12 < clock.seconds <= 24
    parts = [Run.load(run.folder / f'fold-{n}') for n in (1, 2, 3)]
    assert sum(part.metrics['seconds'] for part in parts) < 24
    assert len({part.recipe.size for part in parts}) == 1 and all(
        (part.history.phase == 'all layers').any() for part in parts
    )
    assert run.requested_recipe.budget == 24 and run.requested_recipe.average_folds == 3


@pytest.mark.slow
def test_two_processes_make_one_network_together(forked, fungi, photos, begun, tmp_path):
    from fungi_fastai import Run

    changes = flags(**begun | dict(average_folds=2, epochs=1))
    fungi('train', 'flowers', '--source', photos, *changes, '--out', tmp_path / 'run', '--processes', 2)
    run = Run.load(tmp_path / 'run')
    parts = [saved_weights(run.folder / f'fold-{n}') for n in (1, 2)]
    for name, one in saved_weights(run.folder).items():
        if one.is_floating_point():
            assert torch.allclose(one, (parts[0][name] + parts[1][name]) / 2, atol=1e-6), name
    held = run.items[run.items.split == 'test']
    assert np.allclose(
        run.probabilities(held), run.predictions.set_index('path').loc[held['path']].filter(like='p_'), atol=1e-5
    )


def test_weights_that_are_too_far_apart_are_refused(photos, begun, averaged, tmp_path):
    import shutil

    from safetensors.torch import save_file

    from fungi_fastai import train_flowers
    from fungi_fastai.training.checkpoints import read_saved_weights

    shutil.copytree(averaged.folder, tmp_path / 'run')
    (tmp_path / 'run' / 'metrics.json').unlink()
    for n in (1, 2):
        file = tmp_path / 'run' / f'fold-{n}' / 'model.safetensors'
        state, about = read_saved_weights(file)
        save_file({k: -3 * v if v.is_floating_point() else v for k, v in state.items()}, file, about)
    with pytest.raises(TrainingError, match='too far apart'):
        train_flowers(photos, out=tmp_path / 'run', progress=False, **begun)
    assert not (tmp_path / 'run' / 'metrics.json').exists() and (tmp_path / 'run' / 'fold-3' / 'metrics.json').exists()


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(average_folds=1), 'average_folds is 1'),
        (dict(average_folds=9), '9 folds need'),
        (dict(pretrained=False), 'From scratch'),
        (dict(average_folds=-2), 'average_folds is -2'),
    ],
)
def test_impossible_averaging_is_refused_at_once(fungi, photos, begun, tmp_path, changes, message):
    assert (
        message
        in fungi(
            'train', 'flowers', '--source', photos, *flags(**begun | changes), '--out', tmp_path / 'run', code=2
        ).err
    )
    assert not (tmp_path / 'run').exists()


def test_without_a_test_set_the_folds_are_evaluated(photos, begun, tmp_path):
    from fungi_fastai import train_flowers

    run = train_flowers(photos, out=tmp_path / 'run', progress=False, **begun | dict(epochs=0), test=0.0)
    assert run.metrics['evaluated_on'] == 'valid' and run.metrics['n_test'] == (run.items.split != '').sum()


def test_folds_are_a_field_like_others():
    assert Recipe().average_folds == 0 and Recipe().but(average_folds=5).differences(Recipe()) == dict(
        average_folds=(5, 0)
    )
