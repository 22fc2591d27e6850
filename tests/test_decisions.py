"Selective prediction, conformal sets, OOD scores: guarantees hold on new images, other libraries agree"

import json
import warnings
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fungi_fastai.core.errors import UserError
from fungi_fastai.evaluation.calibration import apply_temperature
from fungi_fastai.evaluation.conformal import Conformal, conformal, conformal_quantile, coverage_table, nonconformity
from fungi_fastai.evaluation.ood import auroc, fpr_at_tpr, ood_scores, ood_table
from fungi_fastai.evaluation.selective import Threshold, decide, plot_risk_coverage, risk_coverage, threshold_for

few = settings(max_examples=30, deadline=None, derandomize=True)


def sample(n, seed=0, classes=6, sharpness=0.1):
    "Calibrated probabilities: each class is drawn from them"
    random = np.random.default_rng(seed)
    probs = random.dirichlet(np.full(classes, sharpness), n)
    return probs, (probs.cumsum(1) < random.random((n, 1))).sum(1).clip(0, classes - 1)


@cache
def many():
    return sample(40_000, 99)


# --- risk and coverage


@few
@given(st.integers(1, 40), st.integers(2, 5), st.integers(0, 1000), st.booleans())
def test_aurc_is_the_mean_over_all_orders_of_ties(n, classes, seed, tied):
    probs, targets = sample(n, seed, classes)
    if tied:
        probs = (np.round(probs * 3) + 0.1) / (np.round(probs * 3) + 0.1).sum(1, keepdims=True)
    found = risk_coverage(probs, targets)
    confidence, wrong = probs.max(1), probs.argmax(1) != targets
    random, areas = np.random.default_rng(0), []
    for _ in range(200 if tied else 1):
        order = np.lexsort([random.random(n), -confidence])
        areas.append((wrong[order].cumsum() / np.arange(1, n + 1)).mean())
    assert found.aurc == pytest.approx(np.mean(areas), abs=5 * np.std(areas) / np.sqrt(len(areas)) + 1e-9)
    assert found.coverage[-1] == 1 and found.risk[-1] == pytest.approx(wrong.mean())
    assert (np.diff(found.coverage) > 0).all() and (np.diff(found.confidence) < 0).all()
    best = (np.sort(wrong).cumsum() / np.arange(1, n + 1)).mean()
    assert found.excess_aurc == pytest.approx(found.aurc - best, abs=1e-9)


def test_the_plot_marks_the_threshold():
    probs, targets = sample(300)
    threshold = threshold_for(*sample(300, 1), accuracy=0.8)
    assert len(plot_risk_coverage(probs, targets, threshold).axes[0].collections) == 1
    assert (
        not plot_risk_coverage(probs, targets, threshold_for(probs[:5], targets[:5], accuracy=0.99)).axes[0].collections
    )
    plot_risk_coverage(probs[:1], targets[:1])


# --- thresholds


@pytest.mark.parametrize('accuracy, sharpness', [(0.9, 0.1), (0.7, 0.3), (0.95, 0.03)])
def test_the_guarantee_holds(accuracy, sharpness):
    "Over many validation sets, the accuracy of the answers on new images is below the target in at most 1 of 20"
    probs, targets = sample(40_000, 99, sharpness=sharpness)
    confidence, right = probs.max(1), probs.argmax(1) == targets
    order = np.argsort(-confidence)
    reached, mean = confidence[order], right[order].cumsum() / np.arange(1, len(order) + 1)
    broken, bounds, found = [], [], 0
    for seed in range(150):
        t = threshold_for(*sample(300, 1000 + seed, sharpness=sharpness), accuracy=accuracy)
        if not t.found:
            continue
        found += 1
        true = mean[np.searchsorted(-reached, -t.confidence, side='right') - 1]
        broken.append(true < accuracy)
        bounds.append(1 - true > t.error_bound)
    assert found >= 60 and np.mean(broken) <= 0.05 and np.mean(bounds) <= 0.05


def test_groups_widen_the_bound():
    random = np.random.default_rng(0)
    probs, targets = sample(60, 5)
    probs, targets, groups = np.repeat(probs, 10, axis=0), np.repeat(targets, 10), np.repeat(np.arange(60), 10)
    probs = apply_temperature(probs, 1) * random.uniform(0.999, 1, probs.shape)  # ten crops each, all but the same
    probs /= probs.sum(1, keepdims=True)
    naive, grouped = (threshold_for(probs, targets, coverage=0.5, groups=g) for g in (None, groups))
    assert grouped.error_bound > naive.error_bound + 0.05
    assert naive.confidence == grouped.confidence
    assert 'about 95% confidence' in grouped.why and '60 independent groups' in grouped.why and 'about' not in naive.why
    alone = threshold_for(probs, targets, coverage=0.5, groups=np.arange(600))
    assert alone == naive


def test_no_threshold_reaches_the_target():
    probs, targets = sample(100, 2, sharpness=2.0)
    none = threshold_for(probs, targets, accuracy=0.99)
    assert not none.found and none.confidence is None and none.coverage == 0 and not none.accepts(probs).any()
    assert 'No threshold reaches the target' in none.why and '100 validation images' in none.why
    result = none.on(probs, targets)
    assert result['answered'] == 0 and result['accuracy'] is None
    perfect = np.eye(3)[np.arange(57) % 3], np.arange(57) % 3
    assert threshold_for(*perfect, accuracy=0.9).coverage == 1  # 57 images without an error are just enough
    assert not threshold_for(perfect[0][:56], perfect[1][:56], accuracy=0.9).found
    assert threshold_for(perfect[0][:1], perfect[1][:1], accuracy=0.9, guaranteed=False).found


@few
@given(st.integers(1, 80), st.integers(0, 1000), st.floats(0.05, 0.99), st.booleans())
def test_a_threshold_reports_what_it_does_on_validation(n, seed, target, guaranteed):
    probs, targets = sample(n, seed)
    if seed % 3 == 0:
        probs = (
            np.round(probs * 4 + 0.25) / np.round(probs * 4 + 0.25).sum(1, keepdims=True)
            if (np.round(probs * 4 + 0.25).sum(1) > 0).all()
            else probs
        )
    for t in (
        threshold_for(probs, targets, accuracy=target, guaranteed=guaranteed),
        threshold_for(probs, targets, coverage=target),
    ):
        result = t.on(probs, targets)
        assert result['coverage'] == pytest.approx(t.coverage) and (
            result['accuracy'] is None or result['accuracy'] == pytest.approx(t.accuracy)
        )
        assert Threshold(**json.loads(json.dumps(t.to_dict(), allow_nan=False))) == t
        if t.found and t.target.endswith('correct'):
            assert (1 - t.error_bound if guaranteed else t.accuracy) >= target
        if t.target.endswith('answered'):
            assert t.coverage >= min(1, target) - 1e-9


def test_a_target_coverage_is_reached_on_average():
    probs, _ = many()
    confidence = np.sort(probs.max(1))
    for target in (0.3, 0.8):
        reached = [
            1 - np.searchsorted(confidence, threshold_for(*sample(50, s), coverage=target).confidence) / len(confidence)
            for s in range(200)
        ]
        assert target - 0.015 <= np.mean(reached) <= target + 0.04
    assert threshold_for(*sample(50), coverage=1).confidence == 0


@pytest.mark.parametrize(
    'options',
    [
        {},
        dict(accuracy=0.9, coverage=0.5),
        dict(accuracy=1.0),
        dict(accuracy=0),
        dict(coverage=1.1),
        dict(accuracy=0.9, confidence_level=95),
    ],
)
def test_invalid_targets(options):
    with pytest.raises(UserError, match='target|confidence level'):
        threshold_for(*sample(30), **options)


# --- sets


class Given:
    "A classifier for MAPIE whose probabilities are given"

    _estimator_type = 'classifier'

    def __init__(self, classes):
        self.classes_ = np.arange(classes)

    def fit(self, X, y):
        return self

    def predict(self, X):
        return X.argmax(1)

    def predict_proba(self, X):
        return np.asarray(X)

    def __sklearn_is_fitted__(self):
        return True

    def __sklearn_tags__(self):
        from sklearn.base import BaseEstimator, ClassifierMixin

        return type('Plain', (ClassifierMixin, BaseEstimator), {})().__sklearn_tags__()


def mapie(score, probs, targets, test, coverage, include='last', seed=0):
    "MAPIE's sets, and the conformity of its score"
    from mapie.classification import SplitConformalClassifier

    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        model = SplitConformalClassifier(Given(probs.shape[1]), coverage, score, prefit=True, random_state=seed)
        model.conformalize(probs, targets)
        sets = model.predict_set(
            test, conformity_score_params=dict(include_last_label=include if include != 'last' else True)
        )[1][:, :, 0]
    return sets, model._conformity_score, model._mapie_classifier


@pytest.mark.parametrize('classes, n, coverage', [(3, 40, 0.8), (5, 200, 0.9), (30, 500, 0.95)])
@pytest.mark.parametrize('score', ['lac', 'aps'])
def test_lac_and_aps_are_mapies(score, classes, n, coverage):
    for seed in range(4):
        (probs, targets), (test, _) = sample(n, seed, classes, 0.5), sample(300, seed + 50, classes, 0.5)
        theirs, conformity, _ = mapie(score, probs, targets, test, coverage, seed=seed)
        ours = conformal(probs, targets, coverage, score, seed=seed)
        assert ours.quantile == pytest.approx(float(conformity.quantiles_[0]), abs=1e-9)
        assert (ours.sets(test) == theirs).all()
        if score == 'aps':
            theirs, conformity, _ = mapie(score, probs, targets, test, coverage, 'randomized', seed)
            ours = conformal(probs, targets, coverage, score, randomised=True, seed=seed)
            assert (ours.sets(test) == theirs).all() and ours.quantile == pytest.approx(float(conformity.quantiles_[0]))


def test_raps_is_mapies():
    "Given the penalty and rank that MAPIE chose, and the images that it kept for the quantile"
    from sklearn.model_selection import StratifiedShuffleSplit

    for seed in range(4):
        (probs, targets), (test, _) = sample(500, seed, 20, 0.5), sample(300, seed + 50, 20, 0.5)
        theirs, conformity, _ = mapie('raps', probs, targets, test, 0.9, seed=seed)
        # its scores are of the kept images in its own shuffled order, with its own randomisation, as here
        chosen = next(
            StratifiedShuffleSplit(1, test_size=len(conformity.X_raps), random_state=seed).split(probs, targets)
        )[0]
        assert len(chosen) + len(conformity.X_raps) == 500 and not set(map(tuple, probs[chosen].tolist())) & set(
            map(tuple, np.asarray(conformity.X_raps).tolist())
        )
        ours = conformal(
            probs[chosen],
            targets[chosen],
            0.9,
            'raps',
            seed=seed,
            penalty=float(conformity.lambda_star),
            rank=int(conformity.k_star[0]),
        )
        assert ours.quantile == pytest.approx(float(conformity.quantiles_[0]), abs=1e-9)
        assert (ours.sets(test) == theirs).all()


@pytest.mark.parametrize(
    'score, randomised', [('lac', False), ('aps', False), ('aps', True), ('raps', False), ('raps', True)]
)
def test_sets_have_the_target_coverage(score, randomised):
    probs, targets = many()
    covered, sizes = [], []
    for seed in range(60):
        found = conformal(*sample(120, 2000 + seed), 0.9, score, randomised, seed).sets(
            probs[seed * 600 : (seed + 1) * 600]
        )
        covered.append(found[np.arange(600), targets[seed * 600 : (seed + 1) * 600]].mean())
        sizes.append(found.sum(1).mean())
    assert 0.885 <= np.mean(covered) <= (0.925 if score == 'lac' or randomised else 0.99)
    assert np.mean(sizes) < 2.2


def test_one_image_a_specimen_covers_new_specimens():
    probs, targets = many()
    covered = []
    for seed in range(60):
        p, t = sample(60, 3000 + seed)
        size = np.where(p.max(1) > 0.9, 20, 1)  # easy specimens were photographed more often
        covered.append(
            [
                conformal(np.repeat(p, size, 0), np.repeat(t, size), 0.9, groups=g)
                .sets(probs[:4000])[np.arange(4000), targets[:4000]]
                .mean()
                for g in (np.repeat(np.arange(60), size), None)
            ]
        )
    grouped, naive = np.mean(covered, axis=0)
    assert grouped >= 0.885 and naive < grouped - 0.05
    assert conformal(np.repeat(p, size, 0), np.repeat(t, size), 0.9, groups=np.repeat(np.arange(60), size)).images == 60


@few
@given(
    st.integers(1, 60),
    st.integers(1, 6),
    st.integers(0, 1000),
    st.sampled_from(['lac', 'aps', 'raps']),
    st.booleans(),
    st.floats(0.5, 0.99),
)
def test_sets_do_not_depend_on_the_order_of_classes(n, classes, seed, score, tied, coverage):
    (probs, targets), (test, _) = sample(n, seed, classes), sample(20, seed + 1, classes)
    if tied:
        probs, test = ((np.round(p * 3) + 0.1) / (np.round(p * 3) + 0.1).sum(1, keepdims=True) for p in (probs, test))
    order = np.random.default_rng(0).permutation(classes)
    one = conformal(probs, targets, coverage, score)
    other = conformal(probs[:, order], np.argsort(order)[targets], coverage, score)
    assert (one.quantile is None) == (other.quantile is None)
    if one.quantile is not None:
        assert one.quantile == pytest.approx(other.quantile, abs=1e-9)
    if tied or score == 'lac' or one.quantile is None:
        assert (one.sets(test)[:, order] == one.sets(test[:, order])).all()
    if score != 'lac':
        assert one.sets(test)[np.arange(20), test.argmax(1)].all()
    assert Conformal(**json.loads(json.dumps(one.to_dict(), allow_nan=False))) == one
    # the more probable of two classes is never left out alone
    sets = one.sets(test)
    for p, members in zip(test, sets, strict=True):
        if members.any() and not members.all():
            assert p[members].min() >= p[~members].max() - 1e-9


def test_with_too_few_images_sets_hold_every_class():
    assert conformal_quantile(np.arange(8.0), 0.9) is None and conformal_quantile(np.arange(9.0), 0.9) == 8
    found = conformal(*sample(8), 0.9)
    assert found.quantile is None and found.sets(sample(5)[0]).all()
    assert conformal(*sample(3), 0.9, 'raps').sets(sample(5)[0]).all()


def test_scores_by_hand():
    p = np.array([[0.5, 0.2, 0.3]])
    assert nonconformity(p, 'lac')[0] == pytest.approx([0.5, 0.8, 0.7])
    assert nonconformity(p, 'aps')[0] == pytest.approx([0.5, 1, 0.8])
    assert nonconformity(p, 'aps', randomisation=np.array([0.5]))[0] == pytest.approx([0.25, 0.9, 0.65])
    assert nonconformity(p, 'raps', 0.1, 1)[0] == pytest.approx([0.5, 1.2, 0.9])
    assert nonconformity(np.array([[0.4, 0.2, 0.4]]), 'aps')[0] == pytest.approx([0.8, 1, 0.8])


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(score='naive'), 'one of lac, aps, raps'),
        (dict(coverage=1), 'above 0 and below 1'),
        (dict(randomised=True), 'nothing to randomise'),
        (dict(score='raps', rank=2), 'both a penalty and a rank'),
    ],
)
def test_invalid_options_of_sets(options, message):
    with pytest.raises(UserError, match=message):
        conformal(*sample(30), **options)


def test_the_table_of_sets():
    sets = np.array([[True, False], [True, True], [False, False], [True, True]])
    table = coverage_table(sets, np.array([1, 1, 0, 0]))
    assert table.index.tolist() == ['0', '1', '2', 'all'] and table.images.tolist() == [1, 1, 2, 4]
    assert table.coverage.tolist() == [0, 0, 1, 0.5] and table.loc['all', 'mean_size'] == 1.25


# --- out-of-distribution images


def test_auroc_and_fpr_are_scikit_learns():
    from sklearn.metrics import roc_auc_score, roc_curve

    random = np.random.default_rng(0)
    for decimals in (1, 6):  # with ties, and without
        known, unknown = random.normal(size=150).round(decimals), (random.normal(size=70) + 1).round(decimals)
        truth, scores = (
            np.repeat([1, 0], [150, 70]),
            -np.concatenate([known, unknown]),
        )  # known is positive, and scored high
        assert auroc(known, unknown) == pytest.approx(roc_auc_score(truth, scores))
        false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
        assert fpr_at_tpr(known, unknown) == pytest.approx(false[true >= 0.95 - 1e-12].min())
    assert auroc(np.zeros(3), np.zeros(4)) == 0.5 and fpr_at_tpr(np.zeros(3), np.zeros(4)) == 1
    assert auroc(np.zeros(1), np.ones(1)) == 1 and fpr_at_tpr(np.zeros(1), np.ones(1)) == 0


def test_ood_scores_are_what_they_say():
    from sklearn.neighbors import NearestNeighbors

    random = np.random.default_rng(0)
    train, kinds, x = random.normal(size=(90, 6)), np.arange(90) % 3, random.normal(size=(40, 6))
    train += 4 * np.eye(3, 6)[kinds]
    logits = random.normal(size=(40, 3))
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    found = ood_scores(probs, logits, x, train, kinds, neighbours=5)
    assert list(found) == ['max_softmax', 'energy', 'neighbours', 'mahalanobis']
    assert found.energy.to_numpy() == pytest.approx(-np.log(np.exp(logits).sum(1)))
    unit = lambda v: v / np.linalg.norm(v, axis=1, keepdims=True)
    assert found.neighbours.to_numpy() == pytest.approx(
        NearestNeighbors(n_neighbors=5).fit(unit(train)).kneighbors(unit(x))[0][:, -1]
    )
    assert list(ood_scores(probs)) == ['max_softmax'] and list(ood_scores(probs, features=x, train_features=train)) == [
        'max_softmax',
        'neighbours',
    ]
    # the same whatever the scale of a feature
    scale = np.array([1, 10, 0.1, 100, 1, 1])
    assert ood_scores(probs, None, x * scale, train * scale, kinds).mahalanobis.to_numpy() == pytest.approx(
        found.mahalanobis.to_numpy(), rel=1e-6
    )
    # fewer images than features, a feature that never changes, a class of one image
    odd = ood_scores(
        probs,
        None,
        np.hstack([np.repeat(x, 20, 1), np.ones((40, 1))]),
        np.hstack([np.repeat(train[:7], 20, 1), np.ones((7, 1))]),
        np.array([0, 0, 0, 1, 1, 1, 2]),
    )
    assert np.isfinite(odd.to_numpy()).all()


def test_far_ood_images_are_detected_and_near_ones_not():
    random = np.random.default_rng(1)
    kinds = np.arange(200) % 2
    train = random.normal(size=(200, 8)) + 3 * np.eye(2, 8)[kinds]
    known, far = (
        random.normal(size=(100, 8)) + 3 * np.eye(2, 8)[np.arange(100) % 2],
        random.normal(size=(60, 8)) + 6 * np.eye(8)[5],
    )
    same = np.full((100, 2), 0.5)
    scores = [ood_scores(same[: len(x)], None, x, train, kinds) for x in (known, far, known[::-1])]
    table = ood_table(*scores[:2], samples=100)
    assert table.auroc['mahalanobis'] > 0.98 and table.auroc['neighbours'] > 0.9 and table.auroc['max_softmax'] == 0.5
    assert ((table.auroc_low <= table.auroc) & (table.auroc <= table.auroc_high)).all()
    assert ood_table(scores[0], scores[2], samples=0).auroc.tolist() == [0.5, 0.5, 0.5]
    grouped = ood_table(
        *scores[:2], known_groups=np.repeat(range(20), 5), unknown_groups=['a'] * 30 + [''] * 30, samples=100
    )
    assert grouped.auroc.tolist() == table.auroc.tolist()


@pytest.mark.parametrize(
    'call, message',
    [
        (lambda p: ood_scores(p, features=p), 'train_features'),
        (lambda p: ood_scores(p, p[:3]), 'logits of the shape'),
        (lambda p: ood_scores(p, features=p, train_features=p[:, :2]), 'Features have'),
        (lambda p: auroc(np.array([]), np.ones(2)), 'scores'),
        (lambda p: fpr_at_tpr(np.ones(2), np.array([np.nan])), 'finite'),
        (lambda p: fpr_at_tpr(np.ones(2), np.ones(2), 95), 'at most 1'),
    ],
)
def test_invalid_ood_scores(call, message):
    with pytest.raises(UserError, match=message):
        call(sample(10)[0])


# --- answers


def test_answers_say_why():
    (probs, targets), (test, _) = sample(600), sample(200, 1)
    names = [f'species {c}' for c in 'ABCDEF']
    threshold, sets = threshold_for(probs, targets, accuracy=0.8), conformal(probs, targets, 0.9)
    for temperature in (1.0, 1.7):
        calibrated = apply_temperature(test, temperature)
        decisions = decide(test, names, temperature, threshold, sets)
        assert [d.answered for d in decisions] == threshold.accepts(calibrated).tolist() and 0 < sum(
            d.answered for d in decisions
        ) < 200
        for d, p, members in zip(decisions, calibrated, sets.sets(calibrated), strict=True):
            assert d.confidence == pytest.approx(p.max()) and set(d.set) == {
                n for n, m in zip(names, members, strict=True) if m
            }
            assert d.label == (names[p.argmax()] if d.answered else 'not sure')
            assert f'{p.max():.2f}' in d.why and ('reaches' if d.answered else 'is below') in d.why
    alone = decide(test, names, conformal=sets)
    for d in alone:
        assert d.answered == (len(d.set) == 1) and (
            'only class in the set' in d.why if d.answered else 'The set holds' in d.why or 'No class fits' in d.why
        )
    assert all(d.answered and d.set == () for d in decide(test, names))
    none = threshold_for(probs[:20], targets[:20], accuracy=0.99)
    assert all(
        d.label == 'not sure' and 'No threshold reaches the target' in d.why
        for d in decide(test, names, threshold=none)
    )


def test_answers_at_the_edges():
    assert decide(np.zeros((0, 3)), list('abc')) == []
    assert decide(np.array([[1.0]]), ['a'])[0].label == 'a'
    empty = Conformal('lac', 0.9, 0.1)
    assert 'No class fits' in decide(np.array([[0.5, 0.5]]), ['a', 'b'], conformal=empty)[0].why
    wide = decide(np.full((1, 9), 1 / 9), list('abcdefghi'), conformal=Conformal('lac', 0.9, None))[0]
    assert 'The set holds 9 classes' in wide.why and 'and 4 more' in wide.why and len(wide.set) == 9
    with pytest.raises(UserError, match='2 classes and 3 names'):
        decide(np.array([[0.5, 0.5]]), list('abc'))
    with pytest.raises(UserError, match='Rename the class'):
        decide(np.array([[0.5, 0.5]]), ['a', 'not sure'])
    with pytest.raises(UserError, match='not numbers'):
        decide(np.array([[np.nan, 0.5]]), ['a', 'b'])


def test_nothing_heavy_is_imported():
    import subprocess
    import sys

    heavy = '("torch", "fastai", "sklearn", "mapie")'
    code = f'import fungi_fastai.evaluation.costs, sys; print([m for m in {heavy} if m in sys.modules])'
    assert (
        subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'
    )
