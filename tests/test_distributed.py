"Distributed training: what the processes share, what only rank 0 does, and how they end"

import hashlib
import json
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
from conftest import TickingClock, flags, run_files, tiny

from fungi_fastai.core.errors import TrainingError, UserError
from fungi_fastai.training.launch import launch

pytestmark = pytest.mark.usefixtures('place', 'few_threads')
two = partial(launch, 2, method='forkserver')  # the server process of conftest, which has fastai imported
plain = tiny | dict(
    arch='test_convnext', optimizer='sgd', schedule='constant', precision='fp32', bs=10, epochs=2, seed=3
)  # no BatchNorm


@pytest.fixture
def few_threads(monkeypatch):
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    # before `launch` starts it with a rank in its environment, which all later tests would inherit
    multiprocessing.forkserver.ensure_running()


def recipe_of(photos, **changes):
    from fungi_fastai import FLOWERS

    return FLOWERS.but(source=str(photos), **changes)


def weights_of(model):
    parts = [
        f'{k}{v.shape}'.encode() + v.detach().contiguous().numpy().tobytes() for k, v in model.state_dict().items()
    ]
    return hashlib.sha256(b''.join(parts)).hexdigest()


def ranks(folder):
    return [json.loads((folder / f'{rank}.json').read_text()) for rank in (0, 1)]


def single_threaded(function, *arguments):
    "Call a function with a single torch thread"
    import torch

    torch.set_num_threads(1)
    return function(*arguments)


# --- the same training in one and in two processes


def train_and_compare(recipe, folder, reference):
    import torch

    from fungi_fastai.data.loaders import OpenPhoto
    from fungi_fastai.training.fit import fit, make_learner, prepare_items
    from fungi_fastai.training.processes import is_rank_zero, rank

    items, paths, read = prepare_items(recipe, progress=False), [], OpenPhoto.read
    single = None
    if os.environ['RANK'] == '0':
        with patch.dict(os.environ, WORLD_SIZE='1'):
            single = make_learner(reference, items, progress=False)
            history = fit(single, folder / 'single')
    learn = make_learner(recipe, items, progress=False)

    def record_and_read(self, source):
        paths.append(source)
        return read(self, source)

    with patch.object(OpenPhoto, 'read', record_and_read):
        rows = fit(learn, folder / 'distributed')
    assert not hasattr(learn.dls.train, 'to_detach') and 'chunkify' not in vars(learn.dls.train)  # restored
    (folder / f'{rank()}.json').write_text(json.dumps(dict(weights=weights_of(learn.model), paths=paths, rows=rows)))
    if not is_rank_zero():
        return None
    ours, expected = learn.model.state_dict(), single.model.state_dict()
    untrained = make_learner(recipe, items, progress=False).model.state_dict()
    assert any(not torch.equal(v, expected[k]) for k, v in untrained.items())
    return items, history, rows, max(float((ours[k] - v).abs().max()) for k, v in expected.items())


def train_on_budget(recipe, folder):
    from fungi_fastai.runs.train import train
    from fungi_fastai.training import budget
    from fungi_fastai.training.processes import rank

    budget.clock = TickingClock(0.15 + 0.1 * int(os.environ['RANK']))  # two clocks that disagree
    run = train(recipe, folder / 'run', progress=False)
    (folder / f'{rank()}.json').write_text(json.dumps(dict(metrics=run.metrics['accuracy'], epochs=len(run.history))))
    return run.requested_recipe.budget, run.history.lr.iat[-1] / run.history.lr.max()


@pytest.mark.slow
def test_two_processes_share_a_time_budget(photos, tmp_path):
    "They end after the same batch, at the end of the schedule"
    budget, last = two(
        single_threaded,
        train_on_budget,
        recipe_of(photos, **{k: v for k, v in plain.items() if k not in ('epochs', 'schedule')}, budget=15.0),
        tmp_path,
    )
    first, second = ranks(tmp_path)
    assert first == second and first['epochs'] >= 1 and budget == 15 and last < 1e-2


@pytest.mark.slow
@pytest.mark.parametrize('accumulate', [1, 2])
def test_two_processes_train_like_one(photos, tmp_path, accumulate):
    "The same images, cropped alike, in the same steps; with accumulation, those of one large batch"
    recipe = recipe_of(photos, **plain, augment='none', accumulate=accumulate, monitor='valid_loss')
    reference = recipe.but(bs=10 * accumulate, accumulate=1)
    items, single, distributed, difference = two(single_threaded, train_and_compare, recipe, tmp_path, reference)
    first, second = ranks(tmp_path)
    assert first['weights'] == second['weights']
    assert difference < 1e-5
    scores = [
        [{k: row[k] for k in ('valid_loss', 'accuracy', 'macro_f1')} for row in rows] for rows in (single, distributed)
    ]
    assert scores[1] == [pytest.approx(row, abs=1e-4) for row in scores[0]]
    if accumulate == 1:
        assert [r['train_loss'] for r in distributed] == pytest.approx([r['train_loss'] for r in single], abs=1e-4)
    timings = {'seconds', 'images_per_second'}
    assert [{k: v for k, v in row.items() if k not in timings} for row in first['rows']] == [
        {k: v for k, v in row.items() if k not in timings} for row in second['rows']
    ]

    split = items.set_index('path').split
    for name in ('train', 'valid'):
        expected = split.index[split == name]
        read = [[path for path in process['paths'] if split[path] == name] for process in (first, second)]
        all_read = read[0] + read[1]
        assert abs(len(read[0]) - len(read[1])) <= recipe.epochs
        if name == 'valid':
            assert sorted(all_read) == sorted(expected.tolist() * recipe.epochs)  # each image once an epoch
        else:
            complete_batches = len(expected) // recipe.bs
            assert pd.Series(all_read).value_counts().max() <= recipe.epochs
            assert len(all_read) == recipe.epochs * complete_batches * recipe.bs


def fit_numbers(folder, steps):
    "A batch size that is not divisible, and a last batch with fewer images than processes"
    import fastai.callback.progress  # noqa: F401  (gives a Learner `no_bar`)
    import torch
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    from fastai.learner import Learner
    from fastai.optimizer import SGD
    from torch.nn.functional import cross_entropy

    from fungi_fastai.training.accumulation import Accumulate
    from fungi_fastai.training.callbacks import training_metrics
    from fungi_fastai.training.distributed import distributed
    from fungi_fastai.training.precision import Precision
    from fungi_fastai.training.processes import rank

    def learner():
        torch.manual_seed(0)
        rows = [(torch.randn(4), torch.tensor(i % 3)) for i in range(22)]
        dls = DataLoaders(
            DataLoader(rows[:10], bs=3, num_workers=0), DataLoader(rows[10:], bs=5, num_workers=0), device='cpu'
        )
        return Learner(
            dls,
            torch.nn.Linear(4, 3),
            cross_entropy,
            SGD,
            lr=0.5,
            metrics=training_metrics(),
            cbs=[Precision('fp32'), Accumulate(steps)],
        )

    def fitted(learn):
        with learn.no_bar(), learn.no_logging():
            learn.fit(2)
            return (
                weights_of(learn.model),
                learn.model.weight.tolist(),
                list(learn.recorder.values[-1]),
                learn.get_preds()[0].tolist(),
            )

    with patch.dict(os.environ, WORLD_SIZE='1'):
        single = fitted(learner())
    learn = learner()
    with distributed(learn):
        distributed_result = fitted(learn)
    (folder / f'{rank()}.json').write_text(json.dumps(dict(single=single, distributed=distributed_result)))


@pytest.mark.slow
@pytest.mark.parametrize('steps', [1, 3])
def test_batch_sizes_that_are_not_divisible(tmp_path, steps):
    two(single_threaded, fit_numbers, tmp_path, steps)
    first, second = ranks(tmp_path)
    assert first['distributed'] == second['distributed']
    for result, expected in zip(first['distributed'][1:], first['single'][1:], strict=True):
        assert np.allclose(result, expected, atol=1e-5)
    assert len(first['distributed'][3]) == 12


def train_recipes(recipes, folder):
    from fungi_fastai.training.fit import fit, make_learner, prepare_items
    from fungi_fastai.training.processes import rank

    results = []
    for i, recipe in enumerate(recipes):
        learn = make_learner(recipe, prepare_items(recipe, progress=False), progress=False)
        rows = fit(learn, folder / str(i))
        results.append([weights_of(learn.model), [[row[k] for k in ('valid_loss', 'accuracy')] for row in rows]])
    (folder / f'{rank()}.json').write_text(json.dumps(results))


@pytest.mark.slow
def test_weights_are_equal_for_many_recipes(photos, tmp_path):
    import timm
    from safetensors.torch import save_file

    save_file(timm.create_model('test_resnet').state_dict(), tmp_path / 'resnet.safetensors')
    pretrained = dict(
        arch='test_resnet', pretrained=True, weights=str(tmp_path / 'resnet.safetensors'), precision='bf16', epochs=2
    )
    changes = [
        dict(ema=0.9, mixup=0.4, accumulate=2, clip=0.1),
        dict(balance='oversample', start_size=16, epochs=3, patience=1, lr=1e-9),
        pretrained | dict(frozen_epochs=1, feature_views=2),
        pretrained | dict(frozen_epochs=1, feature_views=0, dropout=0.2, freeze_batchnorm=False),
        dict(epochs=0),
    ]
    two(single_threaded, train_recipes, [recipe_of(photos, **tiny | change) for change in changes], tmp_path)
    first, second = ranks(tmp_path)
    assert first == second
    assert [len(rows) for _, rows in first] == [1, 2, 3, 3, 1]  # epoch 0: the probe, or the untrained network


# --- rank 0 leads


def train_watched(recipe, out, folder, cbs=()):
    "`train`, and a list of the files that this process writes"
    from fungi_fastai.runs.train import train
    from fungi_fastai.training.processes import rank

    written = []

    def record(event, arguments):
        if event == 'open' and arguments[2] is not None and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            written.append(str(arguments[0]))
        if event in ('os.rename', 'os.mkdir', 'os.remove', 'os.rmdir', 'shutil.rmtree'):
            written.append(str(arguments[0]))

    sys.addaudithook(record)
    run = train(recipe, out, progress=False, cbs=cbs)
    (folder / f'{rank()}.json').write_text(json.dumps(dict(metrics=run.metrics, written=written)))
    return run


@pytest.mark.slow
def test_only_rank_zero_writes(photos, home, tmp_path):
    recipe = recipe_of(photos, **tiny | dict(size=40, epochs=2))  # an image size without a cache
    run = two(single_threaded, train_watched, recipe, tmp_path / 'run', tmp_path)
    first, second = ranks(tmp_path)

    def outputs(process):
        folders = (str(tmp_path / 'run'), str(home))
        return [p for p in process['written'] if p.startswith('cache') or any(folder in p for folder in folders)]

    assert not outputs(second)
    assert any('history.csv' in p for p in outputs(first)) and any('.pixels' in p for p in outputs(first))
    assert first['metrics'] == second['metrics'] == run.metrics
    assert {f.name for f in run.folder.iterdir()} == run_files
    held_out = run.items[run.items.split.isin(['valid', 'test'])]
    assert run.predictions.path.tolist() == held_out.path.tolist()
    assert np.allclose(run.probabilities(held_out), run.predictions.filter(like='p_'), atol=1e-3)  # in this process


def killer():
    from fungi_fastai.training.callbacks import EpochCallback
    from fungi_fastai.training.checkpoints import SaveState

    class Killed(EpochCallback):
        order = SaveState.order + 1

        def epoch_done(self):
            if len(self.history.rows) == 2:
                time.sleep(0.5)
                os.kill(os.getpid(), signal.SIGKILL)

    return Killed()


def train_and_die(recipe, out):
    from fungi_fastai.runs.train import train

    train(recipe, out, progress=False, cbs=[killer()])


def resume(recipe, out):
    from fungi_fastai.runs.train import train

    return train(recipe, out, progress=False)


@pytest.mark.slow
def test_killed_and_resumed(photos, tmp_path):
    import shutil

    recipe = recipe_of(photos, **tiny | dict(epochs=4, ema=0.9, augment='field'))
    with pytest.raises(TrainingError, match='SIGKILL'):
        two(single_threaded, train_and_die, recipe, tmp_path / 'killed')
    shutil.copytree(tmp_path / 'killed', tmp_path / 'single')
    runs = [two(single_threaded, resume, recipe, tmp_path / name) for name in ('killed', 'uninterrupted')]
    from fungi_fastai.training.checkpoints import read_saved_weights

    killed, uninterrupted = (read_saved_weights(run.folder / 'model.safetensors')[0] for run in runs)
    assert killed.keys() == uninterrupted.keys()
    assert all(bool((killed[k] == v).all()) for k, v in uninterrupted.items())  # bitwise
    tables = [run.history.drop(columns=['seconds', 'images_per_second']) for run in runs]
    pd.testing.assert_frame_equal(*tables)
    assert len(resume(recipe, tmp_path / 'single').history) == 4  # in one process


# --- how they end


def fail(how):
    from fungi_fastai.training.processes import join_process_group, rank, run_on_rank_zero

    join_process_group('cpu')
    if rank() == 1:
        if how == 'kill':
            os.kill(os.getpid(), signal.SIGKILL)
        raise dict(
            user=UserError('a mistake of the second'), training=TrainingError('no further'), bug=ZeroDivisionError('oh')
        )[how]
    run_on_rank_zero(lambda: time.sleep(0.1))
    run_on_rank_zero(lambda: time.sleep(600))


@pytest.mark.slow
@pytest.mark.parametrize(
    ('how', 'error', 'message'),
    [
        ('user', UserError, 'a mistake of the second'),
        ('training', TrainingError, 'no further'),
        ('bug', RuntimeError, 'ZeroDivisionError: oh'),
        ('kill', TrainingError, 'Process 2 of 2 was ended by SIGKILL'),
    ],
)
def test_a_failure_of_one_process_ends_all(how, error, message):
    start = time.monotonic()
    with pytest.raises(error, match=message):
        two(single_threaded, fail, how)
    assert time.monotonic() - start < 300
    assert not [child for child in multiprocessing.active_children() if child.name.startswith('fungi')]


@pytest.mark.skipif(
    not Path('/proc/self/task').exists(), reason='the test finds processes in /proc, which this system lacks'
)
@pytest.mark.parametrize('how', [signal.SIGKILL, signal.SIGINT])
def test_no_process_is_left_behind(how):
    code = (
        'import signal, time; from fungi_fastai.training.launch import launch;'
        'signal.signal(signal.SIGINT, signal.default_int_handler);'  # ignored in what a script began in the background
        'launch(2, time.sleep, 600)'
    )
    parent = subprocess.Popen([sys.executable, '-c', code], stderr=subprocess.DEVNULL)
    children = lambda: Path(f'/proc/{parent.pid}/task/{parent.pid}/children').read_text().split()
    state = lambda pid: (
        Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] if Path(f'/proc/{pid}').exists() else ''
    )
    end = time.monotonic() + 300
    while len(children()) < 3:
        time.sleep(0.05)
        assert time.monotonic() < end  # two, and the resource tracker
    pids = children()
    time.sleep(1)  # they have started
    parent.send_signal(how)
    parent.wait(90)
    while any(state(pid) not in ('', 'Z') for pid in pids):
        time.sleep(0.05)
        assert time.monotonic() < end


@pytest.mark.slow
def test_the_command(forked, fungi, photos, tmp_path):
    start = ('train', 'flowers', '--source', photos, '--processes', 2)
    call = (*start, *flags(**tiny))
    assert 'bs is 7' in fungi(*start, *flags(**tiny | dict(bs=7)), '--out', tmp_path / 'run', code=2).err
    message = fungi(
        'train',
        'flowers',
        '--source',
        tmp_path / 'nowhere',
        '--processes',
        2,
        *flags(**tiny),
        '--out',
        tmp_path / 'run',
        code=2,
    ).err
    assert message.count('fungi: ') == 1 and 'nowhere' in message and not (tmp_path / 'run').exists()
    metrics = json.loads(fungi(*call, '--out', tmp_path / 'run', '--json').out)
    assert metrics == json.loads((tmp_path / 'run/metrics.json').read_text())
    assert (
        json.loads(fungi(*call, '--out', tmp_path / 'run', '--json').out) == metrics
    )  # the result is shown, not trained again
    message = fungi(*start, *flags(**tiny | dict(lr=1e30)), '--out', tmp_path / 'no number', code=1).err
    assert message.count('no longer a number') == 1


def test_torchrun(photos, home, tmp_path):
    call = [
        sys.executable,
        '-W',
        'ignore',
        '-m',
        'torch.distributed.run',
        '--nproc-per-node',
        '2',
        '--master-port',
        '29611',
        '-m',
        'fungi_fastai.cli',
        'train',
        'flowers',
        '--source',
        str(photos),
        '--out',
        str(tmp_path / 'run'),
        *flags(**tiny),
        '--json',
    ]
    done = subprocess.run(call, cwd=home, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((Path(tmp_path) / 'run/metrics.json').read_text())  # printed once
