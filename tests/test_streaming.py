"Streaming predictions without a network: interrupted, damaged, concurrent, out of disk space, and large"

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from conftest import children, small_jpeg

from fungi_fastai.core.errors import TrainingError, UserError
from fungi_fastai.data.sources import Source
from fungi_fastai.deploy import streaming
from fungi_fastai.deploy.streaming import fingerprint, iter_predictions, stream_predictions
from fungi_fastai.deploy.walking import walk_images

classes = ['Boletus', 'Amanita, "red"', '菌']


def classify(paths):
    "Probabilities that depend on the path only; files whose name or content says bad cannot be read"
    probs, errors = np.zeros((len(paths), len(classes)), np.float32), []
    for i, path in enumerate(paths):
        bad = not os.path.exists(path) or 'bad' in path or b'bad' in Path(path).read_bytes()
        errors.append(f'There is no image {path}.' if bad else '')
        if bad:
            probs[i] = np.nan
        else:
            scores = np.random.default_rng(list(Path(path).name.encode())).random(len(classes)) + 0.1
            probs[i] = scores / scores.sum()
    return probs, errors


def make(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b'x')
    return folder


@pytest.fixture
def many(tmp_path):
    "60 images in five folders"
    return make(tmp_path / 'photos', [f'set/{c}/{i:03}.jpg' for c in 'abcde' for i in range(12)])


@pytest.fixture
def expected(many, tmp_path):
    "The file of an uninterrupted call"
    stream_predictions(many, classify, classes, tmp_path / 'expected.csv', progress=False)
    return (tmp_path / 'expected.csv').read_text('utf8')


class Stop(Exception):
    pass


def stopping(after):
    "A `classify` that stops after so many chunks"
    remaining = [after]

    def classify_some(paths):
        if not remaining[0]:
            raise Stop
        remaining[0] -= 1
        return classify(paths)

    return classify_some


def begin(many, out, chunks, **options):
    "A call that is interrupted"
    with pytest.raises(Stop):
        stream_predictions(many, stopping(chunks), classes, out, batch_size=8, max_images=8, progress=False, **options)
    return out.with_name(out.name + '.partial')


def resume(many, out, **options):
    "The images that the second call classified"
    classified = []

    def noted(paths):
        classified.extend(paths)
        return classify(paths)

    stream_predictions(many, noted, classes, out, batch_size=8, max_images=8, progress=False, **options)
    return classified


def leftovers(folder):
    return sorted(p.name for p in folder.iterdir() if p.name.startswith('.') or '.partial' in p.name)


# --- walking

layouts = dict(
    classes=['a/1.jpg', 'a/2.png', 'b/1.jpg', 'a b/1.jpg', 'a.b/1.jpg', 'a/c/1.jpg', 'A/1.JPG', 'ab.jpg', 'a!/1.jpg'],
    wrapped=['one/two/a/1.jpg', 'one/two/b/1.jpg', 'one/two/b/deep/2.jpg', 'one/notes.txt'],
    one_class=['one/a/1.jpg', 'one/a/2.jpg'],
    flat=['2.jpg', '10.jpg', '1.jpg'],
    one=['x/y/z/1.jpg'],
    splits=['data/train/a/1.jpg', 'data/test/1.jpg', 'data/train/b/1.jpg'],
    beside=['Wrap/1.jpg', 'Wrap/x/1.jpg'],
    hidden=[
        '.git/1.jpg',
        '__MACOSX/a/1.jpg',
        'a/._1.jpg',
        'a/.1.jpg',
        'a/1.jpg',
        'a/Thumbs.db',
        'b/1.jpg',
        'c/notes.txt',
    ],
    names=['Röhrling & Co/1, 2.jpg', 'Ro\u0308hrling/№ "1".jpg', '菌/x\ny.jpg', "it's/%.jpg", 'folder.jpg/1.jpg'],
)


@pytest.mark.filterwarnings(
    'ignore:No image that is read:UserWarning'
)  # of `hidden`: folders that are left out are named
@pytest.mark.parametrize('names', layouts.values(), ids=layouts)
def test_the_same_images_and_names_as_a_source(tmp_path, names):
    make(tmp_path / 'set', names)
    expected = Source.of(tmp_path / 'set').read(labels=False)
    for block in (1, 2, 100):
        assert [
            os.path.join(tmp_path / 'set', *p) for p in walk_images(tmp_path / 'set', block)
        ] == expected.path.tolist()
    stream_predictions(tmp_path / 'set', classify, classes, tmp_path / 'p.csv', progress=False)
    rows = pd.read_csv(tmp_path / 'p.csv', keep_default_na=False)
    assert rows.path.tolist() == expected.path.tolist()
    assert rows['name'].tolist() == expected['name'].tolist()


def test_links(tmp_path):
    folder, other = make(tmp_path / 'set', ['a/1.jpg', 'z/1.jpg']), make(tmp_path / 'other', ['1.jpg', 'deep/2.jpg'])
    (folder / 'a/up').symlink_to(folder)
    (folder / 'b').symlink_to(other)
    (folder / 'c').symlink_to(other / 'deep')
    (folder / 'a/gone.jpg').symlink_to(folder / 'nowhere.jpg')
    (folder / 'a/2.jpg').symlink_to(folder / 'a/1.jpg')
    os.mkfifo(folder / 'a/pipe.jpg')
    paths = ['/'.join(p) for p in walk_images(folder)]
    assert paths == ['a/1.jpg', 'a/2.jpg', 'a/gone.jpg', 'b/1.jpg', 'b/deep/2.jpg', 'z/1.jpg']


def test_the_content_tells_where_a_name_does_not(tmp_path):
    folder = make(tmp_path / 'set', ['a/notes', 'a/2.jpg'])
    for name in ('1', '3.jpg_large'):
        (folder / 'a' / name).write_bytes(small_jpeg())
    assert [name for _, name in walk_images(folder)] == ['1', '2.jpg', '3.jpg_large']


def test_a_name_that_is_not_utf8(tmp_path):
    folder = make(tmp_path / 'set', ['1.jpg'])
    try:
        (folder / os.fsdecode(b'caf\xe9.jpg')).write_bytes(b'x')
    except OSError:
        pytest.skip('this file system only accepts UTF-8 names')
    with pytest.raises(UserError, match='not UTF-8'):
        stream_predictions(folder, classify, classes, tmp_path / 'p.csv')
    with pytest.raises(UserError, match='not UTF-8'):
        stream_predictions([folder / os.fsdecode(b'caf\xe9.jpg')], classify, classes, tmp_path / 'p.csv')


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read every folder')
def test_a_folder_that_may_not_be_read(many, tmp_path):
    (many / 'set/c').chmod(0)
    try:
        with pytest.raises(UserError, match='may not read'):
            stream_predictions(many, classify, classes, tmp_path / 'p.csv')
    finally:
        (many / 'set/c').chmod(0o700)


# --- output


@pytest.mark.parametrize('ending', ['csv', 'parquet'])
def test_rows(many, tmp_path, ending):
    "Files and folders, duplicates, unreadable and missing files; the same for all formats"
    make(many, ['set/c/bad, "really".jpg'])
    (many / 'set/a/003.jpg').write_text('bad')
    inputs = [str(many), many / 'gone.jpg', many / 'set/b/001.jpg', many / 'set/b', many]
    tally = stream_predictions(
        inputs, classify, classes, tmp_path / f'p.{ending}', batch_size=8, max_images=16, progress=False
    )
    rows = (
        pd.read_parquet(tmp_path / 'p.parquet')
        if ending == 'parquet'
        else pd.read_csv(tmp_path / 'p.csv').fillna({'predicted': '', 'error': ''})
    )
    assert list(rows.columns) == ['path', 'name', 'predicted', 'confidence', *(f'p_{c}' for c in classes), 'error']
    assert tally.images == len(rows) == 2 * 61 + 12 + 2 and tally.failed == (rows.error != '').sum() == 5
    assert tally.errors == rows.error[rows.error != ''].tolist()
    assert rows['name'].iloc[[0, 61, 62, 63, 75]].tolist() == [
        'a/000.jpg',
        'gone.jpg',
        '001.jpg',
        '000.jpg',
        'a/000.jpg',
    ]
    good = rows.error == ''
    assert (
        rows[~good].confidence.isna().all()
        and (rows[~good].predicted == '').all()
        and rows.filter(like='p_')[~good].isna().all(axis=None)
    )
    probs = rows.filter(like='p_')[good].to_numpy(np.float32)
    assert (probs == classify(rows.path[good])[0]).all() and (
        rows.confidence[good].to_numpy(np.float32) == probs.max(1)
    ).all()
    assert (rows.predicted[good] == np.array(classes, object)[probs.argmax(1)]).all()
    memory = pd.concat([t.to_pandas() for t in iter_predictions(inputs, classify, classes)], ignore_index=True)
    assert memory.path.tolist() == rows.path.tolist() and (memory.filter(like='p_')[good].to_numpy() == probs).all()
    assert leftovers(tmp_path) == []


def test_rows_are_readable_while_the_job_runs(many, tmp_path):
    counts = []

    def watching(paths):
        folder = tmp_path / 'p.parquet.partial'
        counts.append(len(pd.read_parquet(folder)) if any(folder.glob('*.parquet')) else 0)
        return classify(paths)

    stream_predictions(many, watching, classes, tmp_path / 'p.parquet', batch_size=8, max_images=8, progress=False)
    assert counts == list(range(0, 60, 8))


def test_standard_output_is_written_in_pieces(many, tmp_path, capsys):
    lines = []

    def watching(paths):
        lines.append(len(capsys.readouterr().out.splitlines()))
        return classify(paths)

    tally = stream_predictions(many, watching, classes, batch_size=8, max_images=8)
    assert lines == [0, 9, *[8] * 6] and tally.images == 60


def test_standard_output_equals_the_file(many, expected, capsys):
    stream_predictions(many, classify, classes)
    assert capsys.readouterr().out == expected


def test_a_closed_pipe(many):
    with pytest.raises(BrokenPipeError):
        reading, writing = os.pipe()
        os.close(reading)
        old, sys.stdout = sys.stdout, open(writing, 'w')
        try:
            stream_predictions(many, classify, classes, progress=False)
        finally:
            try:
                sys.stdout.close()
            except BrokenPipeError:
                pass
            sys.stdout = old


def test_progress_has_rate_and_time_left(many, tmp_path, capsys, monkeypatch):
    track = streaming.track
    monkeypatch.setattr(streaming, 'track', lambda *args, **options: track(*args, every=0, **options))
    begin(many, tmp_path / 'p.csv', 3)
    stream_predictions(many, classify, classes, tmp_path / 'p.csv', batch_size=8, max_images=8)
    output = capsys.readouterr()
    assert not output.out and '24 images of 60 had been classified before.' in output.err
    assert '8 of 36 images' in output.err and '/s · ' in output.err and '36 of 36 images' in output.err


# --- mistakes


def test_invalid_outputs(many, tmp_path):
    (tmp_path / 'file').write_text('precious')
    (tmp_path / 'folder.csv').mkdir()
    for name in ('p.txt', 'p', 'folder.csv', 'file/p.csv'):
        with pytest.raises(UserError, match=name.split('/')[0]):
            stream_predictions(many, classify, classes, tmp_path / name)
    with pytest.raises(UserError, match='No image was given'):
        stream_predictions([], classify, classes, tmp_path / 'p.csv')
    with pytest.raises(UserError, match='holds no images: 1 file, of which 1 .txt'):
        stream_predictions(make(tmp_path / 'texts', ['a.txt']), classify, classes, tmp_path / 'p.csv')
    assert leftovers(tmp_path) == [] and not (tmp_path / 'p.csv').exists()


def test_an_invalid_classifier(many, tmp_path):
    invalid = [
        lambda paths: (np.ones((len(paths), 2)), [''] * len(paths)),
        lambda paths: (np.ones((len(paths) - 1, 3)), [''] * len(paths)),
        lambda paths: (np.ones((len(paths), 3)), []),
        lambda paths: (np.full((len(paths), 3), np.nan), [''] * len(paths)),
    ]
    for classify_incorrectly in invalid:
        with pytest.raises(UserError):
            stream_predictions(many, classify_incorrectly, classes, tmp_path / 'p.csv', progress=False)
        assert leftovers(tmp_path) == []


def test_another_job_is_refused(many, expected, tmp_path):
    out = tmp_path / 'p.csv'
    folder = begin(many, out, 3, model='one')
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    for message, changes in (
        ('other models', dict(model='two')),
        ('other models', dict(classes=classes[::-1])),
        ('other images', dict(paths=many / 'set')),
        ('other images', dict(paths=[many, many])),
    ):
        call = dict(paths=many, classify=classify, classes=classes, out=out, model='one') | changes
        with pytest.raises(UserError, match=message) as error:
            stream_predictions(**call)
        assert str(folder) in str(error.value) and str(many) in str(error.value)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert len(resume(many, out, model='one')) == 60 - 24 and out.read_text('utf8') == expected


def test_a_folder_that_is_not_ours(many, tmp_path):
    make(tmp_path / 'p.csv.partial', ['thesis.txt'])
    with pytest.raises(UserError, match='is not the folder of a job'):
        stream_predictions(many, classify, classes, tmp_path / 'p.csv')
    assert (tmp_path / 'p.csv.partial/thesis.txt').exists()


def test_other_files_in_the_folder_stay(many, tmp_path):
    make(begin(many, tmp_path / 'p.csv', 2), ['thesis.txt'])
    resume(many, tmp_path / 'p.csv')
    assert [p.name for p in (tmp_path / 'p.csv.partial').iterdir()] == ['thesis.txt']


# --- resume


@pytest.mark.parametrize('chunks', [0, 1, 4, 7])
@pytest.mark.parametrize('ending', ['csv', 'parquet'])
def test_interrupted_and_resumed(many, expected, tmp_path, chunks, ending):
    out = tmp_path / f'p.{ending}'
    folder = begin(many, out, chunks)
    assert folder.exists() == bool(chunks) and not out.exists()
    assert resume(many, out) == sorted(map(str, many.rglob('*.jpg')))[8 * chunks :]
    if ending == 'csv':
        assert out.read_text('utf8') == expected
    else:
        assert out.read_bytes()[:4] == b'PAR1' and pq.read_table(out).num_rows == 60
    assert leftovers(tmp_path) == []


def test_a_relative_path_is_the_same_image(many, expected, tmp_path, monkeypatch):
    begin(many, tmp_path / 'p.csv', 3)
    monkeypatch.chdir(many.parent)
    assert len(resume(many.name, tmp_path / 'p.csv')) == 36 and (tmp_path / 'p.csv').read_text('utf8') == expected


def damage(file, how):
    content = file.read_bytes()
    if how == 'cut':
        file.write_bytes(content[:-20])
    elif how == 'empty':
        file.write_bytes(b'')
    elif how == 'text':
        file.write_text('no table')
    elif how == 'bit':  # in the data of a page, which only the page's checksum covers
        at = content.index(b'000.jpg') + 1
        file.write_bytes(content[:at] + b'9' + content[at + 1 :])
    elif how == 'other':
        pq.write_table(pq.read_table(file).drop_columns(['error']), file)


@pytest.mark.parametrize('how', ['cut', 'empty', 'text', 'bit', 'other'])
def test_the_images_of_a_damaged_file_are_classified_again(many, expected, tmp_path, how):
    out = tmp_path / 'p.csv'
    parts = sorted(begin(many, out, 5).glob('*.parquet'))
    damage(parts[0], how)
    damage(parts[3], how if how != 'bit' else 'cut')
    images = sorted(map(str, many.rglob('*.jpg')))
    assert resume(many, out) == images[:8] + images[24:32] + images[40:]
    assert out.read_text('utf8') == expected


def test_a_file_damaged_before_the_end(many, expected, tmp_path):
    def late(paths):
        if '055' in ''.join(paths) or len(list(folder.glob('*.parquet'))) == 7:
            damage(sorted(folder.glob('*.parquet'))[1], 'cut')
        return classify(paths)

    out, folder = tmp_path / 'p.csv', tmp_path / 'p.csv.partial'
    with pytest.raises(TrainingError, match='Repeat the same call'):
        stream_predictions(many, late, classes, out, batch_size=8, max_images=8, progress=False)
    assert not out.exists() and len(resume(many, out)) == 8 and out.read_text('utf8') == expected


def test_leftovers_of_a_killed_process(many, expected, tmp_path):
    folder = begin(many, tmp_path / 'p.csv', 3)
    for name in ('._job.json.123.part', '.0000000024.parquet.123.part'):
        (folder / name).write_text('half')
    for name in ('.p.csv.123.part', '.p.csv.lock', '.q.csv.123.part'):
        (tmp_path / name).write_text('half')
    resume(many, tmp_path / 'p.csv')
    assert (tmp_path / 'p.csv').read_text('utf8') == expected and leftovers(tmp_path) == ['.q.csv.123.part']


def test_images_that_are_deleted_changed_and_added(many, tmp_path):
    names = [f'set/{c}/{i:03}.jpg' for c in 'abcde' for i in range(12)]
    out = tmp_path / 'p.csv'
    for name in (names[1], names[2]):
        (many / name).write_text('bad')
    begin(many, out, 3)
    (many / names[0]).unlink()  # classified before: its row stays
    (many / names[1]).write_bytes(b'good')  # could not be read before, but can be now
    (many / names[3]).write_text('bad now')  # changed since
    make(many, ['set/a/000b.jpg', 'set/f/000.jpg', 'other/000.jpg'])

    def late(paths):
        if str(many / names[50]) in paths:
            (many / names[50]).unlink()  # after it was listed, before it is read
        again.extend(os.path.relpath(p, many) for p in paths)
        return classify(paths)

    again = []
    tally = stream_predictions(many, late, classes, out, batch_size=64, progress=False)
    assert again[:3] == names[1:4] and sorted(again[3:]) == sorted(
        [*names[24:], 'set/a/000b.jpg', 'set/f/000.jpg', 'other/000.jpg']
    )
    rows = pd.read_csv(out, keep_default_na=False)
    assert rows['path'].is_unique and len(rows) == 63 and tally.failed == 3
    assert [os.path.relpath(p, many) for p in rows.path[rows.error != '']] == [names[2], names[3], names[50]]
    assert rows.path[:4].tolist() == [str(many / n) for n in names[:4]] and rows.predicted[1]
    assert all(rows['name'])


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_disk_that_fails(many, expected, tmp_path, monkeypatch, number):
    from fungi_fastai.core import files

    calls, fsync = [], os.fsync

    def failing(file):
        calls.append(file)
        if len(calls) > 4:
            raise OSError(number, os.strerror(number), str(tmp_path / 'p.csv.partial/x'))
        fsync(file)

    monkeypatch.setattr(files.os, 'fsync', failing)
    with pytest.raises(TrainingError, match=f'{os.strerror(number)}.*repeat the same call'):
        stream_predictions(many, classify, classes, tmp_path / 'p.csv', batch_size=8, max_images=8, progress=False)
    monkeypatch.undo()
    assert len(resume(many, tmp_path / 'p.csv')) == 60 - 24 and (tmp_path / 'p.csv').read_text('utf8') == expected
    assert leftovers(tmp_path) == []


@pytest.mark.process
def test_no_space_for_the_output_file(tmp_path):
    "A real limit on the size of files: the partial files fit, the output file does not"
    many = make(tmp_path / 'photos', [f'{i:04}.jpg' for i in range(600)])
    process = children.Process(target=_limited, args=(many, tmp_path / 'p.csv', 30_000))
    process.start()
    process.join()
    assert process.exitcode == 7 and not (tmp_path / 'p.csv').exists()
    assert resume(many, tmp_path / 'p.csv') == [] and len(pd.read_csv(tmp_path / 'p.csv')) == 600
    assert leftovers(tmp_path) == []


def _limited(many, out, size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        stream_predictions(many, classify, classes, out, batch_size=100, max_images=100, progress=False)
    except TrainingError as error:
        sys.exit(7 if 'p.csv' in str(error) and 'arge' in str(error) else f'{error}')


# --- killed, and concurrent


def _slow(many, out, log):
    def noted(paths):
        with open(log, 'a') as f:
            f.writelines(f'{path}\n' for path in paths)
        time.sleep(0.03)
        return classify(paths)

    try:
        stream_predictions(many, noted, classes, out, batch_size=8, max_images=8, progress=False)
    except UserError as error:
        sys.exit(str(error))


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize('ending', ['csv', 'parquet'])
def test_killed_and_resumed(tmp_path, ending):
    many = make(tmp_path / 'photos', [f'{c}/{i:03}.jpg' for c in 'abcd' for i in range(100)])
    stream_predictions(many, classify, classes, tmp_path / f'expected.{ending}', progress=False)
    out, log = tmp_path / f'p.{ending}', tmp_path / 'log'
    kills = 4
    for kill in range(kills):
        process = children.Process(target=_slow, args=(many, out, log))
        process.start()
        n_files, deadline = 9 * (kill + 1), time.monotonic() + 300
        while (
            len(list(out.with_name(out.name + '.partial').glob('0*'))) < n_files
            and process.is_alive()
            and time.monotonic() < deadline
        ):
            time.sleep(0.002 * kill + 0.001)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL and not out.exists()
    process = children.Process(target=_slow, args=(many, out, log))
    process.start()
    process.join()
    assert process.exitcode == 0 and leftovers(tmp_path) == []
    if ending == 'csv':
        assert out.read_bytes() == (tmp_path / 'expected.csv').read_bytes()
    else:
        assert pq.read_table(out).equals(pq.read_table(tmp_path / 'expected.parquet'))
    classified = pd.Series(log.read_text().splitlines())
    assert classified.nunique() == 400
    assert len(classified) - 400 <= 8 * kills  # only the chunk in flight is classified twice


@pytest.mark.process
def test_a_second_process_is_refused(many, expected, tmp_path):
    out, codes = tmp_path / 'p.csv', []

    def racing(paths):
        if not codes:
            other = children.Process(target=_slow, args=(many, out, tmp_path / 'log'))
            other.start()
            other.join()
            codes.append(other.exitcode)
        return classify(paths)

    stream_predictions(many, racing, classes, out, batch_size=8, max_images=8, progress=False)
    assert codes == [1] and not (tmp_path / 'log').exists() and out.read_text('utf8') == expected


# --- large

_script = """
import resource, sys
import numpy as np
from fungi_fastai.deploy.streaming import stream_predictions
probs = np.random.default_rng(0).random((512, 20), np.float32)


def classify(paths):
    return probs[: len(paths)], [''] * len(paths)


classes = [f'c{i}' for i in range(20)]
stream_predictions(sys.argv[1], classify, classes, sys.argv[2], max_images=512, progress=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/(2**20 if sys.platform == 'darwin' else 2**10))
"""


@pytest.mark.process
@pytest.mark.parametrize('ending', ['csv', 'parquet'])
def test_memory_is_flat(tmp_path, ending):
    "Peak memory for 40,000 images, half of them in one folder, compared with 2,000"
    peaks = {}
    for count in (2000, 40_000):
        folder = tmp_path / str(count)
        source = next(iter(make(folder, ['first.jpg']).iterdir()))
        for i in range(count - 1):
            subfolder = folder / ('flat' if i % 2 else f'{i // 1000}')
            if i < 2 or i % 1000 == 0:
                subfolder.mkdir(exist_ok=True)
            os.link(source, f'{subfolder}/{i:06} a name of the usual length.jpg')
        process = subprocess.run(
            [sys.executable, '-c', _script, folder, tmp_path / f'{count}.{ending}'], capture_output=True, text=True
        )
        assert process.returncode == 0, process.stderr
        peaks[count] = float(process.stdout)
        assert (
            len(
                pd.read_parquet(tmp_path / f'{count}.parquet')
                if ending == 'parquet'
                else pd.read_csv(tmp_path / f'{count}.csv')
            )
            == count
        )
    print(f'{ending}: {peaks[2000]:.0f} MB for 2,000, {peaks[40_000]:.0f} MB for 40,000')
    assert peaks[40_000] < peaks[2000] + 40  # a list of the 40,000 rows with their texts would take more


def test_it_needs_neither_fastai_nor_torch():
    process = subprocess.run(
        [
            sys.executable,
            '-c',
            'import sys, fungi_fastai.deploy.streaming; print({m.split(".")[0] for m in sys.modules})',
        ],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0 and not {'fastai', 'torch', 'timm', 'matplotlib'} & eval(process.stdout)


def test_fingerprints(tmp_path):
    for name, text in (('a', 'x'), ('b', 'xy'), ('c', ''), ('d', 'x')):
        (tmp_path / name).write_text(text)
    a, b, c, d = (tmp_path / name for name in 'abcd')
    assert fingerprint(a) == fingerprint(d) != fingerprint(b)
    assert len({fingerprint(a), fingerprint(b), fingerprint(a, c), fingerprint(c, a), fingerprint(b, c)}) == 5


# --- with a network


def test_an_interrupted_prediction_resumes(fungi, small_run, photos, tmp_path, monkeypatch):
    "The command: interrupted by Ctrl-C, resumed by the same call, refused for another run"
    import shutil

    from fungi_fastai import Run
    from fungi_fastai.samples.datasets import make_sample

    folder = make_sample('flowers', tmp_path / 'flowers', specimens=4, photos=2, size=64, workers=1)
    (folder / 'flowers/daisy/bad.jpg').write_text('no image')
    fungi('predict', small_run.folder, folder, '--out', tmp_path / 'expected.csv', code=1)
    classified, original = [], Run.classify

    def interrupted(self, paths):
        if len(classified) >= 16:
            raise KeyboardInterrupt
        return noted(self, paths)

    def noted(self, paths):
        classified.extend(paths)
        return original(self, paths)

    monkeypatch.setattr(Run, 'classify', interrupted)
    out = tmp_path / 'p.csv'
    fungi('predict', small_run.folder, folder, '--out', out, code=130)
    assert not out.exists() and (tmp_path / 'p.csv.partial').exists()
    monkeypatch.setattr(Run, 'classify', noted)
    shutil.copytree(small_run.folder, tmp_path / 'run')
    recipe = (tmp_path / 'run/recipe.json').read_text('utf8')
    (tmp_path / 'run/recipe.json').write_text(recipe.replace('"seed": ', '"seed": 1'), 'utf8')
    assert 'other models' in fungi('predict', tmp_path / 'run', folder, '--out', out, code=2).err
    output = fungi('predict', small_run.folder, folder, '--out', out, code=1)
    assert 'had been classified before' in output.err and 'bad.jpg' in output.err and '1 of 41 files' in output.err
    assert (
        pd.Series(classified).value_counts().drop(str(folder / 'flowers/daisy/bad.jpg')).eq(1).all()
        and len(set(classified)) == 41
    )
    actual, expected = (pd.read_csv(f, keep_default_na=False) for f in (out, tmp_path / 'expected.csv'))
    assert (actual[['path', 'name', 'predicted', 'error']] == expected[['path', 'name', 'predicted', 'error']]).all(
        axis=None
    )
    assert pd.to_numeric(actual.confidence).to_numpy() == pytest.approx(
        pd.to_numeric(expected.confidence).to_numpy(), abs=1e-3, nan_ok=True
    )


def test_a_file_of_predictions_equals_the_table_of_a_run(place, ready, small_run, photos, tmp_path):
    from fungi_fastai.runs.batch_prediction import predict_to

    tally = predict_to(small_run.folder, photos, tmp_path / 'p.parquet', progress=False)
    rows, table = pd.read_parquet(tmp_path / 'p.parquet'), small_run.predict(photos)
    assert tally.images == len(table) and tally.failed == 0
    for column in ('path', 'name', 'predicted'):
        assert rows[column].tolist() == table[column].tolist()  # calibration does not change the order
    assert {*rows.columns} == {*table.columns, 'answer', 'set', 'error'}
