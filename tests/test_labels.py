"Label issues: planted errors are result, the result names the model, and no label is changed"

import json
import shutil
import sys

import numpy as np
import pandas as pd
import pytest

from fungi_fastai.core.errors import UserError

pytestmark = pytest.mark.usefixtures('place', 'ready')


def simulate(n=300, wrong=0.05, margin=3.0, seed=0):
    "Labels with planted errors and a model's probabilities; the indices of the errors; the true labels"
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, n)
    logits = rng.normal(0, 1, (n, 3))
    logits[np.arange(n), truth] += margin
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    planted = rng.choice(n, round(wrong * n), replace=False)
    label = truth.copy()
    label[planted] = (truth[planted] + rng.integers(1, 3, len(planted))) % 3
    classes = np.array(['a', 'b', 'c'], object)
    table = pd.DataFrame(
        dict(
            path=[f'/nowhere/{i}.jpg' for i in range(n)],
            name=[f'{i}.jpg' for i in range(n)],
            label=classes[label],
            predicted=classes[probs.argmax(1)],
            confidence=probs.max(1),
        )
    )
    return table.join(pd.DataFrame(probs, columns=['p_a', 'p_b', 'p_c'])), set(planted), classes[truth]


def test_planted_errors_are_found(tmp_path):
    from fungi_fastai.studies.labels import label_issues

    table, planted, truth = simulate()
    result = label_issues(table, out=tmp_path / 'out')
    hits = [int(name[:-4]) in planted for name in result.issues['name']]
    assert np.mean(hits) > 0.5 and sum(hits) > 0.8 * len(planted)
    index = [int(name[:-4]) for name in result.issues['name']]
    correct = [label == truth[i] for i, label in zip(index, result.issues.suggested_label, strict=True) if i in planted]
    assert np.mean(correct) > 0.8
    assert result.issues.label_quality.is_monotonic_increasing and np.mean(hits[:10]) >= 0.8
    assert len(result.quality) == 300 and result.by_class.issues.sum() == len(result.issues)
    assert {p.name for p in (tmp_path / 'out').iterdir()} == {
        'labels.html',
        'label_issues.csv',
        'label_quality.csv',
        'labels.json',
    }
    assert list(pd.read_csv(tmp_path / 'out' / 'label_issues.csv').columns[:5]) == [
        'path',
        'name',
        'label',
        'suggested_label',
        'label_quality',
    ]
    assert json.loads((tmp_path / 'out' / 'labels.json').read_text('utf8'))['n_issues'] == len(result.issues)
    page = (tmp_path / 'out' / 'labels.html').read_text('utf8')
    assert (
        result.verdict in page and page.count('<figure') == len(result.issues) and '<img' not in page
    )  # their files do not exist
    assert result.issues['name'][0] in str(result)


def test_five_percent_planted_in_the_sample(tmp_path):
    from fungi_fastai.samples.datasets import make_sample
    from fungi_fastai.studies.labels import label_issues

    folder = make_sample('flowers', tmp_path / 'set', specimens=16, photos=2, size=64, workers=1)
    files, rng, planted = sorted(folder.rglob('*.jpg')), np.random.default_rng(0), set()
    labels = sorted({f.parent.name for f in files})
    for i in rng.choice(len(files), len(files) // 20, replace=False):
        wrong = labels[(labels.index(files[i].parent.name) + 1) % len(labels)]
        planted.add(str(shutil.move(files[i], files[i].parents[1] / wrong / f'{files[i].stem}_{i}.jpg')))
    before = sorted((str(p), p.read_bytes()) for p in folder.rglob('*.jpg'))
    result = label_issues(folder, arch='convmixer_128_2', pretrained=False, size=64, progress=False)
    hits = result.issues['path'].isin(planted)
    precision, recall = hits.mean(), hits.sum() / len(planted)
    assert recall >= 0.6 and precision >= 2 * 0.05  # a random network reports many issues, but not at random
    assert result.about['n_images'] == 160 and result.about['model'].startswith('a probe of convmixer_128_2')
    assert any('random' in note for note in result.notes) and any(
        'hard images' in note or 'do not trust' in note for note in result.notes
    )
    assert sorted((str(p), p.read_bytes()) for p in folder.rglob('*.jpg')) == before
    assert result.page().count('<img') == min(len(result.issues), 120)


def test_clean_labels_are_left_alone():
    from fungi_fastai.studies.labels import label_issues

    table, _, _ = simulate(wrong=0, margin=9.0)
    result = label_issues(table)
    assert (
        not len(result.issues)
        and result.verdict == 'No label issues in 300 images.'
        and 'No label issues' in result.page()
        and 'No label issues' in str(result)
    )


def test_a_weak_model_is_noted(tmp_path):
    from fungi_fastai.studies.labels import label_issues

    assert 'do not trust it' in ' '.join(label_issues(simulate(margin=0.0)[0]).notes)


@pytest.mark.parametrize('score', ['self_confidence', 'normalized_margin'])
def test_unlabelled_and_repeated_rows_are_left_out(score):
    from fungi_fastai.studies.labels import label_issues

    table, _, _ = simulate()
    again = label_issues(pd.concat([table, table.head(5), table.head(3).assign(label=None, path='x')]), score=score)
    pd.testing.assert_frame_equal(again.issues, label_issues(table, score=score).issues, check_dtype=False)


def test_mistakes(monkeypatch):
    from fungi_fastai.studies.labels import label_issues

    table, _, _ = simulate()
    with pytest.raises(UserError, match="labelled 'd'"):
        label_issues(table.assign(p_d=0.0))
    with pytest.raises(UserError, match="does not know the class 'z'"):
        label_issues(table.assign(label='z'))
    for name in ('cleanlab', 'cleanlab.filter', 'cleanlab.rank'):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match='pip install cleanlab'):
        label_issues(table)
