"""The words of the field, everywhere: retired words stay out of names, messages, help, lessons and this suite

Whoever knows fastai, timm or scikit-learn should never have to translate. A word that is right where it stands is an
exception below, with its reason."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

root = Path(__file__).parents[1]

# words in names of our own: functions, classes, parameters, attributes, fields, variables and keys
retired_names = set(
    'picture pictures said told asked meant wish wished remark fate misfit lots twin twins stranger strangers doubted '
    'mended mirrored rightly wrongly anew'.split()
)

# what is read: in strings, comments, docstrings, lessons; and the field's word for it
retired_phrases = {
    r'pictures?': 'image',
    r'(?:training|validation|test|calibration) parts?\b(?! of)': 'training set, validation set, test set',
    r'number formats?': 'precision',
    r'named (?:rightly|wrongly)': 'classified correctly, misclassified',
    r'at hand': 'available',
    r'(?:learns?|learned|learnt) by heart': 'overfits',
    r'(?:head is |head )?solved (?:once more|again|anew)': 'refit',
    r'mirror(?:ed)? images?': 'horizontal flip',
    r'growing (?:pictures|images)': 'progressive resizing',
    r'rates by layer': 'layer-wise learning-rate decay',
    r'averaged weights': 'EMA of the weights',
    r'mixed images': 'MixUp / CutMix',
    r'strangers?': 'out-of-distribution images',
    r'wish(?:ed|es)?': 'target',
    r'how far it may be off': '95 % confidence interval',
    r'misfits?': 'nonconformity score',
    r'twins?': 'nearest duplicate',
    r'doubted': 'label issue',
    r'(?:made )?anew': 'again, recreated',
    r'not whole': 'incomplete',
    r'by luck|better, or luck': 'not statistically significant',
    r'no difference can be claimed': 'not statistically significant',
    r'what is taken for what': 'confusion matrix',
    r'class by class': 'per-class metrics',
    r'the first number': 'baseline, linear-probe baseline',
    r'side of the (?:square|images?)': 'image size',
    r'(?:is|are|was) asked for': 'requested',
}
phrases = re.compile('|'.join(rf'\b(?:{phrase})\b' for phrase in retired_phrases), re.I)

# (file as a pattern, the word) → why it is right there
exceptions = {
    ('tests/test_language.py', ''): 'the list itself',
    (
        r'nbs/data/(split_words|column_names|table_paths)\.ipynb',
        'pictures?',
    ): 'names that people give to folders and columns',
    ('tests/test_sources.py', 'picture'): 'the test of that name',
}


def excused(file, word):
    return any(re.fullmatch(place, file) and (not what or re.fullmatch(what, word, re.I)) for place, what in exceptions)


def own_names(tree):
    "(line, name) of everything that code defines or assigns, and of the keys that it writes"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict':
            yield from ((node.lineno, one.arg) for one in node.keywords if one.arg)
        elif isinstance(node, ast.Dict):
            yield from (
                (key.lineno, key.value)
                for key in node.keys
                if isinstance(key, ast.Constant) and isinstance(key.value, str)
            )


def sources():
    "(file, cell or '', code or markdown, text) of notebooks, tests, docs and benchmarks"
    for file in sorted((root / 'nbs').rglob('[!._]*.ipynb')):
        for cell in json.loads(file.read_text('utf8'))['cells']:
            yield str(file.relative_to(root)), cell['id'], cell['cell_type'], ''.join(cell['source'])
    for folder in ('tests', 'docs', 'benchmarks'):
        for file in sorted((root / folder).glob('*.py')):
            yield str(file.relative_to(root)), '', 'code', file.read_text('utf8')
    for name in ('README.md', 'CONTRIBUTING.md', 'SECURITY.md', 'settings.ini', 'Makefile'):
        yield name, '', 'markdown', (root / name).read_text('utf8')


def parsed(text):
    try:
        return ast.parse(text)
    except SyntaxError:  # a cell with a magic
        return ast.Module([], [])


def test_no_retired_name():
    found = []
    for file, cell, kind, text in sources():
        for line, name in own_names(parsed(text)) if kind == 'code' else ():
            for word in set(re.findall(r'[a-z]+', re.sub(r'(?<=[a-z])(?=[A-Z])', '_', name).lower())) & retired_names:
                if not excused(file, word):
                    found.append(f'{file} {cell} line {line}: {name} ({word})')
    assert not found, f'{len(found)} retired names; see shared GLOSSARY:\n' + '\n'.join(found[:60])


def test_no_retired_phrase():
    found = []
    for file, cell, _, text in sources():
        for number, line in enumerate(text.splitlines(), 1):
            for word in phrases.findall(line):
                if not excused(file, word):
                    found.append(f'{file} {cell} line {number}: {word!r} in {line.strip()[:120]}')
    assert not found, f'{len(found)} retired phrases:\n' + '\n'.join(found[:60])


commands = [
    '',
    'train mushrooms',
    'folds mushrooms',
    'sweep mushrooms',
    'export',
    'serve',
    'compare',
    'predict',
    'probe',
]


@pytest.mark.parametrize('command', commands)
def test_help_speaks_the_same_language(command):
    done = subprocess.run(
        [sys.executable, '-m', 'fungi_fastai.cli', *command.split(), '--help'], capture_output=True, text=True, cwd=root
    )
    assert done.returncode == 0, done.stderr
    text = re.sub(r'[│╭╮╰╯─\s]+', ' ', done.stdout)
    assert not phrases.findall(text), phrases.findall(text)
