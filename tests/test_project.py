"What holds for the package as a whole"

import json
import subprocess
import sys
from pathlib import Path

import pytest

import fungi_fastai

root = Path(__file__).parents[1]


def fresh(code):
    "What a fresh interpreter prints for some code"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_light():
    loaded = json.loads(fresh('import sys, json, fungi_fastai; print(json.dumps(sorted(sys.modules)))'))
    assert not {'torch', 'fastai', 'pandas', 'numpy', 'PIL', 'matplotlib'} & set(loaded)


def test_recipes_are_light():
    loaded = json.loads(
        fresh('import sys, json; from fungi_fastai import MUSHROOMS; print(json.dumps(sorted(sys.modules)))')
    )
    assert not {'torch', 'fastai', 'pandas'} & set(loaded)


def test_every_public_name_resolves():
    for name in fungi_fastai.__all__:
        assert getattr(fungi_fastai, name) is not None
    assert set(fungi_fastai.__all__) <= set(dir(fungi_fastai))


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match='train_toadstools'):
        _ = fungi_fastai.train_toadstools


def test_settings_file_of_the_project_is_valid():
    from fungi_fastai.core.settings import settings

    assert settings(root).workers >= 1


def test_no_pickle_is_read():
    "Weights are read as safetensors, or as tensors only; nothing else may call pickle"
    for file in (root / 'fungi_fastai').rglob('*.py'):
        text = file.read_text()
        assert 'pickle.load' not in text and 'load_learner' not in text, file
        for line in text.splitlines():
            if 'torch.load(' in line:
                assert 'weights_only=True' in line, (file, line)


def test_notebooks_are_small():
    for notebook in (root / 'nbs').rglob('*.ipynb'):
        assert notebook.stat().st_size < 600_000, notebook


def test_title_and_summary_stand_in_a_cell_of_their_own():
    "nbdev's documentation leaves out whatever else is in that cell"
    for notebook in (root / 'nbs').rglob('*.ipynb'):
        if any(part[0] in '._' for part in notebook.relative_to(root).parts):
            continue
        first = ''.join(json.loads(notebook.read_text('utf8'))['cells'][0]['source']).strip()
        if first.startswith('# '):
            assert all(line[:1] in ('', '#', '>') for line in first.splitlines()), notebook
