"A growing collection: photos to label next, updates of a run, classes from a few photos"

import asyncio
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fungi_fastai.core.errors import UserError
from fungi_fastai.data.sources import Source
from fungi_fastai.deploy.attribution import source_facts
from fungi_fastai.deploy.card import _initial_weights
from fungi_fastai.run_folder import RunFolder
from fungi_fastai.studies.review import Queues, Review, read_for_review


@pytest.fixture(scope='module')
def seedlings(tmp_path_factory):
    "Photos that the run on flowers has not seen, of two classes in folders"
    from fungi_fastai.samples.datasets import make_sample

    folder = tmp_path_factory.mktemp('seedlings') / 'set'
    make_sample('mushrooms', folder, specimens=3, photos=2, size=64, workers=1)
    classes = sorted({file.parent for file in folder.rglob('*.jpg')})
    for extra in classes[2:]:
        shutil.rmtree(extra)
    return classes[0].parent


def test_photos_that_need_no_label_are_left_out_and_counted(fungi, small_run, seedlings, tmp_path):
    pool = shutil.copytree(seedlings, tmp_path / 'pool')
    known = small_run.items[small_run.items.split.eq('train')].path.iloc[0]
    tested = small_run.items[small_run.items.split.eq('test')].path.iloc[0]
    shutil.copy(known, pool / 'known.jpg')
    Image.open(tested).save(pool / 'saved again.png')
    (pool / 'broken.jpg').write_bytes(b'no image')
    out = tmp_path / 'next.csv'
    done = fungi('next', small_run.folder, pool, '--n', 4, '--group', '^(.+)_', '--out', out)
    table = pd.read_csv(out, dtype=dict(label=str))
    assert '1 are in the training set of the run' in done.out and '1 cannot be read' in done.out
    assert '1 are nearly the same as a labelled image of the run' in done.out
    assert len(table) == 4 and table.label.isna().all() and table.reason.str.len().min() > 10
    assert table['name'].str.rpartition('_')[0].is_unique and set(table.photos) == {2}
    assert table.predicted.isin(small_run.classes).all()
    page = out.with_suffix('.html').read_text()
    assert page.count('<img') == 4 and table['name'][0] in page

    (tmp_path / 'mine.csv').write_text('file,site\na.jpg,3\n')
    assert (
        'is no table of fungi next' in fungi('next', small_run.folder, pool, '--out', tmp_path / 'mine.csv', code=2).err
    )
    for separator in ';,':  # somebody has begun to label, in Excel too
        table.assign(label=['oak', None, None, None]).to_csv(out, index=False, sep=separator)
        before = out.read_bytes()
        failed = fungi('next', small_run.folder, pool, '--n', 4, '--out', out, code=2)
        assert '1 label, which would be lost' in failed.err and out.read_bytes() == before
    table.to_csv(out, index=False)
    images = read_for_review(Source.of(out), progress=False)  # as fungi review next.csv --run RUN
    queues = Queues([], {}, classes=tuple(small_run.classes))
    review = Review(images, queues, 'Ada')
    review.decide(0, label=small_run.classes[0].upper())
    assert Source.of(out).read().label.tolist() == [small_run.classes[0], None, None, None]
    assert '1 label, which would be lost' in fungi('next', small_run.folder, pool, '--out', out, code=2).err
    images.file.unlink()
    table.assign(label=['oak', None, None, None]).to_csv(out, index=False)
    labelled = fungi('next', small_run.folder, out, '--n', 9, '--json')
    facts = json.loads(labelled.out)
    assert facts['left_out'] == {'have a label in the table': 1} and len(facts['photos']) == 3


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('--n', 0), 'expected 1 or more'),
        (('--seed', -1), 'expected 0 or more'),
        (('--strategy', 'best'), 'Known: random, margin'),
        (('--out', 'next.xlsx'), 'should end in .csv'),
        (('--group', 'site'), 'is no pattern and no column'),
    ],
)
def test_mistakes(fungi, small_run, seedlings, arguments, message):
    assert message in fungi('next', small_run.folder, seedlings, *arguments, code=2).err


def test_a_bundle_or_known_photos_have_nothing_to_label(fungi, small_run, small_bundle, photos):
    assert 'is a bundle' in fungi('next', small_bundle, photos, code=2).err
    assert 'No photo of' in fungi('next', small_run.folder, photos, code=2).err


def test_added_classes_have_the_spelling_of_the_run(small_run, photos, tmp_path):
    from fungi_fastai.runs.update import _read_added

    shutil.copytree(photos / 'flowers/daisy', tmp_path / 'added/DAISY')
    shutil.copytree(photos / 'flowers/roses', tmp_path / 'added/Rosehips')
    added, _ = _read_added(small_run, str(tmp_path / 'added'), {}, False)
    assert set(added.label) == {'daisy', 'Rosehips'} and "'DAISY' is the class 'daisy'." in added.attrs['notes']


def test_an_update_keeps_the_test_set_and_compares_each_class(fungi, small_run, seedlings, tmp_path):
    added = shutil.copytree(seedlings, tmp_path / 'added')
    tested = small_run.items[small_run.items.split.eq('test')].iloc[0]
    (added / tested.label).mkdir()
    Image.open(tested.path).resize((80, 80)).save(added / tested.label / 'again.jpg')
    new = sorted(folder.name for folder in seedlings.iterdir() if folder.is_dir())
    out, old = tmp_path / 'new run', {file: file.stat().st_mtime_ns for file in small_run.folder.rglob('*')}
    done = fungi('update', small_run.folder, '--add', added, '--group', '^(.+)_', '--epochs', 1, '--out', out)
    assert 'are nearly the same as images in it' in done.out and f'New classes: {", ".join(new)}' in done.out
    items = pd.read_parquet(out / 'items.parquet')
    tests = [rows[rows.split.eq('test') & ~rows.label.isin(new)] for rows in (small_run.items, items)]
    assert tests[0].path.tolist() == tests[1].path.tolist()
    assert items.split[items.path.str.endswith('again.jpg')].tolist() == ['']
    assert items[items.label.isin(new)].groupby('label').split.unique().map(set).tolist() == [
        {'train', 'valid', 'test'}
    ] * len(new)
    facts = json.loads((out / 'update.json').read_text())
    assert sorted(row['class'] for row in facts['changes']) == sorted(small_run.classes)
    assert [row['class'] for row in facts['new_classes']] == new
    for row in facts['changes']:
        assert abs(row['change'] * row['images'] - (row['fixed'] - row['broken'])) < 1e-9
    assert json.loads((out / 'recipe.json').read_text())['weights'] == str(small_run.folder / 'model.safetensors')
    assert old == {file: file.stat().st_mtime_ns for file in small_run.folder.rglob('*')}
    sources = source_facts(items, 'flowers')['sources']
    assert [one['source'] for one in sources] == ['flowers', 'added']
    assert sum(one['images'] for one in sources) == items.split.ne('').sum()
    train, updated = RunFolder(out).commands
    assert train == RunFolder(small_run.folder).commands[0] and "--group '^(.+)_' --epochs 1" in updated

    card = _initial_weights(RunFolder(out).initial_weights, pretrained=False)  # `small_run` began with random weights
    assert f'came from the run {small_run.folder.name}, which began with random weights; their licence: none' in card
    again = fungi('update', small_run.folder, '--add', seedlings, '--epochs', 1, '--out', out, code=2)
    assert 'holds a run of other images' in again.err


def test_a_held_out_test_set_stays_one_only_without_images_of_its_kind():
    from fungi_fastai.runs.update import _with_held_out

    old = pd.DataFrame(dict(date=['2020', '2021', '2022', '2023'], split=['train', 'train', 'test', 'test']))
    headers = dict(exif_camera='', exif_time=np.nan, exif_location='', jpeg_quantisation=0.0)
    old = old.assign(**headers)
    old.attrs['held_out'] = dict(by='time', description='taken since 2022')
    run = SimpleNamespace(items=old, metrics=dict(evaluated_on='test'), folder=Path('r1'))
    for date, split, ended in (
        ('2021', 'train', False),
        ('2024', '', False),
        ('2022', 'train', True),
        ('', 'valid', True),
        ('2021', 'test', True),
    ):
        added = pd.DataFrame([dict(date=date, split=split, **headers)])
        items, notes = _with_held_out(run, pd.concat([old, added], ignore_index=True))
        assert bool(notes) == ended == ('held_out_value' not in items), (date, split)


def test_an_update_with_nothing_new_writes_nothing(fungi, small_run, photos, tmp_path):
    done = fungi('update', small_run.folder, '--add', photos, '--out', tmp_path / 'out', code=2)
    assert 'can be added to the run' in done.err and not (tmp_path / 'out').exists()
    assert (
        'is the run itself' in fungi('update', small_run.folder, '--add', photos, '--out', small_run.folder, code=2).err
    )


@pytest.fixture(scope='module')
def with_class(small_bundle, seedlings, tmp_path_factory):
    "A bundle with a class from the photos of a folder"
    from fungi_fastai.deploy.predictor import Predictor

    folder = sorted(seedlings.iterdir())[0]
    predictor = Predictor.load(small_bundle, threads=1)
    added = predictor.add_class('Boletus edulis', folder)
    return predictor, added, added.save(tmp_path_factory.mktemp('bundle') / 'new'), folder


def test_a_class_from_photos_is_marked_everywhere(fungi, with_class, tmp_path):
    from fungi_fastai.deploy.page import answer_html
    from fungi_fastai.deploy.service import PredictionService

    old, predictor, folder, photos = with_class
    assert predictor.classes == [*old.classes, 'Boletus edulis'] and predictor.check() < 1e-4
    assert list(predictor.bundle.provisional) == ['Boletus edulis']
    probs = np.eye(len(predictor.classes))
    first, *_, last = predictor.decide(probs)
    assert not first.provisional and last.provisional
    assert last.label == 'Boletus edulis (provisional)' and 'without training' in last.why
    assert '**Provisional.**' in (folder / 'README.md').read_text()
    modes = {(folder / file).stat().st_mode for file in ('bundle.json', *predictor.bundle.files)}
    assert len(modes) == 1  # whoever may read one file may read all
    assert (folder / 'classes.txt').read_text().split('\n')[-2] == 'Boletus edulis'
    fungi('predict', folder, photos, '--out', tmp_path / 'answers.csv')
    answers = pd.read_csv(tmp_path / 'answers.csv')
    is_new = answers.predicted == 'Boletus edulis'
    assert is_new.any() and not answers.answer[~is_new].str.contains('provisional').any()
    shown = answer_html(probs[-1], predictor.classes, last, predictor.bundle)
    assert 'Boletus edulis (provisional)</h2>' in shown and ' correct</p>' not in shown
    listed = asyncio.run(PredictionService(predictor, page=False).list_classes())
    assert json.loads(listed.body)['provisional'] == ['Boletus edulis']


def test_the_other_classes_keep_their_probabilities(with_class, photos):
    old, new, _, _ = with_class
    pixels = np.stack([old.read(file) for file in sorted(Path(photos).rglob('*.jpg'))[:6]])
    before, after = old.run(pixels), new.run(pixels)
    assert np.allclose(after[:, :-1] / after[:, :-1].sum(1, keepdims=True), before, atol=1e-4)


def test_the_other_engines_know_the_class(with_class, small_bundle):
    from fungi_fastai.deploy.predictor import Predictor

    old, new, folder, photos = with_class
    assert new.bundle.engines.keys() == old.bundle.engines.keys() == {'onnx', 'int8', 'openvino'}
    pixels = np.stack([new.read(file) for file in sorted(photos.glob('*.jpg'))])
    for backend, tolerance in (('int8', 0.1), ('openvino', 1e-4)):
        other = Predictor.load(folder, backend, threads=1)
        assert np.abs(other.run(pixels) - new.run(pixels)).max() < tolerance
        assert new.bundle.engines[backend]['new_class']['images'] > len(pixels)  # the reference images too


@pytest.mark.filterwarnings('default:The bundle with the new class')  # the command line prints it
def test_an_8_bit_network_that_disagrees_is_left_out(with_class, small_bundle, fungi, tmp_path, monkeypatch):
    from fungi_fastai.deploy import new_classes

    write = new_classes._write_int8

    def shuffled(bundle, file, layer):
        rows = SimpleNamespace(weight=layer.weight.roll(1, 0), bias=layer.bias.roll(1, 0))
        write(bundle, file, rows)

    monkeypatch.setattr(new_classes, '_write_int8', shuffled)
    done = fungi('add-class', small_bundle, 'Boletus edulis', with_class[3], '--out', tmp_path / 'new')
    assert 'no network for int8: it names the same class as the full network for' in done.err
    about = json.loads((tmp_path / 'new/bundle.json').read_text())
    assert about['engines'].keys() == {'onnx', 'openvino'} and not any('int8' in file for file in about['files'])
    assert not list((tmp_path / 'new').glob('*int8*')) and 'int8: accuracy' in (small_bundle / 'README.md').read_text()
    assert 'int8: accuracy' not in (tmp_path / 'new/README.md').read_text()
    failed = fungi('predict', tmp_path / 'new', with_class[3], '--backend', 'int8', code=2)
    assert 'int8' in failed.err and 'Traceback' not in failed.err


def test_mistakes_with_a_new_class(with_class, small_bundle, fungi, tmp_path):
    old, new, _, photos = with_class
    image = next(iter(sorted(photos.glob('*.jpg'))))
    for predictor, name, given, message in (
        (old, old.classes[0].upper(), photos, 'already'),
        (new, 'boletus  EDULIS', photos, 'already'),
        (old, ' ', photos, 'is empty'),
        (old, 'Amanita', image, 'There is 1 photo of Amanita; expected 2'),
        (old, 'Amanita', [image, image], '2 were given, all the same'),
    ):
        with pytest.raises(UserError, match=message):
            predictor.add_class(name, given)
    (tmp_path / 'notes.txt').write_text('mine')
    with pytest.raises(UserError, match='is not a bundle'):
        new.save(tmp_path)
    assert 'stays as it is' in fungi('add-class', small_bundle, 'A', photos, '--out', small_bundle, code=2).err
