"The built-in images: deterministic, with the layout of the downloads, and drawn once a machine"

import hashlib
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fungi_fastai.core.errors import UserError
from fungi_fastai.samples import datasets as samples
from fungi_fastai.samples.datasets import draw, jobs, make_sample, sample_folder, sample_kinds

counts = dict(mushrooms=540, defungi=592, flowers=200, seedlings=360)


def hashes(folder: Path) -> dict:
    "The hash of every image"
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob('*.jpg'))
    }


def start_script(code: str, folder: Path, **options):
    "Start a script that has no __main__ guard and whose settings point into `folder`"
    (folder / 'settings.ini').write_text('[DEFAULT]\ndata_dir = data\nnum_workers = 2\n')
    script = folder / f'script{len(list(folder.glob("script*")))}.py'
    script.write_text(code)
    root = str(Path(samples.__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, '-W', 'error', script],
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, 'PYTHONPATH': root},
        **options,
    )


@pytest.mark.parametrize('kind', sample_kinds)
def test_bytes_do_not_depend_on_the_number_of_images(kind, tmp_path):
    few = hashes(make_sample(kind, tmp_path / 'few', specimens=1, photos=1, size=48, workers=1))
    many = hashes(make_sample(kind, tmp_path / 'many', specimens=2, photos=2, size=48, workers=2))
    other = hashes(make_sample(kind, tmp_path / 'other', specimens=1, photos=1, size=48, seed=1, workers=1))
    assert few and set(few) <= set(many) and len(many) > len(few)
    assert all(many[name] == content for name, content in few.items())
    assert not set(few.values()) & set(other.values())


@pytest.mark.parametrize('kind', sample_kinds)
def test_images_are_different_and_have_the_size(kind, tmp_path):
    folder = make_sample(kind, tmp_path, specimens=1, photos=2, size=64)
    files = list(folder.rglob('*.jpg'))
    assert len({p.read_bytes() for p in files}) == len(files)
    for path in files:
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ('JPEG', 'RGB', (64, 64))


@pytest.mark.parametrize('kind', sample_kinds)
def test_number_of_images(kind):
    names = [job.name for job in jobs(kind)]
    assert len(names) == len(set(names)) == counts[kind]


def test_layout_of_mushrooms(tmp_path):
    folder = make_sample('mushrooms', tmp_path, specimens=2, photos=3, size=32)
    assert sorted(p.name for p in folder.iterdir()) == ['Mushrooms', 'observations.csv']
    assert sorted(p.name for p in (folder / 'Mushrooms').iterdir()) == [
        'Agaricus',
        'Amanita',
        'Boletus',
        'Cortinarius',
        'Entoloma',
        'Hygrocybe',
        'Lactarius',
        'Russula',
        'Suillus',
    ]
    photos = ['000_0', '000_1', '000_2', '001_0', '001_1', '001_2']
    assert sorted(p.stem for p in (folder / 'Mushrooms' / 'Suillus').iterdir()) == photos


def test_layout_and_imbalance_of_defungi():
    names = [Path(job.name) for job in jobs('defungi')]
    by_class = Counter(name.parent.name for name in names)
    assert set(by_class) == {'H1', 'H2', 'H3', 'H5', 'H6'}
    assert by_class['H1'] == 5 * min(by_class.values()) == max(by_class.values())
    assert Path('H1/H1_3b_2.jpg') in names
    assert all(name.name.startswith(name.parent.name + '_') for name in names)


def test_layout_of_flowers():
    assert {Path(job.name).parts[:2] for job in jobs('flowers')} == {
        ('flowers', name) for name in ('daisy', 'dandelion', 'roses', 'sunflowers', 'tulips')
    }


def test_layout_of_seedlings(tmp_path):
    folder = make_sample('seedlings', tmp_path, specimens=5, size=32)
    assert sorted(p.name for p in folder.iterdir()) == ['sample_submission.csv', 'test', 'train']
    assert len(list((folder / 'train').iterdir())) == 12 and (folder / 'train' / 'Small-flowered Cranesbill').is_dir()
    header, *rows = (folder / 'sample_submission.csv').read_text().splitlines()
    assert header == 'file,species'
    assert [row.split(',')[0] for row in rows] == sorted(p.name for p in (folder / 'test').iterdir()) and len(
        rows
    ) == 12
    assert not set(hashes(folder / 'test').values()) & set(hashes(folder / 'train').values())


def test_crops_of_a_specimen_are_similar_and_a_few_are_flat():
    keys = [job.key for job in jobs('defungi', specimens=20) if job.label == 'H3']
    crops = {key: np.asarray(draw('defungi', 'H3', *key, size=64), float) for key in keys}
    spread = np.array([np.sqrt(crop.mean(2).var()) for crop in crops.values()])
    flat = spread < 2
    assert 0.005 < flat.mean() < 0.12
    assert np.median(spread) > 5
    tints = {key: crop.mean((0, 1)) for key, crop in crops.items()}
    within = [np.ptp([tints[k] for k in tints if k[0] == specimen], 0).max() for specimen in range(20)]
    between = np.ptp([tints[specimen, 0, 0] for specimen in range(20)], 0).max()
    assert np.median(within) < between / 3


def test_unknown_names_raise_a_user_error(tmp_path):
    with pytest.raises(UserError, match='mushrooms, defungi, flowers, seedlings'):
        sample_folder('trees')
    with pytest.raises(UserError, match='trees'):
        make_sample('trees', tmp_path)
    with pytest.raises(UserError, match='Amanita'):
        draw('mushrooms', 'Tulip', 0, 0)
    with pytest.raises(UserError, match=r'2 number\(s\); 3 given'):
        draw('mushrooms', 'Amanita', 0, 0, 0)
    assert not list(tmp_path.iterdir())


script = """
from dataclasses import replace
from fungi_fastai.samples import datasets as samples
samples.kinds['flowers'] = replace(samples.kinds['flowers'], specimens={specimens})
print(samples.sample_folder('flowers'))
"""


@pytest.mark.process
def test_two_processes_draw_the_default_sample_at_once(tmp_path):
    processes = [start_script(script.format(specimens=8), tmp_path) for _ in range(2)]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    folder = Path(outputs[0][0].strip())
    assert len(list(folder.rglob('*.jpg'))) == 80
    assert os.listdir(folder.parent) == [folder.name]  # no temporary folder remains


@pytest.mark.process
def test_a_killed_process_leaves_no_incomplete_sample(tmp_path):
    process = start_script(script.format(specimens=2000), tmp_path, start_new_session=True)
    samples_folder = tmp_path / 'data' / 'samples'
    for _ in range(600):
        if any(samples_folder.rglob('*.jpg')) or process.poll() is not None:
            break
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()
    os.killpg(process.pid, 9)
    process.communicate()
    assert [p.name.startswith('.') for p in samples_folder.iterdir()] == [True]
    second = start_script(script.format(specimens=2), tmp_path)
    out, error = second.communicate(timeout=300)
    assert second.returncode == 0, error
    assert len(list(Path(out.strip()).rglob('*.jpg'))) == 20


def test_speed(capsys):
    "Prints how many images a second one core draws; it does not test the time"
    for kind in sample_kinds:
        selected = list(jobs(kind))[::13]
        draw(kind, selected[0].label, *selected[0].key)
        start = time.process_time()
        for job in selected:
            assert draw(kind, job.label, *job.key).size == (256, 256)
        with capsys.disabled():
            print(f'\n{kind}: {len(selected) / (time.process_time() - start):.0f} images a second and core', end='')
