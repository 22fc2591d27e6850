"""Do unlabelled photos help? A head on frozen features with and without pseudo-labels, on real photos.

    python benchmarks/self_training.py ../shared OUT                    all settings; OUT keeps what is done
    python benchmarks/self_training.py ../shared OUT --draws 5 --only mushrooms
    python benchmarks/self_training.py ../shared OUT --fine-tune        fine-tuned networks, into another OUT
    python benchmarks/self_training.py ../shared OUT --show             only the tables of what is in OUT

Each draw takes 40 % of the specimens of every class for testing. Of the others, n specimens of each class have one
labelled photo; all photos of the remaining ones are unlabelled. A linear head on frozen features
(tf_efficientnet_lite0) is fitted to the labelled photos alone, and to both with the pseudo-labels of each method.
`chosen by validation` takes the method with the highest accuracy on labelled specimens that were held out from the
whole procedure, and the labelled photos alone where no method is better by more than a standard error. The summary is
`results/self_training.csv`.

With `--fine-tune`, the last stages are trained on the labelled photos of 10 specimens of each class. A second training
on the same photos, with another training seed, is the control: the difference of the two is noise. `confident` adds the
images that the first network predicts with a calibrated confidence of 0.9 or more, `balanced` the 10 most confident
predictions of each class. All trainings of a draw have the same number of steps, validation set and test set, and each
has a training seed of its own. Pseudo-labels are compared with the mean of the two trainings without them. The summary
is `results/self_training_fine_tuned.csv`."""

import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from active_learning import features_of, interval, make_parser, read_draws
from sklearn.semi_supervised import LabelSpreading

from fungi_fastai.core.files import write_table
from fungi_fastai.data.splits import split_groups
from fungi_fastai.models.heads import head_folds, select_head
from fungi_fastai.models.scaling import unit_length
from fungi_fastai.runs.train import train
from fungi_fastai.training.fit import prepare_items
from fungi_fastai.training.recipes import PHOTOS

results = Path(__file__).parent / 'results' / 'self_training.csv'
fine_tuned_results = results.with_name('self_training_fine_tuned.csv')
sets = dict(mushrooms=20, flowers=20, seedlings=5, defungi=5)  # and the draws of each
files = {'seedlings': 'plant-seedlings-classification'}  # where the file has another name
n_labelled = (1, 5, 10, 20)  # of each class
n_folds = 5
fine_tuned_sets = dict(flowers=8, mushrooms=8, seedlings=3)
fine_tuned_methods = ('labelled only', 'labelled only, again', 'confident', 'balanced')


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
    selected = select_head(x, y, seed=seed)
    yield 'labelled only', selected.head
    for name, method in methods.items():
        labels = method(selected.refit, x, y, unlabelled)
        yield name, fit_both(selected.refit, x, y, unlabelled, labels)


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


def training_set(method, items, rest, labels, confidence):
    "The items with the split of a training, and the rows that have a pseudo-label in it"
    chosen = items.assign(split=items.split.mask(rest, ''))
    if method == 'confident':
        used = confidence.index[confidence >= 0.9]
    elif method == 'balanced':
        used = confidence.index[confidence.groupby(labels).rank(ascending=False, method='first') <= 10]
    else:
        return chosen, []
    chosen.loc[used, 'split'], chosen.loc[used, 'label'] = 'train', labels[used]
    return chosen, used


def fine_tuned(data, seed, name):
    "A row for each training of a draw, each with a training seed of its own; all have the same number of steps"
    recipe = PHOTOS.but(source=str(data / f'{files.get(name, name)}.zip'), arch='tf_efficientnet_lite0', size=128)
    recipe = recipe.but(pretrained=True, trainable='last', seed=seed, epochs=20, test=0.4)
    items = prepare_items(recipe, progress=False)
    groups = split_groups(items)
    rng, keep = np.random.default_rng(seed), set()
    for _, rows in items[items.split.eq('train')].groupby('label'):
        keep |= set(rng.permutation(groups[rows.index].unique())[:10])
    is_train = items.split.eq('train')
    rest = is_train & ~groups.isin(keep)
    n, rows = int(is_train.sum() - rest.sum()), []
    labels = confidence = pd.Series(dtype=float)
    for number, method in enumerate(fine_tuned_methods):
        chosen, used = training_set(method, items, rest, labels, confidence)
        epochs = max(1, round(recipe.epochs * n / (n + len(used))))
        with TemporaryDirectory() as folder:
            run = train(recipe.but(seed=seed + 1000 * number, epochs=epochs), folder, progress=False, items=chosen)
            accuracy = run.metrics['accuracy']
            if not rows:  # the first network makes the pseudo-labels
                predicted = run.predict(items.path[rest].tolist()).set_axis(items.index[rest])
                labels, confidence = predicted.predicted, predicted.confidence
        right = (items.label[used] == labels[used]).mean() if len(used) else np.nan
        row = dict(set=name, draw=seed, method=method, labelled=n, unlabelled=int(rest.sum()), pseudo=len(used))
        rows.append(row | dict(right=right, test=int(items.split.eq('test').sum()), accuracy=accuracy))
    return pd.DataFrame(rows)


def fine_tune(data, out, only, draws):
    "Write a file for each draw of trained networks that is not there yet"
    for seed in range(1, 1 + max(fine_tuned_sets.values())):
        for name, n_draws in fine_tuned_sets.items():
            file = out / f'{name}-{seed}.csv'
            if seed <= (draws or n_draws) and name.startswith(only) and not file.exists():
                write_table(file, fine_tuned(data, seed, name))
                print(file, flush=True)


def summarise_fine_tuned(out):
    "A row a set and method: accuracy, and difference from the labelled photos alone; and a row for all draws"
    table, rows = read_draws(out), []
    accuracies = table.pivot(index=['set', 'draw'], columns='method', values='accuracy')
    counts = table.groupby(['set', 'method'])[['labelled', 'unlabelled', 'pseudo', 'right', 'test']].mean()
    for name in [*(one for one in fine_tuned_sets if one in set(table.set)), 'all']:
        part = accuracies if name == 'all' else accuracies.loc[[name]]
        first, again = part['labelled only'], part['labelled only, again']
        alone = (first + again) / 2
        for method in fine_tuned_methods[1:]:
            change = again - first if method == 'labelled only, again' else part[method] - alone
            mean, half = interval(change)
            row = dict(set=name, method=method, draws=len(change), alone=alone.mean(), change=mean, change_half=half)
            row |= dict(deviation=change.std(), positive=int((change > 0).sum()))
            rows.append(row | ({} if name == 'all' else counts.loc[name, method].to_dict()))
    return pd.DataFrame(rows).round(5)


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
        if not options.show:
            fine_tune(options.shared / 'data', options.out, options.only, options.draws)
        summary = summarise_fine_tuned(options.out)
        if not (options.only or options.draws):
            summary.to_csv(fine_tuned_results, index=False)
        return print(summary.round(3).to_string(index=False))
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
