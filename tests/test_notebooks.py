"Each notebook runs from top to bottom: its examples are the package's first tests"

import os
from functools import partial
from pathlib import Path

import pytest

root = Path(__file__).parents[1]
notebooks = sorted(
    p for p in (root / 'nbs').rglob('*.ipynb') if not any(part[0] in '._' for part in p.relative_to(root).parts)
)


# a notebook shows its warnings to the reader, as Jupyter does; they are no errors there
@pytest.mark.filterwarnings('default')
@pytest.mark.parametrize('notebook', notebooks, ids=lambda p: str(p.relative_to(root / 'nbs').with_suffix('')))
def test_notebook(notebook, ready, capsys, request, monkeypatch):
    import nbdev.test

    if 'launch(' in notebook.read_text('utf8'):
        request.getfixturevalue('forked')
    # figures as in the saved notebooks, not at twice their size
    monkeypatch.setattr(nbdev.test, 'CaptureShell', partial(nbdev.test.CaptureShell, mpl_format='png'))

    here = os.getcwd()
    try:
        os.chdir(root)  # nbdev looks for pyproject.toml from here upwards
        passed, _ = nbdev.test.test_nb(notebook, basepath=str(root))
    finally:
        os.chdir(here)
    assert passed, f'{notebook} failed; its traceback is above'
