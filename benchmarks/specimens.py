"""What several photos of a specimen, and answers at higher ranks, are worth in a finished cross-validation.

    fungi folds mushrooms --source mushrooms.zip --arch tf_efficientnet_lite0 --epochs 0 --k 5 --out FOLDS
    python benchmarks/specimens.py FOLDS [RANKS.csv]

Temperature, pooling and thresholds are fitted on the validation set of each fold, and measured on its test set. So each
image is tested once, by a network that has not seen its specimen."""

import sys
from collections import Counter
from pathlib import Path

import numpy as np

from fungi_fastai.core.progress import format_count
from fungi_fastai.evaluation.calibration import apply_temperature, fit_temperature
from fungi_fastai.evaluation.metrics import Evaluation
from fungi_fastai.evaluation.paired_tests import in_points
from fungi_fastai.evaluation.pooling import SpecimenAnswers, fit_pooling, paired_mean
from fungi_fastai.evaluation.ranks import assess_ranks, fit_ranks
from fungi_fastai.evaluation.selective import threshold_for
from fungi_fastai.evaluation.taxonomy import read_taxonomy
from fungi_fastai.run_folder import RunFolder


def sets(run):
    "(probabilities, targets, groups, specimens) of the validation and of the test set of a fold, calibrated"
    evaluations, specimens = [], []
    for name in ('valid', 'test'):
        rows = run.predictions[run.predictions.split == name]
        evaluations.append(Evaluation.of(rows, run.classes))
        specimens.append(rows['group'].tolist())
    temperature = fit_temperature(evaluations[0].probs, evaluations[0].targets, evaluations[0].groups)
    probs = [apply_temperature(one.probs, temperature) for one in evaluations]
    return [(p, one.targets, one.groups, group) for p, one, group in zip(probs, evaluations, specimens, strict=True)]


def print_specimens(folds):
    single, pooled = [], []
    for valid, test in folds:
        pooling = fit_pooling(valid[0], valid[1], valid[3])
        answers = SpecimenAnswers.of(pooling, test[0], test[1], test[3])
        single, pooled = [*single, *answers.single], [*pooled, *answers.correct]
        print(f'{pooling.method}, correlation {pooling.correlation:.2f}, {len(answers.single)} test specimens')
    gain, low, high = paired_mean(np.array(pooled) - np.array(single))
    print(
        f'{format_count(len(single), "specimen")}: one photo {np.mean(single):.1%}, pooled {np.mean(pooled):.1%}, '
        f'gain {in_points(gain)} points (95 % interval {in_points(low)} to {in_points(high)})'
    )


def print_ranks(folds, classes, file, accuracy):
    answered, correct, images, notes = Counter(), Counter(), 0, ()
    for valid, test in folds:
        taxonomy = read_taxonomy(file, classes)
        threshold = threshold_for(*valid[:2], accuracy=accuracy, guaranteed=False, groups=valid[2])
        ranks = fit_ranks(taxonomy, *valid[:2], threshold, accuracy, valid[2])
        images, notes = images + len(test[1]), taxonomy.notes
        for row in assess_ranks(ranks, *test[:2], threshold, test[2])['by_rank']:
            answered[row['rank']] += row['answered']
            correct[row['rank']] += round(row['answered'] * (row['accuracy'] or 0))
    print(f'target {accuracy:.0%}, {images} images. {" ".join(notes)}')
    for rank, n in answered.items():
        print(f'{rank:10} coverage {n / images:.1%}, accuracy {correct[rank] / max(n, 1):.1%}')


if __name__ == '__main__':
    runs = [RunFolder.load(folder) for folder in sorted(Path(sys.argv[1]).glob('fold-*'))]
    folds = [sets(run) for run in runs]
    print_specimens(folds)
    for target in (0.9, 0.95) if len(sys.argv) > 2 else ():
        print_ranks(folds, runs[0].classes, sys.argv[2], target)
