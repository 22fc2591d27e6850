"The README as a newcomer uses it: every Python block runs, and the command line takes every command"

import contextlib
import functools
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

root = Path(__file__).parents[1]
readme = (root / 'README.md').read_text('utf8')


def blocks(language, text=readme):
    return re.findall(rf'^```{language}\n(.*?)^```', text, re.DOTALL | re.MULTILINE)


def prose(notebook):
    cells = json.loads(notebook.read_text('utf8'))['cells']
    return '\n\n'.join(''.join(cell['source']) for cell in cells if cell['cell_type'] == 'markdown')


def commands(text=readme):
    "Each `fungi …` of the shell blocks, without its comment"
    shell = '\n'.join(blocks('bash', text)).replace('\\\n', ' ')
    lines = [line.partition('  #')[0].strip() for line in shell.splitlines()]
    return [part.strip() for line in lines for part in line.split('&&') if part.strip().startswith('fungi ')]


def test_it_is_short():
    assert len(readme.splitlines()) <= 120 and blocks('python') and len(commands()) >= 3


@pytest.fixture
def newcomer(place, ready, photos, tmp_path, monkeypatch):
    "A folder with `my_photos` and `photo.jpg`"
    shutil.copytree(photos, tmp_path / 'my_photos')
    shutil.copy(next(photos.rglob('*.jpg')), tmp_path / 'photo.jpg')
    shutil.copy(place / 'settings.ini', tmp_path / 'settings.ini')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_python_blocks_run(newcomer, capsys):
    names = {}
    for block in blocks('python'):
        quick = block.replace("budget='5m'", "arch='convmixer_16_1', pretrained=False, size=32, epochs=1")
        assert quick != block or 'train' not in block
        exec(compile(quick, 'README.md', 'exec'), names)
    assert 'accuracy' in capsys.readouterr().out
    assert (newcomer / 'bundle/model.onnx').exists() and (newcomer / 'runs/mine/report.html').exists()


def test_the_commands_run(newcomer, fungi, monkeypatch):
    "As they stand, but for the budget, and the bundle is loaded without waiting for visitors of the page"
    from fungi_fastai import Predictor
    from fungi_fastai.deploy import server

    served = []

    def load(bundle, *_, **__):
        with contextlib.closing(Predictor.load(bundle)) as predictor:
            served.append(predictor.predict('photo.jpg').label)
        return 0

    monkeypatch.setattr(server, 'serve', load)
    for line in commands():
        arguments = shlex.split(line)[1:]
        if '--budget' in arguments:
            at = arguments.index('--budget')
            arguments[at : at + 2] = '--arch convmixer_16_1 --no-pretrained --size 32 --epochs 1'.split()
        fungi(*arguments)
    assert len(served) == sum(line.startswith('fungi serve') for line in commands())


class Parsed(Exception):
    "The command line took the arguments"


def test_the_command_line_takes_every_command_of_the_guides(newcomer, monkeypatch, capsys):
    import fungi_fastai.cli as cli

    def only_parsed(command):
        @functools.wraps(command)
        def stop(*_, **__):
            raise Parsed

        return stop

    prepared, with_help = cli._prepared, cli._with_help
    monkeypatch.setattr(cli, '_prepared', lambda *given: only_parsed(prepared(*given)))
    monkeypatch.setattr(cli, '_with_help', lambda command: only_parsed(with_help(command)))
    pages = [
        path for folder in ('howto', 'tutorials', 'explanations') for path in (root / 'nbs' / folder).glob('*.ipynb')
    ]
    lines = {line for page in pages for line in commands(prose(page))}
    assert len(lines) > 40
    for folder in ('big', 'eight_species', 'planted'):  # that the pages make, or that readers have
        (newcomer / folder).mkdir()
    for table in ('finds.csv', 'photos.csv'):
        (newcomer / table).write_text('image,label\n')
    refused = []
    for line in sorted(lines):
        try:
            cli.main(shlex.split(line)[1:])
            refused.append(line)
        except Parsed:
            pass
        except SystemExit:
            refused.append(line)
    assert refused == [], capsys.readouterr().err
