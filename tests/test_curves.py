"Learning curves: the same test images at every point, scores that can be recomputed, conclusions that do not overclaim"

import os
import shutil
from dataclasses import astuple

import numpy as np
import pandas as pd
import pytest
from conftest import tiny

from fungi_fastai.core.errors import UserError
from fungi_fastai.training.recipe import Recipe

pytestmark = pytest.mark.usefixtures('place', 'ready')


@pytest.fixture(scope='session')
def recipe(photos):
    return Recipe(name='flowers', group=r'([^/]+)_[^_]+$', **tiny).but(source=photos)


@pytest.fixture(scope='session')
def curve(home, ready, recipe):
    "Two fractions, two seeds; read-only"
    from fungi_fastai.studies.curves import learning_curve

    before = os.getcwd()
    os.chdir(home)
    try:
        return learning_curve(recipe, (1.0, 0.4), (1, 2), home / 'curve', progress=False)
    finally:
        os.chdir(before)


def test_the_test_images_are_the_same_at_every_point_and_the_training_sets_nested(curve):
    assert {f.name for f in curve.folder.iterdir()} == {
        'experiment.json',
        'items.parquet',
        'train',
        'curve.csv',
        'summary.csv',
        'curve.json',
        'curve.svg',
        *(f'seed-{s}-fraction-{f}' for s in (1, 2) for f in ('0.4', '1')),
    }
    splits = {
        (s, f): pd.read_parquet(curve.folder / f'seed-{s}-fraction-{f}/items.parquet').set_index('path').split
        for s in (1, 2)
        for f in ('0.4', '1')
    }
    for seed in (1, 2):
        smaller, full = splits[seed, '0.4'], splits[seed, '1']
        for name in ('valid', 'test'):
            assert set(smaller.index[smaller == name]) == set(full.index[full == name])
        assert set(smaller.index[smaller == 'train']) < set(full.index[full == 'train'])
    assert (splits[1, '1'] != splits[2, '1']).any()


def test_each_run_is_the_one_that_train_makes(curve, recipe, tmp_path):
    from fungi_fastai.runs.run import Run
    from fungi_fastai.runs.train import train

    alone = train(recipe.but(fraction=0.4, seed=2), tmp_path / 'alone', progress=False)
    there = Run.load(curve.folder / 'seed-2-fraction-0.4')
    assert there.recipe == alone.recipe and there.metrics | dict(seconds=0) == alone.metrics | dict(seconds=0)


def test_the_rows_are_the_runs_scores(curve):
    from fungi_fastai.runs.run import Run

    assert len(curve.table) == 12
    for (seed, fraction), rows in curve.table.groupby(['seed', 'fraction']):
        run, rows = Run.load(curve.folder / f'seed-{seed}-fraction-{fraction:g}'), rows.set_index('split')
        for key in ('accuracy', 'macro_f1'):
            assert rows[key]['test'] == pytest.approx(run.metrics[key]) and rows[key]['valid'] == pytest.approx(
                run.metrics['valid'][key]
            )
        trained = run.items[run.items.split == 'train']
        predictions = run.predict(trained['path'].tolist())
        correct = predictions.predicted.to_numpy() == trained.label.to_numpy()
        assert rows.accuracy['train'] == pytest.approx(correct.mean())
        assert rows.images['train'] == len(trained) == rows.n_train['test']
    tested = curve.table[(curve.table.split == 'test') & (curve.table.fraction == 1)]
    row = curve.summary[(curve.summary.split == 'test') & (curve.summary.fraction == 1)].iloc[0]
    assert (
        row.runs == 2
        and row.accuracy_mean == pytest.approx(tested.accuracy.mean())
        and row.accuracy_sd == pytest.approx(tested.accuracy.std())
    )
    assert '<svg' in (curve.folder / 'curve.svg').read_text('utf8')


def test_the_same_call_resumes_and_seeds_can_be_added(curve, recipe, tmp_path, monkeypatch):
    from fungi_fastai.studies import folds
    from fungi_fastai.studies.curves import Curve, learning_curve

    shutil.copytree(curve.folder, tmp_path / 'curve')
    for gone in ('curve.json', 'curve.csv', 'seed-2-fraction-1/metrics.json'):
        (tmp_path / 'curve' / gone).unlink()  # as if it had been killed
    with pytest.raises(UserError, match='no finished learning curve'):
        Curve(tmp_path / 'curve')
    trained, train = [], folds.train

    def counted(recipe, out, progress, items, **more):
        if items is not None:
            trained.append(out.name)
        return train(recipe, out, progress, items, **more)

    monkeypatch.setattr(folds, 'train', counted)
    again = learning_curve(recipe, (0.4, 1.0), (1, 2), tmp_path / 'curve', progress=False)
    assert trained == ['seed-2-fraction-1']
    pd.testing.assert_frame_equal(again.table.drop(columns='seconds'), curve.table.drop(columns='seconds'))
    assert again.conclusion == curve.conclusion
    more = learning_curve(recipe, (0.4, 1.0), (1, 2, 3), tmp_path / 'curve', progress=False)
    assert trained[1:] == ['seed-3-fraction-0.4', 'seed-3-fraction-1'] and len(more.table) == 18
    with pytest.raises(UserError, match='epochs is 3 now and 1 there'):
        learning_curve(recipe.but(epochs=3), (0.4, 1.0), (1,), tmp_path / 'curve', progress=False)
    with pytest.raises(UserError, match="'epochs' now and 'data' there"):
        learning_curve(recipe, seeds=(1,), out=tmp_path / 'curve', across='epochs')


def test_across_epochs_is_the_mean_of_the_histories(recipe, tmp_path):
    from fungi_fastai.studies.curves import learning_curve

    result = learning_curve(recipe.but(epochs=2), seeds=(1, 2), out=tmp_path / 'curve', across='epochs', progress=False)
    histories = [pd.read_csv(tmp_path / f'curve/seed-{s}/history.csv') for s in (1, 2)]
    assert result.summary.epoch.tolist() == [1, 2] and result.summary.runs.tolist() == [2, 2]
    for key in ('train_loss', 'valid_loss', 'accuracy', 'macro_f1'):
        both = np.array([h[key] for h in histories])
        assert result.summary[f'{key}_mean'].to_numpy() == pytest.approx(both.mean(0))
        assert result.summary[f'{key}_sd'].to_numpy() == pytest.approx(both.std(0, ddof=1))
    assert 'Validation loss is lowest after epoch' in result.conclusion
    assert len(result.metrics['summary']) == 2


def test_across_split(recipe, photos, tmp_path):
    from fungi_fastai.studies.curves import learning_curve

    result = learning_curve(recipe.but(epochs=0), (0.2, 0.5), (1, 2), tmp_path / 'curve', 'split', progress=False)
    tested = result.summary[result.summary.split == 'test']
    assert tested.test.tolist() == [0.2, 0.5] and tested.n_train_mean.is_monotonic_decreasing
    sizes = result.table[result.table.split == 'test'].groupby('test').images.mean()
    assert sizes[0.5] > 1.5 * sizes[0.2]
    assert 'largest test set within one standard error' in result.conclusion
    given = tmp_path / 'given'
    for i, file in enumerate(sorted(photos.rglob('*.jpg'))):
        folder = given / ('test' if i % 3 == 0 else 'train') / file.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder)
    with pytest.raises(UserError, match='test set of its own'):
        learning_curve(
            recipe.but(source=given, group=''), (0.2, 0.5), (1,), tmp_path / 'other', 'split', progress=False
        )
    assert not (tmp_path / 'other').exists()


@pytest.mark.parametrize(
    'options, match',
    [
        (dict(fractions=(0.0, 1.0)), 'above 0'),
        (dict(fractions=(0.5, 1.2)), 'at most 1'),
        (dict(seeds=()), '0 seeds'),
        (dict(fractions=()), '0 fractions'),
        (dict(across='depth'), 'expected data, epochs, split'),
        (dict(across='split', fractions=(0.9,)), 'leave nothing to train on'),
        (dict(across='split', fractions=(0,)), 'nothing to test on'),
    ],
)
def test_mistakes_raise_before_anything_is_done(recipe, tmp_path, options, match):
    from fungi_fastai.studies.curves import learning_curve

    with pytest.raises(UserError, match=match):
        learning_curve(recipe, out=tmp_path / 'out', **options)
    assert not (tmp_path / 'out').exists()


# --- conclusions


def points(before, after, name='test'):
    "A table of two points: accuracies of each seed"
    rows = [
        dict(seed=s, fraction=f, split=split, accuracy=a + (split == 'train') * 0.1)
        for f, accuracies in ((0.5, before), (1.0, after))
        for s, a in enumerate(accuracies)
        for split in (name, 'train')
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    'before, after, phrase',
    [
        ([0.70, 0.60, 0.65], [0.75, 0.66, 0.70], 'still rising'),
        ([0.75, 0.66, 0.70], [0.70, 0.60, 0.65], 'falling'),
        ([0.70, 0.60, 0.65], [0.701, 0.601, 0.648], 'flat there'),
        ([0.70, 0.60, 0.65], [0.80, 0.55, 0.66], 'includes a rise and a fall'),
        ([0.7], [0.8], 'in one seed'),
    ],
)
def test_the_conclusion_does_not_overclaim(before, after, phrase):
    from fungi_fastai.studies.curves import _conclude_data

    assert phrase in _conclude_data(points(before, after))


def test_the_last_step_is_a_paired_t_interval():
    from scipy.stats import ttest_rel

    from fungi_fastai.studies.curves import paired_step

    rng = np.random.default_rng(0)
    for n in (2, 3, 10):
        before, after = rng.random(n), rng.random(n)
        table = points(before, after)
        step = paired_step(table[table.split == 'test'].sample(frac=1, random_state=n), 'fraction', 0.5, 1.0)
        expected = ttest_rel(after, before).confidence_interval(0.95)
        assert astuple(step) == pytest.approx((np.mean(after - before), expected.low, expected.high))
