"Test sets that are held out by time, place, camera or a column"

import numpy as np
import pandas as pd
import pytest
from conftest import small_jpeg
from PIL import Image

from fungi_fastai.core.errors import UserError
from fungi_fastai.data.dates import read_dates
from fungi_fastai.data.details import read_details
from fungi_fastai.data.held_out import count_known, describe_known, hold_out
from fungi_fastai.data.scan import scan
from fungi_fastai.data.sources import Source
from fungi_fastai.studies.folds import assign_splits
from fungi_fastai.training.recipe import Recipe
from fungi_fastai.training.split_items import split_items

unknown = dict(exif_camera='', exif_time=np.nan, exif_location='', jpeg_quantisation=0.0)


def items(n=60, **columns):
    "Labelled items of two classes; columns are functions of the number of the image"
    table = pd.DataFrame(dict(name=[f'{i}.jpg' for i in range(n)], label=['oak', 'oak', 'elm', 'elm'] * (n // 4)))
    table = table.assign(group='', cluster='', given='', **unknown)
    return table.assign(**{name: [value(i) for i in range(n)] for name, value in columns.items()})


def by_year(i):
    return f'{2019 + i // 12}-06-{1 + i % 12:02}'


def test_the_newest_year_is_held_out():
    table = items(date=by_year)
    held = hold_out(table, 'time', 0.2)
    assert held.description == 'taken since 2023'
    assert (held.tested == table.date.str.startswith('2023')).all() and not held.left_out.any()


def test_a_year_that_is_too_large_is_divided_by_months_or_days():
    assert hold_out(items(date=lambda i: f'2024-{1 + i % 10:02}-03'), 'time').description == 'taken since 2024-10'
    assert hold_out(items(date=lambda i: f'2024-05-{1 + i % 20:02}'), 'time').description == 'taken since 2024-05-18'


def test_no_specimen_is_on_both_sides():
    table = items(date=by_year, group=lambda i: f's{i % 20}')
    held = hold_out(table, 'time', 0.2)
    train = ~held.tested & ~held.left_out
    assert not set(table.group[held.tested]) & set(table.group[train])
    assert (table.date[held.tested] >= '2023').all() and (table.date[train] < '2023').all()
    assert any('of 12 specimens' in note for note in held.notes)


def test_a_date_that_does_not_say_its_side_is_left_out():
    table = items(date=lambda i: '2024' if i == 0 else f'2024-{1 + i % 10:02}-03')
    held = hold_out(table, 'time')
    assert held.left_out[0] and not held.tested[0]
    assert any('1 image without a known date' in note for note in held.notes)


def test_a_class_of_the_newest_year_alone_is_not_tested():
    table = items(date=by_year)
    table.loc[table.date.str.startswith('2023') & (table.index % 3 == 0), 'label'] = 'ash'
    held = hold_out(table, 'time', 0.2)
    assert 'ash' not in set(table.label[held.tested]) and held.left_out[table.label == 'ash'].all()
    assert any('none is left to train on: ash (4 images)' in note for note in held.notes)


@pytest.mark.parametrize('by,column', [('place', 'place'), ('camera', 'camera'), ('Observer', 'table.observer')])
def test_whole_values_are_held_out(by, column):
    table = items(**{column: lambda i: f'v{i % 7}'})
    held = hold_out(table, by, 0.15)
    assert set(table[column][held.tested]).isdisjoint(table[column][~held.tested])
    assert 0.1 < held.tested.mean() < 0.25


def test_values_are_chosen_by_name():
    table = items(camera=lambda i: f'Camera {i % 3}')
    assert set(table.camera[hold_out(table, 'camera=camera 2').tested]) == {'Camera 2'}
    assert set(table.camera[hold_out(table, 'camera=Camera 0,Camera 2').tested]) == {'Camera 0', 'Camera 2'}


def test_a_value_whose_loss_would_cost_a_class_is_not_drawn():
    table = items(place=lambda i: 'only oaks' if i % 4 < 2 else f'w{i % 5}')
    table.loc[[0, 1], 'place'] = ['w0', 'w1']
    table.loc[[4, 5], 'place'] = ['w0', 'w1']
    assert 'only oaks' not in set(table.place[hold_out(table, 'place', 0.05).tested])


def test_coordinates_become_cells():
    table = items(latitude=lambda i: 50 + i % 15, longitude=lambda i: 10.0)
    held = hold_out(table, 'place')
    assert set(table.latitude[held.tested]).isdisjoint(table.latitude[~held.tested])
    assert 'cells of 1° (about 111 km)' in held.notes[0]


@pytest.mark.parametrize(
    'table,by,message',
    [
        (items(), 'time', '0 of 60 usable images have a known date'),
        (items(date=lambda i: '2024-05-03' if i < 20 else ''), 'time', '20 of 60 usable images have a known date'),
        (items(date=lambda i: '2024-05-03'), 'time', 'have the same, 2024-05-03'),
        (items(date=lambda i: '2023-05-03' if i < 20 else '2024-05-03'), 'time', 'more than half of them'),
        (items(date=by_year), 'time=2030', "'2030' is no date"),
        (items(date=by_year), 'time=2018', '60 of 60 dated images were taken since then'),
        (items(date=by_year), 'colour', "cannot be split by 'colour'"),
        (items(camera=lambda i: 'x'), 'camera', 'have the same, x'),
        (items(camera=lambda i: f'c{i // 2 % 2}'), 'camera', '0 classes would have images'),
        (items(camera=lambda i: f'c{i % 3}'), 'camera=c0,c1,c2', 'none is left to train on'),
    ],
)
def test_what_cannot_be_held_out(table, by, message):
    with pytest.raises(UserError, match=message):
        hold_out(table, by)


def test_a_given_split_is_not_overruled_in_silence():
    table = items(date=by_year, given=lambda i: 'test' if i < 6 else 'train')
    with pytest.raises(UserError, match='--split none'):
        split_items(Recipe().but(split_by='time'), table)
    with pytest.raises(UserError, match='requests none'):
        split_items(Recipe().but(split_by='time', test=0.0), table.assign(given=''))


def test_each_point_of_a_learning_curve_holds_out_the_same_images():
    table = items(date=by_year).assign(split='train')
    for seed in (1, 2):
        split = assign_splits(table, Recipe().but(split_by='time', test=0.2, seed=seed, fraction=0.5))
        assert (split.date[split.split == 'test'] >= '2023').all() and (split.split == 'test').sum() == 12
        assert (split.date[split.split.isin(['train', 'valid'])] < '2023').all()
        assert split.attrs['held_out'] == dict(by='time', description='taken since 2023')
    assert 'held_out' not in assign_splits(table, Recipe().but(test=0.2)).attrs


def test_the_validation_set_comes_from_the_older_images():
    table = items(date=by_year)
    chosen = split_items(Recipe().but(split_by='time', test=0.2), table)
    assert chosen.splits.value_counts().keys().tolist() == ['train', 'test', 'valid']
    assert (table.date[chosen.splits != 'test'] < '2023').all()


def test_dates_places_and_cameras_of_photos(tmp_path):
    for i in range(12):
        image, exif = Image.new('RGB', (40, 40), (i * 20, 60, 90)), Image.Exif()
        exif[0x0110], exif[0x0132] = f'Camera {i // 2 % 3}', f'{2021 + i // 3}:05:03 10:00:00'
        gps = exif.get_ifd(0x8825)
        gps[1], gps[2], gps[3], gps[4] = 'S', (10.0 + i, 30.0, 0.0), 'E', (12.0, 0.0, 0.0)
        (tmp_path / 'oak').mkdir(exist_ok=True)
        (tmp_path / 'elm').mkdir(exist_ok=True)
        image.save(tmp_path / ('oak' if i % 2 else 'elm') / f'{i}.jpg', exif=exif)
    table = scan(Source.of(tmp_path).read(), progress=False)
    assert hold_out(table, 'time', 0.25).description == 'taken since 2024'
    assert hold_out(table, 'camera', 0.33).tested.sum() == 4
    assert '12 with a known place' in hold_out(table, 'place', 0.25).notes[0]
    assert table.exif_location.str.startswith('-').all()
    known = count_known(table)
    assert known['date'] == dict(images=12, values=4, first='2021-05-03', last='2024-05-03')
    assert known['camera'] == dict(images=12, values=3) and known['place']['images'] == 12
    assert describe_known(known, 12).endswith('held out: --split-by time, place, camera.')


def test_what_is_known_of_too_few_images_is_not_offered():
    table = items(date=lambda i: '2024-05-03' if i < 20 else '', camera=lambda i: 'x', place=lambda i: f'w{i % 2}')
    text = describe_known(count_known(table), len(table))
    assert 'the date of 20 (2024-05-03' in text and text.endswith('held out: --split-by place.')
    assert describe_known(count_known(items()), 60) == ''


def test_a_table_beside_class_folders_gives_dates(tmp_path):
    for i in range(6):
        (tmp_path / f'c{i % 2}').mkdir(exist_ok=True)
        (tmp_path / f'c{i % 2}' / f'{i}.jpg').write_bytes(small_jpeg(i))
    (tmp_path / 'photos.csv').write_text('file,taken on,site\n' + ''.join(f'{i}.jpg,x,w{i}\n' for i in range(6)))
    table = Source.of(tmp_path).read()
    assert table['table.site'].tolist() == table.place.tolist() and table.place.str.startswith('w').all()
    assert any('its columns are kept' in note for note in table.attrs['notes'])


def test_names_of_the_library_are_not_replaced():
    details = read_details(
        pd.DataFrame(dict(split=['a'], label=['b'], fold=['1'], date=['2024'], predicted=['x'])), set()
    )
    assert set(details) == {'date', 'table.split', 'table.label', 'table.fold', 'table.date', 'table.predicted'}


@pytest.mark.parametrize(
    'text,date',
    [
        ('2024-05-03 10:11:12 UTC', '2024-05-03'),
        ('2024:05:03 10:11:12', '2024-05-03'),
        ('03.05.2024 10:11', '2024-05-03'),
        ('2024-06-28/2024-07-02', '2024-07-02'),
        ('May 2024', '2024-05'),
        ('May 3, 2024', '2024-05-03'),
        ('2024-05-00', '2024-05'),
        ('1024', ''),
        ('12', ''),
        ('unknown', ''),
    ],
)
def test_dates(text, date):
    assert read_dates([text]) == [date]


@pytest.mark.slow
def test_a_run_says_how_its_test_set_was_held_out(photos, tmp_path, place, ready):
    from conftest import tiny

    from fungi_fastai import train_photos

    rows = [(path, path.parent.name, f'wood {int(path.stem[:3]) % 4}') for path in sorted(photos.rglob('*.jpg'))]
    pd.DataFrame(rows, columns=['path', 'label', 'site']).to_csv(tmp_path / 'photos.csv', index=False)
    run = train_photos(tmp_path / 'photos.csv', tmp_path / 'run', progress=False, split_by='place', **tiny)
    held, tested = run.metrics['held_out'], run.items[run.items.split == 'test']
    assert held['by'] == 'place' and held['description'].startswith('from 1 of 4 places')
    assert tested.held_out_value.nunique() == 1 and held['comparison']['images'] == len(tested)
    assert held['comparison']['arch'] == 'tf_efficientnet_lite0', 'a network without weights has no useful features'
    page = (run.folder / 'report.html').read_text().replace('\xa0', ' ')
    assert 'Held out by place' in page and held['comparison']['text'] in page
    assert f'test images {held["description"]}, none of which' in run.verdict
