"The cache of decoded images: processes that share it, a failing disk, a careless user"

import json
import os
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
from conftest import tiny

build = """
import sys
import pandas as pd
from fungi_fastai.data import cache
items = pd.read_parquet('items.parquet')
slow, read = float(sys.argv[1]), cache.read_pixels
def counted(path, *rest):
    with open('read.txt', 'a') as f: f.write(path + chr(10))
    if slow: import time; time.sleep(slow)
    return read(path, *rest)
cache.read_pixels = counted
built = cache.build_cache(items, 40, progress=False)
for path in items.path: assert (built[path] == read(path, 40)).all()
print(len(built))
"""


@pytest.fixture
def scanned(photos, tmp_path):
    "The photos as items, in a folder with its own settings"
    from fungi_fastai.data.scan import check

    (tmp_path / 'settings.ini').write_text('[DEFAULT]\ncache_dir = cache\nnum_workers = 1\n')
    items, _ = check(photos, progress=False)
    items = items.drop_duplicates('sha')
    items.to_parquet(tmp_path / 'items.parquet')
    return items


def start(folder, slow=0.0):
    return subprocess.Popen(
        [sys.executable, '-c', build, str(slow)], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_one_of_several_processes_builds_it(scanned, tmp_path):
    processes = [start(tmp_path, 0.01) for _ in range(3)]
    for process in processes:
        out, err = process.communicate(timeout=300)
        assert (out.strip(), process.returncode) == (str(len(scanned)), 0), err
    assert len((tmp_path / 'read.txt').read_text().splitlines()) == len(scanned)
    assert len(list((tmp_path / 'cache/pixels').glob('*.pixels'))) == 1


def test_a_killed_process_leaves_no_cache(scanned, tmp_path):
    process = start(tmp_path, 0.05)
    while not list(tmp_path.glob('cache/pixels/.*.part')):
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert not list(tmp_path.glob('cache/pixels/*.pixels'))
    out, err = start(tmp_path).communicate(timeout=300)
    assert out.strip() == str(len(scanned)), err
    assert not list(tmp_path.glob('cache/pixels/.*.part'))


def test_a_second_run_decodes_nothing_and_a_run_without_cache_is_the_same(photos, tmp_path, place, monkeypatch):
    from fungi_fastai import train_flowers
    from fungi_fastai.data import cache, loaders
    from fungi_fastai.training.checkpoints import read_saved_weights

    monkeypatch.chdir(tmp_path)
    (tmp_path / 'settings.ini').write_text('[DEFAULT]\ncache_dir = cache\nnum_workers = 1\ndevice = cpu\n')
    runs, counts = {}, {}
    for name, changes in dict(first={}, second={}, without=dict(cache=False)).items():
        read = []
        for module in (cache, loaders):
            monkeypatch.setattr(
                module,
                'read_pixels',
                lambda path, *rest, real=cache.read_pixels, read=read: read.append(path) or real(path, *rest),
            )
        runs[name] = train_flowers(photos, out=tmp_path / name, progress=False, **tiny | changes)
        counts[name] = len(read)
        monkeypatch.undo()
        monkeypatch.chdir(tmp_path)
    used = (runs['first'].items.split != '').sum()
    assert counts['first'] == used and counts['second'] == 0 and counts['without'] > used
    weights = {name: read_saved_weights(run.folder / 'model.safetensors')[0] for name, run in runs.items()}
    for key, value in weights['first'].items():
        for other in ('second', 'without'):
            assert (value == weights[other][key]).all(), (other, key)


def test_without_permission_there_is_one_warning_and_the_training_continues(photos, tmp_path, place, monkeypatch):
    from fungi_fastai import train_flowers

    (tmp_path / 'file').write_text('in the way')
    (tmp_path / 'settings.ini').write_text('[DEFAULT]\ncache_dir = file\ndevice = cpu\n')
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        run = train_flowers(photos, out=tmp_path / 'run', progress=False, **tiny)
    assert run.finished
    messages = [str(w.message) for w in caught if 'decoded images are not cached' in str(w.message)]
    assert len(messages) == 1, caught


def test_an_image_damaged_in_the_cache_and_changed_on_disk(scanned, tmp_path, monkeypatch):
    from fungi_fastai import UserError
    from fungi_fastai.data.cache import build_cache

    monkeypatch.chdir(tmp_path)
    copy = tmp_path / 'copy.png'
    items = scanned.head(3).copy()
    from PIL import Image

    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 60, 3), np.uint8)).save(copy)
    items.iloc[0, items.columns.get_loc('path')] = str(copy)
    built = build_cache(items, 40, progress=False)
    start = int(built._table['start'][0])
    with open(built.file, 'r+b') as f:
        f.seek(start + 10)
        f.write(b'damage')
    Image.fromarray(np.zeros((50, 60, 3), np.uint8)).save(copy)
    with pytest.raises(UserError, match='fungi cache clear'):
        build_cache(items, 40, progress=False)[str(copy)]


def test_a_cache_can_be_sent_to_another_process(scanned, tmp_path, monkeypatch):
    import pickle

    from fungi_fastai.data.cache import build_cache

    monkeypatch.chdir(tmp_path)
    built = build_cache(scanned, 40, progress=False)
    sent = pickle.dumps(built)
    assert len(sent) < built.file.stat().st_size
    path = scanned.path.iloc[0]
    assert (pickle.loads(sent)[path] == built[path]).all()


def test_the_command_lists_and_clears_only_caches(fungi, scanned, tmp_path, monkeypatch):
    from fungi_fastai.data.cache import build_cache

    monkeypatch.chdir(tmp_path)
    assert 'is empty' in fungi('cache', 'list').out
    built = build_cache(scanned, 40, progress=False)
    (tmp_path / 'cache/mine.txt').write_text('not yours')
    assert f'{len(scanned)} images at 40 px' in fungi('cache', 'list').out
    listed = json.loads(fungi('cache', 'list', '--json').out)
    assert listed['files'][0]['images'] == len(scanned) and listed['bytes'] == built.file.stat().st_size
    assert os.path.isdir(listed['files'][0]['from'])
    assert 'freed' in fungi('cache', 'clear').out
    assert not built.file.exists() and (tmp_path / 'cache/mine.txt').exists()
    fungi('cache', 'burn', code=2)
