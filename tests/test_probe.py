"The first number: what may not leak, what is remembered, what is said"

import json
import shutil
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
from conftest import flags
from PIL import Image

network = dict(arch='convmixer_16_1', pretrained=False, size=32)
specimens = r'^(?P<group>\d+)_'


@pytest.fixture
def cache(place):
    "The place, with nothing remembered"
    shutil.rmtree(place / 'cache' / 'features', ignore_errors=True)
    return place / 'cache' / 'features'


@pytest.fixture
def made(place, ready):
    "Makes a probe that is quiet"
    from fungi_fastai.studies.probe import probe

    return lambda source, k=3, **changes: probe(source, k, progress=False, **{**network, **changes})


@pytest.fixture
def opened(ready):
    "The images that go through the network, by name"
    from fungi_fastai.training import frozen

    seen, real = [], frozen.backbone_features

    def count(learn, items, *rest):
        seen.extend(items['name'])
        return real(learn, items, *rest)

    with patch.object(frozen, 'backbone_features', count):
        yield seen


def test_no_specimen_and_no_copy_is_in_two_folds(made, photos, tmp_path):
    folder = shutil.copytree(photos, tmp_path / 'photos')
    first = sorted(folder.rglob('*.jpg'))[0]
    with Image.open(first) as image:
        image.save(first.with_name('900_0.jpg'), quality=70)  # the same image as another specimen's
    found = made(folder, group=specimens)
    table = found.predictions
    assert table.groupby('group').fold.nunique().max() == 1
    twins = table[table['name'].str.endswith((f'/{first.name}', '/900_0.jpg')) & (table.label == first.parent.name)]
    assert len(twins) == 2 and twins.group.nunique() == 2 and twins.fold.nunique() == 1
    assert (
        found.metrics['n_specimens'] == 31
        and found.metrics['n_clusters'] >= 1
        and found.metrics['n_images'] == len(table) == 61
    )


def test_a_fold_is_predicted_without_its_labels(ready):
    "Whatever the labels of a fold are said to be, and whatever its features, nothing else's prediction hears of its labels"
    from fungi_fastai.studies.probe import cross_predict

    rng = np.random.default_rng(0)
    items = pd.DataFrame(
        dict(
            name=[f'{i}.jpg' for i in range(90)],
            label=list('abc') * 30,
            group='',
            cluster='',
            fold=np.repeat([0, 1, 2], 30),
        )
    )
    seen = rng.normal(size=(90, 5)).astype(np.float32)
    probs, table = cross_predict(seen, items, progress=False)
    assert probs == pytest.approx(cross_predict(seen, items, progress=False)[0])
    others = items.assign(label=np.where(items.fold == 0, items.label.map(dict(a='b', b='c', c='a')), items.label))
    changed, other_table = cross_predict(seen, others, progress=False)
    assert (changed[:30] == probs[:30]).all() and other_table.strength[0] == table.strength[0]
    assert (changed[30:] != probs[30:]).any()
    assert probs.sum(1) == pytest.approx(1)


def test_the_strength_is_chosen_on_specimens_apart(ready):
    from fungi_fastai.studies import probe

    items = pd.DataFrame(
        dict(
            name=[f'{i}.jpg' for i in range(120)],
            label=np.tile(['a', 'b'], 60),
            group=[f'g{i // 4}' + 'ab'[i % 2] for i in range(120)],
            cluster='',
            fold=np.arange(120) // 40,
        )
    )
    asked = []

    def note(rows, **options):
        asked.append(rows)
        part = split(rows, **options)
        asked[-1] = rows.assign(part=part)
        return part

    split = probe.split
    with patch.object(probe, 'split', note):
        probe.cross_predict(np.random.default_rng(0).normal(size=(120, 3)), items, progress=False)
    assert [sorted(rows.fold.unique()) for rows in asked] == [[1, 2], [0, 2], [0, 1]]
    assert all(
        rows.groupby('group').part.nunique().max() == 1 and set(rows.part) == {'train', 'valid'} for rows in asked
    )


def test_scores_are_those_of_the_predictions(made, photos):
    found = made(photos, group=specimens)
    table, metrics = found.predictions, found.metrics
    right = table.label == table.predicted
    assert metrics['accuracy'] == pytest.approx(right.mean())
    assert metrics['accuracy_mean'] == pytest.approx(right.groupby(table.fold).mean().mean())
    assert metrics['accuracy_sd'] == pytest.approx(right.groupby(table.fold).mean().std())
    assert metrics['chance'] == pytest.approx(table.label.value_counts().max() / len(table))
    assert table[[f'p_{c}' for c in found.classes]].sum(axis=1).to_numpy() == pytest.approx(1)
    assert [f['fold'] for f in metrics['folds']] == [0, 1, 2] and sum(f['images'] for f in metrics['folds']) == len(
        table
    )
    pd.testing.assert_frame_equal(table, made(photos, group=specimens).predictions)


# --- what is remembered


def test_pictures_are_looked_at_once(made, photos, cache, opened, tmp_path):
    first = made(photos)
    assert len(opened) == 60 and len(list(cache.iterdir())) == 1
    opened.clear()
    with patch('fungi_fastai.training.fit.make_learner', side_effect=AssertionError('a network was built')):
        pd.testing.assert_frame_equal(made(photos).predictions, first.predictions)
        made(photos, k=2, seed=42, group=specimens, epochs=3, lr=1.0)  # nothing that the features depend on
    renamed = tmp_path / 'renamed'
    for i, file in enumerate(sorted(photos.rglob('*.jpg'))):
        target = renamed / file.parent.name / f'{i} neu.jpg'
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    Image.effect_noise((64, 64), 80).convert('RGB').save(renamed / 'roses' / 'new.png')
    made(renamed)
    assert opened == ['roses/new.png']


@pytest.mark.parametrize(
    'change', [dict(size=48), dict(resize='squish'), dict(arch='convmixer_16_2'), dict(seed=1), dict(precision='fp32')]
)
def test_another_network_or_picture_is_another_key(change, ready):
    from fungi_fastai.studies.probe import FeatureStore, feature_key
    from fungi_fastai.training.recipe import Recipe

    plain = Recipe(**network)
    assert (
        FeatureStore(feature_key(plain)).name
        == FeatureStore(feature_key(plain.but(epochs=9, lr=1.0, source='other', device='cpu'))).name
    )
    assert FeatureStore(feature_key(plain)).name != FeatureStore(feature_key(plain.but(**change))).name


def test_weights_are_known_by_their_content(ready, tmp_path):
    from fungi_fastai.studies.probe import feature_key
    from fungi_fastai.training.recipe import Recipe

    files = [tmp_path / name for name in ('a.safetensors', 'b.safetensors', 'c.safetensors')]
    for file, content in zip(files, (b'one', b'one', b'two'), strict=True):
        file.write_bytes(content)
    a, b, c = (feature_key(Recipe(weights=str(file)))['weights'] for file in files)
    assert a == b != c and feature_key(Recipe(weights='hf-hub:a/b'))['weights'] == 'hf-hub:a/b'


@pytest.mark.parametrize('damage', ['cut', 'bits', 'empty', 'text', 'folder'])
def test_a_damaged_file_is_made_again(made, photos, cache, opened, damage):
    before = made(photos).predictions
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    middle = len(whole) // 2
    changed = dict(
        cut=whole[:middle],
        bits=whole[:middle] + bytes(b ^ 255 for b in whole[middle : middle + 64]) + whole[middle + 64 :],
        empty=b'',
        text=b'no tensors',
    )
    if damage == 'folder':
        shutil.rmtree(cache)
        cache.write_text('no folder')
    else:
        file.write_bytes(changed[damage])
    opened.clear()
    if damage == 'folder':
        with pytest.warns(UserWarning, match='not kept'):
            after = made(photos).predictions
        cache.unlink()
    else:
        after = made(photos).predictions
    pd.testing.assert_frame_equal(after, before)
    assert len(opened) == 60 and (damage == 'folder' or len(list(cache.iterdir())) == 1)


def test_what_was_computed_before_an_interruption_is_kept(made, photos, cache):
    from fungi_fastai.training import frozen

    real, calls = frozen.backbone_features, []

    def weary(learn, items, *rest):
        if calls:
            raise KeyboardInterrupt
        calls.append(len(items))
        return real(learn, items, *rest)

    with patch.object(frozen, 'backbone_features', weary), pytest.raises(KeyboardInterrupt):
        made(photos, bs=4)
    asked = []

    def count(learn, items, *rest):
        asked.append(len(items))
        return real(learn, items, *rest)

    with patch.object(frozen, 'backbone_features', count):
        made(photos, bs=4)
    assert calls == [8] and sum(asked) == 52


# --- small and odd sets


def images(folder, **classes):
    "Noise, so and so many of each class"
    for label, count in classes.items():
        (folder / label).mkdir(parents=True)
        rng = np.random.default_rng(list(label.encode()))
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(folder / label / f'{label}{i}.png')
    return folder


def test_fewer_folds_where_a_class_is_small(made, tmp_path):
    found = made(images(tmp_path / 'few', plenty=9, few=3), k=5)
    assert len(found.folds) == 3 and any('3 folds instead of 5' in note and 'few has 3' in note for note in found.notes)
    assert found.metrics['chance'] == 0.75


def test_a_class_with_one_specimen_is_left_out(made, tmp_path):
    found = made(images(tmp_path / 'lonely', one=6, two=6, lonely=1), k=2)
    assert (
        found.classes == ['one', 'two']
        and any('lonely' in note for note in found.notes)
        and found.metrics['n_images'] == 12
    )


def test_two_pictures_a_class(made, tmp_path):
    found = made(images(tmp_path / 'least', one=2, two=2))
    assert len(found.folds) == 2 and len(found.predictions) == 4 and np.isfinite(found.metrics['log_loss'])


def test_features_that_are_no_numbers(made, photos, cache):
    from fungi_fastai.core.errors import TrainingError
    from fungi_fastai.training import frozen

    with (
        patch.object(
            frozen, 'backbone_features', lambda learn, items, *_: np.full((len(items), 4), np.nan, np.float32)
        ),
        pytest.raises(TrainingError, match='not finite'),
    ):
        made(photos)
    assert not cache.exists() or not list(cache.iterdir())


# --- the command


def test_the_command(fungi, photos, tmp_path):
    call = ('probe', photos, '--folds', '3', '--group', specimens, *flags(**network))
    said = fungi(*call)
    assert all(
        word in said.out
        for word in ('60 images, 30 specimens, 5 classes', 'accuracy', 'macro-F1', 'chance', '±', 'It took')
    )
    done = fungi(*call, '--json', '--out', tmp_path / 'predictions.csv')
    found = json.loads(done.out)
    assert {
        'accuracy',
        'macro_f1',
        'accuracy_mean',
        'accuracy_sd',
        'chance',
        'n_images',
        'n_specimens',
        'seconds',
        'folds',
        'arch',
    } <= set(found)
    table = pd.read_csv(tmp_path / 'predictions.csv')
    assert found['accuracy'] == pytest.approx((table.label == table.predicted).mean()) and len(table) == 60
    assert list(table)[:8] == ['path', 'name', 'label', 'group', 'fold', 'cluster', 'predicted', 'confidence']


def test_progress_is_shown_and_no_library_warns(fungi, photos, cache):
    said = fungi('probe', photos, '--folds', '3', *flags(**network))
    assert (
        'convmixer_16_1 looks at 60 images at 32 px' in said.err
        and 'Warning' not in said.err
        and '\x1b' not in said.err
    )


def test_a_recipe_lends_its_settings(fungi, place, ready):
    from fungi_fastai.samples.datasets import make_sample

    crops = make_sample('defungi', place / 'crops', specimens=4, photos=1, size=48, workers=1)
    call = ('--folds', '2', '--json', *flags(**network))
    assert json.loads(fungi('probe', crops, '--recipe', 'defungi', *call).out)['n_specimens'] > 10
    assert json.loads(fungi('probe', crops, *call).out)['n_specimens'] == 0


@pytest.mark.parametrize(
    'arguments, word',
    [
        (['no such folder'], 'no such folder'),
        (['PHOTOS', '--arch', 'resnet5O'], 'resnet50'),
        (['PHOTOS', '--weights', 'gone.safetensors', '--arch', 'resnet18'], 'gone.safetensors'),
        (['PHOTOS', '--folds', '1'], 'at least 2'),
        (['PHOTOS', '--label', '('], 'regular expression'),
        (['PHOTOS', '--out', 'table.txt'], '.csv'),
        (['PHOTOS', '--size', '3'], '16'),
        (['PHOTOS', '--recipe', 'truffles'], 'mushrooms'),
        (['PHOTOS', '--folds', 'many'], 'folds'),
        (['PHOTOS/flowers/roses'], 'labels'),
        (['PHOTOS', '--size', '40', '--device', 'cuda:77', *flags(arch='convmixer_16_1', pretrained=False)], 'cuda:77'),
        (['PHOTOS', '--arch', 'convmixer_16_1'], 'no pretrained weights'),
    ],
)
def test_what_the_user_can_mend(fungi, photos, cache, arguments, word):
    said = fungi('probe', *[a.replace('PHOTOS', str(photos)) for a in arguments], '--json', code=2)
    assert word in said.err and not said.out
