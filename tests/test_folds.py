"Cross-validation: every image is tested on once, no specimen is in two sets, and a killed one resumes its folds"

import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import tiny, wait_for

from fungi_fastai.core.errors import UserError
from fungi_fastai.data.splits import split_groups
from fungi_fastai.training.recipe import Recipe

pytestmark = pytest.mark.usefixtures('place', 'ready')
files = {
    'experiment.json',
    'items.parquet',
    'predictions.parquet',
    'folds.csv',
    'metrics.json',
    'folds.svg',
    'report.html',
}


@pytest.fixture(scope='session')
def recipe(photos):
    return Recipe(name='flowers', group=r'([^/]+)_[^_]+$', **tiny).but(source=photos)


@pytest.fixture(scope='session')
def grouped_folds(home, ready, recipe):
    "Three folds of `photos`, read-only"
    from fungi_fastai.studies.folds import cross_validate

    before = os.getcwd()
    os.chdir(home)
    try:
        return cross_validate(recipe, 3, home / 'grouped_folds', progress=False)
    finally:
        os.chdir(before)


def test_each_image_is_tested_on_once_by_a_network_that_has_not_seen_its_specimen(grouped_folds, photos):
    assert {f.name for f in grouped_folds.folder.iterdir()} == files | {'fold-1', 'fold-2', 'fold-3'}
    items = pd.read_parquet(grouped_folds.folder / 'items.parquet')
    predictions = grouped_folds.predictions
    assert sorted(predictions['path']) == sorted(items['path'][items.split != '']) and predictions['name'].is_unique
    for number, run in zip(grouped_folds.by_fold.fold, grouped_folds.runs, strict=True):
        used = run.items[run.items.split != '']
        assert set(used.split) == {'train', 'valid', 'test'} and len(used) == len(predictions)
        assert (used.groupby(split_groups(used).to_numpy()).split.nunique() == 1).all()
        assert (used.groupby('group').split.nunique() == 1).all()  # the specimens, without `split_groups`
        assert set(used['path'][used.split == 'test']) == set(predictions['path'][predictions.fold == number])
        assert set(used.label[used.split == 'train']) == set(used.label)
    assert grouped_folds.metrics['leaked'] == 0 and grouped_folds.metrics['n_specimens'] == 30


def test_its_numbers_are_those_of_its_predictions(grouped_folds):
    from sklearn.metrics import accuracy_score, f1_score

    metrics, predictions = grouped_folds.metrics, grouped_folds.predictions
    by_fold = pd.read_csv(grouped_folds.folder / 'folds.csv')
    for key, score in (
        ('accuracy', accuracy_score),
        ('macro_f1', lambda a, b: f1_score(a, b, average='macro', zero_division=0)),
    ):
        assert metrics[key] == pytest.approx(score(predictions.label, predictions.predicted))
        each = [score(rows.label, rows.predicted) for _, rows in predictions.groupby('fold')]
        assert by_fold[key].tolist() == pytest.approx(each)
        assert metrics[f'{key}_mean'] == pytest.approx(np.mean(each)) and metrics[f'{key}_sd'] == pytest.approx(
            np.std(each, ddof=1)
        )
    assert np.allclose(predictions[[f'p_{c}' for c in metrics['classes']]].sum(axis=1), 1, atol=1e-4)
    assert np.sum(metrics['confusion'], axis=0)[2] == len(predictions) == metrics['n_test']
    assert f'{metrics["accuracy"]:.3f}' in str(grouped_folds) and 'NAIVE' not in str(grouped_folds)


def test_naive_folds_leak_and_report_it(recipe, tmp_path):
    from fungi_fastai.studies.folds import CrossValidation, cross_validate

    naive = cross_validate(recipe, 2, tmp_path / 'naive', grouped=False, progress=False)
    leaks = []
    for run in naive.runs:  # counted again
        tested, made = (run.items[run.items.split.isin(parts)] for parts in (['test'], ['train', 'valid']))
        leaks.append((tested.group.isin(made.group) | tested.cluster.isin(set(made.cluster) - {''})).to_numpy())
    assert naive.metrics['leaked'] == pytest.approx(np.concatenate(leaks).mean()) and naive.metrics['leaked'] > 0.3
    assert (
        sorted(naive.predictions['path']) == sorted(naive.predictions['path'].unique()) and len(naive.predictions) == 60
    )
    for text in (
        str(CrossValidation(naive.folder)),
        *((naive.folder / f).read_text('utf8') for f in ('folds.csv', 'metrics.json', 'folds.svg')),
    ):
        assert 'NAIVE' in text
    page = (naive.folder / 'report.html').read_text('utf8')
    assert 'Do not report these scores' in page and all(f'href="fold-{n}/report.html"' in page for n in (1, 2))


def test_splits_are_those_of_train(recipe):
    from fungi_fastai.studies.folds import assign_splits
    from fungi_fastai.training.fit import prepare_items

    items = prepare_items(recipe, progress=False)
    for changes in (dict(seed=1), dict(seed=2, fraction=0.5), dict(test=0.4)):
        changed = recipe.but(**changes)
        expected = prepare_items(changed, progress=False)
        assert (assign_splits(items, changed).split == expected.split).all()


def test_a_fraction_takes_from_training_only(recipe, tmp_path):
    from fungi_fastai.studies.folds import assign_splits, fold_items

    items = fold_items(recipe, 3, progress=False)
    full, half = (assign_splits(items, recipe.but(fraction=fraction), items.fold == 0) for fraction in (1.0, 0.5))
    for name in ('valid', 'test'):
        assert ((full.split == name) == (half.split == name)).all()
    assert 0 < (half.split == 'train').sum() < (full.split == 'train').sum()


def test_more_folds_than_specimens(recipe, photos, tmp_path):
    from fungi_fastai.studies.folds import cross_validate

    with pytest.raises(
        UserError, match=r'7 folds need 7 specimens of each class.*\(6\).*at most 6 folds are possible.*--k 6'
    ):
        cross_validate(recipe, 7, tmp_path / 'out', progress=False)
    with pytest.raises(UserError, match='at least 2'):
        cross_validate(recipe, 1, tmp_path / 'out', progress=False)
    shutil.copytree(photos, tmp_path / 'few')
    label = sorted(p.parent for p in (tmp_path / 'few').rglob('*.jpg'))[0]
    for file in sorted(label.iterdir())[2:]:
        file.unlink()  # one specimen is left
    with pytest.raises(UserError, match=rf'{label.name} \(1\).*no folds are possible'):
        cross_validate(recipe.but(source=tmp_path / 'few'), 2, tmp_path / 'out', progress=False)
    assert not (tmp_path / 'out').exists()


def test_a_refused_folder_is_not_changed(grouped_folds, recipe, tmp_path):
    from fungi_fastai.studies.folds import CrossValidation, cross_validate

    before = {f.name: f.stat().st_mtime_ns for f in grouped_folds.folder.rglob('*')}
    for changes, match in (
        (dict(k=2), 'k is 2 now and 3 there'),
        (dict(grouped=False), 'grouped is False now'),
        (dict(recipe=recipe.but(lr=1.0)), 'lr is 1.0 now and 0.01 there.*--out'),
    ):
        with pytest.raises(UserError, match=match):
            cross_validate(**dict(recipe=recipe, k=3, out=grouped_folds.folder, progress=False) | changes)
    assert (
        cross_validate(recipe, 3, grouped_folds.folder, progress=False).metrics == grouped_folds.metrics
    )  # nothing is done again
    assert {f.name: f.stat().st_mtime_ns for f in grouped_folds.folder.rglob('*')} == before
    (tmp_path / 'thesis').mkdir()
    (tmp_path / 'thesis/chapter.txt').write_text('years of work')
    with pytest.raises(UserError, match='holds no experiment'):
        cross_validate(recipe, 3, tmp_path / 'thesis', progress=False)
    with pytest.raises(UserError, match='no finished cross-validation'):
        CrossValidation(tmp_path / 'thesis')
    with pytest.raises(UserError, match='There is no folder'):
        CrossValidation(tmp_path / 'gone')


def test_after_a_mistake_the_same_out_can_be_used(recipe, tmp_path):
    from fungi_fastai.studies.folds import cross_validate

    with pytest.raises(UserError):
        cross_validate(recipe.but(arch='resnet1815'), 2, tmp_path / 'out', progress=False)
    assert not (tmp_path / 'out').exists()
    assert cross_validate(recipe.but(epochs=0), 2, tmp_path / 'out', progress=False).metrics['n_test'] == 60


def test_progress_shows_the_training_and_the_time_left(recipe, tmp_path, capsys):
    from fungi_fastai.studies.folds import cross_validate

    cross_validate(recipe.but(epochs=0), 2, tmp_path / 'out')
    log = capsys.readouterr().err
    assert 'Training 1 of 2: fold-1\n' in log and 'Training 2 of 2: fold-2, about ' in log and ' left' in log
    cross_validate(recipe.but(epochs=0), 2, tmp_path / 'out')
    assert capsys.readouterr() == ('', '')


# --- killed and resumed


def _validate(recipe, out):
    from fungi_fastai.studies.folds import cross_validate

    cross_validate(recipe, 3, out)


@pytest.mark.slow
def test_a_killed_cross_validation_resumes_with_the_same_folds(started, recipe, photos, tmp_path, monkeypatch):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    from fungi_fastai.studies.folds import CrossValidation, cross_validate

    shutil.copytree(photos, tmp_path / 'photos')
    recipe = recipe.but(source=tmp_path / 'photos', epochs=6)
    one = started(_validate, recipe, tmp_path / 'run')
    wait_for((tmp_path / 'run/fold-2/checkpoint/state.safetensors').exists, one)  # during the second fold
    with pytest.raises(UserError, match='Another process'):
        cross_validate(recipe, 3, tmp_path / 'run', progress=False)
    one.kill()
    one.join()
    assert not (tmp_path / 'run/metrics.json').exists()
    first = {f.name: f.stat().st_mtime_ns for f in (tmp_path / 'run/fold-1').iterdir()}
    uninterrupted = started(_validate, recipe, tmp_path / 'uninterrupted')
    uninterrupted.join()
    assert uninterrupted.exitcode == 0, uninterrupted.log.read_text()
    label = next(p.parent for p in (tmp_path / 'photos').rglob('*.jpg'))
    shutil.copy(next(label.glob('*.jpg')), label / '999_0.jpg')  # one more file would give other folds
    other = started(_validate, recipe, tmp_path / 'run')
    other.join()
    log = other.log
    assert other.exitcode == 0, log.read_text()
    assert {f.name: f.stat().st_mtime_ns for f in (tmp_path / 'run/fold-1').iterdir()} == first  # not trained again
    resumed, complete = CrossValidation(tmp_path / 'run'), CrossValidation(tmp_path / 'uninterrupted')
    pd.testing.assert_frame_equal(resumed.predictions, complete.predictions)
    pd.testing.assert_frame_equal(resumed.by_fold.drop(columns='seconds'), complete.by_fold.drop(columns='seconds'))
    comparable = lambda metrics: json.dumps({k: v for k, v in metrics.items() if k not in ('by_fold', 'seconds')})
    assert comparable(resumed.metrics) == comparable(complete.metrics)
    assert (
        'fold-1' not in log.read_text().split('Training', 1)[1].splitlines()[0]
        and 'Training 2 of 3: fold-2, about' in log.read_text()
    )
