"From images to a finished run: its files, its splits, and that a killed run ends with the same weights"

import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import time
import zipfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import call_command, flags, preloaded, processes, run_files, shared, small, tiny, wait_for
from PIL import Image

from fungi_fastai.core.errors import MissingFileError, UserError
from fungi_fastai.samples.datasets import make_sample

scores = {
    'accuracy',
    'balanced_accuracy',
    'macro_precision',
    'macro_recall',
    'macro_f1',
    'weighted_precision',
    'weighted_recall',
    'weighted_f1',
    'top3_accuracy',
    'log_loss',
    'n_test',
    'n_classes',
    'classes',
    'confusion',
    'per_class',
    'evaluated_on',
    'n_train',
}
samples = dict(mushrooms=(5, 2), defungi=(4, 1), flowers=(5, 2), seedlings=(6, None))  # specimens, photos

pytestmark = pytest.mark.usefixtures('place', 'ready')


def in_one_set(items, column):
    "Whether no value of a column is in two sets"
    used = items[(items.split != '') & (items[column] != '')]
    return bool((used.groupby(column).split.nunique() == 1).all())


def tensors(run):
    from fungi_fastai.training.checkpoints import read_saved_weights

    return read_saved_weights(Path(run) / 'model.safetensors')[0]


def same_weights(one, other):
    one, other = tensors(one), tensors(other)
    return one.keys() == other.keys() and all((one[k] == other[k]).all() for k in one)


# --- the four systems


@pytest.mark.parametrize('kind', samples)
def test_each_trainer_ends_in_a_complete_run(kind, tmp_path):
    import fungi_fastai

    specimens, per_specimen = samples[kind]
    folder = make_sample(kind, tmp_path / 'images', specimens=specimens, photos=per_specimen, size=64, workers=1)
    train = getattr(fungi_fastai, f'train_{kind}')
    run = train(source=folder, out=tmp_path / 'run', progress=False, **tiny)

    assert {f.name for f in run.folder.iterdir()} == run_files  # no lock, no checkpoint, no half-written file
    assert scores <= set(run.metrics) and run.metrics['evaluated_on'] == 'test'
    loaded = fungi_fastai.Run.load(tmp_path / 'run')
    assert loaded.metrics == run.metrics == json.loads((tmp_path / 'run/metrics.json').read_text('utf8'))
    assert loaded.recipe == run.recipe and loaded.recipe.name == kind

    items = pd.read_parquet(tmp_path / 'run/items.parquet')
    assert {'path', 'label', 'group', 'split', 'problem', 'cluster'} <= set(items)
    assert len(items) == len(list(folder.rglob('*.jpg')))
    assert (
        {'train', 'valid', 'test'} <= set(items.split) and in_one_set(items, 'group') and in_one_set(items, 'cluster')
    )
    for label, rows in items[items.label.notna() & items.split.ne('')].groupby('label'):
        assert set(rows.split) >= {'train', 'valid', 'test'}, label

    predictions = pd.read_parquet(tmp_path / 'run/predictions.parquet')
    held = predictions[predictions.split == 'test']
    assert len(held) == run.metrics['n_test'] == (items.split == 'test').sum() > 0
    columns = [f'p_{c}' for c in run.metrics['classes']]
    assert np.allclose(held[columns].sum(axis=1), 1, atol=1e-4)
    assert (held[columns].to_numpy().argmax(1) == held.predicted.map(run.metrics['classes'].index)).all()
    assert run.metrics['accuracy'] == pytest.approx((held.predicted == held.label).mean())
    from sklearn.metrics import precision_recall_fscore_support

    expected = precision_recall_fscore_support(held.label, held.predicted, average='macro', zero_division=0)[:3]
    assert [run.metrics[f'macro_{k}'] for k in ('precision', 'recall', 'f1')] == pytest.approx(expected)
    assert np.sum(run.metrics['confusion'], axis=0)[2] == len(held)

    page = (tmp_path / 'run/report.html').read_text('utf8')
    assert all(c in page for c in run.metrics['classes']) and f'{run.metrics["accuracy"]:.1%}' in page
    assert 'src="http' not in page and '<link' not in page  # self-contained


def test_seedlings_without_labels_stay_out_of_training(tmp_path):
    from fungi_fastai import train_seedlings

    folder = make_sample('seedlings', tmp_path / 'images', specimens=5, size=64, workers=1)
    items = train_seedlings(folder, out=tmp_path / 'run', progress=False, **tiny).items
    unlabelled = items[items.label.isna()]
    assert len(unlabelled) == len(list((folder / 'test').iterdir())) and (unlabelled.split == '').all()


@pytest.mark.slow
@pytest.mark.skipif(
    not (shared / 'defungi.zip').exists(), reason=f'{shared}/defungi.zip (real DeFungi crops) does not exist'
)
def test_no_defungi_specimen_in_two_sets(tmp_path):
    "The crops of a third of the real specimens"
    from fungi_fastai import train_defungi

    crops = tmp_path / 'defungi.zip'
    with zipfile.ZipFile(shared / 'defungi.zip') as every, zipfile.ZipFile(crops, 'w') as third:
        for name in every.namelist():
            number = re.search(r'_(\d+)[a-z]?_\d+\.jpg$', name)
            if number and int(number[1]) % 3 == 0:
                third.writestr(name, every.read(name))
    run = train_defungi(crops, out=tmp_path / 'run', progress=False, fraction=0.1, **{**tiny, 'size': 16, 'bs': 64})
    items = pd.read_parquet(run.folder / 'items.parquet')
    used = items[items.split != '']
    specimen = used['name'].str.extract(r'([^/]+?_\d+)[a-z]?_\d+\.jpg$')[0]  # read again, not from the column `group`
    assert specimen.notna().all() and specimen.nunique() > 30
    assert (used.groupby(specimen.to_numpy()).split.nunique() == 1).all()
    assert in_one_set(items, 'group') and in_one_set(items, 'cluster')
    assert set(used.split) == {'train', 'valid', 'test'} and run.metrics['n_test'] > 300


# --- what a run offers


def test_its_learner_is_fastais(small_run, photos):
    from fastai.interpret import ClassificationInterpretation
    from fastai.learner import Learner

    learn = small_run.learner
    assert isinstance(learn, Learner)
    with learn.no_bar():
        found = ClassificationInterpretation.from_learner(learn)
        confusion = found.confusion_matrix()
    assert confusion.sum() == (small_run.items.split == 'valid').sum()
    assert np.trace(confusion) / confusion.sum() == pytest.approx(small_run.metrics['valid']['accuracy'])
    assert list(found.vocab) == small_run.metrics['classes']
    assert isinstance(found.most_confused(), list)


def test_its_loaders_can_be_sent_to_processes(small_run):
    "macOS, Windows and Python 3.14 do this, because they do not fork"
    import pickle

    for loader in small_run.learner.dls.loaders:
        assert pickle.dumps(loader)


def test_its_learner_predicts_and_trains_on(small_run, tmp_path):
    from fungi_fastai import Run

    row = small_run.items.iloc[0]
    learn = Run.load(small_run.folder).learner
    with learn.no_bar(), learn.no_logging():
        _, _, probs = learn.predict(row)
        assert probs.float().numpy() == pytest.approx(small_run.probabilities(pd.DataFrame([row]))[0], abs=1e-3)
        learn.fit_one_cycle(1, 1e-3)
    assert len(learn.recorder.values) == 1


def test_predict_takes_paths_images_and_folders(small_run, photos, tmp_path):
    some = sorted(photos.rglob('*.jpg'))[:3]
    by_path = small_run.predict([str(p) for p in some])
    assert list(by_path.columns[-5:]) == [f'p_{c}' for c in small_run.metrics['classes']] and len(by_path) == 3
    with Image.open(some[0]) as image:
        by_image = small_run.predict(image)
        by_array = small_run.predict([np.asarray(image.convert('RGB')), some[0].read_bytes()])
    numbers = lambda table: table.filter(like='p_').to_numpy()
    for one in (numbers(by_image)[0], *numbers(by_array)):
        assert one == pytest.approx(numbers(by_path)[0], abs=1e-4)
    assert numbers(small_run.predict(some[1]))[0] == pytest.approx(numbers(by_path)[1], abs=1e-3)
    assert len(small_run.predict(photos)) == len(list(photos.rglob('*.jpg')))
    (tmp_path / 'bad.jpg').write_text('no image')
    with pytest.raises(UserError, match='bad.jpg'):
        small_run.predict([some[0], tmp_path / 'bad.jpg'])
    for odd in (None, 3, Image.new('RGB', (0, 9)), pd.DataFrame(dict(path=some))):
        with pytest.raises(UserError):
            small_run.predict(odd)
    with pytest.raises(UserError, match='gone.jpg'):
        small_run.predict('gone.jpg')


def test_weights_are_as_readable_as_their_folder(small_run):
    mode = lambda path: path.stat().st_mode & 0o666
    assert mode(small_run.folder / 'model.safetensors') == mode(small_run.folder)


def test_saved_predictions_are_those_of_the_loaded_model(small_run):
    from fungi_fastai import Run

    saved = small_run.predictions
    again = Run.load(small_run.folder).probabilities(saved)
    assert again == pytest.approx(saved[[f'p_{c}' for c in small_run.metrics['classes']]].to_numpy(), abs=1e-3)


def test_all_ways_to_predict_are_equally_confident(fungi, small_run, small_bundle, photos):
    "A run, the command, and the exported bundle all give calibrated probabilities"
    from fungi_fastai.deploy.predictor import Predictor
    from fungi_fastai.evaluation.calibration import apply_temperature

    file = sorted(photos.rglob('*.jpg'))[7]
    confidence = small_run.predict(file).confidence[0]
    raw, temperature = (
        small_run.probabilities(pd.DataFrame(dict(path=[str(file)]))),
        small_run.metrics['calibration']['temperature'],
    )
    assert confidence == pytest.approx(apply_temperature(raw, temperature).max(), abs=1e-6)
    by_command = [
        json.loads(fungi('predict', folder, file, '--json').out)[0]['confidence']
        for folder in (small_run.folder, small_bundle)
    ]
    assert [*by_command, Predictor.load(small_bundle).predict(file)[0].confidence] == pytest.approx(
        [confidence] * 3, abs=1e-2
    )


def test_a_missing_or_damaged_file_is_named(fungi, small_run, photos, tmp_path):
    from fungi_fastai.training.checkpoints import read_saved_weights

    one = sorted(photos.rglob('*.jpg'))[0]
    calls = {
        'metrics.json': [('evaluate',), ('watch', '--once')],
        'predictions.parquet': [('report',), ('compare', small_run.folder)],
        'items.parquet': [('predict', one)],
        'model.safetensors': [('predict', one)],
        'history.csv': [('report',)],
    }
    with pytest.raises(MissingFileError, match='gone.safetensors is missing'):
        read_saved_weights(tmp_path / 'gone.safetensors')
    for name, some in calls.items():
        shutil.copytree(small_run.folder, tmp_path / name)
        content = (tmp_path / name / name).read_bytes()
        (tmp_path / name / name).write_bytes(b'' if name == 'history.csv' else content[:50])
        for what, *more in some:
            assert f'{name}/{name} is ' in fungi(what, tmp_path / name, *more, code=2).err
        if name == 'metrics.json':
            continue  # without it, a run is not finished
        (tmp_path / name / name).unlink()
        for what, *more in some:
            assert f'{name}/{name} is missing' in fungi(what, tmp_path / name, *more, code=2).err


def test_sources_of_every_kind_give_the_same_run(photos, small_run, tmp_path):
    from fungi_fastai import Source, train_flowers

    table = pd.DataFrame([dict(path=str(p), label=p.parent.name) for p in sorted(photos.rglob('*.jpg'))])
    wanted = small_run.items.set_index('sha')
    for i, source in enumerate((table, Source.of(photos), str(photos))):
        run = train_flowers(source, out=tmp_path / f'run {i}', progress=False, **{**tiny, 'epochs': 0})
        got = run.items.set_index('sha')
        assert (got.label == wanted.label.reindex(got.index)).all() and set(got.split) == {'train', 'valid', 'test'}
        assert (
            train_flowers(source, out=tmp_path / f'run {i}', progress=False, **{**tiny, 'epochs': 0}).metrics
            == run.metrics
        )


def test_fractions_are_nested_and_leave_the_test_set_alone(photos, small_run, tmp_path):
    from fungi_fastai import FLOWERS
    from fungi_fastai.training.fit import prepare_items

    recipe = FLOWERS.but(source=photos)
    parts = {fraction: prepare_items(recipe.but(fraction=fraction), progress=False) for fraction in (0.3, 0.6, 1.0)}
    trained = {fraction: set(items['name'][items.split == 'train']) for fraction, items in parts.items()}
    assert trained[0.3] < trained[0.6] < trained[1.0]
    for part in ('valid', 'test'):
        assert len({tuple(items['name'][items.split == part]) for items in parts.values()}) == 1


@pytest.mark.parametrize(
    'changes',
    [
        dict(epochs=0),
        dict(epochs=2, frozen_epochs=1, head='fastai'),
        dict(hidden=8, dropout=0.5),
        dict(test=0.0),
        dict(arch='resnet18'),
        dict(epochs=3, patience=1, lr=1e-9, monitor='accuracy'),
        dict(resize='pad', precision='bf16'),
        dict(epochs=3, frozen_epochs=1, feature_views=3, start_size=16, cache=False),
        dict(epochs=2, frozen_epochs=2, feature_views=0),
    ],
)
def test_every_way_to_train_ends(photos, tmp_path, changes):
    from fungi_fastai import Run, train_flowers

    run = train_flowers(photos, out=tmp_path / 'run', progress=False, **tiny | changes)
    assert {f.name for f in run.folder.iterdir()} == run_files
    assert run.metrics['evaluated_on'] == ('valid' if changes.get('test') == 0 else 'test')
    assert len(run.history[run.history.epoch > 0]) == (2 if 'patience' in changes else (tiny | changes)['epochs'])
    assert ('so there are no curves' in run.report().read_text('utf8')) == (changes.get('epochs') == 0)
    assert repr(Run.load(run.folder)).startswith('Run(')


def test_the_same_seed_gives_the_same_weights_and_another_does_not(photos, small_run, tmp_path):
    from fungi_fastai import train_flowers

    again = train_flowers(photos, out=tmp_path / 'again', progress=False, **small)
    other = train_flowers(photos, out=tmp_path / 'other', progress=False, seed=7, **small)
    assert same_weights(small_run.folder, again.folder) and not same_weights(small_run.folder, other.folder)
    assert again.metrics | dict(seconds=0) == small_run.metrics | dict(seconds=0)
    assert (other.items.split != again.items.split).any()


# --- the same call again


def test_a_finished_run_is_shown_and_not_trained_again(fungi, photos, small_run):
    before = {f.name: f.stat().st_mtime_ns for f in small_run.folder.iterdir()}
    call = ('train', 'flowers', '--source', photos, '--out', small_run.folder, *flags(**small))
    assert f'{small_run.metrics["accuracy"]:.1%}' in fungi(*call).out
    assert json.loads(fungi(*call, '--json').out) == small_run.metrics
    assert {f.name: f.stat().st_mtime_ns for f in small_run.folder.iterdir()} == before


def test_another_recipe_is_refused_and_nothing_changes(fungi, photos, small_run):
    before = {f.name: f.read_bytes() for f in small_run.folder.iterdir()}
    message = fungi(
        'train',
        'flowers',
        '--source',
        photos,
        '--out',
        small_run.folder,
        *flags(**{**tiny, 'epochs': 3, 'seed': 9}),
        code=2,
    ).err
    assert 'epochs is 3 now and 2 there' in message and 'seed' in message and '--out' in message
    assert {f.name: f.read_bytes() for f in small_run.folder.iterdir()} == before


def test_a_folder_that_is_not_a_run_is_refused(fungi, photos, tmp_path):
    (tmp_path / 'thesis').mkdir()
    (tmp_path / 'thesis/chapter.txt').write_text('years of work')
    assert (
        'is not a run'
        in fungi('train', 'flowers', '--source', photos, '--out', tmp_path / 'thesis', *flags(**tiny), code=2).err
    )
    assert (
        'is not a run'
        in fungi(
            'train', 'flowers', '--source', photos, '--out', tmp_path / 'thesis/chapter.txt', *flags(**tiny), code=2
        ).err
    )
    assert [f.name for f in (tmp_path / 'thesis').iterdir()] == ['chapter.txt']


@pytest.mark.parametrize('there', [False, True])
def test_a_mistake_can_be_corrected_with_the_same_out(fungi, photos, tmp_path, there):
    "The first call fails before anything is written, so the corrected call can use the same folder"
    if there:
        (tmp_path / 'run').mkdir()
    fungi('train', 'flowers', '--source', tmp_path / 'photoz', '--out', tmp_path / 'run', *flags(**tiny), code=2)
    assert (tmp_path / 'run').exists() == there and not list(tmp_path.glob('run/*'))
    fungi('train', 'flowers', '--source', photos, '--out', tmp_path / 'run', *flags(**tiny))


def test_leftovers_of_a_very_early_kill_are_no_obstacle(fungi, photos, tmp_path):
    (tmp_path / 'run').mkdir()
    for name in ('.lock', '.recipe.json.4711.part'):
        (tmp_path / 'run' / name).touch()  # killed before recipe.json was there
    fungi('train', 'flowers', '--source', photos, '--out', tmp_path / 'run', *flags(**tiny))
    assert {f.name for f in (tmp_path / 'run').iterdir()} == run_files


def test_an_unfinished_or_damaged_run_says_so(fungi, photos, small_run, tmp_path):
    (tmp_path / 'begun').mkdir()
    (tmp_path / 'begun/recipe.json').write_bytes((small_run.folder / 'recipe.json').read_bytes())
    for command in (('evaluate',), ('predict', photos), ('report',)):
        assert 'not finished' in fungi(command[0], tmp_path / 'begun', *command[1:], code=2).err
    (tmp_path / 'begun/recipe.json').write_text('{"name": "flow')
    assert 'recipe.json' in fungi('report', tmp_path / 'begun', code=2).err
    assert 'recipe.json' in fungi('train', 'flowers', '--source', photos, '--out', tmp_path / 'begun', code=2).err


# --- killed, and continued


def _write_missing(file):
    file.write_text(' '.join(name for name in preloaded if name not in sys.modules))


def test_processes_start_with_all_imported(started, tmp_path):
    "Otherwise each of a hundred imports fastai: another file has called `set_forkserver_preload`, or a name is wrong"
    one = started(_write_missing, tmp_path / 'missing')
    one.join()
    assert (tmp_path / 'missing').read_text() == ''


@pytest.fixture(scope='module')
def long_call(photos):
    "The command for a training of two phases and five epochs (or others) into a folder"
    changes = tiny | dict(epochs=5, frozen_epochs=2, feature_views=2)
    return lambda out, **more: ('train', 'flowers', '--source', photos, '--out', out, *flags(**changes | more))


@pytest.fixture(scope='module')
def uninterrupted(long_call, home, tmp_path_factory):
    "The folder of this training when nothing disturbs it, and its seconds until recipe.json and until the end"
    folder = tmp_path_factory.mktemp('uninterrupted')
    with processes(folder, home) as start:
        begun = time.monotonic()
        one = start(call_command, *long_call(folder / 'run'))
        wait_for((folder / 'run/recipe.json').exists, one)
        early = time.monotonic() - begun
        one.join()
        assert one.exitcode == 0, one.log.read_text()
        yield SimpleNamespace(folder=folder / 'run', early=early, seconds=time.monotonic() - begun)


def assert_same_run(folder, expected):
    "Weights, history and metrics, but for the times"
    assert same_weights(expected, folder)
    histories = [
        pd.read_csv(f / 'history.csv').drop(columns=['seconds', 'images_per_second']) for f in (expected, folder)
    ]
    pd.testing.assert_frame_equal(*histories)
    metrics = [json.loads((f / 'metrics.json').read_text('utf8')) | dict(seconds=0) for f in (expected, folder)]
    assert metrics[0] == metrics[1]


def finish(process, call):
    "Run the command to its end"
    last = process(*call)
    last.join()
    assert last.exitcode == 0, last.log.read_text()


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_weights(process, long_call, uninterrupted, tmp_path):
    chance, kills, run = random.Random(time.time_ns()), [], tmp_path / 'run'
    for _ in range(3):
        one = process(*long_call(run))
        delay = chance.uniform(0.8 * uninterrupted.early, uninterrupted.seconds)
        kills.append(round(delay, 3))
        one.join(delay)
        one.kill()  # SIGKILL
        one.join()
        if one.exitcode == 0:
            break  # it was finished
    print('killed after', kills)  # shown if the test fails
    finish(process, long_call(run))
    assert_same_run(run, uninterrupted.folder)
    assert {f.name for f in run.iterdir() if not f.name.endswith('.part')} == run_files  # of a kill in mid-write


def _with_little_room(size, *arguments):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    call_command(*arguments)


def killed_after(epochs, process, call, folder):
    "Start the command and kill it when the history has so many epochs"
    one, history = process(*call), folder / 'history.csv'
    wait_for(lambda: history.exists() and len(history.read_text().splitlines()) > epochs, one)
    one.kill()
    one.join()


@pytest.mark.slow
def test_no_room_for_a_checkpoint(started, process, long_call, uninterrupted, tmp_path):
    "A clear error and the last checkpoint intact; with room again it continues to the same end, by `--resume` too"
    run = tmp_path / 'run'
    state = run / 'checkpoint/state.safetensors'
    killed_after(3, process, long_call(run), run)
    before = state.read_bytes()
    full = started(_with_little_room, len(before) // 2, *long_call(run))
    full.join()
    log = full.log.read_text()
    assert full.exitcode == 1 and 'Traceback' not in log and 'state.safetensors could not be' in log, log
    assert state.read_bytes() == before and not list(run.rglob('*.part'))
    finish(process, ('train', '--resume', run))
    assert_same_run(run, uninterrupted.folder)


def test_resume_wants_a_run(fungi, tmp_path):
    assert 'no run folder' in fungi('train', '--resume', tmp_path / 'nothing', code=2).err
    (tmp_path / 'other').mkdir()
    assert 'not a run' in fungi('train', f'--resume={tmp_path}/other', code=2).err


def test_killed_right_after_the_last_epoch(process, long_call, uninterrupted, tmp_path):
    "Other tests kill at random times, within a phase and at the end of one"
    run = tmp_path / 'run'
    killed_after(5, process, long_call(run), run)
    finish(process, long_call(run))
    assert_same_run(run, uninterrupted.folder)


def test_killed_and_continued_with_threads_that_read(process, long_call, uninterrupted, tmp_path):
    "This is the case on any machine with more than two cores; the result is that of one thread. Killed between phases"
    (tmp_path / 'settings.ini').write_text('[DEFAULT]\nnum_workers = 2\n')
    run, process = tmp_path / 'run', partial(process, folder=tmp_path)
    killed_after(2, process, long_call(run), run)
    finish(process, long_call(run))
    assert_same_run(run, uninterrupted.folder)


def test_an_interrupt_says_how_to_continue(process, long_call, tmp_path):
    one = process(*long_call(tmp_path / 'run', epochs=12))
    wait_for((tmp_path / 'run/checkpoint/state.safetensors').exists, one)
    os.kill(one.pid, signal.SIGINT)
    one.join()
    log = one.log.read_text()
    assert one.exitcode == 130 and f'--resume {tmp_path / "run"}' in log and 'Traceback' not in log
    other = process(*long_call(tmp_path / 'run', epochs=12))
    other.join()
    assert other.exitcode == 0 and (tmp_path / 'run/metrics.json').exists()


def test_a_second_process_is_refused(process, fungi, photos, tmp_path):
    call = ('train', 'flowers', '--source', photos, '--out', tmp_path / 'run', *flags(**tiny | dict(epochs=5000)))
    one = process(*call)
    wait_for((tmp_path / 'run/history.csv').exists, one)
    assert 'Another process' in fungi(*call, code=2).err
    rows = len((tmp_path / 'run/history.csv').read_text().splitlines())
    wait_for(
        lambda: len((tmp_path / 'run/history.csv').read_text().splitlines()) > rows, one
    )  # the first goes on undisturbed


def test_without_progress_nothing_is_printed(photos, tmp_path, capsys):
    from fungi_fastai import train_flowers

    capsys.readouterr()
    train_flowers(photos, out=tmp_path / 'run', progress=False, **tiny)
    assert capsys.readouterr() == ('', '')


def test_it_may_abstain(small_run, photos):
    answers = small_run.predict(photos, abstain=True)
    threshold = small_run.metrics['abstention']['threshold']['confidence']
    assert set(answers.answer) <= {*small_run.classes, 'not sure'} and answers.why.str.len().min() > 5
    answered = answers[answers.answer != 'not sure']
    assert (answered.answer == answered.predicted).all() and (threshold is not None or not len(answered))
    assert 'answer' not in small_run.predict(photos)


def test_the_report_and_its_numbers(small_run):
    report = json.loads((small_run.folder / 'report.json').read_text('utf8'))
    assert report['verdict'] and report['calibration']['temperature'] > 0 and len(report['intervals']['accuracy']) == 2
    low, high = report['intervals']['accuracy']
    assert 0 <= low <= report['accuracy'] <= high <= 1
    page = (small_run.folder / 'report.html').read_text('utf8')
    for words in (
        'Calibration',
        'not sure',
        'Worst and best',
        'Error analysis',
        'class="sortable"',
        'Do not eat',
    ):
        assert words in page, words
    assert 'href="http' not in page and 'src="http' not in page
