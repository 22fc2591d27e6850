"""How a temperature should be fitted: log loss and ECE on the test sets of finished runs.

    python benchmarks/temperature.py RUN [RUN…]

The temperature is fitted on the validation set of each run, or on 25 to 200 of its images, four draws each: with the
smallest log loss; applied only where it lowers the log loss of left-out folds by specimen; and shrunk, as
runs do it."""

import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from fungi_fastai.evaluation.calibration import apply_temperature, calibration_errors, fit_temperature
from fungi_fastai.evaluation.metrics import Evaluation

k, draws = 5, 4


def log_losses(probs, targets):
    return -np.log(np.clip(probs[np.arange(len(targets)), targets], 1e-12, 1))


def gain_of_left_out(probs, targets, groups):
    "How much lower the mean log loss is with a temperature that was fitted on the other specimens"
    folds, gain = np.random.default_rng(0).permutation(groups.max() + 1)[groups] % k, np.zeros(len(targets))
    for fold in np.unique(folds):
        inside = folds == fold
        temperature = fit_temperature(probs[~inside], targets[~inside], shrinkage=0)
        calibrated = apply_temperature(probs[inside], temperature)
        gain[inside] = log_losses(probs[inside], targets[inside]) - log_losses(calibrated, targets[inside])
    return gain.mean()


def temperatures(probs, targets, groups):
    best = fit_temperature(probs, targets, shrinkage=0)
    return {
        'no temperature': 1.0,
        'smallest log loss': best,
        'cross-validated': best if gain_of_left_out(probs, targets, groups) > 0 else 1.0,
        'shrunk': fit_temperature(probs, targets, groups),
    }


def sets(folder):
    "The evaluations of the validation and of the test set"
    table = pd.read_parquet(Path(folder, 'predictions.parquet'))
    table = table[table.label.notna()]
    return tuple(Evaluation.of(table[table.split == name]) for name in ('valid', 'test'))


def draw(groups, n, random):
    "The images of whole specimens, n of them"
    return np.argsort(random.permutation(groups.max() + 1)[groups], kind='stable')[:n]


def rows(runs, n=None):
    random = np.random.default_rng(0)
    for valid, test in runs:
        groups = pd.factorize(valid.groups)[0]
        if len(groups) < (n or 0):
            continue
        for _ in range(draws if n else 1):
            drawn = draw(groups, n, random) if n else np.arange(len(groups))
            specimens = pd.factorize(groups[drawn])[0]
            if specimens.max() + 1 < k:
                continue
            fitted = temperatures(valid.probs[drawn], valid.targets[drawn], specimens)
            for rule, temperature in fitted.items():
                scores = calibration_errors(apply_temperature(test.probs, temperature), test.targets)
                yield dict(rule=rule, log_loss=scores['log_loss'], ece=scores['ece'])


if __name__ == '__main__':
    warnings.simplefilter('ignore')
    runs = [sets(folder) for folder in sys.argv[1:]]
    for n in (25, 50, 100, 200, None):
        table = pd.DataFrame(rows(runs, n))
        if len(table):
            means = table.groupby('rule', sort=False)[['log_loss', 'ece']].mean()
            cells = ' | '.join(f'{loss:.3f}, {ece:.3f}' for loss, ece in means.to_numpy())
            print(f'| {n or "all"} | {len(table) // len(means)} | {cells} |', flush=True)
