"""Thousands of classes: the most probable ones give the scores of all, and memory grows with the images alone"""

import json
import tracemalloc

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from fungi_fastai.core.errors import UserError
from fungi_fastai.deploy import prediction_files
from fungi_fastai.deploy.prediction_files import prediction_schema, without_bookkeeping
from fungi_fastai.evaluation.assess import assess_predictions, saved_metrics
from fungi_fastai.evaluation.calibration import apply_temperature, calibration_errors, fit_temperature
from fungi_fastai.evaluation.conformal import conformal
from fungi_fastai.evaluation.gallery import top_losses
from fungi_fastai.evaluation.metrics import Evaluation, predictions_table
from fungi_fastai.evaluation.pooling import Pooling, assess_pooling
from fungi_fastai.evaluation.probability_columns import class_names, table_probabilities
from fungi_fastai.evaluation.ranks import Ranks
from fungi_fastai.evaluation.saved_predictions import describe_kept, read_predictions, write_predictions
from fungi_fastai.evaluation.top_probabilities import TopProbabilities

n_classes = 1010
names = [f'moss {i}' for i in range(n_classes)]


@pytest.fixture(scope='module')
def images():
    "Top probabilities, targets and specimens of 120 images; some true classes are very improbable"
    rng = np.random.default_rng(3)
    specimens = np.sort(rng.integers(0, 45, 120))
    targets = specimens * 11 % n_classes
    logits = 2 * rng.normal(size=(120, n_classes)).astype(np.float32)
    logits[np.arange(120), targets] += rng.normal(3, 4, 120)
    probs = np.exp(logits - logits.max(1, keepdims=True))
    probs /= probs.sum(1, keepdims=True)
    return TopProbabilities.of(probs, targets), targets, [f's{i}' for i in specimens]


def assert_same(one, other):
    "The same values, numbers up to rounding"
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        one, other = list(one.values()), list(other.values())
    if isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    elif isinstance(one, (float, np.floating)):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6, nan_ok=True)
    else:
        assert one == other


def test_scores_are_those_of_all_probabilities(images):
    top, targets, specimens = images
    some, every = (Evaluation(probs, targets, names, specimens) for probs in (top, np.asarray(top, float)))
    assert_same(saved_metrics(some), saved_metrics(every))
    assert_same(some.intervals(samples=100), every.intervals(samples=100))
    shown = [names[i] for i in np.unique(targets)[:7]]
    tables = [one.per_class(True, 100, classes=shown).to_dict('list') for one in (some, every)]
    assert list(tables[0]['recall']) == pytest.approx(tables[1]['recall'])
    assert_same(*tables)


def test_calibration_decisions_and_answers_at_higher_ranks(images):
    top, targets, specimens = images
    every = np.asarray(top, float)
    assert fit_temperature(top, targets) == pytest.approx(fit_temperature(every, targets), rel=1e-4)
    assert_same(*(calibration_errors(apply_temperature(one, 0.8), targets) for one in (top, every)))
    assert np.asarray(apply_temperature(top, 0.8)) == pytest.approx(apply_temperature(every, 0.8), abs=1e-6)
    assert_same(*(conformal(one, targets, groups=specimens).to_dict() for one in (top, every)))
    pooling = Pooling('log', 0.3, 4, 20)
    assert_same(*(assess_pooling(pooling, one, targets, specimens) for one in (top, every)))
    ranks = Ranks('species', dict(genus=[f'g{i // 4}' for i in range(n_classes)]), {})
    assert ranks.probabilities(top, 'genus')[1] == pytest.approx(ranks.probabilities(every, 'genus')[1], abs=1e-6)


def test_a_true_class_that_was_not_kept_counts(images):
    top, targets, _ = images
    without = TopProbabilities.of(np.asarray(top))
    assert (without.classes != targets[:, None]).all(1).any()
    for one, every in ((without, np.asarray(without, float)),):
        assert_same(Evaluation(one, targets, names).metrics(), Evaluation(every, targets, names).metrics())


def test_tables_keep_their_classes(images, tmp_path):
    top, targets, specimens = images
    facts = pd.DataFrame(dict(path='', name='a.jpg', label=[names[i] for i in targets], group=specimens))
    facts['split'] = np.where(np.arange(len(facts)) % 2, 'valid', 'test')
    written = write_predictions(tmp_path / 'p.parquet', predictions_table(facts, np.asarray(top), names))
    read = read_predictions(tmp_path / 'p.parquet')
    pd.testing.assert_frame_equal(read, written)
    again = write_predictions(tmp_path / 'again.parquet', read[::-1])
    assert class_names(again) == names and len(top_losses(again, 3)) == 6
    assert assess_predictions(read, names)['calibration']['n_test'] == 60
    write_predictions(tmp_path / 'p.csv', read)
    cell = json.loads(pd.read_csv(tmp_path / 'p.csv').probabilities[5])
    assert len(cell) == 100 and cell == pytest.approx(read.probabilities[5], rel=1e-5) and read.label[5] in cell
    assert 'the 100 most probable of 1,010 classes' in describe_kept(read) and not describe_kept(facts)
    with pytest.raises(UserError, match='probabilities of other classes'):
        table_probabilities(read, [*names[1:], 'fern'])
    with pytest.raises(UserError, match="does not know the class 'fern'"):
        Evaluation.of(read.assign(label='fern'), names)


def test_memory_grows_with_the_images():
    peaks = []
    for n in (1000, 2000):
        own = np.arange(n)
        classes = np.sort((own[:, None] + 7 * np.arange(100)) % n, 1)
        values = np.where(classes == own[:, None], 0.5, 0.004).astype(np.float32)
        top = TopProbabilities.with_rest(classes, values, n)
        tracemalloc.start()
        evaluation = Evaluation(top, own, [f'c{i}' for i in range(n)])
        saved_metrics(evaluation)
        calibration_errors(apply_temperature(top, 2.0), own)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2.4 * peaks[0]


def test_files_of_predictions_have_the_most_probable_classes(images, tmp_path):
    schema = prediction_schema(names)
    rows = np.where(np.arange(3)[:, None] == 1, np.nan, np.asarray(images[0][:3]))  # the second file is unreadable
    columns = {name: pa.array(p, pa.float32(), mask=np.isnan(p)) for name, p in zip(names, rows.T, strict=True)}
    texts = dict(path=['a.jpg', 'b.jpg', 'c.jpg'], error=['', 'no image', ''])
    arrays = [columns.get(f.name[2:], pa.array(texts.get(f.name, [None] * 3), f.type)) for f in schema]
    table = without_bookkeeping(pa.table(arrays, schema=schema))
    for suffix in ('.csv', '.jsonl', '.parquet'):
        prediction_files.write_predictions([table], tmp_path / f'all{suffix}', suffix, table.schema)
    wide = pd.read_csv(tmp_path / 'all.csv')
    assert list(wide) == ['path', 'name', 'predicted', 'confidence', 'probabilities', 'error']
    first = json.loads(wide.probabilities[0])
    assert len(first) == 100 and list(first.values()) == sorted(first.values(), reverse=True)
    assert first[names[rows[0].argmax()]] == pytest.approx(rows[0].max(), rel=1e-5)
    lines = [json.loads(line) for line in (tmp_path / 'all.jsonl').read_text().splitlines()]
    assert lines[0]['probabilities'] == first and lines[1]['probabilities'] is None
    stored = pd.read_parquet(tmp_path / 'all.parquet').probabilities
    assert stored[1] is None and dict(stored[2]).keys() == lines[2]['probabilities'].keys()
