"The README as a newcomer uses it: every Python block runs, and the command line takes every command"

import re
import shlex
import shutil
from pathlib import Path

import pytest

root = Path(__file__).parents[1]
readme = (root / 'README.md').read_text('utf8')


def blocks(language):
    return re.findall(rf'^```{language}\n(.*?)^```', readme, re.DOTALL | re.MULTILINE)


def commands():
    "Each `fungi …` of the shell blocks, without its comment"
    lines = [line.partition('  #')[0].strip() for block in blocks('bash') for line in block.splitlines()]
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


# gradio, which makes the page, leaves event loops open if its server never starts
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_the_commands_run(newcomer, fungi, monkeypatch):
    "As they stand, but for the budget, and without waiting for visitors of the page"
    import fungi_fastai.deploy.graceful as graceful

    monkeypatch.chdir(newcomer)
    served = []
    monkeypatch.setattr(graceful.GracefulServer, 'run', lambda self, *_, **__: served.append(self))
    for line in commands():
        arguments = shlex.split(line)[1:]
        if '--budget' in arguments:
            at = arguments.index('--budget')
            arguments[at : at + 2] = '--arch convmixer_16_1 --no-pretrained --size 32 --epochs 1'.split()
        fungi(*arguments)
    assert len(served) == sum(line.startswith('fungi serve') for line in commands())
