"""Do unlabelled photos help? A head on frozen features with and without pseudo-labels, on real photos.

    python benchmarks/self_training.py ../shared OUT                    all settings; OUT keeps what is done
    python benchmarks/self_training.py ../shared OUT --draws 5 --only mushrooms
    python benchmarks/self_training.py ../shared OUT --fine-tune        the same with fine-tuned networks, 3 seeds
    python benchmarks/self_training.py ../shared OUT --show             only the tables of what is in OUT

Each draw takes 40 % of the specimens of every class for testing. Of the others, n specimens of each class have one
labelled photo; all photos of the remaining ones are unlabelled. A linear head on frozen features
(tf_efficientnet_lite0) is fitted to the labelled photos alone, and to both with the pseudo-labels of each method.
`chosen by validation` takes the method with the highest accuracy on labelled specimens that were held out from the
whole procedure, and the labelled photos alone where no method is better by more than a standard error. The summary is
`results/self_training.csv`.

With `--fine-tune`, the last stages are trained on 10 specimens of each class, and again with the images that the first
network predicts with a calibrated confidence of 0.9 or more. Both trainings have the same number of steps, validation
set and test set."""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from active_learning import features_of, interval, make_parser, read_draws
from sklearn.semi_supervised import LabelSpreading

from fungi_fastai.data.splits import split_groups
from fungi_fastai.models.heads import fit_head, head_folds, select_head
from fungi_fastai.models.scaling import unit_length
from fungi_fastai.runs.train import train
from fungi_fastai.training.fit import prepare_items
from fungi_fastai.training.recipes import PHOTOS

results = Path(__file__).parent / 'results' / 'self_training.csv'
sets = dict(mushrooms=20, flowers=20, seedlings=5, defungi=5)  # and the draws of each
files = {'seedlings': 'plant-seedlings-classification'}  # where the file has another name
n_labelled = (1, 5, 10, 20)  # of each class
n_folds = 5


def draw(targets, groups, n, rng):
    "Rows for testing, labelled rows (one of each of n specimens of a class) and unlabelled rows"
    test, labelled, unlabelled = [], [], []
    for target in range(targets.max() + 1):
        rows = rng.permutation(np.flatnonzero(targets == target))
        specimens = rng.permutation(np.unique(groups[rows]))
        n_test = round(0.4 * len(specimens))
        test.append(rows[np.isin(groups[rows], specimens[:n_test])])
        first = rows[np.unique(groups[rows], return_index=True)[1]]
        labelled.append(first[np.isin(groups[first], specimens[n_test : n_test + n])])
        unlabelled.append(rows[np.isin(groups[rows], specimens[n_test + n :])])
    return np.concatenate(test), np.concatenate(labelled), rng.permutation(np.concatenate(unlabelled))


# each method: fit (features, targets → head), features and targets that are labelled, unlabelled features → a label for
# each unlabelled image, -1 for those left out


def confident(fit, x, y, unlabelled, threshold=0.9, n_rounds=3):
    "Predictions with a probability of 0.9 or more, three times"
    head = fit(x, y)
    for _ in range(n_rounds):
        probs = head.predict(unlabelled)
        labels = np.where(probs.max(1) >= threshold, probs.argmax(1), -1)
        head = fit_both(fit, x, y, unlabelled, labels)
    return labels


def curriculum(fit, x, y, unlabelled, shares=(0.2, 0.4, 0.6, 0.8, 1.0)):
    "The most confident 20, 40, … 100 % of the predictions of each class (curriculum labelling, Cascante-Bonilla 2021)"
    head = fit(x, y)
    for share in shares:
        probs = head.predict(unlabelled)
        predicted, labels = probs.argmax(1), np.full(len(unlabelled), -1)
        for target in np.unique(predicted):
            rows = np.flatnonzero(predicted == target)
            order = rows[np.argsort(-probs[rows, target], kind='stable')]
            labels[order[: int(np.ceil(share * len(order)))]] = target
        head = fit_both(fit, x, y, unlabelled, labels)
    return labels


def spreading(fit, x, y, unlabelled):
    "Labels that spread over a graph of the 10 nearest neighbours (Zhou 2004)"
    both = np.concatenate([x, unlabelled])
    both = unit_length(both - both.mean(0))
    model = LabelSpreading(kernel='knn', n_neighbors=10, alpha=0.5, max_iter=100)
    model.fit(both, np.concatenate([y, np.full(len(unlabelled), -1)]))
    return model.transduction_[len(x) :]


def soft_means(fit, x, y, unlabelled, n_rounds=10):
    "Class means that are refined with the unlabelled images (soft k-means, Ren 2018)"
    mean = np.concatenate([x, unlabelled]).mean(0)
    x, unlabelled = unit_length(x - mean), unit_length(unlabelled - mean)
    labelled = np.eye(y.max() + 1)[y]
    means = unit_length(labelled.T @ x)
    for _ in range(n_rounds):
        similarity = 10 * unlabelled @ means.T
        weights = np.exp(similarity - similarity.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        means = unit_length(labelled.T @ x + weights.T @ unlabelled)
    return (unlabelled @ means.T).argmax(1)


methods = {
    'confident': confident,
    'curriculum': curriculum,
    'label spreading': spreading,
    'soft class means': soft_means,
}


def fit_both(fit, x, y, unlabelled, labels):
    "A head for labelled images and those with a pseudo-label"
    used = labels >= 0
    return fit(np.concatenate([x, unlabelled[used]]), np.concatenate([y, labels[used]]))


def heads(x, y, unlabelled, seed):
    "The head of the labelled images, and that of each method with the same regularisation"
    n_classes = y.max() + 1
    selected = select_head(x, y, n_classes=n_classes, seed=seed)
    few = np.median(np.bincount(y)) <= 10
    temperature = selected.scores.loc[selected.scores.loss.idxmin(), 'temperature'] if len(selected.scores) else 1.0

    def fit(features, targets):
        return fit_head(
            features, targets, selected.kind, selected.strength, n_classes, temperature=temperature, unit_length=few
        )

    yield 'labelled only', selected.head
    for name, method in methods.items():
        yield name, fit_both(fit, x, y, unlabelled, method(fit, x, y, unlabelled))


def validated(x, y, unlabelled, seed):
    "The name of the method that classifies held-out labelled specimens best, by more than a standard error"
    folds, correct = head_folds(y, np.arange(len(y)), seed=seed, k=n_folds), {}
    for fold in range(n_folds):
        test = folds == fold
        if test.any():
            for name, head in heads(x[~test], y[~test], unlabelled, seed):
                correct.setdefault(name, []).extend(head.predict(x[test]).argmax(1) == y[test])
    if not correct:
        return 'labelled only'
    correct = pd.DataFrame(correct).astype(float)
    gains = correct.sub(correct['labelled only'], axis=0)
    best = gains.mean().idxmax()
    return best if gains[best].mean() > gains[best].sem() else 'labelled only'


def measure(data, out, only, draws):
    "Write a file for each draw that is not there yet"
    for name, n_draws in sets.items():
        todo = [seed for seed in range(draws or n_draws) if not (out / f'{name}-{seed}.csv').exists()]
        if not todo or not name.startswith(only):
            continue
        features, targets, groups = features_of(data, files.get(name, name))
        for seed in todo:
            rows = []
            for n in n_labelled:
                test, labelled, unlabelled = draw(targets, groups, n, np.random.default_rng(seed))
                x, y, rest = features[labelled], targets[labelled], features[unlabelled]
                found = {}
                for method, head in heads(x, y, rest, seed):
                    correct = head.predict(features[test]).argmax(1) == targets[test]
                    found[method] = pd.Series(correct).groupby(targets[test]).mean().mean()
                chosen = validated(x, y, rest, seed)
                found['chosen by validation'] = found[chosen]
                rows += [
                    dict(
                        set=name, draw=seed, n=n, unlabelled=len(rest), method=method, accuracy=accuracy, chosen=chosen
                    )
                    for method, accuracy in found.items()
                ]
            pd.DataFrame(rows).to_csv(out / f'{name}-{seed}.csv', index=False)
            print(out / f'{name}-{seed}.csv', flush=True)


def fine_tuned(data, out, seed, name):
    "Test accuracies of a network trained on labelled images, and of one that also has pseudo-labels"
    recipe = PHOTOS.but(source=str(data / f'{name}.zip'), arch='tf_efficientnet_lite0', pretrained=True, size=160)
    recipe = recipe.but(trainable='last', seed=seed, epochs=40, test=0.4)
    items = prepare_items(recipe, progress=False)
    groups = split_groups(items)
    rng, keep = np.random.default_rng(seed), set()
    for _, rows in items[items.split.eq('train')].groupby('label'):
        keep |= set(rng.permutation(groups[rows.index].unique())[:10])
    rest = items.split.eq('train') & ~groups.isin(keep)
    first = train(
        recipe, out / f'{name}-{seed}-labelled', progress=False, items=items.assign(split=items.split.mask(rest, ''))
    )
    predicted = first.predict(items.path[rest].tolist())
    sure = predicted.confidence.to_numpy() >= 0.9
    rows = items.index[rest][sure]
    both = items.assign(split=items.split.mask(rest, ''))
    both.loc[rows, 'split'] = 'train'
    right = float((both.label[rows].to_numpy() == predicted.predicted[sure].to_numpy()).mean())
    both.loc[rows, 'label'] = predicted.predicted[sure].to_numpy()
    n = items.split.eq('train').sum() - rest.sum()
    recipe = recipe.but(epochs=max(1, round(recipe.epochs * n / (n + len(rows)))))
    second = train(recipe, out / f'{name}-{seed}-both', progress=False, items=both)
    return dict(set=name, seed=seed, labelled=int(n), unlabelled=int(rest.sum()), pseudo=len(rows), right=right) | dict(
        alone=first.metrics['accuracy'], both=second.metrics['accuracy'], test=int(items.split.eq('test').sum())
    )


def fine_tune(data, out):
    "Train all networks, and print a table"
    file = out / 'fine_tune.csv'
    rows = pd.read_csv(file).to_dict('records') if file.exists() else []
    for seed in (1, 2, 3):
        for name in ('mushrooms', 'flowers'):
            if not any(row['set'] == name and row['seed'] == seed for row in rows):
                rows.append(fine_tuned(data, out, seed, name))
                pd.DataFrame(rows).to_csv(file, index=False)
                print(rows[-1], flush=True)
    print(pd.DataFrame(rows).round(3).to_string(index=False))


def summarise(out):
    "A row a set, number of labelled photos and method: accuracy and difference from the labelled photos alone"
    table = read_draws(out)
    rows = []
    for (name, n), part in table.groupby(['set', 'n'], sort=False):
        accuracies = part.pivot(index='draw', columns='method', values='accuracy')
        for method in ['labelled only', *methods, 'chosen by validation']:
            mean, half = interval(accuracies[method])
            change, change_half = interval(accuracies[method] - accuracies['labelled only'])
            row = dict(set=name, labelled=n, unlabelled=part.unlabelled.mean(), method=method, draws=len(accuracies))
            rows.append(row | dict(accuracy=mean, half=half, change=change, change_half=change_half))
    return pd.DataFrame(rows).round(5)


def main():
    parser = make_parser(__doc__, '20, seedlings and DeFungi 5')
    parser.add_argument('--fine-tune', action='store_true', help='networks instead of heads on frozen features')
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter('ignore')
    if options.fine_tune:
        return fine_tune(options.shared / 'data', options.out)
    if not options.show:
        measure(options.shared / 'data', options.out, options.only, options.draws)
    summary = summarise(options.out)
    if not (options.only or options.draws):
        summary.to_csv(results, index=False)
    text = [f'{100 * row.change:+.1f} ± {100 * row.change_half:.1f}' for row in summary.itertuples()]
    is_base = summary.method == 'labelled only'
    text = np.where(is_base, (100 * summary.accuracy).round(1).astype(str), text)
    table = summary.assign(text=text).pivot(index=['set', 'labelled'], columns='method', values='text')
    print(
        'Accuracy in per cent of the labelled photos alone, and points more than that (95 % interval over the draws):'
    )
    print(table[['labelled only', *methods, 'chosen by validation']].to_string())


if __name__ == '__main__':
    main()
