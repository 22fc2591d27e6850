"Run notebooks and save their outputs, with figures as PNG: python docs/lessons.py nbs/training/fit.ipynb …"

import argparse
import subprocess
import sys
from functools import partial
from pathlib import Path

import nbdev.test

import fungi_fastai  # noqa: F401  (silences what importing fastai warns of, before a notebook does that)

root = Path(__file__).parents[1]


def run(notebook):
    "Execute a notebook, save and clean it; returns whether all cells passed"
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
    # a separate process for each, because a notebook may change imported modules
    if len(notebooks) == 1:
        sys.exit(not run(notebooks[0].resolve()))
    codes = [subprocess.run([sys.executable, __file__, one]).returncode for one in notebooks]
    sys.exit(any(codes))
