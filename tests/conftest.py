"What the tests of the command and of runs share: a place of their own, small images, one small trained run"

import gc
import io
import multiprocessing
import multiprocessing.forkserver
import os
import shutil
import signal
import sys
import tempfile
import time
import warnings
import zipfile
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

shared = Path(os.environ.get('FUNGI_DATA', Path(__file__).parents[2] / 'shared' / 'data'))

# A home of their own for all tests, the same for all workers: ~/.fungi of the user is neither read nor written
user_home = Path(os.environ.setdefault('FUNGI_USER_HOME', str(Path.home())))
own_home_name = 'FUNGI_TEST_HOME'
creates_home = own_home_name not in os.environ
if creates_home:
    os.environ[own_home_name] = tempfile.mkdtemp(prefix='fungi-home-')
    os.environ.setdefault('XDG_CACHE_HOME', str(user_home / '.cache'))  # fonts of matplotlib
    os.environ['HOME'] = os.environ[own_home_name]
# a second, not minutes; `small_run` and the tests of the head refit it, as every other training does by default
tiny = dict(arch='convmixer_16_1', pretrained=False, size=32, epochs=1, bs=8, lr=1e-2, device='cpu', refit_head=False)
# of `small_run`; float32, so that its figures are those of any CPU
small = tiny | dict(epochs=2, precision='fp32', refit_head=True)


# what the folder of a finished run holds
run_files = {
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


def flags(**changes):
    "A recipe's changes as flags of the command"
    found = []
    for key, value in changes.items():
        name = key.replace('_', '-')
        found += [f'--{"" if value else "no-"}{name}'] if isinstance(value, bool) else [f'--{name}', str(value)]
    return found


# Files whose tests train networks, or build the docs, the longest first: `make test-fast` leaves them out
trainings = (
    'test_docs test_runs test_distributed test_sweeps test_averaging test_batch_prediction test_budget test_folds '
    'test_published test_craft test_curves test_export test_precision test_trackers test_leakage test_explore '
    'test_web test_selection test_stages test_readme'
).split()

# Files and notebooks that fork the server of `children`: one worker has them all, since each server takes nine seconds
forking = (
    'test_runs.py test_distributed.py test_sweeps.py test_averaging.py test_batch_prediction.py test_budget.py '
    'test_folds.py test_export.py test_watch.py test_streaming.py [tutorials/many_machines] [training/distributed] '
    '[training/launch] [commands/training]'
).split()


def pytest_unconfigure():
    "The process that created the home deletes it, after all workers have ended"
    gc.unfreeze()  # what libraries release at the end
    if creates_home:
        shutil.rmtree(os.environ.pop(own_home_name), ignore_errors=True)
        os.environ['HOME'] = str(user_home)


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    "Without garbage collection, which takes a tenth of the time in which torch and fastai are imported"
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_modifyitems(items):
    "Markers by what a test uses, and the order"
    for item in items:
        used = set(item.fixturenames)
        if 'notebook' in used:
            item.add_marker('notebook')
        if 'browser' in used:
            item.add_marker('browser')
        if used & {'started', 'process', 'server'}:
            item.add_marker('process')
        if item.path.stem in trainings:
            item.add_marker('slow')
    items.sort(key=_turn)  # stable: the order within a file stays


def _turn(item):
    "The longest start first, the short notebooks last, so that all workers end at about the same time"
    if item.path.stem in trainings:
        return trainings.index(item.path.stem)
    is_notebook, is_long = 'notebook' in item.fixturenames, '[tutorials/' in item.name or '[studies/' in item.name
    return len(trainings) + (0 if is_long else 2 if is_notebook else 1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    "--dist loadfile: a file's tests run on one worker, which makes its fixtures once; a notebook counts as a file"
    from xdist.scheduler import LoadFileScheduling

    class ByFileAndNotebook(LoadFileScheduling):
        def _split_scope(self, nodeid):
            if 'test_kaggle' in nodeid:  # their servers need the same port
                return 'test_kaggle'
            if any(name in nodeid for name in forking):
                return 'forking'
            return nodeid if 'test_notebooks.py::' in nodeid else super()._split_scope(nodeid)

    return ByFileAndNotebook(config, log) if config.getoption('dist') == 'loadfile' else None


@pytest.fixture(scope='session')
def ready():
    "fastai imported, whose own import warns with today's torch"
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        import fungi_fastai.runs.run  # noqa: F401
    gc.freeze()  # no collection looks at half a million objects of the modules again


@pytest.fixture(scope='session')
def home(tmp_path_factory):
    "A folder with settings of its own, for all tests"
    folder = tmp_path_factory.mktemp('home')
    (folder / 'settings.ini').write_text(
        '[DEFAULT]\ndata_dir = data\ncache_dir = cache\nruns_dir = runs\nnum_workers = 0\ndevice = cpu\n'
    )
    return folder


@pytest.fixture
def place(home, monkeypatch):
    "The working directory: no settings of this machine, no network"
    monkeypatch.chdir(home)
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    return home


@pytest.fixture
def own_home(tmp_path, monkeypatch):
    "A working directory with a data folder of its own, for one test"
    (tmp_path / 'settings.ini').write_text('[DEFAULT]\ndata_dir = data\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def small_jpeg(colour=0):
    "The bytes of a tiny image"
    out = io.BytesIO()
    Image.new('RGB', (8, 8), (colour, 60, 90)).save(out, 'jpeg')
    return out.getvalue()


def pack(file, *names, extra=()):
    "A zip with an image under each name"
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, 'w') as z:
        for name in names:
            z.writestr(name, small_jpeg(len(name)))
        for info, content in extra:
            z.writestr(info, content)
    return file


@pytest.fixture
def fungi(place, ready, capsys):
    "The command, in this process: fungi('check', folder, code=0) → .out and .err"
    from fungi_fastai.cli import main

    def call(*arguments, code=0):
        capsys.readouterr()
        with warnings.catch_warnings():  # `main` shows warnings in its own way, as a process may
            try:
                got = main([str(a) for a in arguments])
            except SystemExit as error:
                got = error.code
        out, err = capsys.readouterr()
        assert got == code, f'exit {got} instead of {code}\n{out}\n{err}'
        assert 'Traceback' not in err
        if code:
            assert err.strip(), 'a failure without a word'
        return SimpleNamespace(out=out, err=err)

    return call


@pytest.fixture(scope='session')
def photos(tmp_path_factory):
    "Five classes of six flowers, two photos each: a folder, not to be changed"
    from fungi_fastai.samples.datasets import make_sample

    return make_sample('flowers', tmp_path_factory.mktemp('photos') / 'set', specimens=6, photos=2, size=64, workers=1)


@pytest.fixture(scope='session')
def small_run(home, ready, photos):
    "One run trained on `photos`, not to be changed"
    from fungi_fastai import train_flowers

    before = os.getcwd()
    os.chdir(home)
    try:
        return train_flowers(photos, out=home / 'small run', progress=False, **small)
    finally:
        os.chdir(before)


@pytest.fixture(scope='session')
def small_bundle(home, small_run):
    "The bundle of `small_run`, with all its engines; not to be changed"
    from fungi_fastai.deploy.export import export

    return export(small_run, home / 'small bundle', int8=True, openvino=True, images=16, progress=False)


class TickingClock:
    "A clock that advances a tick with each look at it, so that a test waits for work and not for time"

    def __init__(self, tick):
        self.start = self.now = time.monotonic()
        self.tick = tick

    def __call__(self):
        self.now += self.tick
        return self.now

    @property
    def seconds(self):
        return self.now - self.start


# --- calls in processes of their own, which can be killed

# A process that has all imported, and forks one for each call. There is one for all tests, so the modules that any of
# them needs are named here: a list in another file would replace this one, and each call would import fastai again.
preloaded = (
    'fungi_fastai pytest torch optuna alembic.command sqlalchemy captum.attr sklearn.linear_model sklearn.svm '
    'sklearn.discriminant_analysis IPython.display pyarrow.parquet pyarrow.dataset pi_heif tyro.extras onnxruntime '
    'mpl_toolkits.axes_grid1 matplotlib.backends.backend_svg fastai.callback.progress fungi_fastai.studies.sweeps '
    'fungi_fastai.runs.run fungi_fastai.runs.batch_prediction fungi_fastai.deploy.predictor '
    'fungi_fastai.training.distributed fungi_fastai.data.shortcuts fungi_fastai.cli fungi_fastai.samples.datasets'
).split()
children = multiprocessing.get_context('forkserver')
children.set_forkserver_preload(preloaded)


def call_in(folder, log, function, *arguments, **options):
    "Call a function as a process of its own does, with one thread; what it says goes to `log`"
    os.chdir(folder)
    sys.stdout = sys.stderr = open(log, 'w', buffering=1)
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # which is ignored in what a script began in the background
    import torch

    torch.set_num_threads(1)
    multiprocessing.set_start_method(
        'fork', force=True
    )  # as in a process of its own; this one would inherit `forkserver`
    function(*arguments, **options)


def call_command(*arguments):
    from fungi_fastai.cli import main

    sys.exit(main([str(a) for a in arguments]))


@contextmanager
def processes(logs, folder):
    "start(function, …) calls it in a process of its own; it has a `.log` and is killed at the end"
    running = []

    def start(function, *arguments, folder=folder, **options):
        log = logs / f'log {len(running)}.txt'
        one = children.Process(target=call_in, args=(str(folder), str(log), function, *arguments), kwargs=options)
        one.log = log
        one.start()
        running.append(one)
        return one

    try:
        yield start
    finally:
        for one in running:
            one.kill()
            one.join()


@pytest.fixture
def started(home, tmp_path):
    "started(function, …, folder=home), see `processes`"
    with processes(tmp_path, home) as start:
        yield start


@pytest.fixture
def process(started):
    "A call of the command in a process of its own"
    return partial(started, call_command)


@pytest.fixture
def forked(ready, monkeypatch):
    "`launch` forks the server of `children`, which has all imported; test_torchrun starts new interpreters"
    from fungi_fastai.training.launch import launch

    multiprocessing.forkserver.ensure_running()  # not by `launch`, whose ranks all later processes would inherit
    monkeypatch.setitem(launch.__kwdefaults__, 'method', 'forkserver')


def wait_for(condition, process, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert process.is_alive() and time.monotonic() < end, process.log.read_text()
        time.sleep(0.002)
