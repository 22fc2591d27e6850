"Comparisons: the statistics equal hand calculations, the conclusions hold, and training images are never compared"

import json
import os
import shutil
from math import comb

import numpy as np
import pandas as pd
import pytest
from conftest import tiny

from fungi_fastai.core.errors import UserError
from fungi_fastai.training.recipe import Recipe

pytestmark = pytest.mark.usefixtures('place', 'ready')


# --- the numbers


def test_mcnemar_is_the_sum_of_a_binomial():
    from fungi_fastai.evaluation.paired_tests import mcnemar

    rng = np.random.default_rng(0)
    for b, c in [(0, 0), (0, 1), (5, 5), *rng.integers(0, 40, (30, 2)).tolist()]:
        n = b + c
        by_hand = min(1.0, 2 * sum(comb(n, i) for i in range(min(b, c) + 1)) / 2**n)
        assert mcnemar(b, c) == pytest.approx(by_hand)
    assert mcnemar(6, 16) == pytest.approx(0.0524787, abs=1e-6)  # R: binom.test(6, 22)


def random_pairs(rng, groups=30, images=120, classes=4, runs=1):
    "Counts of two random classifiers, and the images they came from"
    from fungi_fastai.evaluation.paired_tests import group_counts

    pairs, images_of_pairs = [], []
    for _ in range(runs):
        label, group = rng.integers(0, classes, images), rng.integers(0, groups, images)
        predicted = [np.where(rng.random(images) < p, label, rng.integers(0, classes, images)) for p in (0.4, 0.6)]
        pairs.append(tuple(group_counts(label, p, group, groups, classes) for p in predicted))
        images_of_pairs.append((label, predicted, group))
    return pairs, images_of_pairs


def test_weighted_scores_are_scikit_learns():
    from sklearn.metrics import f1_score

    from fungi_fastai.evaluation.intervals import draw_weights
    from fungi_fastai.evaluation.paired_tests import weighted_scores

    rng = np.random.default_rng(1)
    for classes in (2, 7, 30):
        (pair,), ((label, predicted, group),) = random_pairs(rng, classes=classes)
        weights = draw_weights(30, 20, rng)
        for counts, guess in zip(pair, predicted, strict=True):
            for w, accuracy, f1 in zip(weights, *weighted_scores(counts, weights), strict=True):
                rows = np.repeat(np.arange(len(label)), w[group].astype(int))
                assert accuracy == pytest.approx((label[rows] == guess[rows]).mean(), abs=1e-6)
                assert f1 == pytest.approx(
                    f1_score(label[rows], guess[rows], average='macro', zero_division=0), abs=1e-6
                )


def test_the_bootstrap_is_the_plain_one_of_whole_specimens():
    "Against a loop over resamples, and against the textbook's standard error of a ratio"
    from fungi_fastai.evaluation.paired_tests import bootstrap_difference

    rng = np.random.default_rng(2)
    pairs, ((label, (first, second), group),) = random_pairs(rng)
    found = bootstrap_difference(pairs, 20_000)
    assert found.shape == (2, 20_000)
    gain = (second == label).astype(int) - (first == label)
    loop = []
    for _ in range(4000):
        rows = np.concatenate([np.flatnonzero(group == g) for g in rng.integers(0, 30, 30)])
        loop.append(gain[rows].mean())
    assert np.quantile(found[0], [0.025, 0.5, 0.975]) == pytest.approx(np.quantile(loop, [0.025, 0.5, 0.975]), abs=0.01)
    total, size = np.bincount(group, gain, 30), np.bincount(group, minlength=30)
    error = np.sqrt(((total - gain.mean() * size) ** 2).sum()) / len(label)
    assert found[0].std() == pytest.approx(error, rel=0.06)
    assert (bootstrap_difference(pairs, 100) == bootstrap_difference(pairs, 100)).all()
    assert (bootstrap_difference(pairs, 100, seed=1) != bootstrap_difference(pairs, 100)).any()


def test_several_seeds_scatter_as_seeds_and_specimens_do():
    from fungi_fastai.evaluation.paired_tests import bootstrap_difference, weighted_scores

    rng = np.random.default_rng(3)
    pairs, _ = random_pairs(rng, groups=400, images=800, runs=3)
    whole = np.ones((1, 400), np.float32)
    each = np.array([(weighted_scores(b, whole) - weighted_scores(a, whole))[:, 0] for a, b in pairs])
    found = bootstrap_difference(pairs, 4000)
    assert found.mean(1) == pytest.approx(each.mean(0), abs=0.004)
    assert (found.std(1) > 0.9 * each.std(0) / np.sqrt(3)).all()  # the seeds are drawn
    same = bootstrap_difference(pairs[:1] * 3, 4000).std(1)  # three seeds that agree add nothing, and take nothing
    assert same == pytest.approx(bootstrap_difference(pairs[:1], 4000).std(1), rel=0.08)


def test_the_permutation_test_is_exact_mcnemar_for_single_images():
    from fungi_fastai.evaluation.paired_tests import group_counts, mcnemar, permutation_test

    rng = np.random.default_rng(4)
    for _ in range(5):
        n = 60
        label = np.zeros(n, int)
        first, second = (rng.random((2, n)) < rng.uniform(0.2, 0.6, (2, 1))).astype(int)
        pair = tuple(group_counts(label, s, np.arange(n), n, 2) for s in (first, second))
        expected = mcnemar(int(((first == 0) & (second == 1)).sum()), int(((first == 1) & (second == 0)).sum()))
        assert permutation_test([pair], 20_000)[0] == pytest.approx(expected, abs=0.012)
        assert permutation_test([pair[::-1]], 20_000)[0] == pytest.approx(expected, abs=0.012)
    assert permutation_test([(pair[0], pair[0])], 100).tolist() == [1, 1]


# --- the conclusions


class Made:
    "A run that exists in memory only"

    def __init__(self, name, items, predicted, seed=0, **changes):
        from pathlib import Path

        self.folder, self.finished, self.items = Path(name), True, items
        self.recipe = self.requested_recipe = Recipe(seed=seed, **changes)
        tested = items[items.split == 'test']
        self.predictions = tested[['path', 'name', 'label', 'group', 'split']].assign(predicted=predicted)
        self.metrics = dict(evaluated_on='test')


def specimens(count, photos, classes=3):
    items = pd.DataFrame(
        [dict(label=f'c{s % classes}', group=f's{s}', name=f's{s}_{p}') for s in range(count) for p in range(photos)]
    )
    return items.assign(path=items['name'], sha=items['name'], cluster='', split='test')


def predictions(rng, items, chance, alike):
    "Predictions that are correct with probability `chance`, all alike in a fraction `alike` of the specimens"
    correct = rng.random(len(items)) < chance
    specimens = pd.Series(rng.random(items.group.nunique()) < chance, items.group.unique())
    same = pd.Series(rng.random(len(specimens)) < alike, specimens.index)
    correct = np.where(items.group.map(same), items.group.map(specimens), correct)
    return np.where(correct, items.label, 'c' + ((items.label.str[1].astype(int) + 1) % 3).astype(str))


@pytest.mark.parametrize('alike', [0, 1])
def test_equal_runs_are_seldom_called_different(alike):
    "In at most 5 of 100 cases, even if the photos of a specimen are not independent (which McNemar's test ignores)"
    from fungi_fastai.runs.compare import compare

    rng, items, claimed, naive = np.random.default_rng(5), specimens(25, 4), 0, 0
    for _ in range(70):
        found = compare(
            [Made(name, items, predictions(rng, items, 0.6, alike), lr=lr) for name, lr in (('a', 0.1), ('b', 0.2))],
            samples=300,
        )
        claimed += (found.differences.better != '').iloc[0]
        naive += found.pairs.p_mcnemar[0] < 0.05
    assert claimed <= 8  # 3 or 4 are expected
    if alike:
        assert naive > 12


def test_a_better_run_is_called_better(tmp_path):
    from fungi_fastai.runs.compare import compare

    rng, items = np.random.default_rng(6), specimens(150, 2)
    runs = [
        Made(name, items, predictions(rng, items, chance, 0.5), lr=lr)
        for name, chance, lr in (('a', 0.6, 0.1), ('b', 0.8, 0.2), ('c', 0.6, 0.3))
    ]
    found = compare(runs[:2], tmp_path / 'out')
    row = found.differences.iloc[0]
    assert row.better == 'b' and row.low > 0 and row.confidence_level == 0.95
    assert (
        f'b is better than a by {100 * row.difference:.1f} points of accuracy (95 % confidence interval +'
        in found.conclusions[0]
    )
    assert row.difference == pytest.approx(found.pairs.accuracy_second[0] - found.pairs.accuracy_first[0])
    reversed_ = compare(runs[1::-1])
    assert reversed_.conclusions[0].startswith('b is better than a by')
    assert reversed_.differences.difference[0] == pytest.approx(-row.difference)
    assert found.conclusions[0].split(' points')[0] == reversed_.conclusions[0].split(' points')[0]
    all_three = compare(runs)
    assert all_three.differences.confidence_level.tolist() == [0.975] * 4 and all_three.differences.better.tolist() == [
        'b',
        'b',
        '',
        '',
    ]
    assert 'The difference is not statistically significant: c minus a' in all_three.conclusions[1]
    assert 'McNemar' not in all_three.conclusions[1] and len(all_three.conclusions[1]) < 260
    short = found.write_page(tmp_path / 'page.html').read_text('utf8')
    assert '<p class="verdict">b is better than a.</p>' in short and 'points of accuracy, b minus a' in short
    assert json.loads((tmp_path / 'out/comparison.json').read_text('utf8')) == json.loads(json.dumps(found.metrics))
    assert len(pd.read_csv(tmp_path / 'out/differences.csv')) == 2 and '<svg' in (
        tmp_path / 'out/comparison.svg'
    ).read_text('utf8')


def test_seeds_are_one_configuration():
    from fungi_fastai.runs.compare import compare

    rng, items, runs = np.random.default_rng(7), specimens(80, 2), []
    for seed in (3, 1, 2):
        drawn = np.random.default_rng(seed).permutation(80)[:40]
        mine = items.assign(split=np.where(items.group.str[1:].astype(int).isin(drawn), 'test', 'train'))
        tested = mine[mine.split == 'test']
        for name, chance, lr in (('wide', 0.7, 0.1), ('narrow', 0.5, 0.2)):
            runs.append(Made(f'{name}-{seed}', mine, predictions(rng, tested, chance, 0.3), seed, lr=lr))
    found = compare([runs[i] for i in (0, 3, 2, 5, 4, 1)])  # in any order
    assert (
        found.configurations.configuration.tolist() == ['wide', 'narrow']
        and found.configurations.runs.tolist() == [3, 3]
        and 'wide is better than narrow' in found.conclusions[0]
    )
    assert (
        sorted(found.pairs.seed) == [1, 2, 3]
        and (found.pairs.groups == 40).all()
        and ', 3 seeds' in found.conclusions[0]
    )
    wide = [(r.predictions.predicted == r.predictions.label).mean() for r in runs[::2]]
    narrow = [(r.predictions.predicted == r.predictions.label).mean() for r in runs[1::2]]
    assert found.configurations.accuracy_mean.tolist() == pytest.approx([np.mean(wide), np.mean(narrow)])
    assert found.configurations.accuracy_sd.tolist() == pytest.approx([np.std(wide, ddof=1), np.std(narrow, ddof=1)])
    assert found.differences.difference[0] == pytest.approx(np.mean(narrow) - np.mean(wide))
    with pytest.raises(UserError, match='seed by seed'):
        compare(runs[:5])


def test_configurations_are_named_by_their_differences():
    from fungi_fastai.runs.compare import compare

    items = specimens(20, 2)
    of_curve = [Made(f'c/seed-{s}-fraction-{f}', items, items.label, s, fraction=f) for f in (0.5, 1.0) for s in (1, 2)]
    assert compare(of_curve, samples=100).configurations.configuration.tolist() == ['fraction 0.5', 'fraction 1.0']
    same_name = [Made(f'{folder}/run', items, items.label, lr=lr) for folder, lr in (('a', 0.1), ('b', 0.2))]
    assert compare(same_name, samples=100).configurations.configuration.tolist() == ['a/run', 'b/run']
    of_folds = [
        Made(
            f'{folder}/fold-{n}',
            items.assign(split=np.where(items.index % 2 == n, 'test', '')),
            items.label[items.index % 2 == n],
            lr=lr,
        )
        for folder, lr in (('a', 0.1), ('b', 0.2))
        for n in (0, 1)
    ]
    found = compare(of_folds, samples=100)
    assert found.configurations.configuration.tolist() == ['a', 'b'] and found.pairs.images.tolist() == [20, 20]


def test_only_images_that_both_were_tested_on():
    from fungi_fastai.runs.compare import compare

    items = specimens(20, 2)
    half = items.assign(split=np.where(items.group.isin([f's{n}' for n in range(10)]), 'train', 'test'))
    whole, part = (
        Made('whole', items, items.label, lr=0.1),
        Made('part', half, half.label[half.split == 'test'], lr=0.2),
    )
    with pytest.raises(UserError, match=r'not tested on the same images: 40 and 20, 20 of them shared.*--common'):
        compare([whole, part])
    found = compare([whole, part], common=True)
    assert found.pairs.images[0] == 20 and any('20 shared images of 40 and 20' in n for n in found.notes)
    moved = items.assign(
        path='/elsewhere/' + items['path'], name=[f'{n}.jpg' for n in range(40)]
    )  # the same contents, other names and order
    assert compare([whole, Made('moved', moved[::-1], moved.label[::-1], lr=0.3)]).pairs.images[0] == 40
    other = items.assign(sha='x' + items.sha)
    with pytest.raises(UserError, match='0 of them shared') as error:
        compare([whole, Made('other', other, other.label, lr=0.3)], common=True)
    assert '--common' not in str(error.value)
    seen = pd.concat([items, items.head(3).assign(path='copy', split='valid')])
    with pytest.raises(UserError, match='3 of the 40 images.*trained on in seen'):
        compare([whole, Made('seen', seen, items.label, lr=0.3)])
    mates = pd.concat([items, items.head(1).assign(path='mate', sha='mate', split='train')])
    assert any(
        '2 of 40 test images' in n and 'mates' in n
        for n in compare([whole, Made('mates', mates, items.label, lr=0.3)]).notes
    )
    renamed = items.assign(label=items.label.replace('c0', 'c9'))
    with pytest.raises(UserError, match='s0_0 is c0 in one and c9'):
        compare([whole, Made('renamed', renamed, items.label, lr=0.3)])
    twice = pd.concat([items, items.head(2).assign(path='again', name='again')])  # the same image twice in the test set
    assert compare([Made('one', twice, twice.label), Made('two', twice, twice.label, lr=0.3)]).pairs.images[0] == 42


def test_near_duplicates_are_one_group_even_if_only_one_run_knows():
    from fungi_fastai.runs.compare import compare

    items = specimens(6, 1)
    linked = items.assign(cluster=['x', 'x', '', '', 'y', 'y'])
    grouped = items.assign(group=['a', 'b', 'b', 'c', 'd', 'e'])
    found = compare([Made('one', linked, items.label), Made('two', grouped, items.label, lr=0.3)])
    assert found.pairs.groups[0] == 3  # 0-1-2, 3, 4-5
    assert any('only 3' in note for note in found.notes)


# --- real runs


@pytest.fixture(scope='session')
def other_run(home, ready, photos):
    "`small_run` with another learning rate"
    from fungi_fastai import train_flowers

    before = os.getcwd()
    os.chdir(home)
    try:
        return train_flowers(photos, out=home / 'other run', progress=False, **{**tiny, 'epochs': 2, 'lr': 1e-5})
    finally:
        os.chdir(before)


def test_two_runs(small_run, other_run, tmp_path):
    from fungi_fastai.runs.compare import compare

    found = compare([small_run.folder, other_run], samples=500)
    both = [r.predictions[r.predictions.split == 'test'].set_index('path') for r in (small_run, other_run)]
    right = [b.predicted == b.label for b in both]
    row = found.pairs.iloc[0]
    assert row.accuracy_first == pytest.approx(small_run.metrics['accuracy']) and row.accuracy_second == pytest.approx(
        other_run.metrics['accuracy']
    )
    assert (
        row.macro_f1_first == pytest.approx(small_run.metrics['macro_f1']) and row.images == small_run.metrics['n_test']
    )
    assert row.only_first == (right[0] & ~right[1]).sum() and row.only_second == (right[1] & ~right[0]).sum()
    assert 1 < row.groups <= row.images and any('one seed' in note for note in found.notes)
    with pytest.raises(UserError, match='given twice'):
        compare([small_run.folder, small_run])
    with pytest.raises(UserError, match='at least 2'):
        compare(small_run.folder)
    with pytest.raises(UserError, match='at least 2'):
        compare(tmp_path / 'gone')
    with pytest.raises(UserError, match='no run folder'):
        compare([small_run.folder, tmp_path / 'gone'])
    shutil.copytree(other_run.folder, tmp_path / 'begun')
    (tmp_path / 'begun/metrics.json').unlink()
    with pytest.raises(UserError, match='not finished'):
        compare([small_run.folder, tmp_path / 'begun'])


def test_two_cross_validations(photos, tmp_path):
    from fungi_fastai.runs.compare import compare
    from fungi_fastai.studies.folds import cross_validate

    recipe = Recipe(name='flowers', group=r'([^/]+)_[^_]+$', **tiny).but(source=photos, epochs=0)
    one, two = (
        cross_validate(recipe.but(arch=arch), 2, tmp_path / arch, progress=False)
        for arch in ('convmixer_16_1', 'convmixer_8_1')
    )
    found = compare([one.folder, two], samples=300)
    assert found.pairs.images.sum() == 60 and len(found.pairs) == 2 and np.isfinite(found.differences.p_mcnemar).all()
    assert found.differences.difference[0] == pytest.approx(np.mean(two.by_fold.accuracy - one.by_fold.accuracy))
