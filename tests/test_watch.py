"`fungi watch` shows the training of another process: while it runs, when it ends, and when it is killed"

import io
import os
import re
import subprocess
import sys
import threading
import time
import xml.dom.minidom
from dataclasses import replace

import pytest
from conftest import flags, tiny, wait_for
from PIL import Image

from fungi_fastai.core.errors import MissingFileError, UserError
from fungi_fastai.runs.snapshot import is_training, read_snapshot, time_left
from fungi_fastai.runs.watch import best_row, screen, sparkline, ticks, watch


class Terminal(io.StringIO):
    "A stream that claims to be a terminal, and the text that it shows"

    encoding = 'utf-8'

    def isatty(self):
        return True

    @property
    def shown(self):
        lines, at = [''], 0
        for token in re.findall(r'\x1b\[\d*[A-Z]|\n|\r|[^\x1b\n\r]+', self.getvalue()):
            if token == '\n':
                at += 1
                lines += [''] * (at + 1 - len(lines))
            elif up := re.fullmatch(r'\x1b\[(\d+)A', token):
                at -= int(up[1])
            elif token == '\x1b[J':
                del lines[at + 1 :]
            elif token[0] not in '\x1b\r':
                lines[at] = token
        return '\n'.join(lines)


@pytest.fixture
def training(process, photos):
    "Start a training in its own process: training(folder, epochs=3) returns after the first epoch"

    def start(folder, **changes):
        one = process('train', 'flowers', '--source', photos, '--out', folder, *flags(**tiny | changes))
        wait_for((folder / 'history.csv').exists, one)
        return one

    return start


def watching(folder, stream, **options):
    "Start `watch` in a thread; the returned function waits for its result"
    results = []
    thread = threading.Thread(
        target=lambda: results.append(watch(folder, every=0.05, stream=stream, **options)), daemon=True
    )
    thread.start()

    def join():
        thread.join(300)
        assert results, f'still watching:\n{stream.getvalue()}'
        return results[0]

    return join


@pytest.mark.slow
def test_to_the_end(training, tmp_path):
    folder, terminal, log = tmp_path / 'run', Terminal(), io.StringIO()
    training(folder, epochs=4)
    joins = [watching(folder, terminal, out=tmp_path / 'live.svg'), watching(folder, log)]
    assert [join() for join in joins] == [0, 0]

    assert re.search(r'flowers: convmixer_16_1 from scratch at 32 px, 4 epochs', terminal.shown)
    assert re.findall(r'^ +(\d) +all layers', terminal.shown, re.M) == [
        '1',
        '2',
        '3',
        '4',
    ]  # drawn over, not below one another
    assert (
        'test images' in terminal.shown and 'report.html' in terminal.shown and ticks['unicode'][-1] in terminal.shown
    )
    xml.dom.minidom.parse(str(tmp_path / 'live.svg'))
    assert (tmp_path / 'live.svg').read_text().count('<use') > 4 * 4  # a mark an epoch and curve

    assert '\x1b' not in log.getvalue() and '\r' not in log.getvalue()
    assert re.findall(r'^ +(\d) +all layers', log.getvalue(), re.M) == ['1', '2', '3', '4']
    assert 'test images' in log.getvalue()
    again = io.StringIO()
    assert watch(folder, stream=again) == 0 and 'test images' in again.getvalue()  # one that has ended


@pytest.mark.slow
def test_killed_while_watched(training, tmp_path):
    folder, terminal = tmp_path / 'run', Terminal()
    process = training(folder, epochs=500)
    assert is_training(folder)
    join = watching(folder, terminal)
    while len(read_snapshot(folder).rows) < 3:
        time.sleep(0.02)
    assert watch(folder, once=True, stream=(log := io.StringIO())) == 0
    assert re.search(r'now  epoch \d+ of 500 for \d+ s, \d+ s per epoch, [\d hmins]+ left', log.getvalue()), (
        log.getvalue()
    )
    process.kill()
    process.join()  # SIGKILL
    assert join() == 1
    assert 'not running' in terminal.shown and f'--resume {folder}' in terminal.shown and (folder / '.lock').exists()
    assert not is_training(folder) and not read_snapshot(folder).running


def test_watching_does_not_disturb(place, tmp_path):
    "A training may start at any moment while somebody watches"
    from fungi_fastai.core.files import only_process

    stop, seen = threading.Event(), []

    def keep_watching():
        while not stop.is_set():
            seen.append(is_training(tmp_path))

    thread = threading.Thread(target=keep_watching)
    thread.start()
    try:
        for _ in range(300):
            with only_process(tmp_path / '.lock', 'busy'):
                time.sleep(0.001)
            time.sleep(0.001)
    finally:
        stop.set()
        thread.join()
    assert {True, False} == set(seen)


def test_held_where_the_system_does_not_list_locks(tmp_path, monkeypatch):
    "macOS has no /proc/locks; a container may not see its neighbour's"
    from pathlib import Path

    from filelock import FileLock

    read = Path.read_text
    monkeypatch.setattr(
        Path, 'read_text', lambda self, *a, **k: '' if str(self) == '/proc/locks' else read(self, *a, **k)
    )
    with FileLock(tmp_path / '.lock'):
        assert is_training(tmp_path)
    (tmp_path / '.lock').touch()  # left by a process that was killed, a while ago
    os.utime(tmp_path / '.lock', (0, 0))
    assert not is_training(tmp_path)
    with FileLock(tmp_path / '.lock', timeout=0):
        pass


def test_a_finished_run_is_shown_once(small_run, tmp_path):
    out = io.StringIO()
    assert watch(small_run.folder, once=True, out=tmp_path / 'curves.png', stream=out) == 0
    with Image.open(tmp_path / 'curves.png') as image:
        assert image.size == (1100, 300)
    assert f'{small_run.metrics["accuracy"]:.1%}' in out.getvalue()


def test_a_folder_that_is_not_a_run(tmp_path, small_run):
    with pytest.raises(MissingFileError, match='no run folder'):
        watch(tmp_path / 'nowhere')
    with pytest.raises(UserError, match='not a run'):
        watch(tmp_path)
    for out, why in (('a.pdf', '.svg or .png'), ('.svg', 'folder|end in'), ('no/where.svg', None)):
        if why:
            with pytest.raises(UserError, match=why):
                watch(small_run.folder, out=tmp_path if out == '.svg' else tmp_path / out)
    with pytest.raises(UserError, match='every'):
        watch(small_run.folder, every=0)
    (tmp_path / 'recipe.json').write_text('{"name": "flow')
    with pytest.raises(UserError, match='damaged'):
        watch(tmp_path)


def test_before_the_first_epoch(tmp_path, small_run):
    (tmp_path / 'recipe.json').write_bytes((small_run.folder / 'recipe.json').read_bytes())
    snapshot = read_snapshot(tmp_path)
    assert snapshot.rows == [] and time_left(snapshot) == (None, None) and best_row([], 'accuracy') is None
    assert 'not running, after epoch 0 of 2' in screen(snapshot)
    assert 'first epoch' in screen(replace(snapshot, running=True))
    assert watch(tmp_path, out=tmp_path / 'empty.svg', stream=io.StringIO()) == 1 and (tmp_path / 'empty.svg').exists()
    (tmp_path / 'recipe.json').write_text('{"name": "an older one", "epochs": 3}')  # missing fields have their defaults
    assert 'an older one' in screen(read_snapshot(tmp_path))


def test_no_unicode_no_unicode(small_run):
    class Plain(io.StringIO):
        encoding = 'ascii'

    out = Plain()
    assert watch(small_run.folder, once=True, stream=out) == 0
    out.getvalue().encode('ascii')
    assert sparkline([], 9) == '' and sparkline([None, None]) == '' and sparkline([2, 2]) == '▁▁'


def test_it_is_light():
    "Neither torch nor fastai, and no pandas unless you want a figure"
    code = (
        'import sys, fungi_fastai.runs.watch; '
        'sys.exit(bool({"torch", "fastai", "pandas", "matplotlib"} & set(sys.modules)))'
    )
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0
