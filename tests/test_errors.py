"Error analysis: kinds of image that are worse are marked, and no others"

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageFilter

from fungi_fastai.core.errors import UserError
from fungi_fastai.evaluation.errors import _compare_rates, error_table, holm, sharpness, strata, traits


def made_up(n=600, seed=0, blurred=0.3):
    rng = np.random.default_rng(seed)
    label, blur = rng.choice(list('abc'), n), rng.random(n) < 0.25
    wrong = rng.random(n) < 0.1 + blurred * blur
    predicted = np.where(wrong, np.where(label == 'a', 'b', 'a'), label)
    predictions = pd.DataFrame(
        dict(
            name=[f'{i}.jpg' for i in range(n)], label=label, predicted=predicted, group=[str(i // 2) for i in range(n)]
        )
    )
    return (
        predictions,
        pd.DataFrame(
            dict(blur=np.where(blur, 1.0, 2.0) + rng.normal(0, 0.1, n), camera=rng.choice(['A', 'B', 'C'], n))
        ),
        wrong,
    )


def test_confusions_are_counted():
    predictions, _, wrong = made_up()
    found = error_table(predictions)
    assert (
        found.errors == wrong.sum() == found.pairs.errors.sum()
        and found.pairs.fraction_of_errors.sum() == pytest.approx(1)
    )
    assert found.pairs.errors.is_monotonic_decreasing and (found.pairs.label != found.pairs.predicted).all()
    top = found.pairs.iloc[0]
    of_label = predictions[predictions.label == top.label]
    assert top.errors == (of_label.predicted == top.predicted).sum() and top.fraction_of_label == pytest.approx(
        top.errors / len(of_label)
    )
    assert not len(found.strata) and f'The most frequent confusion is {top.label} with {top.predicted}' in found.verdict


def test_a_planted_weakness_is_marked_and_nothing_else():
    predictions, kinds, wrong = made_up()
    found = error_table(predictions, extra=kinds)
    marked = found.strata[found.strata.worse]
    assert marked.trait.tolist() == ['blur'] and 'lowest' in marked.kind.iloc[0] and 'blur' in found.verdict
    for row in found.strata.itertuples():
        assert (
            row.low <= row.rate <= row.high and row.errors == round(row.rate * row.images) and row.groups <= row.images
        )
    assert found.strata[found.strata.trait == 'camera'].images.sum() == 600
    assert '<table' in found.html() and found.metrics['errors'] == found.errors


def test_the_expected_rate_of_the_classes():
    rng = np.random.default_rng(0)
    label = rng.choice(['hard', 'easy'], 800)
    wrong = rng.random(800) < np.where(label == 'hard', 0.5, 0.05)
    predictions = pd.DataFrame(
        dict(name=np.arange(800).astype(str), label=label, predicted=np.where(wrong, 'other', label))
    )
    found = error_table(
        predictions, extra=pd.DataFrame(dict(camera=np.where((label == 'hard') & (rng.random(800) < 0.8), 'A', 'B')))
    )
    row = found.strata[found.strata.kind == 'A'].iloc[0]
    assert row.worse and row.low < row.expected_rate < row.high and 'which its classes explain' in found.verdict


def test_false_alarms_are_rare():
    "Specimens are all wrong or all correct: a test that counts single images is significant far too often"
    rng, alarms, naive = np.random.default_rng(0), 0, 0
    for _ in range(300):
        groups = np.repeat(np.arange(60), 5)
        wrong, inside = np.repeat(rng.random(60) < 0.4, 5).astype(float), np.repeat(rng.random(60) < 0.3, 5)
        alarms += _compare_rates(wrong, inside, groups).p < 0.05
        naive += _compare_rates(wrong, inside, np.arange(300)).p < 0.05
    assert alarms / 300 < 0.09 < naive / 300


def test_intervals_have_their_confidence_level():
    rng, covered = np.random.default_rng(0), 0
    for _ in range(300):
        groups = np.repeat(np.arange(80), 3)
        chance = np.repeat(rng.beta(1.5, 3.5, 80), 3)
        inside = np.repeat(rng.random(80) < 0.5, 3)
        rate = _compare_rates((rng.random(240) < chance).astype(float), inside, groups)
        covered += rate.low <= 0.3 <= rate.high
    assert covered / 300 > 0.91


def test_holm_is_statsmodels_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0] and not len(holm([]))


def test_strata():
    numbers = strata(pd.Series(np.arange(100.0)))
    assert numbers.value_counts().tolist() == [25, 25, 25, 25] or numbers.value_counts().max() <= 26
    assert (
        strata(pd.Series([5.0] * 50)).isna().all()
        and strata(pd.Series(['x'] * 50)).isna().all()
        and strata(pd.Series([np.nan] * 5)).isna().all()
    )
    words = strata(pd.Series(['a'] * 20 + ['b'] * 15 + ['c'] * 3 + ['d'] * 2 + [None]))
    assert words.value_counts().to_dict() == dict(a=20, b=15, others=5) and words.isna().sum() == 1
    assert strata(pd.Series([1.0, np.nan, 2.0, 3.0, 4.0])).isna().tolist() == [False, True, False, False, False]


def test_blur_is_seen_at_any_size_and_contrast(tmp_path):
    from fungi_fastai.samples.datasets import draw

    image = draw('flowers', 'roses', 1, 1, size=512)
    dull = Image.blend(image, Image.new('RGB', image.size, 'gray'), 0.5)
    images = dict(
        sharp=image, blurred=image.filter(ImageFilter.GaussianBlur(6)), large=image.resize((1024, 1024)), dull=dull
    )
    found = {}
    for name, one in images.items():
        one.save(tmp_path / f'{name}.png')
        found[name] = sharpness(tmp_path / f'{name}.png')
    assert found['blurred'] < found['sharp'] / 2 and found['large'] == pytest.approx(found['sharp'], rel=0.3)
    assert found['dull'] == pytest.approx(found['sharp'], rel=0.1)
    assert np.isnan(sharpness(tmp_path / 'missing.png'))


def test_of_a_run(small_run, place):
    predictions = small_run.predictions
    found = error_table(predictions, small_run.items, min_images=3, workers=1)
    assert set(found.strata.trait) >= {'brightness', 'contrast', 'sharpness'} and 'size' not in set(
        found.strata.trait
    )  # all of one size
    assert found.n == len(predictions) and found.errors == (predictions.label != predictions.predicted).sum()
    kinds = traits(small_run.items, 1)
    assert (
        kinds.index.equals(small_run.items.index)
        and kinds.sharpness.notna().all()
        and set(kinds.camera) == {'not known'}
        and set(kinds.file) == {'JPEG'}
    )
    assert 'sharpness' not in traits(small_run.items, read_images=False)


def test_all_correct_and_no_labels():
    predictions = pd.DataFrame(dict(name=list('abcd'), label=list('xxyy'), predicted=list('xxyy')))
    found = error_table(predictions, extra=pd.DataFrame(dict(kind=list('uuvv'))), min_images=1)
    assert (
        found.verdict == 'All of 4 images are classified correctly.'
        and not found.strata.worse.any()
        and (found.strata.rate == 0).all()
        and not len(found.pairs)
    )
    assert 'All of 4' in found.html()
    with pytest.raises(UserError, match='no labelled image'):
        error_table(predictions.assign(label=None))
