"Run notebooks from top to bottom and save their outputs, figures as plain PNG: python docs/lessons.py nbs/training/fit.ipynb …"

import argparse
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import nbdev.test

root = Path(__file__).parents[1]


def run(notebook):
    "Execute one notebook and save it, cleaned; whether all its cells passed"
    with warnings.catch_warnings():  # what importing fastai says of itself is no output of a lesson
        warnings.filterwarnings('ignore', '`torch.jit.script` is deprecated', FutureWarning)
        warnings.filterwarnings('ignore', "The 'mode.chained_assignment' option is deprecated")
        passed, seconds = nbdev.test.test_nb(notebook, basepath=str(root), save=True)
    if passed:
        subprocess.run(['nbdev-clean', '--fname', notebook], cwd=root, check=True)
    print(f'{notebook.relative_to(root)}: {"saved" if passed else "FAILED"} after {seconds:.0f} s', flush=True)
    return passed


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('notebooks', nargs='*', type=Path, help='default: all of them')
    notebooks = parser.parse_args().notebooks or sorted((root / 'nbs').rglob('[!._]*.ipynb'))
    nbdev.test.CaptureShell = partial(nbdev.test.CaptureShell, mpl_format='png')
    # a process each: a notebook may change what others import
    if len(notebooks) == 1:
        sys.exit(not run(notebooks[0].resolve()))
    done = [subprocess.run([sys.executable, __file__, one]).returncode for one in notebooks]
    sys.exit(any(done))
