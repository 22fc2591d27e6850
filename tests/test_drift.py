"The log of served answers, and the drift that is measured on it"

import errno
import json
import multiprocessing
import os
import threading

import numpy as np
import pytest
from serving import Colours, photo, placeholder_bundle
from starlette.testclient import TestClient

from fungi_fastai.core.errors import UserError
from fungi_fastai.deploy.answer_log import AnswerLog, answer_line, read_log
from fungi_fastai.deploy.server import make_app

line = answer_line(['a', 'b'], np.array([0.8, 0.2]), 0.5, 'a')


def lines_of(*files):
    return [json.loads(one) for file in files for one in file.read_text('utf8').splitlines()]


def send(client, *colours, **params):
    files = [('files', (f'secret {i}.png', photo(colour=one))) for i, one in enumerate(colours)]
    return client.post('/predict', files=files, params=params)


# --- the log of a server


def test_a_line_for_each_answer_and_nothing_else(tmp_path):
    log = tmp_path / 'new' / 'answers.jsonl'
    with TestClient(make_app(Colours(), page=False, log=log)) as client:
        send(client, 'red')
        send(client, 'red', 'blue', specimen=1)
        send(client, 'red', only='blue|green')
        assert client.post('/predict', files=[('files', ('x.png', b'no image'))]).status_code == 415
        metrics = client.get('/metrics').text
    alone, *specimen, restricted = lines_of(log)
    assert list(alone) == 'time model label confidence answer abstained unlike photos'.split()
    assert alone['label'] == alone['answer'] == 'red' and alone['model'] == Colours.fingerprint[:16]
    assert [one['photos'] for one in specimen] == [1, 1, 2] and len({one['specimen'] for one in specimen}) == 1
    assert restricted['label'] == 'red' and restricted['answer'] != 'red'  # of the network, and as it was given
    assert 'secret' not in log.read_text() and 'testclient' not in log.read_text()
    assert 'fungi_answers_total{label="red"} 3.0' in metrics and 'fungi_log_failures 0.0' in metrics
    assert 'fungi_drift_distance{measure="classes"} NaN' in metrics


def test_without_the_option_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with TestClient(make_app(Colours(), page=False)) as client:
        send(client, 'red')
        assert 'fungi_log_failures' not in client.get('/metrics').text
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_breaks_no_answer(tmp_path, monkeypatch, capsys):
    log, write = tmp_path / 'answers.jsonl', os.write

    def full(number, data):
        if len(data) < 3:  # the end of a line
            return write(number, data)
        if is_full:
            raise OSError(errno.ENOSPC, 'No space left on device')
        return write(number, data)

    with TestClient(make_app(Colours(), page=False, log=log)) as client:
        monkeypatch.setattr(os, 'write', full)
        is_full = True
        assert send(client, 'red').status_code == send(client, 'red', 'blue').status_code == 200
        assert 'fungi_log_failures 3.0' in client.get('/metrics').text
        is_full = False
        monkeypatch.setattr(os, 'write', lambda number, data: write(number, data[:20]))  # the disk is full at once
        assert send(client, 'green').status_code == 200
        monkeypatch.setattr(os, 'write', write)
        assert send(client, 'blue').status_code == 200
    text = capsys.readouterr().err
    assert text.count('cannot be written') == 1 and 'is written again; 4 answers are missing' in text
    table, notes = read_log(log, Colours.fingerprint)
    assert list(table.label) == ['blue'] and '1 line' in notes[0]


def _write_many(file, count):
    log = AnswerLog(file, 'f' * 64, max_bytes=20_000)
    for _ in range(count):
        log.write([line, line])


def test_processes_and_threads_append_to_one_file(tmp_path):
    "No line is cut or mixed, and a new file is begun by one of them only"
    file = tmp_path / 'answers.jsonl'
    fork = multiprocessing.get_context('fork')
    running = [fork.Process(target=_write_many, args=(file, 40)) for _ in range(3)]
    running += [threading.Thread(target=_write_many, args=(file, 40)) for _ in range(2)]
    for one in running:
        one.start()
    for one in running:
        one.join()
    assert all(one.stat().st_size < 22_000 for one in tmp_path.glob('answers.jsonl*'))  # five writers look and write
    older = tmp_path / 'answers.jsonl.1'
    assert older.exists() and len(lines_of(older)) > 90
    assert all(one['label'] == 'a' for one in lines_of(older, file))


def test_a_file_that_was_moved_away_is_begun_again(tmp_path):
    log = AnswerLog(tmp_path / 'answers.jsonl', 'f' * 64)
    log.write([line])
    os.rename(log.file, tmp_path / 'yesterday')  # as logrotate does
    log.write([line])
    assert len(lines_of(log.file)) == len(lines_of(tmp_path / 'yesterday')) == 1


@pytest.mark.parametrize(
    'content, words',
    [
        (b'Dear Sir\n', 'not a log of fungi serve'),
        (b'\x89PNG\r\n', 'not a log of fungi serve'),
        (b'{"label": "a"}\n', 'not a log of fungi serve'),
        (None, 'is a folder'),
    ],
)
def test_other_files_are_not_written_to(tmp_path, content, words):
    file = tmp_path / 'mine'
    file.mkdir() if content is None else file.write_bytes(content)
    with pytest.raises(UserError, match=words):
        make_app(Colours(), page=False, log=file)
    assert content is None or file.read_bytes() == content


def test_no_log_inside_the_bundle(tmp_path):
    bundle = placeholder_bundle(tmp_path / 'bundle')
    with pytest.raises(UserError, match='is inside the bundle'):
        make_app(Colours(bundle=bundle), page=False, log=bundle.folder / 'log.jsonl')
    assert not (bundle.folder / 'log.jsonl').exists()


# --- drift


@pytest.fixture
def served(tmp_path):
    "A bundle that knows its answers about 300 validation images, and `served(certainty, n)` to log answers"
    rng = np.random.default_rng(1)
    validation = dict(confidence=sorted(rng.beta(6, 1, 300).round(3)), predicted=[100] * 3, independent=300)
    bundle = placeholder_bundle(tmp_path / 'bundle', validation=validation)

    def write(certainty, n, day=1, **more):
        with open(tmp_path / 'log.jsonl', 'a') as f:
            for confidence in rng.beta(certainty, 1, n).round(4):
                one = dict(label=bundle.classes[rng.integers(3)], confidence=confidence, answer='', photos=1)
                one |= dict(time=f'2026-11-0{day}T12:00:00+00:00', model=bundle.fingerprint[:16])
                f.write(json.dumps(one | dict(abstained=False, unlike=False) | more) + '\n')

    write.folder, write.log = bundle.folder, tmp_path / 'log.jsonl'
    return write


def test_a_drift_is_found_and_no_other(served, fungi):
    served(6, 200, day=1)
    same = fungi('drift', served.folder, served.log).out
    assert 'No drift found' in same and same.count('no drift found') == 2  # confidence and classes
    served(2, 200, day=2)
    found = json.loads(fungi('drift', served.folder, served.log, '--since', '2026-11-02', '--json', code=1).out)
    assert [(one['measure'], one['verdict']) for one in found['tests']] == [
        ('confidence', 'drift'),
        ('classes', 'no drift found'),
    ]
    assert found['drift'] is True and found['answers'] == 200 and found['abstained'] == 0
    earlier = fungi('drift', served.folder, served.log, '--since', '2026-11-02', '--baseline', 'earlier', code=1).out
    assert 'the answers before' in earlier and 'Drift: confidence has changed' in earlier
    assert 'No drift' in fungi('drift', served.folder, served.log, '--until', '2026-11-02').out


def test_photos_of_a_specimen_count_once(served, fungi):
    served(2, 200, specimen='one mushroom')
    served(2, 1, photos=200, specimen='one mushroom')
    text = fungi('drift', served.folder, served.log).out
    assert 'Too few answers: 1 independent' in text and '201 answers' in text


def test_a_log_with_damaged_lines_and_lines_of_other_models(served, fungi):
    served(6, 50)
    served(6, 3, model='beef' * 4)
    with open(served.log, 'a') as f:
        f.write('{"time": "2026-11-01T12:00:00+00:00", "mod')
    text = fungi('drift', served.folder, served.log).out
    assert '1 line of' in text and '3 answers of other models (beefbeefbeefbeef) left out' in text


@pytest.mark.parametrize(
    'content, words', [('', 'is empty'), ('{"a": 1}\n[]\n', 'is not a log of fungi serve'), (None, 'There is no log')]
)
def test_no_log(served, fungi, content, words):
    if content is not None:
        served.log.write_text(content)
    assert words in fungi('drift', served.folder, served.log, code=2).err


def test_what_cannot_be_compared(served, fungi, tmp_path):
    served(6, 50)
    assert 'expected a date' in fungi('drift', served.folder, served.log, '--since', 'May', code=2).err
    assert 'no answer in that time' in fungi('drift', served.folder, served.log, '--since', '2027-01-01', code=2).err
    assert 'give --since' in fungi('drift', served.folder, served.log, '--baseline', 'earlier', code=2).err
    older = placeholder_bundle(tmp_path / 'older')  # as of a version that kept no answers
    assert 'is the log of another model' in fungi('drift', older.folder, served.log, code=2).err
    served(6, 50, model=older.fingerprint[:16])
    assert 'made by an older version' in fungi('drift', older.folder, served.log, code=2).err
