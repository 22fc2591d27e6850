"The structure of the package: no circles, no imports through strings, light modules"

import ast
import json
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

root = Path(__file__).parents[1]
modules = sorted(p for p in (root / 'fungi_fastai').rglob('*.py') if p.name != '_modidx.py')


def code_lines(notebook):
    "The lines of code that a notebook exports, without blank ones and comments"
    text = (root / 'fungi_fastai' / notebook.relative_to(root / 'nbs')).with_suffix('.py').read_text('utf8')
    return [line for line in text.splitlines() if line.strip() and not line.strip().startswith('#')]


def test_no_circle():
    "Imports inside functions count too"
    import grimp

    graph = grimp.build_graph('fungi_fastai')
    TopologicalSorter({one: graph.find_modules_directly_imported_by(one) for one in graph.modules}).prepare()


def test_no_import_through_a_string():
    "No contract sees a circle through `import_module`; the lazy names of the package and trackers are exceptions"
    allowed = {'__init__.py', 'training/trackers.py'}
    for file in modules:
        names = {
            alias.name
            for node in ast.walk(ast.parse(file.read_text('utf8')))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        calls = re.findall(r'\b(?:import_module|__import__)\(', file.read_text('utf8'))
        if str(file.relative_to(root / 'fungi_fastai')) not in allowed:
            assert 'import_module' not in names and 'importlib' not in names and not calls, file


def test_no_mock_in_the_package():
    for file in modules:
        assert 'unittest' not in file.read_text('utf8'), f'{file} imports a test library'


def test_warnings_of_fastais_import_are_silenced_in_one_place():
    scripts = [*(root / 'docs').glob('*.py'), *(root / 'benchmarks').glob('*.py')]
    found = [file for file in [*modules, *scripts] if 'mode.chained_assignment' in file.read_text('utf8')]
    assert found == [root / 'fungi_fastai/__init__.py']


@pytest.mark.parametrize('name', ['training/fit', 'runs/run', 'runs/train', 'deploy/server', 'data/scan', 'cli'])
def test_a_notebook_is_a_lesson(name):
    notebook = root / 'nbs' / f'{name}.ipynb'
    assert len(code_lines(notebook)) <= 400
    cells = json.loads(notebook.read_text('utf8'))['cells']
    assert not any('simplefilter' in ''.join(cell['source']) and '#| hide' in ''.join(cell['source']) for cell in cells)


def test_guides_import_a_name_of_the_package_from_the_package():
    "A name that stands in the lazy table of the package is public in its module, and no guide takes it from there"
    import fungi_fastai

    for name, home in fungi_fastai._modules.items():
        public = re.search(
            r'^__all__ = \[(.*?)\]', (root / 'fungi_fastai' / f'{home.replace(".", "/")}.py').read_text(), re.M | re.S
        )
        assert f"'{name}'" in public[1], f'{name} is not in the __all__ of {home}'
    guides = [
        file
        for folder in ('tutorials', 'howto', 'explanations')
        for file in (root / 'nbs' / folder).glob('[!.]*.ipynb')
    ]
    for guide in [root / 'nbs/index.ipynb', *guides]:
        for home, names in re.findall(r'from fungi_fastai\.([\w.]+) import ([\w, ]+)', guide.read_text('utf8')):
            found = [name for name in names.split(', ') if fungi_fastai._modules.get(name) == home]
            assert not found, f'{guide.name}: import {found} from fungi_fastai'
