"Several processes that train together: what they share, what only the first does, and how they end"

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
from conftest import flags, tiny

from fungi_fastai.core.errors import TrainingError, UserError
from fungi_fastai.training.launch import launch

pytestmark = pytest.mark.usefixtures('place', 'few_threads')
# a process that has fastai imported, and forks one for each call
multiprocessing.get_context('forkserver').set_forkserver_preload(['torch', 'fungi_fastai.runs.run', 'fungi_fastai.cli'])
two = partial(launch, 2, method='forkserver')
plain = tiny | dict(
    arch='test_convnext', optimizer='sgd', schedule='constant', precision='fp32', bs=10, epochs=2, seed=3
)  # no BatchNorm


@pytest.fixture
def few_threads(monkeypatch):
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    multiprocessing.forkserver.ensure_running()  # before `launch` would start it, with a rank among its variables that all later tests inherit


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


def start(function, *arguments):
    "What a process does before all that follows: one thread, and a place of its own for what it says of itself"
    import torch

    torch.set_num_threads(1)
    return function(*arguments)


# --- one training, however many processes


def train_and_compare(recipe, folder, reference):
    import torch

    from fungi_fastai.data.loaders import OpenPhoto
    from fungi_fastai.training.fit import fit, make_learner, prepare_items
    from fungi_fastai.training.processes import is_rank_zero, rank

    items, seen, read = prepare_items(recipe, progress=False), [], OpenPhoto.read
    alone = None
    if os.environ['RANK'] == '0':
        with patch.dict(os.environ, WORLD_SIZE='1'):
            alone = make_learner(reference, items, progress=False)
            history = fit(alone, folder / 'alone')
    learn = make_learner(recipe, items, progress=False)
    with patch.object(OpenPhoto, 'read', lambda self, source: (seen.append(source), read(self, source))[1]):
        rows = fit(learn, folder / 'together')
    assert not hasattr(learn.dls.train, 'to_detach') and 'chunkify' not in vars(learn.dls.train)  # as they were
    (folder / f'{rank()}.json').write_text(json.dumps(dict(weights=weights_of(learn.model), seen=seen, rows=rows)))
    if not is_rank_zero():
        return None
    ours, theirs = learn.model.state_dict(), alone.model.state_dict()
    assert any(
        not torch.equal(v, w)
        for v, w in zip(
            make_learner(recipe, items, progress=False).model.state_dict().values(), theirs.values(), strict=True
        )
    )
    return items, history, rows, max(float((ours[k] - v).abs().max()) for k, v in theirs.items())


def train_on_budget(recipe, folder):
    from fungi_fastai.runs.train import train
    from fungi_fastai.training.processes import rank

    run = train(recipe, folder / 'run', progress=False)
    (folder / f'{rank()}.json').write_text(json.dumps(dict(metrics=run.metrics['accuracy'], epochs=len(run.history))))
    return run.requested_recipe.budget, run.history.lr.iat[-1] / run.history.lr.max()


def test_two_processes_on_one_clock(photos, tmp_path):
    "They end after the same batch, with the schedule completed"
    budget, last = two(
        start,
        train_on_budget,
        recipe_of(photos, **{k: v for k, v in plain.items() if k not in ('epochs', 'schedule')}, budget=15.0),
        tmp_path,
    )
    first, second = ranks(tmp_path)
    assert first == second and first['epochs'] >= 1 and budget == 15 and last < 1e-2


@pytest.mark.parametrize('accumulate', [1, 2])
def test_two_processes_train_as_one(photos, tmp_path, accumulate):
    "The same images, cropped alike, in the same steps; with accumulation, those of one large batch"
    recipe = recipe_of(photos, **plain, augment='none', accumulate=accumulate, monitor='valid_loss', refit_head=False)
    reference = recipe.but(bs=10 * accumulate, accumulate=1)
    items, alone, together, apart = two(start, train_and_compare, recipe, tmp_path, reference)
    first, second = ranks(tmp_path)
    assert first['weights'] == second['weights']
    assert apart < 1e-5
    scores = [
        [{k: row[k] for k in ('valid_loss', 'accuracy', 'macro_f1')} for row in rows] for rows in (alone, together)
    ]
    assert scores[1] == [pytest.approx(row, abs=1e-4) for row in scores[0]]
    if accumulate == 1:
        assert [r['train_loss'] for r in together] == pytest.approx([r['train_loss'] for r in alone], abs=1e-4)
    timed = {'seconds', 'images_per_second'}
    assert [{k: v for k, v in row.items() if k not in timed} for row in first['rows']] == [
        {k: v for k, v in row.items() if k not in timed} for row in second['rows']
    ]

    part = items.set_index('path').split
    for name in ('train', 'valid'):
        wanted, times = part.index[part == name], recipe.epochs
        got = [[path for path in one['seen'] if part[path] == name] for one in (first, second)]
        assert abs(len(got[0]) - len(got[1])) <= times
        if name == 'valid':
            assert sorted(got[0] + got[1]) == sorted(wanted.tolist() * times)  # nothing lost, nothing doubled
        else:
            assert pd.Series(got[0] + got[1]).value_counts().max() <= times and len(got[0] + got[1]) == times * (
                len(wanted) // recipe.bs * recipe.bs
            )  # whole batches


def learn_from_numbers(folder, steps):
    "A batch that does not divide, and a last one with fewer images than processes"
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
        alone = fitted(learner())
    learn = learner()
    with distributed(learn):
        together = fitted(learn)
    (folder / f'{rank()}.json').write_text(json.dumps(dict(alone=alone, together=together)))


@pytest.mark.parametrize('steps', [1, 3])
def test_batches_that_do_not_divide(tmp_path, steps):
    two(start, learn_from_numbers, tmp_path, steps)
    first, second = ranks(tmp_path)
    assert first['together'] == second['together']
    for got, wanted in zip(first['together'][1:], first['alone'][1:], strict=True):
        assert np.allclose(got, wanted, atol=1e-5)
    assert len(first['together'][3]) == 12


def train_in_many_ways(recipes, folder):
    from fungi_fastai.training.fit import fit, make_learner, prepare_items
    from fungi_fastai.training.processes import rank

    found = []
    for i, recipe in enumerate(recipes):
        learn = make_learner(recipe, prepare_items(recipe, progress=False), progress=False)
        rows = fit(learn, folder / str(i))
        found.append([weights_of(learn.model), [[row[k] for k in ('valid_loss', 'accuracy')] for row in rows]])
    (folder / f'{rank()}.json').write_text(json.dumps(found))


def test_equal_weights_whatever_is_trained(photos, tmp_path):
    import timm
    from safetensors.torch import save_file

    save_file(timm.create_model('test_resnet').state_dict(), tmp_path / 'resnet.safetensors')
    pretrained = dict(
        arch='test_resnet', pretrained=True, weights=str(tmp_path / 'resnet.safetensors'), precision='bf16', epochs=2
    )
    ways = [
        dict(ema=0.9, mixup=0.4, accumulate=2, clip=0.1),
        dict(balance='oversample', start_size=16, epochs=3, patience=1, lr=1e-9),
        pretrained | dict(frozen_epochs=1, feature_views=2),
        pretrained | dict(frozen_epochs=1, feature_views=0, dropout=0.2, freeze_batchnorm=False),
        dict(epochs=0),
    ]
    two(start, train_in_many_ways, [recipe_of(photos, **tiny | way) for way in ways], tmp_path)
    first, second = ranks(tmp_path)
    assert first == second
    assert [len(rows) for _, rows in first] == [1, 2, 3, 3, 1]  # epoch 0: the probe, or what is untrained


# --- the first one leads


def train_watched(recipe, out, folder, cbs=()):
    "`train`, and a list of what this process writes"
    from fungi_fastai.runs.train import train
    from fungi_fastai.training.processes import rank

    written = []

    def note(event, arguments):
        if event == 'open' and arguments[2] is not None and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            written.append(str(arguments[0]))
        if event in ('os.rename', 'os.mkdir', 'os.remove', 'os.rmdir', 'shutil.rmtree'):
            written.append(str(arguments[0]))

    sys.addaudithook(note)
    run = train(recipe, out, progress=False, cbs=cbs)
    (folder / f'{rank()}.json').write_text(json.dumps(dict(metrics=run.metrics, written=written)))
    return run


def test_only_the_first_writes(photos, home, tmp_path):
    recipe = recipe_of(photos, **tiny | dict(size=40, epochs=2))  # a size of which there is no cache yet
    run = two(start, train_watched, recipe, tmp_path / 'run', tmp_path)
    first, second = ranks(tmp_path)
    ours = lambda one: [
        p for p in one['written'] if str(tmp_path / 'run') in p or str(home) in p or p.startswith('cache')
    ]
    assert (
        not ours(second) and any('history.csv' in p for p in ours(first)) and any('.pixels' in p for p in ours(first))
    )
    assert first['metrics'] == second['metrics'] == run.metrics
    assert {f.name for f in run.folder.iterdir()} == {
        'recipe.json',
        'items.parquet',
        'environment.json',
        'history.csv',
        'model.safetensors',
        'predictions.parquet',
        'metrics.json',
        'report.html',
        'report.json',
    }
    held = run.items[run.items.split.isin(['valid', 'test'])]
    assert run.predictions.path.tolist() == held.path.tolist()
    assert np.allclose(run.probabilities(held), run.predictions.filter(like='p_'), atol=1e-3)  # alone, in this process


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


def train_on(recipe, out):
    from fungi_fastai.runs.train import train

    return train(recipe, out, progress=False)


def test_killed_and_continued(photos, tmp_path):
    import shutil

    recipe = recipe_of(photos, **tiny | dict(epochs=4, ema=0.9, augment='field'))
    with pytest.raises(TrainingError, match='SIGKILL'):
        two(start, train_and_die, recipe, tmp_path / 'killed')
    shutil.copytree(tmp_path / 'killed', tmp_path / 'alone')
    runs = [two(start, train_on, recipe, tmp_path / name) for name in ('killed', 'whole')]
    from fungi_fastai.training.checkpoints import read_saved_weights

    killed, whole = (read_saved_weights(run.folder / 'model.safetensors')[0] for run in runs)
    assert killed.keys() == whole.keys() and all(bool((killed[k] == whole[k]).all()) for k in whole)  # bitwise
    tables = [run.history.drop(columns=['seconds', 'images_per_second']) for run in runs]
    pd.testing.assert_frame_equal(*tables)
    assert len(train_on(recipe, tmp_path / 'alone').history) == 4  # in one process


# --- how they end


def fail(how):
    from fungi_fastai.training.processes import join_process_group, rank, run_on_rank_zero

    join_process_group("cpu")
    if rank() == 1:
        if how == 'kill':
            os.kill(os.getpid(), signal.SIGKILL)
        raise dict(
            user=UserError('a mistake of the second'), training=TrainingError('no further'), bug=ZeroDivisionError('oh')
        )[how]
    run_on_rank_zero(lambda: time.sleep(0.1))
    run_on_rank_zero(lambda: time.sleep(600))


@pytest.mark.parametrize(
    ('how', 'error', 'said'),
    [
        ('user', UserError, 'a mistake of the second'),
        ('training', TrainingError, 'no further'),
        ('bug', RuntimeError, 'ZeroDivisionError: oh'),
        ('kill', TrainingError, 'Process 2 of 2 was ended by SIGKILL'),
    ],
)
def test_a_failure_of_one_ends_all(how, error, said):
    begun = time.monotonic()
    with pytest.raises(error, match=said):
        two(start, fail, how)
    assert time.monotonic() - begun < 300 and not [
        one for one in multiprocessing.active_children() if one.name.startswith('fungi')
    ]


@pytest.mark.skipif(
    not Path('/proc/self/task').exists(), reason='processes are found in /proc, which this system lacks'
)
@pytest.mark.parametrize('how', [signal.SIGKILL, signal.SIGINT])
def test_nobody_stays_behind(how):
    code = 'import time; from fungi_fastai.training.launch import launch; launch(2, time.sleep, 600)'
    one = subprocess.Popen([sys.executable, '-c', code], stderr=subprocess.DEVNULL)
    children = lambda: Path(f'/proc/{one.pid}/task/{one.pid}/children').read_text().split()
    state = lambda pid: (
        Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] if Path(f'/proc/{pid}').exists() else ''
    )
    end = time.monotonic() + 300
    while len(children()) < 3:
        time.sleep(0.05)
        assert time.monotonic() < end  # two, and the one that tracks resources
    there = children()
    time.sleep(2)  # they have begun
    one.send_signal(how)
    one.wait(90)
    while any(state(pid) not in ('', 'Z') for pid in there):
        time.sleep(0.05)
        assert time.monotonic() < end


@pytest.fixture
def forked(monkeypatch):
    "`fungi train --processes 2`, quickly"
    monkeypatch.setitem(launch.__kwdefaults__, 'method', 'forkserver')


def test_the_command(forked, fungi, photos, tmp_path):
    call = ('train', 'flowers', '--source', photos, '--processes', 2, *flags(**tiny))
    assert 'bs is 7' in fungi(*call, '--out', tmp_path / 'run', '--bs', 7, code=2).err
    said = fungi(
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
    assert said.count('fungi: ') == 1 and 'nowhere' in said and not (tmp_path / 'run').exists()
    metrics = json.loads(fungi(*call, '--out', tmp_path / 'run', '--json').out)
    assert metrics == json.loads((tmp_path / 'run/metrics.json').read_text())
    assert json.loads(fungi(*call, '--out', tmp_path / 'run', '--json').out) == metrics  # shown, not trained again
    said = fungi(*call, '--out', tmp_path / 'no number', '--lr', '1e30', code=1).err
    assert said.count('no longer a number') == 1


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
    assert json.loads(done.stdout) == json.loads((Path(tmp_path) / 'run/metrics.json').read_text())  # said once
