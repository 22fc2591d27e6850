"Trackers: they log each epoch once, do not change the training, and never endanger it"

import json
import os
import socket
import sys
import threading
import time
import xml.dom.minidom

import numpy as np
import pytest
from conftest import tiny

from fungi_fastai.core.errors import UserError

pytestmark = pytest.mark.usefixtures('place', 'ready')
kinds = ['tensorboard', 'wandb', 'mlflow']


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    "No account, no API key, no settings of the person who runs the tests"
    for name in list(os.environ):
        if name.startswith(('WANDB', 'MLFLOW')):
            monkeypatch.delenv(name)
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    monkeypatch.setenv('NETRC', str(tmp_path / 'netrc'))
    monkeypatch.setenv('WANDB_ERROR_REPORTING', 'false')
    monkeypatch.setenv('MLFLOW_DISABLE_TELEMETRY', 'true')


@pytest.fixture(scope='session')
def recipe(photos):
    from fungi_fastai.training.recipe import Recipe

    return Recipe(name='flowers', source=str(photos), **tiny | dict(epochs=3))


@pytest.fixture(scope='session')
def images(home, ready, recipe):
    "The images of the recipe, checked and split once for all tests"
    from fungi_fastai.training.fit import prepare_items

    before = os.getcwd()
    os.chdir(home)
    try:
        return prepare_items(recipe, progress=False)
    finally:
        os.chdir(before)


@pytest.fixture
def train(recipe, images):
    "Train with trackers: train('tensorboard', folder) → the Learner"
    from fungi_fastai.training.fit import fit, make_learner
    from fungi_fastai.training.trackers import tracked

    def call(names, folder, cbs=(), metrics=None, **changes):
        changed = recipe.but(**changes)
        with tracked(names, folder, changed) as trackers:
            learn = make_learner(changed, images, progress=False)
            with learn.no_bar():
                fit(learn, folder, [*trackers, *cbs])
            for tracker in trackers:
                if metrics:
                    tracker.log_test_metrics(metrics)
        return learn

    return call


def stop_after(epochs, error):
    "A callback that ends a training in the middle of an epoch, as an error or Ctrl-C does"
    from fastai.callback.core import Callback

    class Stop(Callback):
        def after_batch(self):
            if self.training and self.epoch == epochs and self.iter == 1:
                raise error

    return Stop()


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder), size_guidance=dict(images=0, scalars=0, histograms=0, tensors=0)).Reload()


def weights(learn):
    return {k: v.clone() for k, v in learn.model.state_dict().items()}


def steps(events):
    return [event.step for event in events]


def make_image(event):
    import io

    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))


@pytest.fixture(scope='session')
def scores(small_run):
    return small_run.metrics


# --- names


@pytest.mark.parametrize('names', ['tensorbord', 'wandb:histograms', 'tensorboard:all', 'curves,neptune'])
def test_unknown(names, tmp_path, recipe):
    from fungi_fastai.training.trackers import trackers

    with pytest.raises(UserError, match='There is no tracker') as error:
        trackers(names, tmp_path, recipe)
    if names == 'tensorbord':
        assert "Did you mean 'tensorboard'" in str(error.value)


def test_names(tmp_path, recipe, monkeypatch):
    from fungi_fastai.training.tensorboard import TensorBoard
    from fungi_fastai.training.trackers import trackers
    from fungi_fastai.training.tracking import LiveCurves

    assert trackers('', tmp_path, recipe) == [] == trackers(' , ', tmp_path, recipe)
    board, curves = trackers(' tensorboard, curves,tensorboard:histograms', tmp_path, recipe)
    assert isinstance(board, TensorBoard) and board.histograms and isinstance(curves, LiveCurves)
    monkeypatch.setenv('RANK', '1')  # in a training on several devices, only rank 0 logs
    assert trackers('tensorboard', tmp_path, recipe) == []
    with pytest.raises(UserError):
        trackers('tensorbord', tmp_path, recipe)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize('kind', kinds)
def test_not_installed(kind, tmp_path, recipe, monkeypatch):
    from fungi_fastai.training.trackers import trackers

    monkeypatch.setitem(sys.modules, kind, None)
    with pytest.raises(UserError, match=r'pip install "fungi_fastai\[track\]"'):
        trackers(kind, tmp_path / 'run', recipe)


# --- what all of them must not do


def test_a_training_is_the_same_with_and_without(train, tmp_path):
    plain = train('', tmp_path / 'plain', frozen_epochs=1)
    tracked = train('tensorboard:histograms,curves', tmp_path / 'tracked', frozen_epochs=1)
    expected, actual = weights(plain), weights(tracked)
    assert all((expected[name] == actual[name]).all() for name in expected)


@pytest.mark.parametrize('kind', ['tensorboard', 'curves', 'wandb', 'mlflow'])
def test_a_tracker_that_fails_warns_once(kind, train, tmp_path, monkeypatch):
    from fungi_fastai.training.trackers import tracker_types

    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(tracker_types[kind], 'log_epoch', full)
    with pytest.warns(UserWarning, match=f'tracker {kind} failed .*No space left') as caught:
        learn = train(kind, tmp_path / 'run')
    assert len([w for w in caught if 'tracker' in str(w.message)]) == 1
    assert len(learn.history.rows) == 3


def test_a_disk_that_is_full(train, tmp_path, monkeypatch):
    "TensorBoard writes in a thread of its own; its failure must be reported, and must not make the training hang"
    from tensorboard.summary.writer.record_writer import RecordWriter

    write_record = RecordWriter.write

    def write(self, data):
        if sum(p.stat().st_size for p in tmp_path.rglob('events.*')) > 5_000:
            raise OSError(28, 'No space left on device')
        write_record(self, data)

    monkeypatch.setattr(RecordWriter, 'write', write)
    monkeypatch.setattr(threading, 'excepthook', lambda *_: None)
    with pytest.warns(UserWarning, match='No space left'):
        learn = train('tensorboard:histograms', tmp_path / 'run')
    assert len(learn.history.rows) == 3


# --- TensorBoard


def test_tensorboard(train, tmp_path, scores):
    learn = train('tensorboard', tmp_path / 'run', metrics=scores)
    rows, logged = learn.history.rows, events(tmp_path / 'run/tensorboard')
    for tag, column in {
        'loss/training': 'train_loss',
        'loss/validation': 'valid_loss',
        'score/accuracy': 'accuracy',
        'score/macro-F1': 'macro_f1',
    }.items():
        assert [(e.step, pytest.approx(e.value)) for e in logged.Scalars(tag)] == [
            (r['epoch'], r[column]) for r in rows
        ]
    assert logged.Scalars('test/accuracy')[0].value == pytest.approx(scores['accuracy'])
    assert logged.Tags()['histograms'] == []
    assert json.loads(
        logged.Tensors('recipe/text_summary')[0].tensor_proto.string_val[0].decode().strip('`json\n')
    ) == json.loads(learn.run_state.recipe.to_json())

    (grid,) = logged.Images('augmented images')
    pixels = make_image(grid)
    assert grid.step == 0 and pixels.shape == (4 * 32, 4 * 32, 3)
    assert 40 < pixels.mean() < 215 and pixels.std() > 20  # images without normalisation
    confusions = logged.Images('confusion on the validation set')
    assert steps(confusions) == [1, 2, 3] and make_image(confusions[-1]).std() > 10
    assert len(logged.Images('confusion on the test set')) == 1

    rates = events(tmp_path / 'run/tensorboard/steps')
    assert rates.Tags()['scalars'][-1] == 'learning rate/head'
    assert steps(rates.Scalars('learning rate/head')) == list(range(3 * len(learn.dls.train)))
    assert max(e.value for e in rates.Scalars('learning rate/head')) == pytest.approx(
        learn.run_state.recipe.lr, rel=0.05
    )


def test_tensorboard_resumes_without_duplicates(train, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train('tensorboard', tmp_path / 'run', [stop_after(2, KeyboardInterrupt())])
    logged = events(tmp_path / 'run/tensorboard')
    assert steps(logged.Scalars('loss/validation')) == [1, 2]  # closed and completely written
    time.sleep(1.1)  # the files are named by the second, and read in this order
    learn = train('tensorboard', tmp_path / 'run')
    logged = events(tmp_path / 'run/tensorboard')
    assert (
        steps(logged.Scalars('loss/validation')) == [1, 2, 3] == steps(logged.Images('confusion on the validation set'))
    )
    assert steps(logged.Images('augmented images')) == [0]
    assert steps(events(tmp_path / 'run/tensorboard/steps').Scalars('learning rate/head')) == list(
        range(3 * len(learn.dls.train))
    )


def test_tensorboard_from_the_middle_of_a_run(train, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train('', tmp_path / 'run', [stop_after(2, KeyboardInterrupt())])
    train('tensorboard', tmp_path / 'run')
    assert steps(events(tmp_path / 'run/tensorboard').Scalars('loss/validation')) == [1, 2, 3]


def test_optional_histograms_and_a_frozen_backbone(train, tmp_path):
    learn = train('tensorboard:histograms', tmp_path / 'run', frozen_epochs=1)
    logged, names = (
        events(tmp_path / 'run/tensorboard'),
        [n for n, p in learn.model.named_parameters() if p.requires_grad],
    )
    assert sorted(logged.Tags()['histograms']) == sorted(f'weights/{n}' for n in names)
    assert steps(logged.Histograms(f'weights/{names[-1]}')) == [1, 2, 3]
    assert len(logged.Images('augmented images')) == 1  # although the head trains on features first
    rates = events(tmp_path / 'run/tensorboard/steps')
    n = len(learn.dls.train)
    assert steps(rates.Scalars('learning rate/head')) == list(range(3 * n))
    assert steps(rates.Scalars('learning rate/backbone 1')) == list(range(n, 3 * n))  # while it is frozen, it has none


# --- W&B


def wandb_records(file):
    "A W&B file is a LevelDB log: blocks of 32 KB, with records that may be split between blocks"
    data, position, record = file.read_bytes(), 7, b''
    while position < len(data):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], 'little'), data[position + 6]
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            yield record
            record = b''


def wandb_rows(folder):
    "The epochs and the config in a run's file, once W&B's own process has finished writing it"
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.glob('*.wandb')
    end = time.monotonic() + 300
    while True:
        rows, config, ended = _wandb_rows(wandb_internal_pb2.Record, file)
        if ended:
            return rows, config
        assert time.monotonic() < end, f'{file} has no end'
        time.sleep(0.05)


def _wandb_rows(Record, file):
    rows, config, ended = [], {}, False
    for data in wandb_records(file):
        record = Record()
        record.ParseFromString(data)
        kind = record.WhichOneof('record_type')
        if kind == 'history':
            rows.append({'.'.join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item})
        if kind == 'run':
            config |= {i.key: json.loads(i.value_json) for i in record.run.config.update}
        ended |= kind == 'exit'
    return rows, config, ended


def test_wandb_without_an_account(train, tmp_path, scores, capsys):
    learn = train('wandb', tmp_path / 'run', metrics=scores)
    (folder,) = (tmp_path / 'run/wandb').glob('offline-run-*')
    log = capsys.readouterr().err
    assert f'wandb sync {folder}' in log and 'no API key' in log and len(log.splitlines()) == 1
    rows, config = wandb_rows(folder)
    assert [r['epoch'] for r in rows] == [1, 2, 3] == [r['_step'] for r in rows]
    assert [r['accuracy'] for r in rows] == pytest.approx([r['accuracy'] for r in learn.history.rows])
    assert (
        config['arch'] == learn.run_state.recipe.arch
        and config['augment']['flip'] == learn.run_state.recipe.augment.flip
    )


def test_wandb_resumes(train, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train('wandb', tmp_path / 'run', [stop_after(1, KeyboardInterrupt())])
    train('wandb', tmp_path / 'run')
    folders = sorted((tmp_path / 'run/wandb').glob('offline-run-*'), key=lambda p: p.stat().st_mtime)
    assert len({p.name.split('-')[3] for p in folders}) == 1  # one run, so that both are uploaded into it
    assert sorted(r['epoch'] for p in folders for r in wandb_rows(p)[0]) == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize('server', ['closed', 'silent', 'other'])
def test_wandb_without_a_network(server, train, tmp_path, capsys, monkeypatch, web):
    monkeypatch.setenv('WANDB_API_KEY', 'k' * 40)
    monkeypatch.setenv('WANDB_BASE_URL', web(server))
    monkeypatch.setattr('fungi_fastai.training.wandb.WeightsAndBiases.start_seconds', 2)
    start = time.monotonic()
    learn = train('wandb', tmp_path / 'run')
    assert len(learn.history.rows) == 3 and time.monotonic() - start < 60
    log = capsys.readouterr().err
    assert 'wandb is offline' in log and len(list((tmp_path / 'run/wandb').glob('offline-run-*'))) == 1
    assert ('cannot be reached' in log) == (server != 'other')


@pytest.fixture
def web(monkeypatch):
    "A server's address: web('closed') refuses connections, 'silent' accepts them and is silent, 'other' answers 404"
    from fungi_fastai.training.tracking import check_server

    monkeypatch.setattr(check_server, '__defaults__', (1.0,))  # seconds, instead of five idle ones
    sockets = []

    def start(kind):
        one = socket.socket()
        one.bind(('127.0.0.1', 0))
        address = f'http://127.0.0.1:{one.getsockname()[1]}'
        if kind == 'closed':
            one.close()
            return address
        sockets.append(one)
        one.listen(20)

        def serve():
            while True:
                try:
                    connection, _ = one.accept()
                except OSError:
                    return
                sockets.append(connection)
                if kind == 'other':
                    connection.recv(65536)
                    connection.sendall(b'HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n')
                    connection.close()

        threading.Thread(target=serve, daemon=True).start()
        return address

    yield start
    for one in sockets:
        one.close()


# --- MLflow


def mlflow_runs(folder):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f'sqlite:///{folder}/mlflow.db')
    experiments = client.search_experiments(filter_string="name = 'flowers'")
    return client, client.search_runs([e.experiment_id for e in experiments])


def test_mlflow(train, tmp_path, scores):
    learn = train('mlflow', tmp_path / 'run', metrics=scores)
    client, (run,) = mlflow_runs(tmp_path)
    assert (
        run.info.status == 'FINISHED'
        and run.info.run_name == 'run'
        and run.data.tags['folder'] == str(tmp_path / 'run')
    )
    assert (
        run.data.params['arch'] == learn.run_state.recipe.arch
        and run.data.params['augment.flip'] == learn.run_state.recipe.augment.flip
    )
    history = client.get_metric_history(run.info.run_id, 'accuracy')
    assert [(m.step, m.value) for m in history] == [(r['epoch'], r['accuracy']) for r in learn.history.rows]
    assert run.data.metrics['test_accuracy'] == scores['accuracy']


def test_mlflow_resumes(train, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train('mlflow', tmp_path / 'run', [stop_after(2, KeyboardInterrupt())])
    assert mlflow_runs(tmp_path)[1][0].info.status == 'KILLED'
    train('mlflow', tmp_path / 'run')
    client, (run,) = mlflow_runs(tmp_path)
    assert run.info.status == 'FINISHED'
    assert [m.step for m in client.get_metric_history(run.info.run_id, 'valid_loss')] == [1, 2, 3]


def test_mlflow_records_a_failure(train, tmp_path):
    with pytest.raises(RuntimeError):
        train('mlflow', tmp_path / 'run', [stop_after(1, RuntimeError('a cable'))])
    assert mlflow_runs(tmp_path)[1][0].info.status == 'FAILED'


@pytest.mark.parametrize('server', ['closed', 'silent', 'other'])
def test_mlflow_without_its_server(server, tmp_path, recipe, monkeypatch, web):
    from fungi_fastai.training.trackers import trackers

    monkeypatch.setenv('MLFLOW_TRACKING_URI', web(server))
    start = time.monotonic()
    with pytest.raises(UserError, match='MLflow cannot be used at http://127.0.0.1'):
        trackers('mlflow', tmp_path / 'run', recipe)
    assert time.monotonic() - start < 30 and not (tmp_path / 'run').exists()


# --- curves


def test_curves_outside_a_notebook(train, tmp_path):
    train('curves', tmp_path / 'run')
    xml.dom.minidom.parse(str(tmp_path / 'run/curves.svg'))
    drawn = (tmp_path / 'run/curves.svg').read_text()
    assert all(word in drawn for word in ('validation', 'macro-F1', 'learning rate'))
    assert {p.name for p in (tmp_path / 'run').iterdir()} == {'curves.svg', 'history.csv', 'checkpoint'}


def test_curves_in_a_notebook(recipe, images, tmp_path, monkeypatch):
    import IPython.display

    from fungi_fastai.training.fit import fit, make_learner
    from fungi_fastai.training.tracking import LiveCurves

    shown = []

    class Handle:
        def update(self, drawing):
            shown.append(drawing.data)

    def display(drawing, display_id):
        assert display_id
        shown.append(drawing.data)
        return Handle()

    monkeypatch.setattr(IPython.display, 'display', display)
    learn = make_learner(recipe, images, progress=False)
    with learn.no_bar():
        fit(learn, tmp_path / 'run', [LiveCurves(tmp_path / 'run', recipe, notebook=True, every=0)])
    assert len(shown) >= 3 + 3 and len(set(shown)) == len(shown)  # within epochs too, one figure that changes
    assert not (tmp_path / 'run/curves.svg').exists()
