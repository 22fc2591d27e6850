"Splits stay as they were for the same seed, and take a time that grows with the number of images, not with its square"

import hashlib
import time

import numpy as np
import pandas as pd
import pytest

from fungi_fastai.data.splits import folds, fraction, split


def make_items(classes, images, groups):
    "Classes of different sizes, with specimens and near-duplicates that cross them"
    rng = np.random.default_rng(classes)
    label = np.concatenate([np.arange(classes), rng.integers(0, classes, images - classes)])
    group, cluster = rng.integers(0, groups, images), rng.integers(0, 5 * images, images)
    return pd.DataFrame(
        dict(
            name=[f'c{c}/{i}.jpg' for i, c in enumerate(label)],
            label=[f'c{c}' for c in label],
            group=[f's{g}' if g % 3 else '' for g in group],
            cluster=[f'k{k}' if k < images else '' for k in cluster],
            given='',
        )
    )


def digest(values):
    return hashlib.blake2b(','.join(map(str, values)).encode(), digest_size=6).hexdigest()


@pytest.mark.parametrize(
    'classes,images,groups,expected',
    [
        (4, 120, 40, ['7c6d143ecdc6', '0a7fdd2a6382', '2eb5bba8499b', 'd8b00655321e']),
        (30, 400, 900, ['a452ee256c2e', '3e05b20a9b57', '6faf57daed31', '683e291ce34e']),
        (300, 500, 700, ['e24564f70520', '26d213f7812c', '7bde06db18ed', 'f267f5fd2a1e']),
    ],
)
def test_a_seed_gives_the_sets_that_earlier_versions_gave(classes, images, groups, expected):
    items = make_items(classes, images, groups)
    found = [split(items), split(items, 0.1, 0, seed=7), split(items, 0.3, 0.45, seed=1), fraction(items, 0.3).name]
    assert [digest(values) for values in found] == expected


def test_a_seed_gives_the_folds_that_earlier_versions_gave():
    assert digest(folds(make_items(4, 120, 40), 3)) == '68378a447a41'


def test_many_classes_take_a_second():
    items = make_items(5_000, 15_000, 20_000).assign(group='', cluster='')
    began = time.process_time()
    sets, tenth = split(items), fraction(items, 0.1)
    assert time.process_time() - began < 3  # one class after the other: 8 s
    assert set(sets) == {'train', 'valid', 'test'}
    assert tenth.label.nunique() == items.label.nunique()
