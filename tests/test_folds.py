"Cross-validation: every image tested on once, nothing shared between the sides, and a killed one goes on with the same folds"

import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import tiny, wait_for

from fungi_fastai.data.splits import split_groups
from fungi_fastai.core.errors import UserError
from fungi_fastai.training.recipe import Recipe

pytestmark = pytest.mark.usefixtures('place', 'ready')
files = {'experiment.json', 'items.parquet', 'predictions.parquet', 'folds.csv', 'metrics.json', 'folds.svg'}


@pytest.fixture(scope='session')
def recipe(photos):
    return Recipe(name='flowers', group=r'([^/]+)_[^_]+$', **tiny).but(source=photos)


@pytest.fixture(scope='session')
def honest(home, ready, recipe):
    "Three folds of `photos`, not to be changed"
    from fungi_fastai.studies.folds import cross_validate

    before = os.getcwd()
    os.chdir(home)
    try:
        return cross_validate(recipe, 3, home / 'honest', progress=False)
    finally:
        os.chdir(before)


def test_each_picture_is_tested_on_once_by_a_network_that_has_not_seen_its_specimen(honest, photos):
    assert {f.name for f in honest.folder.iterdir()} == files | {'fold-1', 'fold-2', 'fold-3'}
    items, said = pd.read_parquet(honest.folder / 'items.parquet'), honest.predictions
    assert sorted(said['path']) == sorted(items['path'][items.split != '']) and said['name'].is_unique
    for number, run in zip(honest.folds.fold, honest.runs, strict=True):
        used = run.items[run.items.split != '']
        assert set(used.split) == {'train', 'valid', 'test'} and len(used) == len(said)
        assert (used.groupby(split_groups(used).to_numpy()).split.nunique() == 1).all()
        assert (used.groupby('group').split.nunique() == 1).all()  # the specimens, without `split_groups`
        assert set(used['path'][used.split == 'test']) == set(said['path'][said.fold == number])
        assert set(used.label[used.split == 'train']) == set(used.label)
    assert honest.metrics['leaked'] == 0 and honest.metrics['n_specimens'] == 30


def test_its_numbers_are_those_of_its_predictions(honest):
    from sklearn.metrics import accuracy_score, f1_score

    found, said = honest.metrics, honest.predictions
    by_fold = pd.read_csv(honest.folder / 'folds.csv')
    for key, score in (
        ('accuracy', accuracy_score),
        ('macro_f1', lambda a, b: f1_score(a, b, average='macro', zero_division=0)),
    ):
        assert found[key] == pytest.approx(score(said.label, said.predicted))
        each = [score(rows.label, rows.predicted) for _, rows in said.groupby('fold')]
        assert by_fold[key].tolist() == pytest.approx(each)
        assert found[f'{key}_mean'] == pytest.approx(np.mean(each)) and found[f'{key}_sd'] == pytest.approx(
            np.std(each, ddof=1)
        )
    assert np.allclose(said[[f'p_{c}' for c in found['classes']]].sum(axis=1), 1, atol=1e-4)
    assert np.sum(found['confusion']) == len(said) == found['n_test']
    assert f'{found["accuracy"]:.3f}' in str(honest) and 'NAIVE' not in str(honest)


def test_naive_folds_leak_and_say_so(recipe, tmp_path):
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


def test_divided_as_train_divides(recipe):
    from fungi_fastai.studies.folds import divide
    from fungi_fastai.training.fit import prepare_items

    items = prepare_items(recipe, progress=False)
    for changes in (dict(seed=1), dict(seed=2, fraction=0.5), dict(test=0.4)):
        mine, theirs = divide(items, recipe.but(**changes)), prepare_items(recipe.but(**changes), progress=False)
        assert (mine.split == theirs.split).all()


def test_a_fraction_takes_from_training_only(recipe, tmp_path):
    from fungi_fastai.studies.folds import divide, fold_items

    items = fold_items(recipe, 3, progress=False)
    whole, part = (divide(items, recipe.but(fraction=fraction), items.fold == 0) for fraction in (1.0, 0.5))
    for held in ('valid', 'test'):
        assert ((whole.split == held) == (part.split == held)).all()
    assert 0 < (part.split == 'train').sum() < (whole.split == 'train').sum()


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


def test_what_is_refused_is_left_alone(honest, recipe, tmp_path):
    from fungi_fastai.studies.folds import CrossValidation, cross_validate

    before = {f.name: f.stat().st_mtime_ns for f in honest.folder.rglob('*')}
    for changes, match in (
        (dict(k=2), 'k is 2 now and 3 there'),
        (dict(grouped=False), 'grouped is False now'),
        (dict(recipe=recipe.but(lr=1.0)), 'lr is 1.0 now and 0.01 there.*--out'),
    ):
        with pytest.raises(UserError, match=match):
            cross_validate(**dict(recipe=recipe, k=3, out=honest.folder, progress=False) | changes)
    assert cross_validate(recipe, 3, honest.folder, progress=False).metrics == honest.metrics  # nothing is done again
    assert {f.name: f.stat().st_mtime_ns for f in honest.folder.rglob('*')} == before
    (tmp_path / 'thesis').mkdir()
    (tmp_path / 'thesis/chapter.txt').write_text('years of work')
    with pytest.raises(UserError, match='is no experiment'):
        cross_validate(recipe, 3, tmp_path / 'thesis', progress=False)
    with pytest.raises(UserError, match='no finished cross-validation'):
        CrossValidation(tmp_path / 'thesis')
    with pytest.raises(UserError, match='There is no folder'):
        CrossValidation(tmp_path / 'gone')


def test_a_mistake_can_be_mended_with_the_same_out(recipe, tmp_path):
    from fungi_fastai.studies.folds import cross_validate

    with pytest.raises(UserError):
        cross_validate(recipe.but(arch='resnet1815'), 2, tmp_path / 'out', progress=False)
    assert not (tmp_path / 'out').exists()
    assert cross_validate(recipe.but(epochs=0), 2, tmp_path / 'out', progress=False).metrics['n_test'] == 60


def test_it_says_which_training_it_is_and_how_long_they_take(recipe, tmp_path, capsys):
    from fungi_fastai.studies.folds import cross_validate

    cross_validate(recipe.but(epochs=0), 2, tmp_path / 'out')
    said = capsys.readouterr().err
    assert 'Training 1 of 2: fold-1\n' in said and 'Training 2 of 2: fold-2, about ' in said and ' left' in said
    cross_validate(recipe.but(epochs=0), 2, tmp_path / 'out')
    assert capsys.readouterr() == ('', '')


# --- killed, and continued


def _validate(recipe, out):
    from fungi_fastai.studies.folds import cross_validate

    cross_validate(recipe, 3, out)


def test_killed_and_continued_with_the_same_folds(started, recipe, photos, tmp_path, monkeypatch):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    from fungi_fastai.studies.folds import CrossValidation, cross_validate

    shutil.copytree(photos, tmp_path / 'photos')
    recipe = recipe.but(source=tmp_path / 'photos', epochs=6)
    one = started(_validate, recipe, tmp_path / 'run')
    wait_for((tmp_path / 'run/fold-2/checkpoint/state.safetensors').exists, one)  # in the midst of the second fold
    with pytest.raises(UserError, match='Another process'):
        cross_validate(recipe, 3, tmp_path / 'run', progress=False)
    one.kill()
    one.join()
    assert not (tmp_path / 'run/metrics.json').exists()
    first = {f.name: f.stat().st_mtime_ns for f in (tmp_path / 'run/fold-1').iterdir()}
    whole = started(_validate, recipe, tmp_path / 'whole')
    whole.join()
    assert whole.exitcode == 0, whole.log.read_text()
    label = next(p.parent for p in (tmp_path / 'photos').rglob('*.jpg'))
    shutil.copy(next(label.glob('*.jpg')), label / '999_0.jpg')  # a file more would give other folds
    other = started(_validate, recipe, tmp_path / 'run')
    other.join()
    log = other.log
    assert other.exitcode == 0, log.read_text()
    assert {f.name: f.stat().st_mtime_ns for f in (tmp_path / 'run/fold-1').iterdir()} == first  # not trained again
    run, whole = CrossValidation(tmp_path / 'run'), CrossValidation(tmp_path / 'whole')
    pd.testing.assert_frame_equal(run.predictions, whole.predictions)
    pd.testing.assert_frame_equal(run.folds.drop(columns='seconds'), whole.folds.drop(columns='seconds'))
    plain = lambda found: json.dumps({k: v for k, v in found.items() if k != 'by_fold'})
    assert plain(run.metrics) == plain(whole.metrics)
    assert (
        'fold-1' not in log.read_text().split('Training', 1)[1].splitlines()[0]
        and 'Training 2 of 3: fold-2, about' in log.read_text()
    )
