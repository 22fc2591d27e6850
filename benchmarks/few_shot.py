"""Heads on the features of a frozen network with few images of each class, on real photos.

    python benchmarks/few_shot.py ../shared                       a Markdown table for 1, 2 and 5 images of a class
    python benchmarks/few_shot.py ../shared --draws 40 --shots 1 10

Each draw takes some specimens of every class, one image each, and tests on all images of the other specimens. The
features are those of an installed network (tf_efficientnet_lite0), computed once. `standardised` is the head of earlier
versions: logistic regression on standardised features, its regularisation chosen on a validation set."""

import argparse
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import t
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from fungi_fastai.models.heads import head_kinds, nearest_neighbours, select_head
from fungi_fastai.models.scaling import FeatureScaling
from fungi_fastai.studies.probe import probe_items
from fungi_fastai.training.probing import extract_features
from fungi_fastai.training.recipes import PHOTOS

strengths = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)


def standardised(features, targets, query):
    "The predictions of the head of earlier versions, with a fifth of the images of each class as validation set"
    scaling = FeatureScaling.of(features)
    x, best_loss, best = scaling(features), np.inf, 1e-2
    is_valid = pd.Series(targets).groupby(targets).cumcount().to_numpy() % 5 == 4
    for strength in strengths if is_valid.any() else ():
        model = LogisticRegression(C=strength, tol=1e-3, max_iter=500).fit(x[~is_valid], targets[~is_valid])
        loss = -np.log(model.predict_proba(x[is_valid])[np.arange(is_valid.sum()), targets[is_valid]]).mean()
        if loss >= best_loss:
            break
        best_loss, best = loss, strength
    return LogisticRegression(C=best, max_iter=500).fit(x, targets).predict(scaling(query))


def selected(features, targets, query, **options):
    return select_head(features, targets, **options).head.predict(query).argmax(1)


heads = {
    'standardised': standardised,
    'nearest neighbour': lambda *arrays: nearest_neighbours(*arrays, k=1).argmax(1),
    '5 nearest neighbours': lambda *arrays: nearest_neighbours(*arrays, k=5).argmax(1),
    'class means': lambda *arrays: selected(*arrays, kinds=('mean',)),
    'ridge': lambda *arrays: selected(*arrays, kinds=('ridge',)),
    'logistic': lambda *arrays: selected(*arrays, kinds=('logistic',)),
    'any of the three': lambda *arrays: selected(*arrays, kinds=head_kinds),
}


def draw(items, shots, rng):
    "Rows of `shots` specimens of each class, one image each; and the rows of all other specimens"
    training, used = [], set()
    for _, rows in items.groupby('label'):
        specimens = rng.choice(rows.split_group.unique(), shots, replace=False)
        used.update(specimens)
        training += [rng.choice(rows.index[rows.split_group == specimen]) for specimen in specimens]
    return np.array(training), np.flatnonzero(~items.split_group.isin(used))


def compare(name, data, shots, draws):
    "A row a draw and head: accuracy"
    recipe = PHOTOS.but(source=str(data / f'{name}.zip'), arch='tf_efficientnet_lite0', size=224)
    items, _ = probe_items(recipe, progress=False)
    items = items.reset_index(drop=True)
    features, targets = extract_features(recipe, items), items.label.factorize(sort=True)[0]
    for n in shots:
        rng = np.random.default_rng(n)
        for number in range(draws):
            training, tested = draw(items, n, rng)
            for head, predict in heads.items():
                predicted = predict(features[training], targets[training], features[tested])
                accuracy = (predicted == targets[tested]).mean()
                yield dict(data=name, shots=n, draw=number, head=head, accuracy=accuracy)


def interval(values, sign=''):
    "Mean and 95 % interval over the draws"
    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return f'{values.mean():{sign}.3f} ({values.mean() - half:{sign}.3f} to {values.mean() + half:{sign}.3f})'


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('shared', type=Path)
    parser.add_argument('--draws', type=int, default=20)
    parser.add_argument('--shots', type=int, nargs='+', default=[1, 2, 5])
    options = parser.parse_args()
    warnings.simplefilter('ignore', ConvergenceWarning)
    print('| photos | images of a class | head | accuracy | minus `standardised` |\n| --- | --- | --- | --- | --- |')
    for name in ('mushrooms', 'flowers'):
        rows = pd.DataFrame(compare(name, options.shared / 'data', options.shots, options.draws))
        for shots, table in rows.groupby('shots'):
            accuracies = table.pivot(index='draw', columns='head', values='accuracy')
            for head in heads:
                change = interval(accuracies[head] - accuracies.standardised, '+') if head != 'standardised' else ''
                print(f'| {name} | {shots} | {head} | {interval(accuracies[head])} | {change} |', flush=True)


if __name__ == '__main__':
    main()
