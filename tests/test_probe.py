"Linear probe: nothing leaks between folds, features are kept on disk, results are reported"

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
    "The folder of the features, emptied"
    shutil.rmtree(place / 'cache' / 'features', ignore_errors=True)
    return place / 'cache' / 'features'


@pytest.fixture
def made(place, ready):
    "Makes a probe without progress"
    from fungi_fastai.studies.probe import probe

    return lambda source, k=3, **changes: probe(source, k, progress=False, **{**network, **changes})


@pytest.fixture
def opened(ready):
    "The names of the images that go through the network"
    from fungi_fastai.training import features

    names, backbone_features = [], features.backbone_features

    def count(learn, items, *rest):
        names.extend(items['name'])
        return backbone_features(learn, items, *rest)

    with patch.object(features, 'backbone_features', count):
        yield names


def test_no_specimen_and_no_near_duplicate_is_in_two_folds(made, photos, tmp_path):
    folder = shutil.copytree(photos, tmp_path / 'photos')
    first = sorted(folder.rglob('*.jpg'))[0]
    with Image.open(first) as image:
        image.save(first.with_name('900_0.jpg'), quality=70)  # the same image under another specimen
    result = made(folder, group=specimens)
    table = result.predictions
    assert table.groupby('group').fold.nunique().max() == 1
    duplicates = table[
        table['name'].str.endswith((f'/{first.name}', '/900_0.jpg')) & (table.label == first.parent.name)
    ]
    assert len(duplicates) == 2 and duplicates.group.nunique() == 2 and duplicates.fold.nunique() == 1
    assert (
        result.metrics['n_specimens'] == 31
        and result.metrics['n_clusters'] >= 1
        and result.metrics['n_images'] == len(table) == 61
    )


def test_a_fold_is_predicted_without_its_labels(ready):
    "The predictions of a fold do not depend on its own labels"
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
    vectors = rng.normal(size=(90, 5)).astype(np.float32)
    probs, table = cross_predict(vectors, items, progress=False)
    assert probs == pytest.approx(cross_predict(vectors, items, progress=False)[0])
    others = items.assign(label=np.where(items.fold == 0, items.label.map(dict(a='b', b='c', c='a')), items.label))
    changed, other_table = cross_predict(vectors, others, progress=False)
    assert (changed[:30] == probs[:30]).all() and other_table.C[0] == table.C[0]
    assert (changed[30:] != probs[30:]).any()
    assert probs.sum(1) == pytest.approx(1)


def test_the_regularisation_is_selected_on_other_specimens(ready):
    from fungi_fastai.studies import probe
    from fungi_fastai.training import probing

    items = pd.DataFrame(
        dict(
            name=[f'{i}.jpg' for i in range(120)],
            label=np.tile(['a', 'b'], 60),
            group=[f'g{i // 4}' + 'ab'[i % 2] for i in range(120)],
            cluster='',
            fold=np.arange(120) // 40,
        )
    )
    selections = []

    def recorded_select(features, targets, groups, **options):
        selections.append(set(groups))
        return select(features, targets, groups, **options)

    select = probing.select_head
    with patch.object(probing, 'select_head', recorded_select):
        probe.cross_predict(np.random.default_rng(0).normal(size=(120, 3)), items, progress=False)
    assert selections == [set(items.group[items.fold != fold]) for fold in range(3)]


def test_scores_are_those_of_the_predictions(made, photos):
    result = made(photos, group=specimens)
    table, metrics = result.predictions, result.metrics
    correct = table.label == table.predicted
    assert metrics['accuracy'] == pytest.approx(correct.mean())
    assert metrics['accuracy_mean'] == pytest.approx(correct.groupby(table.fold).mean().mean())
    assert metrics['accuracy_sd'] == pytest.approx(correct.groupby(table.fold).mean().std())
    assert metrics['chance'] == pytest.approx(table.label.value_counts().max() / len(table))
    assert table[[f'p_{c}' for c in result.classes]].sum(axis=1).to_numpy() == pytest.approx(1)
    by_fold = metrics['by_fold']
    assert [f['fold'] for f in by_fold] == [0, 1, 2] and sum(f['images'] for f in by_fold) == len(table)
    pd.testing.assert_frame_equal(table, made(photos, group=specimens).predictions)


# --- features on disk


def test_images_go_through_the_network_once(made, photos, cache, opened, tmp_path):
    first = made(photos)
    assert len(opened) == 60 and len(list(cache.iterdir())) == 1
    opened.clear()
    with patch('fungi_fastai.training.fit.make_learner', side_effect=AssertionError('a network was built')):
        pd.testing.assert_frame_equal(made(photos).predictions, first.predictions)
        made(photos, k=2, seed=42, group=specimens, epochs=3, lr=1.0)  # the features depend on none of these
    renamed = tmp_path / 'renamed'
    for i, file in enumerate(sorted(photos.rglob('*.jpg'))):
        target = renamed / file.parent.name / f'{i} new.jpg'
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    Image.effect_noise((64, 64), 80).convert('RGB').save(renamed / 'roses' / 'new.png')
    made(renamed)
    assert opened == ['roses/new.png']


@pytest.mark.parametrize(
    'change', [dict(size=48), dict(resize='squish'), dict(arch='convmixer_16_2'), dict(seed=1), dict(precision='fp32')]
)
def test_another_network_or_image_size_is_another_key(change, ready):
    from fungi_fastai.training.feature_store import FeatureStore, feature_key
    from fungi_fastai.training.recipe import Recipe

    plain = Recipe(**network)
    assert (
        FeatureStore(feature_key(plain)).name
        == FeatureStore(feature_key(plain.but(epochs=9, lr=1.0, source='other', device='cpu'))).name
    )
    assert FeatureStore(feature_key(plain)).name != FeatureStore(feature_key(plain.but(**change))).name


def test_weights_are_identified_by_their_content(ready, tmp_path):
    from fungi_fastai.training.feature_store import feature_key
    from fungi_fastai.training.recipe import Recipe

    files = [tmp_path / name for name in ('a.safetensors', 'b.safetensors', 'c.safetensors')]
    for file, content in zip(files, (b'one', b'one', b'two'), strict=True):
        file.write_bytes(content)
    a, b, c = (feature_key(Recipe(weights=str(file)))['weights'] for file in files)
    assert a == b != c and feature_key(Recipe(weights='hf-hub:a/b'))['weights'] == 'hf-hub:a/b'


@pytest.mark.parametrize('damage', ['cut', 'bits', 'empty', 'text', 'folder'])
def test_a_damaged_file_is_replaced(made, photos, cache, opened, damage):
    before = made(photos).predictions
    (file,) = cache.iterdir()
    content = file.read_bytes()
    middle = len(content) // 2
    changed = dict(
        cut=content[:middle],
        bits=content[:middle] + bytes(b ^ 255 for b in content[middle : middle + 64]) + content[middle + 64 :],
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


def test_features_computed_before_an_interrupt_are_kept(made, photos, cache):
    from fungi_fastai.training import features

    backbone_features, calls = features.backbone_features, []

    def interrupted(learn, items, *rest):
        if calls:
            raise KeyboardInterrupt
        calls.append(len(items))
        return backbone_features(learn, items, *rest)

    with patch.object(features, 'backbone_features', interrupted), pytest.raises(KeyboardInterrupt):
        made(photos, bs=4)
    computed = []

    def count(learn, items, *rest):
        computed.append(len(items))
        return backbone_features(learn, items, *rest)

    with patch.object(features, 'backbone_features', count):
        made(photos, bs=4)
    assert calls == [8] and sum(computed) == 52


# --- small and odd sets


def images(folder, **classes):
    "A folder of noise, with a number of images for each class"
    for label, count in classes.items():
        (folder / label).mkdir(parents=True)
        rng = np.random.default_rng(list(label.encode()))
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(folder / label / f'{label}{i}.png')
    return folder


def test_fewer_folds_where_a_class_is_small(made, tmp_path):
    result = made(images(tmp_path / 'few', plenty=9, few=3), k=5)
    assert len(result.by_fold) == 3 and any(
        '3 folds instead of 5' in note and 'few has 3' in note for note in result.notes
    )
    assert result.metrics['chance'] == 0.75


def test_a_class_with_one_specimen_is_trained_on_and_not_tested(made, tmp_path):
    result = made(images(tmp_path / 'lonely', one=6, two=6, lonely=1), k=2)
    assert result.classes == ['lonely', 'one', 'two'] and result.predictions.p_lonely.gt(0).all()
    assert any(note.startswith('Not measured') and 'lonely' in note for note in result.notes)
    assert result.metrics['n_images'] == 12 and 'lonely' not in set(result.predictions.label)


def test_two_images_a_class(made, tmp_path):
    result = made(images(tmp_path / 'least', one=2, two=2))
    assert len(result.by_fold) == 2 and len(result.predictions) == 4 and np.isfinite(result.metrics['log_loss'])


def test_features_that_are_not_finite(made, photos, cache):
    from fungi_fastai.core.errors import TrainingError
    from fungi_fastai.training import features

    with (
        patch.object(
            features, 'backbone_features', lambda learn, items, *_: np.full((len(items), 4), np.nan, np.float32)
        ),
        pytest.raises(TrainingError, match='not finite'),
    ):
        made(photos)
    assert not cache.exists() or not list(cache.iterdir())


# --- the command


def test_the_command(fungi, photos, tmp_path):
    call = ('probe', photos, '--folds', '3', '--group', specimens, *flags(**network))
    output = fungi(*call)
    assert all(
        word in output.out
        for word in (
            '60 images, 30 specimens, 5 classes',
            'accuracy',
            'macro-F1',
            'chance',
            'standard deviation over 3 folds',
            'It took',
        )
    )
    done = fungi(*call, '--json', '--out', tmp_path / 'predictions.csv')
    result = json.loads(done.out)
    assert {
        'accuracy',
        'macro_f1',
        'accuracy_mean',
        'accuracy_sd',
        'chance',
        'n_images',
        'n_specimens',
        'seconds',
        'by_fold',
        'arch',
    } <= set(result)
    table = pd.read_csv(tmp_path / 'predictions.csv')
    assert result['accuracy'] == pytest.approx((table.label == table.predicted).mean()) and len(table) == 60
    assert list(table)[:8] == ['path', 'name', 'label', 'group', 'fold', 'cluster', 'predicted', 'confidence']


def test_progress_is_shown_and_no_library_warns(fungi, photos, cache):
    log = fungi('probe', photos, '--folds', '3', *flags(**network)).err
    assert 'Features of convmixer_16_1 at 32 px: 60 images to compute' in log
    assert 'Warning' not in log and '\x1b' not in log


def test_settings_of_a_recipe(fungi, place, ready):
    from fungi_fastai.samples.datasets import make_sample

    crops = make_sample('defungi', place / 'crops', specimens=4, photos=1, size=48, workers=1)
    call = ('--folds', '2', '--json', *flags(**network))
    assert json.loads(fungi('probe', crops, '--recipe', 'defungi', *call).out)['n_specimens'] > 10
    assert json.loads(fungi('probe', crops, '--group', '', *call).out)['n_specimens'] == 0


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
def test_user_errors(fungi, photos, cache, arguments, word):
    output = fungi('probe', *[a.replace('PHOTOS', str(photos)) for a in arguments], '--json', code=2)
    assert word in output.err and not output.out
