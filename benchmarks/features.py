"""Which features does a linear head classify best? Image size, framing, flips, stages and networks, on real photos.

    python benchmarks/features.py ../shared mushrooms flowers                  a Markdown table, with seconds of CPU
    python benchmarks/features.py ../shared seedlings --images 1200 --size 224
    python benchmarks/features.py ../shared defungi --images 1800 --size 96 --views 'the last three stages'

No network is trained. Each image is predicted by a logistic regression on the images of the other folds: five folds
that divide no specimen, three times with other folds. Differences are paired by image, with a bootstrap over specimens.
The features are kept in the cache, so a second call only solves the regressions."""

import argparse
import resource
import warnings
from pathlib import Path

import numpy as np
from budget import archives

from fungi_fastai.models.heads import head_folds, select_head
from fungi_fastai.studies.probe import probe_items
from fungi_fastai.training.features import backbone_features
from fungi_fastai.training.fit import make_learner
from fungi_fastai.training.probing import extract_features
from fungi_fastai.training.recipes import recipes

first, second = 'tf_efficientnet_lite0', 'tf_efficientnet_lite2'
views = {  # changes of the recipe
    first: {},
    'with flips of the training images': {},
    'the last three stages': dict(feature_stages=3),
    '384 px': dict(size=384),
    '224 px': dict(size=224),
    'the whole image, squeezed': dict(resize='squish'),
    second: dict(arch=second),
    f'{first}+{second}': dict(arch=f'{first}+{second}'),
}


def flipped_features(recipe, items):
    "The features of the images, flipped horizontally"
    rows = items.assign(split=np.where(np.arange(len(items)) % 9, 'train', 'valid'))
    learn = make_learner(recipe.but(cache=False), rows, progress=False)
    return backbone_features(learn, items, flipped=True)


def predictions(features, flipped, targets, groups, seed):
    "(images, classes) probabilities, each image by a head of the other folds"
    fold, probs = head_folds(targets, groups, seed=seed), np.zeros((len(targets), targets.max() + 1))
    for number in range(5):
        rest, own = fold != number, fold == number
        x, copies = features[rest], 1 if flipped is None else 2
        x = x if flipped is None else np.concatenate([x, flipped[rest]])
        y, specimens = np.tile(targets[rest], copies), np.tile(groups[rest], copies)
        probs[own] = select_head(x, y, specimens, n_classes=probs.shape[1]).head.predict(features[own])
    return probs


def interval(difference, groups):
    "The mean and its 95 % interval, by a bootstrap over specimens"
    codes = np.unique(groups, return_inverse=True)[1]
    sums, sizes, rng = np.bincount(codes, difference), np.bincount(codes), np.random.default_rng(0)
    draws = rng.integers(0, len(sums), (2000, len(sums)))
    means = sums[draws].sum(1) / sizes[draws].sum(1)
    return difference.mean(), *np.quantile(means, (0.025, 0.975))


def rows(recipe, n_images, wanted):
    "A line of the table for each kind of features"
    items, _ = probe_items(recipe, progress=False)
    fraction = n_images / len(items) if n_images else 1.0
    items = items if fraction >= 1 else items.sample(n_images, random_state=0)
    groups, base = items.split_group.to_numpy(), None
    targets = items.label.map(sorted(items.label.unique()).index).to_numpy()
    yield f'{recipe.name}, {len(items)} images of {len(set(groups))} specimens'
    for name, changes in views.items():
        if base is not None and wanted and name not in wanted:
            continue
        began = resource.getrusage(resource.RUSAGE_SELF).ru_utime
        changed = recipe.but(**changes)
        features = extract_features(changed, items, progress=False)
        flipped = flipped_features(changed, items) if 'flips' in name else None
        solved = [predictions(features, flipped, targets, groups, seed) for seed in range(3)]
        correct = np.mean([probs.argmax(1) == targets for probs in solved], 0)
        loss = -np.mean([np.log(probs[np.arange(len(targets)), targets].clip(1e-9)).mean() for probs in solved])
        base = correct if base is None else base
        points = ' to '.join(f'{100 * value:+.1f}' for value in interval(correct - base, groups)[1:])
        seconds = resource.getrusage(resource.RUSAGE_SELF).ru_utime - began
        difference = f'{100 * (correct - base).mean():+.1f} ({points})'
        yield f'| {name} | {correct.mean():.3f} | {loss:.2f} | {difference} | {seconds:.0f} |'


if __name__ == '__main__':
    warnings.simplefilter('ignore')
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('shared', type=Path)
    parser.add_argument('sets', nargs='+', choices=list(archives))
    parser.add_argument('--images', type=int, default=0, help='images of a set, at most (default: all)')
    parser.add_argument('--size', type=int, default=320, help='image size, pixels')
    parser.add_argument('--views', nargs='+', choices=list(views), help='features, beside those of the first network')
    options = parser.parse_args()
    for name in options.sets:
        source = options.shared / 'data' / archives[name]
        for row in rows(recipes[name].but(source=source, arch=first, size=options.size), options.images, options.views):
            print(row, flush=True)
