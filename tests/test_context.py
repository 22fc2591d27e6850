"What is known beside a photo: how people write it, what it may change, and what it must never change"

import json
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import flags, small_jpeg, tiny
from PIL import Image
from serving import Colours, photo
from starlette.testclient import TestClient

from fungi_fastai.core.errors import UserError
from fungi_fastai.core.files import write_json
from fungi_fastai.data.context import with_context
from fungi_fastai.data.dates import read_date_months
from fungi_fastai.data.sources import Source
from fungi_fastai.deploy.bundle import Bundle, _checksum
from fungi_fastai.deploy.server import make_app
from fungi_fastai.evaluation.context import ContextPrior, ContextVariable, cell_of, load_context, save_context
from fungi_fastai.evaluation.context_fit import learn_context
from fungi_fastai.evaluation.pooling import Pooling


def table(folder, header, *rows, label='moss lichen moss lichen'):
    "A table beside four images"
    for i in range(4):
        (folder / f'{i}.jpg').write_bytes(small_jpeg(40 * i))
    labels = label.split()
    lines = [f'{i}.jpg,{labels[i]},{row}' for i, row in enumerate(rows)]
    (folder / 't.csv').write_text('\n'.join([f'file,species,{header}', *lines]))
    return Source.of(folder / 't.csv')


@pytest.mark.parametrize(
    'header, rows, name, values',
    [
        ('Month', ['4', 'April', 'n/a', 'Apr.'], 'month', ['4', '4', '', '4']),
        ('observed_on', ['1999-12-31', '2020-01-01', '', '2021'], 'month', ['12', '1', '', '']),
        (
            'eventDate',
            ['2020-05-01T10:00:00Z', '2020-05-30/2020-05-31', '20200607', '2020-06'],
            'month',
            ['5', '5', '6', '6'],
        ),
        ('seen', ['2020-05-01', '2020-06-01', '', '2020-07-01'], 'seen', ['5', '6', '', '7']),
        ('Host tree', ['oak', ' oak ', '-', 'silver  fir'], 'host tree', ['oak', 'oak', '', 'silver fir']),
        ('lat,lng', ['1.5,2', '-3,"4,25"', ',', '0,0'], 'location', ['1.5000,2.0000', '-3.0000,4.2500', '', '']),
        ('location', ['Uppsala', 'Lund', 'Lund', ''], 'location', ['Uppsala', 'Lund', 'Lund', '']),
    ],
)
def test_columns(tmp_path, header, rows, name, values):
    source = table(tmp_path, header, *rows)
    items = with_context(source.read(), name, source)
    (column,) = (column for column in items if column.startswith('context_'))
    assert items[column].tolist() == values
    known = sum(map(bool, values))
    assert f'for {known} of 4 images' in items.attrs['notes'][-1] and 't.csv' in items.attrs['notes'][-1]


@pytest.mark.parametrize(
    'header, rows, name, words',
    [
        ('month', ['4', '13', 'x', '5'], 'month', r"'13', 'x' \(lines 3, 4\)"),
        ('date', ['03/04/2020', '05/06/2020', '', ''], 'date', 'cannot be told apart'),
        ('date', ['soon', '2020-01-01', '', ''], 'month', "no dates: 'soon' \\(line 2\\)"),
        ('lat,lon', ['91,0', '1,1', '2,2', '3,3'], 'location', 'no degrees from -90 to 90'),
        ('wood', ['a', 'b', 'a', ''], 'habitat', 'columns are those of t.csv: file, species, wood'),
        ('wood', ['', 'NA', '?', ''], 'wood', 'No image has a value of the context wood'),
        ('wood', ['a', 'b', 'a', ''], 'wood,', 'expected names with commas'),
        ('lat,lon', ['1,1'] * 4, 'lat,longitude', 'write location'),
        ('only', ['1'] * 4, 'only', 'another meaning'),
        ('month,date', ['4,2020-04-01'] * 4, 'month,date', 'names the month twice'),
        ('wood', ['a', 'b', 'a', ''], 'month', 'No image has a value of the context month in the EXIF data'),
    ],
)
def test_what_is_refused(tmp_path, header, rows, name, words):
    source = table(tmp_path, header, *rows)
    with pytest.raises(UserError, match=words):
        with_context(source.read(), name, source)


def test_the_class_under_another_name(tmp_path):
    source = table(tmp_path, 'code', 'M', 'L', 'A', 'M', label='moss lichen alga moss')
    with pytest.raises(UserError, match='the class under another name'):
        with_context(source.read(), 'code', source)


def test_order_of_day_and_month():
    assert read_date_months(['13/2/2020', '3/4/2020'], 'd', [2, 3]) == ['2', '4']
    with pytest.raises(UserError, match='cannot be told apart'):
        read_date_months(['13/2/2020', '3/14/2020'], 'd', [2, 3])  # they contradict each other


def taken(file, date='2020:07:01 12:00:00', south=True):
    "A photo with a date and a position in its header"
    image = Image.new('RGB', (16, 16), 'red')
    exif = image.getexif()
    exif.get_ifd(0x8769)[0x9003] = date
    exif.get_ifd(0x8825).update({1: 'S' if south else 'N', 2: (33.0, 30.0, 0.0), 3: 'E', 4: (18.0, 15.0, 0.0)})
    image.save(file, exif=exif)


def test_headers_of_photos(tmp_path):
    for name in ('fern/1.jpg', 'fern/2.jpg', 'moss/3.jpg'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        taken(tmp_path / name)
    taken(tmp_path / 'moss/4.jpg', '0000:00:00 00:00:00')
    (tmp_path / 'moss/5.jpg').write_bytes(small_jpeg())
    source = Source.of(tmp_path)
    items = with_context(source.read(), 'month,location', source)
    assert items.context_month.tolist() == ['7', '7', '7', '', '']
    assert items.context_location.tolist() == ['-33.5000,18.2500'] * 4 + ['']
    assert 'month from the EXIF data, for 3 of 5 images' in items.attrs['notes'][-2]


# --- what is learned


@pytest.fixture(scope='module')
def observed(photos, tmp_path_factory):
    "`photos` with a table of months, woods and places; a specimen is known in part"
    rows, rng = ['path,species,plant,date,wood,latitude,longitude'], np.random.default_rng(0)
    for file in sorted(photos.rglob('*.jpg')):
        specimen, i = int(file.stem.split('_')[0]), sorted({p.parent for p in photos.rglob('*.jpg')}).index(file.parent)
        date = '' if specimen == 1 else f'2020-{1 + (2 * i + specimen % 2) % 12:02}-05'
        wood = rng.choice(['oak', 'pine'], p=[0.8, 0.2] if i % 2 else [0.2, 0.8])
        name = file.parent.name
        rows.append(f'{file},{name},{name}{specimen},{date},{wood},{50 + i},{10 + specimen / 10}')
    file = tmp_path_factory.mktemp('observed') / 'observed.csv'
    file.write_text('\n'.join(rows))
    return file


def test_training(fungi, observed, place):
    out = place / 'context run'
    answer = fungi('train', observed, *flags(**tiny), '--context', 'month,wood,location', '--out', out)
    assert 'Context: month from the column date of observed.csv, for 50 of 60 images.' in answer.err
    assert answer.out.splitlines()[-2].startswith(
        'Context (month, wood, location)' if 'not used' in answer.out else 'With'
    )
    metrics = json.loads((out / 'metrics.json').read_text())['context']
    assert [one['name'] for one in metrics['variables']] == ['month', 'wood', 'location']
    assert metrics['test']['images'] == metrics['test']['with_context'] and 0 <= metrics['weight'] <= 1
    assert 'Context: month, place and habitat' in (out / 'report.html').read_text()
    prior, items = load_context(out / 'context.json'), pd.read_parquet(out / 'items.parquet')
    train = items[items.split == 'train']
    total = sum(row.sum() for row in prior.variables[1].counts.values())
    assert total == pytest.approx(train.group.nunique())  # specimens, not images
    assert prior.variables[2].counts.keys() == {cell_of(one, 0.25) for one in train.context_location}


def run_tables(n=200, seed=0, helps=True):
    "Images, and predictions of a mediocre network for the held-out ones, as a run has them"
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 3, n)
    woods = np.where(rng.random(n) < 0.8, targets if helps else rng.integers(0, 3, n), rng.integers(0, 3, n))
    logits = rng.normal(size=(n, 3)) + np.eye(3)[targets]
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    split = np.repeat(['train', 'valid', 'test'], [n // 2, n // 4, n // 4])
    names = [f'{i}.jpg' for i in range(n)]
    columns = dict(path=names, label=np.array(list('abc'))[targets], group='', split=split)
    items = pd.DataFrame(columns | dict(context_wood=np.array(['oak', 'fir', 'yew'], object)[woods]))
    predictions = items.assign(**{f'p_{c}': probs[:, i] for i, c in enumerate('abc')})
    return items, predictions[split != 'train'].reset_index(drop=True)


def test_held_out_images_are_not_counted():
    items, predictions = run_tables()
    prior, facts = learn_context(items, predictions, list('abc'), {})
    held_out, rng = items.split != 'train', np.random.default_rng(1)
    mixed = items.context_wood.copy()
    mixed[held_out] = rng.permutation(mixed[held_out].to_numpy())
    other, _ = learn_context(items.assign(context_wood=mixed), predictions, list('abc'), {})
    test = predictions.split == 'test'
    changed = predictions.context_wood.mask(test, 'yew')
    third, _ = learn_context(items, predictions.assign(context_wood=changed), list('abc'), {})
    for again in (other, third):  # the test set changes nothing that is learned
        assert again.weight == prior.weight and again.variables[0].strength == prior.variables[0].strength
        assert all((again.variables[0].counts[key] == row).all() for key, row in prior.variables[0].counts.items())
    assert prior.weight > 0.5 and facts['test']['accuracy_gain'] > 0.05


def test_context_that_does_not_help():
    for tables in (run_tables(helps=False), run_tables(32)):
        prior, facts = learn_context(*tables, list('abc'), {})
        assert prior.weight == 0 and facts['test']['accuracy_gain'] == 0
        assert 'did not improve' in facts['note'] or 'too few' in facts['note']


def test_folds_are_judged_by_the_other_folds():
    items, predictions = run_tables()
    left_out = np.where(items.split == 'test', -1, np.arange(len(items)) % 2)
    items = items.assign(left_out=left_out, split=items.split.mask(items.split == 'valid', 'train'))
    items['context_wood'] = items.context_wood.mask(items.left_out == 0, items.path)  # values that other folds lack
    valid = (
        items[items.left_out >= 0].merge(predictions[['path', 'p_a', 'p_b', 'p_c']], on='path').assign(split='valid')
    )
    prior, _ = learn_context(items, valid[valid.left_out == 0], list('abc'), {})
    assert prior.weight == 0  # each value is known from its own image only


# --- what is predicted


@pytest.fixture(scope='module')
def prior(small_bundle):
    classes = Bundle.load(small_bundle).classes
    counts = np.eye(len(classes)) * 30 + 1
    month = ContextVariable('month', 'month', {str(2 * i + 1): row for i, row in enumerate(counts)})
    wood = ContextVariable('wood', 'category', {'oak': counts[0], 'fir, old': counts[1]})
    return ContextPrior(classes, (month, wood), 0.8)


@pytest.fixture(scope='module')
def known_bundle(small_bundle, prior, tmp_path_factory):
    "`small_bundle` with a context"
    folder = tmp_path_factory.mktemp('known') / 'bundle'
    shutil.copytree(small_bundle, folder)
    save_context(prior, folder / 'context.json')
    values = json.loads((folder / 'bundle.json').read_text())
    values['files']['context.json'] = _checksum(folder / 'context.json')
    write_json(folder / 'bundle.json', values)
    return folder


@pytest.fixture(scope='module')
def predictor(known_bundle):
    from fungi_fastai.deploy.predictor import Predictor

    with_context = Predictor.load(known_bundle)
    yield with_context
    with_context.close()


def test_a_class_from_photos_has_no_context(predictor, photos, monkeypatch):
    monkeypatch.setitem(sys.modules, 'openvino', None)
    with pytest.warns(UserWarning, match='no network for openvino: OpenVINO is not installed'):
        added = predictor.add_class('Amanita', next(path for path in photos.rglob('*') if path.suffix == '.jpg').parent)
    assert 'openvino' not in added.bundle.engines
    known = predictor.bundle.context.adjustment([dict(month='3', wood='oak')])
    assert added.bundle.context.adjustment([dict(month='3', wood='oak')]) == pytest.approx([*known, 0])
    card = (added.bundle.folder / 'README.md').read_text()
    assert 'The context (month, wood) of these classes is not known' in card and '\nopenvino: ' not in card


@pytest.fixture(scope='module')
def two(photos):
    return sorted(photos.rglob('*.jpg'))[:2]


def test_without_context_nothing_changes(predictor, small_bundle, two):
    from fungi_fastai.deploy.predictor import Predictor

    before = Predictor.load(small_bundle)
    for images in (two, [two], two[0]):
        old, new = before.predict(images), predictor.predict(images)
        missing = predictor.predict(images, context=dict(month='', wood=None))
        for one, other in zip(old, new, strict=True) if isinstance(old, list) else [(old, new)]:
            assert (one.probabilities == other.probabilities).all() and (one.why, one.answer) == (
                other.why,
                other.answer,
            )
        first = missing[0] if isinstance(missing, list) else missing
        assert (first.probabilities == (old[0] if isinstance(old, list) else old).probabilities).all()
    before.close()


def test_a_specimen_has_its_context_once(predictor, prior, two):
    context = prior.read(dict(month='March', wood='OAK'))
    (pooled,) = predictor.predict([two], context=dict(month=3, wood='oak'))
    alone = predictor.predict(two)
    expected = prior.apply(predictor.pool(np.stack([one.probabilities for one in alone])), context)
    assert np.allclose(pooled.probabilities, expected, atol=1e-6) and pooled.context == context
    assert pooled.why.endswith('The context counts too: month March, wood oak.')
    assert [one.novelty for one in pooled.images] == [one.novelty for one in alone]  # judged by the photo alone
    listed = list(prior.classes[:2])
    (limited,) = predictor.predict([two], only=listed, context=dict(month=3))
    assert (limited.probabilities[2:] < 1e-9).all()
    mixed = predictor.predict([two[0], two], context=[{}, dict(wood='oak')])
    assert mixed[0].context == {} and (mixed[0].probabilities == alone[0].probabilities).all()


@pytest.mark.parametrize(
    'context, words',
    [
        (dict(wood='elm'), 'It knows fir, old, oak'),
        (dict(month=0), 'expected 1 to 12'),
        (dict(latitude=50), 'knows no context location'),
        ([{}], '1 contexts for 2 images'),
        ('header', "or 'exif'"),
    ],
)
def test_contexts_that_are_refused(predictor, two, context, words):
    with pytest.raises(UserError, match=words):
        predictor.predict(two, context=context)


def test_command(fungi, known_bundle, small_bundle, predictor, two, tmp_path):
    taken(tmp_path / 'x_1.jpg')
    shutil.copy(two[0], tmp_path / 'x_2.jpg')
    answer = fungi('predict', known_bundle, tmp_path, '--context', 'wood=fir, old,exif', '--group', '^(.+)_', '--json')
    assert 'wood fir, old for all photos; month for 1 of 2 photos' in answer.err
    rows = json.loads(answer.out)
    names = [tmp_path / 'x_1.jpg', tmp_path / 'x_2.jpg']
    (expected,) = predictor.predict([names], context='exif')
    assert expected.context == dict(month='7')
    (expected,) = predictor.predict([names], context=dict(wood='fir, old', month=7))
    assert rows[0]['specimen_confidence'] == pytest.approx(expected.confidence, abs=1e-5)
    (tmp_path / 't.csv').write_text('file,eventDate,wood\nx_1.jpg,2020-03-01,oak\nx_2.jpg,,oak\n')
    answer = fungi('predict', known_bundle, tmp_path / 't.csv', '--context', 'month,wood', '--out', tmp_path / 'p.csv')
    assert 'month for 1 of 2 photos; wood for 2 of 2 photos' in answer.err
    predicted = pd.read_csv(tmp_path / 'p.csv')
    one = predictor.predict(names[0], context=dict(month=3, wood='oak'))
    assert predicted.confidence[0] == pytest.approx(one.confidence, abs=1e-6)
    for bundle, context, words in (
        (small_bundle, 'month=3', 'The model has no context'),
        (known_bundle, 'month', 'there is no table of photos'),
        (known_bundle, 'wood=elm', 'It knows fir, old, oak'),
        (known_bundle, 'month=3,month=4', 'month has two values'),
        (known_bundle, 'site=1', 'knows no context site'),
    ):
        assert words in fungi('predict', bundle, names[0], '--context', context, code=2).err


def test_requests():
    month = ContextVariable('month', 'month', {'3': np.array([50.0, 1, 1]), '9': np.array([1, 1, 50.0])})
    prior = ContextPrior(('blue', 'green', 'red'), (month,), 1.0)
    bundle = SimpleNamespace(name='colours', pooling=Pooling(), context=prior)
    files = [('files', photo(colour='#554')), ('files', photo(colour='#544'))]
    with TestClient(make_app(Colours(bundle=bundle), page=False)) as client:
        plain = client.post('/predict', files=files, data=dict(specimen=1)).json()
        answer = client.post('/predict', files=files, data=dict(specimen=1, month='March')).json()
        assert 'context' not in plain['results'][0] and answer['results'][0]['label'] == 'blue'
        assert plain['results'][0]['label'] != 'blue' and answer['specimen']['context'] == dict(month='3')
        assert 'The context counts too: month March.' in answer['specimen']['why']
        assert client.post('/predict?month=3', files=files).json()['results'] == answer['results']
        assert client.post('/predict', files=files, data=dict(month='')).json()['results'] == plain['results']
        for data, words in ((dict(month='x'), 'expected 1 to 12'), (dict(latitude='3'), 'no context location')):
            refused = client.post('/predict', files=files, data=data)
            assert refused.status_code == 422 and words in refused.json()['error']
    with TestClient(make_app(Colours(), page=False)) as client:
        refused = client.post('/predict', files=files, data=dict(month='3'))
        assert refused.status_code == 422 and 'has no context' in refused.json()['error']


def test_the_web_app_has_the_numbers(prior):
    from fungi_fastai.deploy.web import _context

    about = json.loads(json.dumps(_context(prior)))
    probs = np.full(len(prior.classes), 1 / len(prior.classes))
    rows = np.array(about['tables']['month']['3']) + about['tables']['wood']['oak']
    changed = probs * np.exp(about['weight'] * rows)
    assert np.allclose(changed / changed.sum(), prior.apply(probs, dict(month='3', wood='oak')), atol=1e-5)
    assert _context(None) is None
