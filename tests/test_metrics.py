"Scores against scikit-learn's, whatever the predictions; and intervals against their confidence level"

import json
import time
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from fungi_fastai.core.errors import UserError
from fungi_fastai.evaluation.intervals import draw_weights, proportion_interval
from fungi_fastai.evaluation.metrics import Evaluation, predictions_table
from fungi_fastai.evaluation.scores import score_names

plainly = settings(
    max_examples=40, database=None, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
order = {'roc_auc', 'average_precision'}


def make(n, classes, seed, levels=None, present=None):
    "Random probabilities, better than chance; few `levels` make ties, `present` leaves classes without an image"
    random = np.random.default_rng(seed)
    targets = random.choice(classes if present is None else present, n)
    scores = random.gumbel(size=(n, classes)) + 1.5 * np.eye(classes)[targets]
    probs = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    if levels:
        counts = np.floor(probs * levels)
        counts[:, -1] += levels - counts.sum(1)
        probs = counts / levels
    return probs, targets


def expected(probs, targets):
    "scikit-learn's scores, of single classes where it has none of all"
    predicted, n = probs.argmax(1), probs.shape[1]
    there = np.unique(targets)
    clipped = np.clip(probs, 1e-7, 1)
    found = dict(
        accuracy=reference.accuracy_score(targets, predicted),
        balanced_accuracy=reference.recall_score(targets, predicted, labels=there, average='macro', zero_division=0),
        log_loss=reference.log_loss(targets, clipped / clipped.sum(1, keepdims=True), labels=range(n)),
        brier=reference.brier_score_loss(
            targets, probs / probs.sum(1, keepdims=True), labels=range(n), scale_by_half=False
        ),
    )
    for average in ('macro', 'weighted'):
        values = reference.precision_recall_fscore_support(targets, predicted, average=average, zero_division=0)
        found |= {f'{average}_{k}': v for k, v in zip(('precision', 'recall', 'f1'), values[:3], strict=True)}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of a single class, of which these say nothing
        found['cohen_kappa'] = reference.cohen_kappa_score(targets, predicted)
        found['mcc'] = reference.matthews_corrcoef(targets, predicted)
    areas = {c: reference.roc_auc_score(targets == c, probs[:, c]) for c in there if (targets != c).any()}
    found['roc_auc'] = areas.get(1, np.nan) if n == 2 else np.mean(list(areas.values())) if areas else np.nan
    found['average_precision'] = np.mean([reference.average_precision_score(targets == c, probs[:, c]) for c in there])
    return found


def agree(probs, targets):
    found = Evaluation(probs, targets, [f'c{i}' for i in range(probs.shape[1])]).metrics()
    assert set(found) == set(score_names) | {'n_test', 'n_classes', 'n_groups'}
    for name, value in expected(probs, targets).items():
        if np.isnan(value):
            assert found[name] is None, name
        else:
            assert found[name] == pytest.approx(value, abs=1e-9), name
    json.dumps(found, allow_nan=False)
    return found


# --- against scikit-learn


@plainly
@given(
    n=st.integers(1, 80),
    classes=st.integers(2, 8),
    seed=st.integers(0, 10**6),
    levels=st.sampled_from([None, None, 4, 10]),
    data=st.data(),
)
def test_every_score_is_scikit_learns(n, classes, seed, levels, data):
    "Few images, classes without an image, ties"
    present = data.draw(st.lists(st.integers(0, classes - 1), min_size=1, unique=True))
    agree(*make(n, classes, seed, levels, present))


@pytest.mark.parametrize(
    'n,classes,levels',
    [(1, 2, None), (1, 1000, None), (2, 2, None), (200, 2, 5), (3000, 12, None), (600, 1000, None), (300, 1000, 50)],
)
def test_scikit_learn_agrees_on_one_image_two_classes_and_a_thousand(n, classes, levels):
    agree(*make(n, classes, 1, levels))


def test_two_classes_are_scored_as_scikit_learn_scores_two():
    probs, targets = make(150, 2, 0)
    found = agree(probs, targets)
    assert found['roc_auc'] == pytest.approx(reference.roc_auc_score(targets, probs[:, 1]), abs=1e-12)
    assert found['brier'] == pytest.approx(2 * reference.brier_score_loss(targets, probs[:, 1]), abs=1e-9)


def test_all_together_as_scikit_learn_has_it_where_every_class_is_there():
    probs, targets = make(400, 5, 3)
    evaluation = Evaluation(probs, targets, list('abcde'))
    found = evaluation.metrics()
    assert found['roc_auc'] == pytest.approx(
        reference.roc_auc_score(targets, probs, multi_class='ovr', average='macro'), abs=1e-9
    )
    assert found['average_precision'] == pytest.approx(
        reference.average_precision_score(np.eye(5)[targets], probs, average='macro'), abs=1e-9
    )
    for k in (3, 4):
        assert evaluation.top_k(k) == pytest.approx(
            reference.top_k_accuracy_score(targets, probs, k=k, labels=range(5))
        )


def test_of_one_class_alone():
    found = Evaluation(np.ones((4, 1)), np.zeros(4, int), ['only']).metrics()
    assert (
        found['accuracy'] == found['top3_accuracy'] == 1
        and found['log_loss'] == found['brier'] == 0
        and found['roc_auc'] is None
    )


def test_confusion_and_per_class_are_scikit_learns():
    probs, targets = make(300, 6, 5, present=[0, 1, 2, 4])
    found, labels = Evaluation(probs, targets, list('abcdef')), range(6)
    assert (found.confusion() == reference.confusion_matrix(targets, probs.argmax(1), labels=labels)).all()
    values = reference.precision_recall_fscore_support(targets, probs.argmax(1), labels=labels, zero_division=0)
    table = found.per_class()
    assert list(table) == ['precision', 'recall', 'f1', 'images'] and table.images.dtype.kind == 'i'
    for column, value in zip(table, values, strict=True):
        assert table[column].to_numpy() == pytest.approx(value, abs=1e-12)
    more = found.per_class(intervals=True, samples=200)
    assert (more[list(table)] == table).all(None) and list(more.index) == list('abcdef')
    assert more.roc_auc['c'] == pytest.approx(reference.roc_auc_score(targets == 2, probs[:, 2]), abs=1e-12)
    assert (
        more.loc[['d', 'f'], ['recall_low', 'recall_high', 'f1_low', 'roc_auc', 'average_precision_high']]
        .isna()
        .all(None)
    )  # nothing is known
    assert more.loc['a', more.columns].notna().all()


@plainly
@given(
    n=st.integers(1, 60),
    classes=st.integers(2, 7),
    seed=st.integers(0, 10**6),
    levels=st.sampled_from([None, 4]),
    data=st.data(),
)
def test_the_order_of_classes_and_of_images_does_not_matter(n, classes, seed, levels, data):
    probs, targets = make(n, classes, seed, levels)
    if levels:
        probs = (
            probs * (1 - 1e-6) + 1e-6 * np.eye(classes)[probs.argmax(1)]
        )  # of equal ones the first is predicted, which depends on the order
    turned = np.array(data.draw(st.permutations(range(classes))))
    shuffled = np.random.default_rng(seed).permutation(n)
    names = np.array([f'c{i}' for i in range(classes)])
    one = Evaluation(probs, targets, list(names))
    other = Evaluation(probs[shuffled][:, turned], np.argsort(turned)[targets[shuffled]], list(names[turned]))
    for name, value in one.metrics().items():
        if classes == 2 and name == 'roc_auc' and value is not None:
            continue  # of the second class, and ties of 1-p are ties of p
        assert other.metrics()[name] == (value if value is None else pytest.approx(value, abs=1e-9)), name
    pd.testing.assert_frame_equal(one.per_class(), other.per_class().loc[names], check_exact=False)


def test_a_class_that_is_absent_is_left_out_of_what_needs_it():
    probs, targets = make(200, 4, 2, present=[0, 1, 3])
    found = Evaluation(probs, targets, list('abcd'))
    rows, scores = found.per_class(intervals=True, samples=100), found.metrics()
    there = rows.loc[['a', 'b', 'd']]
    assert scores['roc_auc'] == pytest.approx(there.roc_auc.mean()) and scores['average_precision'] == pytest.approx(
        there.average_precision.mean()
    )
    assert scores['balanced_accuracy'] == pytest.approx(there.recall.mean())
    assert rows.images['c'] == 0 and rows.recall['c'] == 0 and (found.predicted == 2).any()
    assert (
        scores['macro_recall'] == pytest.approx(rows.recall.mean()) != scores['balanced_accuracy']
    )  # predicted, and so counted


def test_one_who_knows_nothing_scores_what_chance_does():
    found = Evaluation(np.full((90, 3), 1 / 3), np.arange(90) % 3, list('abc'))
    scores, bounds = found.metrics(), found.intervals(200)
    assert (
        scores['roc_auc'] == 0.5
        and scores['mcc'] == scores['cohen_kappa'] == 0
        and scores['average_precision'] == pytest.approx(1 / 3)
    )
    assert bounds['roc_auc'] == (0.5, 0.5) and bounds['mcc'] == (0, 0)  # whatever the images
    assert bounds['accuracy'][0] < 1 / 3 < bounds['accuracy'][1]


# --- what is no prediction


@pytest.mark.parametrize(
    'change,message',
    [
        (lambda p, t: (np.where(p == p.max(), np.nan, p), t), 'not numbers'),
        (lambda p, t: (np.where(p == p.max(), np.inf, p), t), 'not numbers'),
        (lambda p, t: (p * 100, t), r'sum to 100; expected 1'),
        (lambda p, t: (p - 0.5, t), 'below 0'),
        (lambda p, t: (p[:, :2], t), r'\(10, 2\)'),
        (lambda p, t: (p[:5], t), '5 rows of probabilities'),
        (lambda p, t: (p[0], t), r'expected \(images, 3\)'),
        (lambda p, t: (p, t + 1), '0 to 2; given int64 from 1 to 3'),
        (lambda p, t: (p, t - 1), 'from -1'),
        (lambda p, t: (p, t / 2), 'float64'),
        (lambda p, t: (p[:0], t[:0]), 'no labelled image'),
        (lambda p, t: (p.astype(str), t), 'not numbers'),
    ],
)
def test_invalid_input(change, message):
    probs, targets = make(10, 3, 0)
    targets[:3] = range(3)
    with pytest.raises(UserError, match=message):
        Evaluation(*change(probs, targets), list('abc'))


@plainly
@given(n=st.integers(1, 30), classes=st.integers(1, 9), where=st.integers(0, 10**6))
def test_one_nan_anywhere_is_refused(n, classes, where):
    probs, targets = make(n, classes, where)
    probs.flat[where % probs.size] = np.nan
    with pytest.raises(UserError, match='not numbers'):
        Evaluation(probs, targets, list(range(classes)))


def test_other_mistakes():
    probs, targets = make(10, 3, 0)
    with pytest.raises(UserError, match='10 images and 4 groups'):
        Evaluation(probs, targets, list('abc'), groups=np.arange(4))
    with pytest.raises(UserError, match='at least 100'):
        Evaluation(probs, targets, list('abc')).intervals(10)
    table = predictions_table(
        pd.DataFrame(dict(path=list('abcdefghij'), name=list('abcdefghij'), label='a')), probs, list('abc')
    )
    with pytest.raises(UserError, match='no column p_d'):
        Evaluation.of(table, list('abcd'))
    with pytest.raises(UserError, match='no column label'):
        Evaluation.of(table.drop(columns='label'))


# --- intervals


def clustered(n_groups, per_group, seed, spread=2.0, classes=3):
    "Images of a group are alike: what is hard about one is hard about all"
    random = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n_groups), per_group)
    targets = random.integers(0, classes, n_groups)[groups]
    scores = (
        random.normal(size=(len(groups), classes))
        + spread * random.normal(size=(n_groups, classes))[groups]
        + 2 * np.eye(classes)[targets]
    )
    return np.exp(scores) / np.exp(scores).sum(1, keepdims=True), targets, list('abcdefghij'[:classes]), groups


def test_units_that_agree_make_wider_intervals():
    probs, targets, classes, groups = clustered(40, 8, 0)
    by_group, by_image = Evaluation(probs, targets, classes, groups), Evaluation(probs, targets, classes)
    assert by_group.n_groups == 40 and by_group.metrics() == pytest.approx(
        by_image.metrics() | dict(n_groups=40), abs=1e-12
    )
    wide, narrow = by_group.intervals(1000), by_image.intervals(1000)
    for name in set(score_names) - {'top3_accuracy', 'top5_accuracy'}:  # which is 1 with three classes
        assert wide[name][1] - wide[name][0] > 1.5 * (narrow[name][1] - narrow[name][0]), name
    rows, plain = by_group.per_class(True, 1000), by_image.per_class(True, 1000)
    assert (
        (rows.recall_high - rows.recall_low) > 1.5 * (plain.recall_high - plain.recall_low)
    ).all() and rows.groups.sum() == 40


def test_an_interval_holds_the_truth_as_often_as_it_says():
    "Of accuracy, macro-F1 and ROC-AUC, with few specimens; drawn by images it does so far less often"
    truth = Evaluation(*clustered(20000, 3, 99)).metrics()
    covers = {name: [] for name in ('accuracy', 'macro_f1', 'roc_auc', 'log_loss')}
    naive = {name: [] for name in covers}
    for seed in range(120):
        probs, targets, classes, groups = clustered(25, 6, seed)
        for kept, one in (
            (covers, Evaluation(probs, targets, classes, groups)),
            (naive, Evaluation(probs, targets, classes)),
        ):
            bounds = one.intervals(300, seed)
            for name in kept:
                kept[name].append(bounds[name][0] <= truth[name] <= bounds[name][1])
    for name in covers:
        assert np.mean(covers[name]) > 0.88 and np.mean(naive[name]) < 0.85, (
            name,
            np.mean(covers[name]),
            np.mean(naive[name]),
        )


def test_a_resample_scores_what_scikit_learn_says_of_its_images():
    "Weights are images that are there several times"
    probs, targets, _, groups = clustered(15, 3, 4)
    probs = np.round(probs, 1)  # ties
    probs /= probs.sum(1, keepdims=True)
    weights = draw_weights(15, 20, np.random.default_rng(0))
    scores = Evaluation(probs, targets, list('abc'), groups)._weighted(weights.T.copy())
    for i, drawn in enumerate(weights):
        again = np.repeat(np.arange(45), drawn[groups].astype(int))
        for name, value in expected(probs[again], targets[again]).items():
            if np.isfinite(value):
                assert scores.overall[name][i] == pytest.approx(value, abs=2e-5), name
        recall = reference.recall_score(
            targets[again], probs[again].argmax(1), labels=range(3), average=None, zero_division=np.nan
        )
        assert scores.by_class['recall'][:, i] == pytest.approx(recall, abs=1e-6, nan_ok=True)


def test_resampling_by_pieces_changes_nothing(monkeypatch):
    "Large sets are resampled a few at a time"
    import fungi_fastai.evaluation.metrics as module

    parts = clustered(30, 2, 1)
    whole = Evaluation(*parts).summary(300)
    monkeypatch.setattr(module, '_block_size', 30 * 70)
    pd.testing.assert_frame_equal(Evaluation(*parts).summary(300), whole)


def test_weights_draw_as_many_units_as_there_are():
    weights = draw_weights(40, 500, np.random.default_rng(0))
    assert weights.shape == (500, 40) and (weights.sum(1) == 40).all() and abs(weights.mean(0) - 1).max() < 0.25
    assert weights.var() == pytest.approx(1 - 1 / 40, rel=0.05)


@pytest.mark.parametrize('n_groups', [1, 4, 20, 200])
def test_perfection_is_not_certain(n_groups):
    "All right: the exact bound for the number of groups, however many images they have"
    targets = np.repeat(np.arange(n_groups) % 2, 5)
    found = Evaluation(np.eye(2)[targets], targets, ['a', 'b'], np.repeat(np.arange(n_groups), 5))
    bounds = found.intervals(200)
    lowest = 0.025 ** (1 / n_groups)
    assert bounds['accuracy'] == pytest.approx((lowest, 1)) == bounds['macro_f1']
    wrong = Evaluation(np.eye(2)[1 - targets], targets, ['a', 'b'], np.repeat(np.arange(n_groups), 5)).intervals(200)
    assert wrong['accuracy'] == pytest.approx((0, 1 - lowest)) and wrong['macro_f1'] == pytest.approx((0, 1 - lowest))
    if n_groups > 1:
        assert bounds['cohen_kappa'] == pytest.approx((2 * lowest - 1, 1)) and bounds['brier'] == pytest.approx(
            (0, 2 * (1 - lowest))
        )
        assert bounds['roc_auc'] == pytest.approx((lowest, 1))


def test_one_error_more_never_narrows_what_may_be_claimed():
    "No jump between all right and nearly all right"
    lows = []
    for errors in range(6):
        targets = np.arange(40) % 2
        predicted = np.where(np.arange(40) < errors, 1 - targets, targets)
        lows.append(Evaluation(np.eye(2)[predicted], targets, ['a', 'b']).intervals(1000)['accuracy'][0])
    assert all(a > b for a, b in zip(lows, lows[1:], strict=False)), lows


def test_exact_intervals_are_scipys():
    from scipy.stats import binomtest

    for right, n in ((0, 7), (7, 7), (3, 7), (199, 200)):
        found = binomtest(right, n).proportion_ci(0.95, 'exact')
        assert proportion_interval(right / n, n) == pytest.approx((found.low, found.high), abs=1e-9)


def test_an_interval_holds_its_score_and_grows_with_its_level():
    found = Evaluation(*clustered(30, 4, 7))
    few, many = found.intervals(500, confidence_level=0.8), found.intervals(500, confidence_level=0.99)
    for name, value in found.metrics().items():
        if name in few:
            assert many[name][0] <= few[name][0] <= value <= few[name][1] <= many[name][1], name
    assert found.intervals(500, 1) != found.intervals(500, 2) and found.intervals(500, 1) == Evaluation(
        *clustered(30, 4, 7)
    ).intervals(500, 1)


@pytest.mark.parametrize('n,classes', [(1, 2), (1, 1), (2, 3), (3, 1000), (40, 5)])
def test_intervals_of_very_little(n, classes):
    found = Evaluation(*make(n, classes, 0), [f'c{i}' for i in range(classes)])
    table = found.summary(100)
    assert list(table.index) == list(score_names) and list(table) == ['value', 'low', 'high']
    known = table.dropna()
    assert (known.low <= known.value).all() and (known.value <= known.high).all() and 'accuracy' in known.index
    json.dumps(found.intervals(100), allow_nan=False)
    assert len(found.per_class(True, 100)) == classes


@pytest.mark.parametrize('n,classes', [(5000, 12), (2000, 1000)])
def test_two_thousand_resamples_take_seconds(n, classes):
    "Much less on a quiet machine"
    found = Evaluation(*make(n, classes, 0), [f'c{i}' for i in range(classes)])
    began = time.process_time()
    table = found.summary()
    assert time.process_time() - began < 30 and table.notna().all(None)


# --- groups of a table


def test_units_are_those_that_splits_keep_together():
    probs, targets = make(8, 2, 0)
    items = pd.DataFrame(
        dict(
            path=list('abcdefgh'),
            name=list('abcdefgh'),
            label=np.array(['x', 'y'])[targets],
            split='test',
            group=['s1', 's1', '', '', '', '', 's2', ''],
            cluster=['', 'k', 'k', '', 'm', 'm', '', ''],
        )
    )
    table = predictions_table(items, probs, ['x', 'y'])
    assert list(table)[:6] == ['path', 'name', 'label', 'group', 'cluster', 'split']
    found = Evaluation.of(table)
    assert (
        pd.factorize(found.groups)[0].tolist() == [0, 0, 0, 1, 2, 2, 3, 4] and found.n_groups == 5
    )  # by a group and a copy
    assert Evaluation.of(table.drop(columns='cluster')).n_groups == 7
    assert Evaluation.of(table.drop(columns=['group', 'cluster'])).n_groups == 8
    assert Evaluation.of(table.drop(columns='group')).n_groups == 6
    assert (
        Evaluation.of(
            table.assign(group=table.group.replace('', None), cluster=table.cluster.replace('', None))
        ).n_groups
        == 5
    )
    assert Evaluation.of(table.assign(name='same').drop(columns='cluster')).n_groups == 7
    assert (
        Evaluation.of(table.assign(label=table.label.where(table.index > 0, None))).n_groups == 5
    )  # unlabelled ones are left out


# --- many classes


def test_files_of_many_classes_hold_no_table_of_classes_by_classes(tmp_path):
    from fungi_fastai.evaluation.assess import saved_metrics
    from fungi_fastai.evaluation.report import write_report

    names, targets = [f'species {i}' for i in range(230)], np.arange(220)
    probs = np.random.default_rng(0).dirichlet(np.ones(230), 220)
    evaluation = Evaluation(probs, targets, names)
    metrics = saved_metrics(evaluation)
    assert len(metrics['confusion']) <= 220 and np.sum(metrics['confusion'], axis=0)[2] == 220
    items = pd.DataFrame(dict(name=names, label=names, group='', cluster='', split='test', problem=''))
    page = write_report(tmp_path / 'report.html', 'many', metrics, evaluation, items, None, {}).read_text()
    assert 'The table shows the 200 classes with the lowest F1 of 230' in page and 'Most frequent confusions' in page
    assert page.count('class="bar"') <= 600 and 'class="heat"' not in page
    assert 'No image of species 220, species 221' in page and 'nothing is measured about these classes' in page
