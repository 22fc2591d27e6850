"Each mistake of a user gives exit code 2 and one message that says what to do, without a traceback or leftover files"

import copy
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import flags, shared, tiny
from PIL import Image

weights = shared.parent / 'weights'


@pytest.fixture
def train(fungi, tmp_path):
    "`fungi train flowers` into tmp_path/run"

    def call(source, code=0, out=tmp_path / 'run', **changes):
        done = fungi('train', 'flowers', '--source', source, '--out', out, *flags(**tiny | changes), code=code)
        if code == 2:
            assert len(done.err) < 2500 and not done.out
            assert not (tmp_path / 'run').exists(), 'a mistake leaves no folder'
        return SimpleNamespace(out=done.out, err=re.sub(r'[│╭╮╰╯─\s]+', ' ', done.err))  # tyro's boxes as running text

    return call


@pytest.fixture
def own(photos, tmp_path):
    "Photos that a test may damage: two classes of eight"
    for label in ('daisy', 'roses'):
        (tmp_path / 'own' / label).mkdir(parents=True)
        for file in sorted((photos / 'flowers' / label).iterdir())[:8]:
            shutil.copy(file, tmp_path / 'own' / label)
    return tmp_path / 'own'


def problem(run, name):
    items = pd.read_parquet(run / 'items.parquet').set_index('name')
    return items.problem[name].split(), items.split[name]


# --- sources


def test_a_wrong_path(train, own):
    assert 'did you mean own?' in train(own.with_name('ovn'), 2).err


def test_an_empty_folder(train, tmp_path):
    (tmp_path / 'empty').mkdir()
    assert 'empty' in train(tmp_path / 'empty', 2).err


def test_an_empty_source(train):
    assert 'source' in train('', 2).err


def test_a_folder_of_text_files(train, tmp_path):
    for label in 'ab':
        (tmp_path / 'texts' / label).mkdir(parents=True)
        for i in range(5):
            (tmp_path / 'texts' / label / f'{i}.txt').write_text('words')
    assert '.txt' in train(tmp_path / 'texts', 2).err


def test_text_files_named_like_images(train, tmp_path):
    for label in 'ab':
        (tmp_path / 'texts' / label).mkdir(parents=True)
        for i in range(5):
            (tmp_path / 'texts' / label / f'{i}.jpg').write_text(f'words {i}')
    message = train(tmp_path / 'texts', 2).err
    assert '10 files were found, 0 are usable' in message


def test_one_class_only(train, own):
    shutil.rmtree(own / 'roses')
    message = train(own, 2).err
    assert "only the class 'daisy'" in message and 'two classes' in message


def test_a_class_with_all_images_in_the_test_set(train, photos, tmp_path):
    for label, trained in (('daisy', 5), ('roses', 5), ('tulips', 0)):
        for i, file in enumerate(sorted((photos / 'flowers' / label).iterdir())[:8]):
            folder = tmp_path / 'splits' / ('train' if i < trained else 'test') / label
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, folder)
    assert "All usable images of 'tulips' are given as validation or test images" in train(tmp_path / 'splits', 2).err


def test_a_pattern_that_gives_one_specimen_for_each_class(train, own):
    message = train(own, 2, group='^(?P<group>.)').err
    assert 'left to validate on' in message and '--group' in message


def test_images_without_class_folders(train, own):
    assert 'no folders' in train(own / 'daisy', 2).err


def test_one_image_of_each_class(train, own):
    for folder in own.iterdir():
        for file in sorted(folder.iterdir())[1:]:
            file.unlink()
    assert train(own, 2).err


def test_a_single_image_and_a_text_file_as_source(train, own, tmp_path):
    assert 'single image' in train(next((own / 'daisy').iterdir()), 2).err
    (tmp_path / 'notes.txt').write_text('x')
    assert 'notes.txt' in train(tmp_path / 'notes.txt', 2).err


def test_one_image_for_each_class(fungi, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(4):
        path = tmp_path / f'single/species {i}/a.png'
        path.parent.mkdir(parents=True)
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(path)
    got = fungi('train', 'flowers', '--source', path.parents[1], '--arch', 'convmixer_16_1', '--no-pretrained', code=2)
    assert 'each of the 4 classes has one usable image' in got.err and 'duplicates' not in got.err


def test_a_class_without_usable_images_is_named_with_the_reason(fungi, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(3):
        for kind in 'AB':
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(tmp_path / kind / f'{i}.png')
        (tmp_path / f'B/{i}.png').write_bytes(b'\0\0\0\x18ftypisom\0\0\0\0')
    got = fungi('train', 'flowers', '--source', tmp_path, '--arch', 'convmixer_16_1', '--no-pretrained', code=2)
    assert "only the class 'A'" in got.err
    assert 'it has no usable image (3 images found): B/0.png is not an image but a video' in got.err


def test_a_truncated_zip(train, own, tmp_path):
    shutil.make_archive(str(tmp_path / 'complete'), 'zip', own)
    content = (tmp_path / 'complete.zip').read_bytes()
    (tmp_path / 'cut.zip').write_bytes(content[: len(content) // 2])
    assert 'cut.zip' in train(tmp_path / 'cut.zip', 2).err


@pytest.mark.parametrize(
    'text, expected',
    [
        ('name,species\na.jpg,x\n', 'exists'),
        ('what,species\nan oak,x\n', 'expected'),
        ('path\nown/daisy/gone.jpg\n', 'exists'),
        ('', 'CSV'),
        ('path,label\n', 'names no images'),
        ('path,weight\nown/daisy/000_0.jpg,3\n', 'label'),
    ],
)
def test_a_csv_with_missing_columns(train, own, tmp_path, text, expected):
    (tmp_path / 'table.csv').write_text(text)
    assert expected in train(tmp_path / 'table.csv', 2).err


def test_a_csv_with_some_missing_images_trains(train, own, tmp_path):
    rows = [f'{p},{p.parent.name}' for p in sorted(own.rglob('*.jpg'))]
    (tmp_path / 'table.csv').write_text('\n'.join(['path,label', *rows, 'gone.jpg,daisy']))
    train(tmp_path / 'table.csv')
    assert problem(tmp_path / 'run', 'gone.jpg')[0][0] == 'unreadable'


# --- single images: the rest trains


def test_bad_images_among_good_ones(train, own, tmp_path):
    content = sorted((own / 'daisy').iterdir())[0].read_bytes()
    (own / 'daisy/truncated.jpg').write_bytes(content[: len(content) // 2])
    Image.new('RGB', (1, 1), 'red').save(own / 'roses/pixel.png')
    Image.new('1', (20_000, 20_000), 1).save(own / 'roses/huge.png')
    (own / 'daisy/text.jpg').write_text('words')
    train(own)
    for name in ('daisy/truncated.jpg', 'roses/huge.png', 'daisy/text.jpg'):
        assert problem(tmp_path / 'run', name) == (['unreadable'], '')
    problems, split = problem(tmp_path / 'run', 'roses/pixel.png')
    assert 'tiny' in problems and split == ''
    items = pd.read_parquet(tmp_path / 'run/items.parquet')
    assert (items.split != '').sum() == 16 and (own / 'daisy/truncated.jpg').exists()  # left out, never deleted
    assert '20000×20000' in items.set_index('name').error['roses/huge.png']


def test_predicting_bad_images(fungi, small_run, own, tmp_path):
    Image.new('RGB', (1, 1), 'red').save(own / 'roses/pixel.png')
    Image.new('L', (3000, 1), 90).save(own / 'roses/line.png')
    Image.new('1', (20_000, 20_000), 1).save(own / 'roses/huge.png')
    fungi('predict', small_run.folder, own, '--out', tmp_path / 'p.csv', code=1)
    table = pd.read_csv(tmp_path / 'p.csv', keep_default_na=False).set_index('name')
    assert 'pixels' in table.error['roses/huge.png'] and (table.error != '').sum() == 1
    assert table.predicted['roses/pixel.png'] and table.predicted['roses/line.png']


def test_one_pixel_and_one_line_images_can_be_trained_on(train, own, tmp_path):
    "If the user asks for it"
    Image.new('RGB', (1, 1), 'red').save(own / 'roses/pixel.png')
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (1, 500, 3), np.uint8)).save(own / 'daisy/line.png')
    train(own, exclude='unreadable')
    assert problem(tmp_path / 'run', 'roses/pixel.png')[1] and problem(tmp_path / 'run', 'daisy/line.png')[1]


def test_a_class_with_one_image(train, own, photos, tmp_path):
    (own / 'tulips').mkdir()
    shutil.copy(next((photos / 'flowers/tulips').iterdir()), own / 'tulips/alone.jpg')
    output = train(own).out
    problems, split = problem(tmp_path / 'run', 'tulips/alone.jpg')
    assert problems == ['small_class'] and split == 'train'
    metrics = json.loads((tmp_path / 'run/metrics.json').read_text('utf8'))
    assert metrics['per_class']['tulips']['images'] == 0 and metrics['n_classes'] == 3
    assert 'tulips' not in output  # nothing was measured for this class


def test_names_with_special_characters(train, own, tmp_path):
    odd = own.with_name('Pilze & Blüten 菌 #1')
    own.rename(odd)
    (odd / 'daisy').rename(odd / 'Gänse & <i>Blümchen')
    for i, file in enumerate(sorted((odd / 'roses').iterdir())):
        file.rename(file.with_name(f'Röschen №{i}, 50% & <b>.jpg'))
    train(odd, out=tmp_path / 'Läufe & mehr')
    page = (tmp_path / 'Läufe & mehr/report.html').read_text('utf8')
    assert 'Gänse &amp; &lt;i&gt;Blümchen' in page and '<i>' not in page


# --- settings of a training


@pytest.mark.parametrize(
    'changes, expected',
    [
        (dict(arch='resnet5o'), 'resnet50'),
        (dict(arch='no such thing'), 'No architecture'),
        (dict(size=8), 'at least 16'),
        (dict(size=-1), 'size'),
        (dict(epochs=-1), 'epochs'),
        (dict(bs=0), 'bs'),
        (dict(lr=0), 'lr'),
        (dict(lr='nan'), 'lr'),
        (dict(valid=0.6, test=0.5), 'leave nothing'),
        (dict(fraction=0), 'fraction'),
        (dict(device='gpu'), 'gpu'),
        (dict(device='cuda:77'), 'cuda'),
        (dict(monitor='loss'), 'valid_loss'),
        (dict(precision='int8'), 'precision'),
        (dict(resize='stretch'), 'squish'),
        (dict(label='('), 'regular expression'),
        (dict(label='daisy'), 'no group'),
        (dict(group='[a-'), 'regular expression'),
        (dict(label='(nothing like this)'), 'matches none'),
        (dict(exclude='ugly'), 'ugly'),
        (dict(weights='gone.safetensors'), 'gone.safetensors'),
        (dict(pretrained=True), 'no pretrained weights'),
        (dict(arch='alexnet', size=16), '16'),
        ({'augment.flip': 'up'}, 'flip'),
        ({'augment.crop': 1.5}, 'crop'),
    ],
    ids=lambda x: str(x)[:40],
)
def test_an_invalid_setting(train, photos, changes, expected):
    assert expected in train(photos, 2, **changes).err


def test_pretrained_weights_without_a_network(train, photos, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
    monkeypatch.setattr(constants, 'ENDPOINT', 'http://127.0.0.1:9')  # the discard port: nobody answers
    for name in ('http_proxy', 'HTTP_PROXY', 'https_proxy', 'HTTPS_PROXY', 'all_proxy', 'ALL_PROXY'):
        monkeypatch.delenv(name, raising=False)
    message = train(photos, 2, arch='resnet18', pretrained=True).err
    assert 'cannot be downloaded' in message and 'weights' in message and 'pretrained' in message


@pytest.mark.skipif(not weights.is_dir(), reason=f'{weights} (pretrained weights for development) does not exist')
def test_weights_of_another_network(train, photos):
    message = train(
        photos, 2, arch='mobilenetv2_100', weights=weights / 'mobilenetv2_035.keras_in1k_notop.safetensors'
    ).err
    assert 'do not fit' in message and any(c.isdigit() for c in message) and 'Nothing was loaded' in message


def test_weights_that_are_no_weights(train, photos, tmp_path):
    for name in ('w.safetensors', 'w.pth'):
        (tmp_path / name).write_text('words')
        assert name in train(photos, 2, weights=tmp_path / name).err


@pytest.mark.parametrize('bs', [2, 512])
def test_batches_of_any_size(train, own, bs):
    train(own, bs=bs)


@pytest.mark.parametrize('bs', [4, 512])  # 512: one batch an epoch, so validation sees it first
def test_a_loss_that_is_nan(train, own, tmp_path, bs):
    message = train(own, 1, lr=1e30, bs=bs, epochs=4, arch='squeezenet1_1').err  # no BatchNorm, which would hide it
    assert 'no longer a number' in message and '--lr' in message
    files = {file.name for file in (tmp_path / 'run').iterdir()}
    assert {'recipe.json', 'items.parquet'} <= files and 'metrics.json' not in files


def test_a_later_fit_has_not_failed(photos, ready):
    from fungi_fastai.training.fit import make_learner
    from fungi_fastai.training.recipes import FLOWERS

    learn = make_learner(FLOWERS.but(source=photos, **tiny), progress=False)
    start = copy.deepcopy(learn.model.state_dict())
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e30)
        assert 'no longer a number' in learn.history.failure
        learn.model.load_state_dict(start)
        learn.fit(1, 1e-3, reset_opt=True)
    assert learn.history.failure == ''


def test_a_first_epoch_with_a_nan_loss_does_not_stay_the_best(ready, tmp_path):
    from torch import nn

    from fungi_fastai.training.checkpoints import KeepBest

    keep = KeepBest(tmp_path / 'best.safetensors')
    keep.learn = SimpleNamespace(model=nn.Linear(1, 1), history=SimpleNamespace(rows=[]))
    for value in (float('nan'), 0.5, float('nan')):
        keep.offer(value)
    assert keep.best == 0.5


def test_no_memory_says_what_to_try(train, own, tmp_path, monkeypatch):
    from fastai.learner import Learner

    def fail(*_, **__):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(Learner, 'one_batch', fail)
    message = train(own, 1).err
    assert '--bs 4' in message and (tmp_path / 'run/items.parquet').exists()


# --- paths and settings


@pytest.mark.parametrize('command', ['train', 'evaluate', 'predict', 'explore'])
def test_an_out_that_cannot_be_written(fungi, train, small_run, own, tmp_path, command):
    (tmp_path / 'file').write_text('precious')
    out = tmp_path / 'file' / 'below'
    if command == 'train':
        message = train(own, 2, out=out).err
    elif command == 'evaluate':
        message = fungi('evaluate', small_run.folder, '--out', out.with_suffix('.csv'), code=2).err
    elif command == 'predict':
        message = fungi('predict', small_run.folder, own, '--out', out.with_suffix('.csv'), code=2).err
    else:
        message = fungi('explore', own, '--out', out, code=2).err
    assert str(tmp_path / 'file') in message and (tmp_path / 'file').read_text() == 'precious'


@pytest.mark.parametrize('name', ['out.txt', 'out', 'folder.csv'])
def test_a_table_of_an_unknown_kind(fungi, small_run, own, tmp_path, name):
    (tmp_path / 'folder.csv').mkdir()
    for call in (('predict', small_run.folder, own), ('evaluate', small_run.folder)):
        assert name in fungi(*call, '--out', tmp_path / name, code=2).err


@pytest.mark.parametrize(
    'options, expected',
    [
        (('--out', 'a', '--out', 'b'), '--out is given twice'),
        (('--common', '--no-common'), '--common and --no-common contradict each other'),
        (('--out', ''), '--out is empty'),
        (('--out=',), '--out is empty'),
        (('--out', 'x' * 240), 'has 240 bytes'),
        (('--out', './~/comparison'), 'begins with ~'),
        (('--out', 'link to nothing'), 'which does not exist'),
        (('--out=~/file/below',), 'is a file'),
    ],
    ids=lambda x: str(x)[:30],
)
def test_options_that_are_refused_at_once(fungi, small_run, tmp_path, monkeypatch, options, expected):
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'file').touch()
    if 'link to nothing' in options:
        options = ('--out', tmp_path / 'link')
        options[1].symlink_to('gone')
    assert expected in fungi('compare', small_run.folder, small_run.folder, *options, code=2).err


def test_a_file_is_written_through_a_link_that_stays(tmp_path):
    from fungi_fastai.core.files import write_text

    (tmp_path / 'link.csv').symlink_to('target.csv')
    write_text(tmp_path / 'link.csv', 'new')
    assert (tmp_path / 'link.csv').is_symlink() and (tmp_path / 'target.csv').read_text() == 'new'


def test_a_column_without_a_table_gives_a_note(own):
    from fungi_fastai.data.sources import Source

    notes = Source.of(own, column='file', split='set').read(progress=False).attrs['notes']
    assert [note for note in notes if "'file', is not used" in note] and "'set', is not used" in ' '.join(notes)


def test_explore_into_a_file(fungi, own, tmp_path):
    (tmp_path / 'file').write_text('precious')
    assert 'file' in fungi('explore', own, '--out', tmp_path / 'file', code=2).err
    assert (tmp_path / 'file').read_text() == 'precious'


@pytest.mark.parametrize('call', [('evaluate',), ('predict',), ('report',)])
def test_a_folder_that_is_no_run(fungi, own, tmp_path, call):
    more = (own,) if call == ('predict',) else ()
    assert 'no run folder' in fungi(*call, tmp_path / 'gone', *more, code=2).err
    assert 'not a run' in fungi(*call, own, *more, code=2).err
    assert fungi(*call, next((own / 'daisy').iterdir()), *more, code=2).err


@pytest.mark.parametrize(
    'text, expected',
    [
        ('num_workers = many', 'num_workers'),
        ('num_workers = -1', 'num_workers'),
        ('devise = cpu', 'devise'),
        ('device = gpu', 'gpu'),
        ('data_dir', 'settings.ini'),
    ],
)
def test_settings_with_bad_values(fungi, tmp_path, monkeypatch, own, text, expected):
    (tmp_path / 'settings.ini').write_text(
        f'[DEFAULT]\nnum_workers = 0\n{text}\n' if not text.startswith('num') else f'[DEFAULT]\n{text}\n'
    )
    monkeypatch.chdir(tmp_path)
    shutil.make_archive(str(tmp_path / 'own'), 'zip', own)
    small = {k: v for k, v in tiny.items() if k != 'device'}
    message = fungi(
        'train', 'flowers', '--source', tmp_path / 'own.zip', '--out', tmp_path / 'run', *flags(**small), code=2
    ).err
    assert expected in message and not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    'text', ['num_workers = 2\n', '[DEFAULT\n', '[DEFAULT]\nnum_workers = 0\nnum_workers = 0\n', '\0\1']
)
def test_settings_that_are_no_ini_file(fungi, tmp_path, monkeypatch, own, text):
    (tmp_path / 'settings.ini').write_text(text)
    monkeypatch.chdir(tmp_path)
    assert 'settings.ini' in fungi('check', own, code=2).err


def test_the_same_messages_in_python(place, ready, own, tmp_path):
    from fungi_fastai import MUSHROOMS, Predictor, Run, train_mushrooms
    from fungi_fastai.core.errors import UserError

    with pytest.raises(FileNotFoundError, match='did you mean own'):
        train_mushrooms(own.with_name('ovn'), out=tmp_path / 'run')
    with pytest.raises(ValueError, match="Did you mean 'epochs'"):
        train_mushrooms(own, epoch=3)
    with pytest.raises(ValueError, match='augmentation policy'):
        MUSHROOMS.but(augment='wild')
    with pytest.raises(FileNotFoundError, match='gone'):
        Run.load('gone')
    with pytest.raises(ValueError, match='A source is a path'):
        train_mushrooms(3, out=tmp_path / 'run')
    with pytest.raises(ValueError):
        train_mushrooms(own, epochs='3')
    with pytest.raises(UserError, match='out is 3; expected a path'):
        train_mushrooms(own, out=3)
    with pytest.raises(UserError, match='expected callbacks of fastai'):
        train_mushrooms(own, cbs=[None], out=tmp_path / 'run')
    for load in (Run.load, Predictor.load):
        for value in (None, ''):
            with pytest.raises(UserError, match='expected a path'):
                load(value)


@pytest.mark.parametrize('kind', ['safetensors', 'arrow', 'pandas', 'python', 'other'])
def test_a_full_disk_is_called_so_whichever_library_writes(tmp_path, kind):
    import errno

    from safetensors import SafetensorError

    from fungi_fastai.core.errors import TrainingError
    from fungi_fastai.core.files import atomic
    from fungi_fastai.core.folders import replaced_folder

    error = dict(
        safetensors=SafetensorError('Error while serializing: I/O error: No space left on device (os error 28)'),
        arrow=OSError('Error writing bytes to file. Detail: [errno 28] No space left on device'),
        pandas=OSError(28, 'Error writing bytes to file. Detail: [errno 28] No space left on device'),
        python=OSError(28, 'No space left on device'),
        other=SafetensorError('the dtype is unknown'),
    )[kind]
    file = tmp_path / 'features.safetensors'
    with pytest.raises(OSError if kind != 'other' else SafetensorError) as caught, atomic(file) as part:
        part.write_bytes(b'half')
        raise error
    if kind != 'other':
        assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(file)
        with (
            pytest.raises(TrainingError, match='could not be written: No space left on device. What was there'),
            replaced_folder(tmp_path / 'bundle', 'busy'),
        ):
            raise error
    assert not [path.name for path in tmp_path.iterdir() if not path.name.endswith('.lock')]
