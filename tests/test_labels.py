"Planted label errors are found; the list says what judged, and nothing is changed"

import json
import shutil
import sys

import numpy as np
import pandas as pd
import pytest

from fungi_fastai.core.errors import UserError

pytestmark = pytest.mark.usefixtures('place', 'ready')


def made_up(n=300, wrong=0.05, sure=3.0, seed=0):
    "Labels with planted errors, and the probabilities of a judge that knows better; the places of the errors"
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, n)
    logits = rng.normal(0, 1, (n, 3))
    logits[np.arange(n), truth] += sure
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
    from fungi_fastai.studies.labels import label_errors

    table, planted, truth = made_up()
    found = label_errors(table, out=tmp_path / 'out')
    hits = [int(name[:-4]) in planted for name in found.found['name']]
    assert np.mean(hits) > 0.5 and sum(hits) > 0.8 * len(planted)
    right = [
        row.suggested == truth[int(row[2][:-4])] for row in found.found.itertuples() if int(row[2][:-4]) in planted
    ]
    assert np.mean(right) > 0.8
    assert found.found.quality.is_monotonic_increasing and np.mean(hits[:10]) >= 0.8
    assert len(found.quality) == 300 and found.by_class.suspected.sum() == len(found.found)
    assert {p.name for p in (tmp_path / 'out').iterdir()} == {
        'labels.html',
        'label_errors.csv',
        'quality.csv',
        'labels.json',
    }
    assert list(pd.read_csv(tmp_path / 'out' / 'label_errors.csv').columns[:5]) == [
        'path',
        'name',
        'label',
        'suggested',
        'quality',
    ]
    assert json.loads((tmp_path / 'out' / 'labels.json').read_text('utf8'))['n_found'] == len(found.found)
    page = (tmp_path / 'out' / 'labels.html').read_text('utf8')
    assert found.verdict in page and page.count('class="gone"') == len(found.found)  # their files are not there
    assert found.found['name'][0] in str(found)


def test_five_percent_planted_in_the_sample(tmp_path):
    from fungi_fastai.samples.datasets import make_sample
    from fungi_fastai.studies.labels import label_errors

    folder = make_sample('flowers', tmp_path / 'set', specimens=16, photos=2, size=64, workers=1)
    files, rng, planted = sorted(folder.rglob('*.jpg')), np.random.default_rng(0), set()
    labels = sorted({f.parent.name for f in files})
    for i in rng.choice(len(files), len(files) // 20, replace=False):
        wrong = labels[(labels.index(files[i].parent.name) + 1) % len(labels)]
        planted.add(str(shutil.move(files[i], files[i].parents[1] / wrong / f'{files[i].stem}_{i}.jpg')))
    before = sorted((str(p), p.read_bytes()) for p in folder.rglob('*.jpg'))
    found = label_errors(folder, arch='convmixer_128_2', pretrained=False, size=64, progress=False)
    hits = found.found['path'].isin(planted)
    precision, recall = hits.mean(), hits.sum() / len(planted)
    assert recall >= 0.6 and precision >= 2 * 0.05  # the judge is a random network: it doubts much, but not at random
    assert found.about['n_images'] == 160 and found.about['judge'].startswith('a probe of convmixer_128_2')
    assert any('random' in note for note in found.notes) and any(
        'hard images' in note or 'do not trust' in note for note in found.notes
    )
    assert sorted((str(p), p.read_bytes()) for p in folder.rglob('*.jpg')) == before
    assert found.page().count('<img') == min(len(found.found), 120)


def test_clean_labels_are_left_alone():
    from fungi_fastai.studies.labels import label_errors

    table, _, _ = made_up(wrong=0, sure=9.0)
    found = label_errors(table)
    assert (
        not len(found.found)
        and found.verdict == 'No label of 300 is doubted.'
        and 'No label' in found.page()
        and 'No label' in str(found)
    )


def test_a_judge_that_knows_nothing_is_told(tmp_path):
    from fungi_fastai.studies.labels import label_errors

    assert 'do not trust it' in ' '.join(label_errors(made_up(sure=0.0)[0]).notes)


@pytest.mark.parametrize('score', ['self_confidence', 'normalized_margin'])
def test_unlabelled_and_repeated_rows_are_left_out(score):
    from fungi_fastai.studies.labels import label_errors

    table, _, _ = made_up()
    again = label_errors(pd.concat([table, table.head(5), table.head(3).assign(label=None, path='x')]), score=score)
    pd.testing.assert_frame_equal(again.found, label_errors(table, score=score).found, check_dtype=False)


def test_mistakes(monkeypatch):
    from fungi_fastai.studies.labels import label_errors

    table, _, _ = made_up()
    with pytest.raises(UserError, match="labelled 'd'"):
        label_errors(table.assign(p_d=0.0))
    with pytest.raises(UserError, match="does not know the class 'z'"):
        label_errors(table.assign(label='z'))
    for name in ('cleanlab', 'cleanlab.filter', 'cleanlab.rank'):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match='pip install cleanlab'):
        label_errors(table)
