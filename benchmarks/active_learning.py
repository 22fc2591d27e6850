"""Which images to label next: each query strategy against a random choice, on real photos.

    python benchmarks/active_learning.py ../shared OUT                    all settings; OUT keeps what is done
    python benchmarks/active_learning.py ../shared OUT --draws 5 --only mushrooms
    python benchmarks/active_learning.py ../shared OUT --show             only the table of what is in OUT

Each draw takes 40 % of the specimens of every class for testing. Of the others, one photo of each is in the pool. A
linear head on frozen features (tf_efficientnet_lite0) starts with 5 labelled photos of each class; in each of 5 rounds
a strategy chooses 2 more for each class on average, and the head is fitted again. `rare` settings thin the classes of
the pool out, down to a tenth. All strategies get the same draws. `results/active_learning.csv` is the summary."""

import argparse
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import t

from fungi_fastai.evaluation.active_learning import Pool, select_batch, strategy_names
from fungi_fastai.models.heads import select_head
from fungi_fastai.studies.probe import probe_items
from fungi_fastai.training.probing import extract_features
from fungi_fastai.training.recipes import PHOTOS

results = Path(__file__).parent / 'results' / 'active_learning.csv'
settings = {  # name → file, whether the classes of the pool are thinned out, draws
    'mushrooms': ('mushrooms', False, 20),
    'flowers': ('flowers', False, 20),
    'mushrooms, rare classes': ('mushrooms', True, 20),
    'flowers, rare classes': ('flowers', True, 20),
    'seedlings': ('plant-seedlings-classification', False, 5),
}
n_start, n_rounds, per_class = 5, 5, 2


def features_of(data, name):
    "Features, class indices and specimens of a set"
    recipe = PHOTOS.but(source=str(data / f'{name}.zip'), arch='tf_efficientnet_lite0', size=224)
    items, _ = probe_items(recipe, progress=False)
    targets = items.label.factorize(sort=True)[0]
    return extract_features(recipe, items), targets, items.split_group.factorize()[0]


def draw(targets, groups, rare, rng):
    "Rows for testing, the pool of unlabelled rows in random order, and the rows that are labelled at the start"
    n_classes, test = targets.max() + 1, np.zeros(len(targets), bool)
    for target in range(n_classes):
        specimens = rng.permutation(np.unique(groups[targets == target]))
        test |= np.isin(groups, specimens[: round(0.4 * len(specimens))])
    pool = rng.permutation(np.flatnonzero(~test))
    pool = pool[np.sort(np.unique(groups[pool], return_index=True)[1])]
    by_class = [pool[targets[pool] == target] for target in range(n_classes)]
    if rare:
        for rank, target in enumerate(rng.permutation(n_classes)):
            n = round(len(by_class[target]) * 10 ** (-rank / (n_classes - 1)))
            by_class[target] = by_class[target][: max(n, n_start + 2)]
    start = np.concatenate([rows[:n_start] for rows in by_class])
    return np.flatnonzero(test), rng.permutation(np.concatenate([rows[n_start:] for rows in by_class])), start


def rounds(features, targets, rows, strategy, seed):
    "A row a round: number of labelled images, and the mean accuracy of the classes"
    test, pool, labelled = rows
    n_classes = targets.max() + 1
    for number in range(n_rounds + 1):
        head = select_head(features[labelled], targets[labelled], n_classes=n_classes, seed=seed).head
        correct = head.predict(features[test]).argmax(1) == targets[test]
        accuracy = pd.Series(correct).groupby(targets[test]).mean().mean()
        yield dict(round=number, labelled=len(labelled), accuracy=accuracy)
        probs = head.predict(features[pool])
        chosen = select_batch(Pool.of(probs, features[pool], features[labelled], seed), per_class * n_classes, strategy)
        labelled, pool = np.concatenate([labelled, pool[chosen]]), np.delete(pool, chosen)


def measure(data, out, only, draws):
    "Write a file for each draw that is not there yet"
    cache = {}
    for setting, (name, rare, n) in settings.items():
        for seed in range(draws or n):
            file = out / f'{setting.replace(", ", "-").replace(" ", "-")}-{seed}.csv'
            if file.exists() or (only and not setting.startswith(only)):
                continue
            if name not in cache:
                cache[name] = features_of(data, name)
            features, targets, groups = cache[name]
            rows = draw(targets, groups, rare, np.random.default_rng(seed))
            table = [
                dict(setting=setting, draw=seed, strategy=strategy) | row
                for strategy in strategy_names
                for row in rounds(features, targets, rows, strategy, seed)
            ]
            pd.DataFrame(table).to_csv(file, index=False)
            print(file, flush=True)


def interval(values):
    "Mean and half the width of its 95 % interval over the draws"
    return values.mean(), t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))


def summarise(out):
    "A row a setting, strategy and round (`mean`: of the rounds after the start): accuracy and difference from random"
    table = read_draws(out)
    means = table[table['round'] > 0].groupby(['setting', 'draw', 'strategy'])[['labelled', 'accuracy']].mean()
    table = pd.concat([table.astype({'round': object}), means.reset_index().assign(round='mean')], ignore_index=True)
    rows = []
    for (setting, number), part in table.groupby(['setting', 'round'], sort=False):
        accuracies = part.pivot(index='draw', columns='strategy', values='accuracy')
        for strategy in strategy_names:
            mean, half = interval(accuracies[strategy])
            change, change_half = interval(accuracies[strategy] - accuracies.random)
            row = dict(setting=setting, strategy=strategy, round=number, draws=len(accuracies))
            row |= dict(labelled=part.labelled.mean(), accuracy=mean, half=half, change=change, change_half=change_half)
            rows.append(row)
    return pd.DataFrame(rows).round(5)


def make_parser(doc, draws):
    "The options of a study that keeps a file for each draw"
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument('shared', type=Path)
    parser.add_argument('out', type=Path, help='folder for what is measured; another call continues')
    parser.add_argument('--draws', type=int, help=f'default: {draws}')
    parser.add_argument('--only', default='', help='start of the name of a setting')
    parser.add_argument('--show', action='store_true', help='measure nothing')
    return parser


def read_draws(out):
    "The rows of all draws that are in OUT"
    return pd.concat([pd.read_csv(file) for file in sorted(out.glob('*-*.csv'))], ignore_index=True)


def main():
    options = make_parser(__doc__, '20, seedlings 5').parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter('ignore')
    if not options.show:
        measure(options.shared / 'data', options.out, options.only, options.draws)
    summary = summarise(options.out)
    if not (options.only or options.draws):
        summary.to_csv(results, index=False)
    overall = summary[summary['round'] == 'mean']
    text = [f'{100 * row.change:+.1f} ± {100 * row.change_half:.1f}' for row in overall.itertuples()]
    table = overall.assign(text=text).pivot(index='strategy', columns='setting', values='text')
    print('Points of accuracy more than a random choice, mean of the rounds:')
    print(table.loc[list(strategy_names), list(dict.fromkeys(overall.setting))].to_string())


if __name__ == '__main__':
    main()
