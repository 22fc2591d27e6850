"""A class from a few photos, without training: each class of a set in turn is added to a head of the others.

    python benchmarks/new_class.py ../shared                     a table for 2, 5 and 10 photos, mushrooms and flowers
    python benchmarks/new_class.py ../shared --draws 1 --shots 5

Each draw takes 40 % of the specimens of every class for testing and a fifth of the others for validation. A linear head
on frozen features (tf_efficientnet_lite0) is fitted without the class; then the class gets a row from a few photos, one
of each specimen. `refit` fits all classes again on the same photos, which takes the training images."""

import argparse
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from active_learning import features_of, interval

from fungi_fastai.deploy.new_classes import prototype_row
from fungi_fastai.models.heads import select_head


def draw(targets, groups, new, shots, rng):
    "Rows for testing, validation and training, without the new class; and photos of it"
    test = np.zeros(len(targets), bool)
    for target in np.unique(targets):
        specimens = rng.permutation(np.unique(groups[targets == target]))
        test |= np.isin(groups, specimens[: round(0.4 * len(specimens))])
    others = np.flatnonzero(~test & (targets != new))
    specimens = rng.permutation(np.unique(groups[others]))
    is_valid = np.isin(groups[others], specimens[: len(specimens) // 5])
    photos = rng.permutation(np.flatnonzero(~test & (targets == new)))
    photos = photos[np.sort(np.unique(groups[photos], return_index=True)[1])][:shots]
    return np.flatnonzero(test), others[is_valid], others[~is_valid], photos


def measure(features, targets, groups, shots, draws):
    "A row a class and draw: recall of the new class, and accuracy of the others before and after"
    n = targets.max() + 1
    for new in range(n):
        numbers = np.where(targets == new, n - 1, targets - (targets > new))  # the new class is the last one
        for seed in range(draws):
            test, valid, train, photos = draw(targets, groups, new, shots, np.random.default_rng([new, seed]))
            head = select_head(features[train], numbers[train], groups[train], n_classes=n - 1, seed=seed).head
            logits = lambda rows, head=head: head.logits(features[rows].astype(float))
            examples = pd.DataFrame(features[train].astype(float))
            within = (examples - examples.groupby(numbers[train]).transform('mean')).to_numpy()[:500]
            row = prototype_row(features[photos].astype(float), logits(photos), features[valid], logits(valid), within)
            both = np.concatenate([train, photos])
            refit = select_head(features[both], numbers[both], n_classes=n, seed=seed, balanced=True).head
            predicted = dict(
                prototype=np.c_[logits(test), features[test] @ row.weight + row.bias].argmax(1),
                refit=refit.logits(features[test]).argmax(1),
            )
            is_new, before = numbers[test] == n - 1, logits(test).argmax(1) == numbers[test]
            for method, values in predicted.items():
                correct = values == numbers[test]
                yield dict(method=method, new=correct[is_new].mean(), others=correct[~is_new].mean()) | dict(
                    before=before[~is_new].mean(), precision=correct[is_new].sum() / max(1, (values == n - 1).sum())
                )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('shared', type=Path)
    parser.add_argument('--draws', type=int, default=3, help='of each class')
    parser.add_argument('--shots', type=int, nargs='+', default=[2, 5, 10])
    options = parser.parse_args()
    warnings.simplefilter('ignore')
    print('| photos | method | recall of the new class | its precision | others before | others after |')
    print('| --- | --- | --- | --- | --- | --- |')
    for name in ('mushrooms', 'flowers'):
        arrays = features_of(options.shared / 'data', name)
        for shots in options.shots:
            table = pd.DataFrame(measure(*arrays, shots, options.draws))
            for method, rows in table.groupby('method'):
                mean, half = interval(rows.new)
                others = ' | '.join(f'{rows[column].mean():.3f}' for column in ('precision', 'before', 'others'))
                print(f'| {name}, {shots} | {method} | {mean:.3f} ± {half:.3f} | {others} |', flush=True)


if __name__ == '__main__':
    main()
