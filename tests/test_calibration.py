"Calibration and intervals of fractions: against hand calculations and other libraries, for any probabilities"

import json
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fungi_fastai.core.errors import UserError
from fungi_fastai.evaluation.assess import calibrate
from fungi_fastai.evaluation.calibration import (
    CalibrationWarning,
    apply_temperature,
    expected_calibration_error,
    fit_temperature,
    maximum_calibration_error,
    plot_reliability,
    reliability,
    temperature_limits,
)
from fungi_fastai.evaluation.intervals import effective_size, group_numbers, interval_of
from fungi_fastai.evaluation.metrics import Evaluation

few = settings(max_examples=40, deadline=None, derandomize=True)


@st.composite
def labelled(draw, least=1, most=60):
    "Probabilities with ties, zeros and ones among them, and targets"
    n, classes = draw(st.integers(least, most)), draw(st.integers(1, 6))
    random = np.random.default_rng(draw(st.integers(0, 10_000)))
    probs = random.dirichlet(np.full(classes, draw(st.sampled_from([0.02, 0.3, 3.0]))), n)
    if draw(st.booleans()):
        probs = np.round(probs * 4) / 4
    probs[probs.sum(1) == 0] = 1
    return probs / probs.sum(1, keepdims=True), random.integers(0, classes, n)


def sample(n=400, classes=5, seed=0, sharpness=0.4):
    "Calibrated probabilities: each class is drawn from them"
    random = np.random.default_rng(seed)
    probs = random.dirichlet(np.full(classes, sharpness), n)
    return probs, (probs.cumsum(1) < random.random((n, 1))).sum(1).clip(0, classes - 1)


# --- the errors


def by_hand(probs, targets, bins):
    "ECE and MCE as the paper writes them, a loop over bins (m-1)/M < confidence <= m/M"
    gaps, total = [], 0
    for m in range(bins):
        mine = [i for i, p in enumerate(probs) if m / bins < max(p) - 1e-12 <= (m + 1) / bins]
        if not mine:
            continue
        gap = abs(np.mean([max(probs[i]) for i in mine]) - np.mean([np.argmax(probs[i]) == targets[i] for i in mine]))
        gaps.append(gap)
        total += gap * len(mine) / len(targets)
    return total, max(gaps)


@few
@given(labelled(), st.integers(1, 20))
def test_the_error_is_the_papers(both, bins):
    probs, targets = both
    ece, mce = by_hand(probs, targets, bins)
    assert expected_calibration_error(probs, targets, bins) == pytest.approx(ece, abs=1e-9)
    assert maximum_calibration_error(probs, targets, bins) == pytest.approx(mce, abs=1e-9)


@few
@given(labelled(least=2), st.integers(1, 20), st.sampled_from(['width', 'mass']))
def test_no_order_of_images_or_classes_matters(both, bins, equal):
    probs, targets = both
    random = np.random.default_rng(0)
    order, classes = random.permutation(len(targets)), random.permutation(probs.shape[1])
    found = expected_calibration_error(probs, targets, bins, equal)
    assert 0 <= found <= maximum_calibration_error(probs, targets, bins, equal) + 1e-12 <= 1 + 1e-9
    assert expected_calibration_error(probs[order], targets[order], bins, equal) == pytest.approx(found, abs=1e-9)
    if (probs == probs.max(1, keepdims=True)).sum(1).max() == 1:  # of equally probable classes the first is predicted
        assert expected_calibration_error(
            probs[:, classes], np.argsort(classes)[targets], bins, equal
        ) == pytest.approx(found, abs=1e-9)


def test_mapie_and_we_agree():
    "MAPIE takes whether the prediction is correct, and its confidence; it counts the edges of the bins"
    from mapie.metrics.calibration import expected_calibration_error as theirs

    probs, targets = sample(1000)
    right = (probs.argmax(1) == targets).astype(int)
    for bins in (5, 15):
        found = theirs(right, probs.max(1), num_bins=bins + 1, split_strategy='uniform')
        assert expected_calibration_error(probs, targets, bins) == pytest.approx(found, abs=1e-9)


def test_bins_of_equal_mass_hold_equally_many():
    probs, targets = sample(1000)
    table = reliability(probs, targets, 10, 'mass')
    assert table.images.between(99, 101).all() and table.images.sum() == 1000
    assert (table.low.to_numpy()[1:] == table.high.to_numpy()[:-1]).all()
    one = np.full((30, 4), 0.25)  # one confidence: one bin, whatever the number
    assert len(reliability(one, np.zeros(30, int), 10, 'mass')) == 1
    assert expected_calibration_error(one, np.zeros(30, int), 10, 'mass') == pytest.approx(0.75)


def test_one_image_and_many_classes():
    assert expected_calibration_error(np.eye(1000)[:1], np.array([0])) == 0
    assert expected_calibration_error(np.eye(1000)[:1], np.array([1]), equal='mass') == 1
    assert reliability(np.array([[1.0]]), np.array([0])).images.tolist() == [1]


@pytest.mark.parametrize(
    'probs, targets, message',
    [
        ([[np.nan, 1.0]], [0], 'not numbers'),
        ([[0.2, 0.2]], [0], 'sum to 0.4; expected 1'),
        ([[1.5, -0.5]], [0], 'below 0'),
        ([[0.5, 0.5]], [2], 'from 0 to 1'),
        ([[0.5, 0.5]], [0, 1], '1 rows'),
        ([[0.5, 0.5]], [0.5], 'whole numbers'),
        (np.zeros((0, 3)), [], 'no image'),
        ([0.5], [0], 'shape'),
    ],
)
def test_invalid_probabilities(probs, targets, message):
    for function in (expected_calibration_error, reliability, fit_temperature):
        with pytest.raises(UserError, match=message):
            function(np.asarray(probs, float), np.asarray(targets))


def test_invalid_bins():
    for bins in (0, -1, 2.5):
        with pytest.raises(UserError, match='number of bins'):
            expected_calibration_error(np.array([[0.5, 0.5]]), np.array([0]), bins)
    with pytest.raises(UserError, match="'width' or 'mass'"):
        expected_calibration_error(np.array([[0.5, 0.5]]), np.array([0]), equal='size')


# --- intervals of fractions


def test_the_interval_is_clopper_and_pearsons():
    from scipy.stats import binomtest

    random = np.random.default_rng(0)
    for n in (1, 2, 10, 200):
        for hits in {0, n, *random.integers(0, n + 1, 3).tolist()}:
            theirs = binomtest(hits, n).proportion_ci(0.95, method='exact')
            assert interval_of(np.arange(n) < hits) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    assert interval_of(np.zeros(0, bool)) == (0, 1)


def test_groups_widen_an_interval_and_never_narrow_it():
    random = np.random.default_rng(1)
    held = []
    for _ in range(300):
        specimens = random.random(40) < 0.8  # all ten crops of a specimen are right, or none
        hits, groups = np.repeat(specimens, 10), np.repeat(np.arange(40), 10)
        low, high = interval_of(hits, groups=groups)
        alone = interval_of(hits)
        assert low <= alone[0] + 1e-12 and high >= alone[1] - 1e-12
        held.append((low <= 0.8 <= high, alone[0] <= 0.8 <= alone[1]))
    assert np.mean(held, axis=0)[0] >= 0.93 and np.mean(held, axis=0)[1] < 0.6
    assert effective_size(np.ones(30, bool), np.repeat(range(3), 10)) == 3
    assert effective_size(np.array([True, False] * 10), np.arange(20)) == 20


def test_images_without_a_group_are_groups_of_one():
    assert len(set(group_numbers(['', None, 'a', 'a', np.nan, ''], 6))) == 5
    assert group_numbers(['', ''], 2).tolist() == [0, 1] and group_numbers(None, 3) is None
    assert group_numbers(pd.Series(['x', 'x'], index=[7, 9]), 2).tolist() == [0, 0]
    with pytest.raises(UserError, match='2 images and 3 groups'):
        group_numbers(list('abc'), 2)


# --- the temperature


@few
@given(labelled(), st.floats(0.1, 10))
def test_a_temperature_keeps_order_and_sum(both, temperature):
    probs, _ = both
    after = apply_temperature(probs, temperature)
    assert np.isfinite(after).all() and np.allclose(after.sum(1), 1)
    assert (after.max(1) == np.take_along_axis(after, probs.argmax(1)[:, None], 1)[:, 0]).all()
    assert (after[probs == 0] == 0).all()
    if temperature > 1:
        assert (after.max(1) <= probs.max(1) + 1e-9).all()


def test_a_temperature_is_that_of_the_logits():
    from scipy.special import softmax

    logits = np.random.default_rng(0).normal(size=(50, 6)) * 4
    for t in (0.3, 1, 2.7):
        assert np.allclose(apply_temperature(softmax(logits, 1), t), softmax(logits / t, 1))
    for t in (0, -1, np.nan, np.inf):
        with pytest.raises(UserError, match='above 0'):
            apply_temperature(softmax(logits, 1), t)


@pytest.mark.parametrize('true', [0.25, 1, 3.0])
def test_the_temperature_has_the_lowest_log_loss(true):
    probs, targets = sample(4000)
    uncalibrated = apply_temperature(probs, 1 / true)
    found = fit_temperature(uncalibrated, targets)
    assert found == pytest.approx(true, rel=0.1)
    loss = lambda t: (
        -np.log(np.clip(apply_temperature(uncalibrated, t), 1e-300, 1)[np.arange(len(targets)), targets]).mean()
    )
    grid = np.geomspace(found / 2, found * 2, 41)
    if (uncalibrated > 1e-12).all():
        assert loss(found) <= min(map(loss, grid)) + 1e-5
    assert expected_calibration_error(apply_temperature(uncalibrated, found), targets) < 0.04


@pytest.mark.parametrize('shrinkage', [0, 4, 40])
def test_another_way_finds_the_same_temperature(shrinkage):
    "Without bounds, with scikit-learn's log loss and the density of a normal distribution, a value for each specimen"
    from scipy.optimize import minimize
    from scipy.stats import norm
    from sklearn.metrics import log_loss

    probs, targets = sample(800, sharpness=1.0)
    uncalibrated, specimens = apply_temperature(probs, 0.4), np.arange(800) // 40

    def objective(x):
        prior = norm(scale=shrinkage**-0.5).logpdf(x[0]) if shrinkage else 0
        return 20 * log_loss(targets, apply_temperature(uncalibrated, float(np.exp(x[0]))), labels=range(5)) - prior

    theirs = float(np.exp(minimize(objective, [0.0], method='Nelder-Mead', tol=1e-6).x[0]))
    assert fit_temperature(uncalibrated, targets, specimens, shrinkage) == pytest.approx(theirs, rel=1e-3)


def test_a_single_zero_does_not_decide_alone():
    probs, targets = sample(400, sharpness=2.0)
    probs[0], targets[0] = [1, 0, 0, 0, 0], 4  # confident, and wrong: its log loss is infinite
    found = fit_temperature(probs, targets)
    assert 0.8 < found < 1.6


@pytest.mark.parametrize(
    'probs, targets, message',
    [
        (sample(19)[0], sample(19)[1], '19 images are too few'),
        (sample(50)[0], np.zeros(50, int), 'one class'),
        (np.eye(4)[np.arange(40) % 4] * 0.6 + 0.1, np.arange(40) % 4, 'correct on every image'),
        (np.full((40, 4), 0.25), np.arange(40) % 4, 'every class the same'),
    ],
)
def test_a_temperature_that_cannot_be_fitted_is_one(probs, targets, message):
    with pytest.warns(CalibrationWarning, match=message):
        assert fit_temperature(probs, targets) == 1


def test_probabilities_that_mislead_stop_at_the_limit():
    probs, _ = sample(500, sharpness=2.0)
    with pytest.warns(CalibrationWarning, match='limit'):
        found = fit_temperature(probs, (probs.argmax(1) + 1) % 5, shrinkage=0)
    assert found == pytest.approx(temperature_limits[1], rel=0.01)


# --- of a run


def table(n, seed, temperature=0.5):
    probs, targets = sample(n, seed=seed)
    return pd.DataFrame(apply_temperature(probs, temperature), columns=[f'p_{c}' for c in 'abcde']).assign(
        label=np.array(list('abcde'))[targets]
    )


def test_calibrate_tells_before_and_after():
    result = calibrate(Evaluation.of(table(500, 0)), Evaluation.of(table(800, 1)))
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result['temperature'] == pytest.approx(2, rel=0.15) and (
        result['n_valid'],
        result['n_test'],
        result['note'],
    ) == (
        500,
        800,
        '',
    )
    before, after = result['before'], result['after']
    assert before['accuracy'] == after['accuracy']
    assert all(after[k] < before[k] for k in ('ece', 'ece_mass', 'log_loss', 'brier'))
    from sklearn.metrics import brier_score_loss, log_loss

    test = table(800, 1)
    probs = test[[f'p_{c}' for c in 'abcde']].to_numpy()
    assert before['brier'] == pytest.approx(
        brier_score_loss(test.label, probs, labels=list('abcde'), scale_by_half=False)
    )
    floor = np.clip(probs, 1e-7, 1)
    assert before['log_loss'] == pytest.approx(
        log_loss(test.label, floor / floor.sum(1, keepdims=True), labels=list('abcde'))
    )


def test_calibrate_notes_why_the_temperature_is_one():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        result = calibrate(Evaluation.of(table(10, 0)), Evaluation.of(table(30, 1)))
    assert result['temperature'] == 1 and 'too few' in result['note'] and result['before'] == result['after']


def test_the_diagram():
    probs, targets = sample(200)
    assert len(plot_reliability(probs, targets).axes) == 1
    figure = plot_reliability(apply_temperature(probs, 0.5), targets, probs, groups=np.repeat(range(100), 2))
    assert [a.get_title().split(':')[0] for a in figure.axes] == ['before calibration', 'after calibration']
    plot_reliability(np.eye(3), np.arange(3))  # all correct, all confident
