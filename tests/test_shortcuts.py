"Properties of the files that predict the class are found, named and repeated; those that do not are left alone"

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw, ImageFont

from fungi_fastai.data.shortcuts import find_shortcuts, shortcut_messages

classes = [f'species {letter}' for letter in 'abcdef']


def items_of(n=20, seed=0, **columns):
    "Scanned items of six classes that differ in nothing; a column is given for each image, or as a function of both"
    rng = np.random.default_rng(seed)
    rows = pd.DataFrame([dict(label=label, number=i) for label in classes for i in range(n)])
    rows = rows.assign(
        name=rows.label + '/' + rows.number.astype(str) + '.jpg',
        path='none',
        group='',
        problem='',
        width=640,
        height=480,
        format='JPEG',
        mode='RGB',
        brightness=rng.normal(120, 20, len(rows)),
    )
    for column, function in columns.items():
        rows[column] = [function(classes.index(label), i) for label, i in zip(rows.label, rows.number, strict=True)]
    return rows


@pytest.mark.parametrize(
    ('columns', 'property', 'words'),
    [
        (
            dict(width=lambda c, i: 75 if c < 2 else 640, height=lambda c, i: 75 if c < 2 else 480),
            'image size',
            '75×75',
        ),
        (dict(width=lambda c, i: 640 - 20 * (c == 5)), 'image size', '1 of 6 classes (species f)'),
        (dict(format=lambda c, i: 'PNG' if c in (1, 4) else 'JPEG'), 'file format', 'species b, species e'),
        (dict(mode=lambda c, i: 'L' if c == 0 else 'RGB'), 'colour mode', 'species a'),
        (dict(brightness=lambda c, i: 60 + i if c < 3 else 160 + i), 'brightness', 'darker'),
        (dict(source=lambda c, i: 'museum' if c > 3 else 'field'), 'source', 'museum'),
        (dict(format=lambda c, i: 'PNG' if c < 3 and i % 2 else 'JPEG'), 'file format', '50% or more'),
    ],
)
def test_a_shortcut_is_named_with_its_classes(columns, property, words):
    table = find_shortcuts(items_of(**columns))
    found = table[table.shortcut]
    assert property in found.property.tolist()
    row = found.set_index('property').loc[property]
    assert words in row.message and 0 < row.explained <= 1 and row.accuracy > row.chance


@pytest.mark.parametrize('seed', range(3))
def test_properties_that_vary_in_every_class_are_no_shortcut(seed):
    rng = np.random.default_rng(seed)
    items = items_of(
        seed=seed,
        width=lambda c, i: int(rng.choice([75, 150, 640])),
        format=lambda c, i: str(rng.choice(['PNG', 'JPEG'])),
    )
    table = find_shortcuts(items)
    assert {'image size', 'file format', 'brightness'} <= set(table.property) and not table.shortcut.any()


def test_images_of_one_specimen_do_not_count_as_evidence():
    "Each class has a few specimens, and each specimen its own brightness: only known ones are predictable"
    rng = np.random.default_rng(0)
    light = {(c, s): rng.uniform(50, 200) for c in range(6) for s in range(4)}
    items = items_of(brightness=lambda c, i: light[c, i % 4] + i / 100, group=lambda c, i: f'{c}-{i % 4}')
    naive = find_shortcuts(items.assign(group='')).set_index('property')
    assert naive.shortcut['brightness'] and not find_shortcuts(items).shortcut.any()


def test_folders_above_the_class_count_and_genera_do_not():
    place = items_of().assign(name=lambda t: np.where(t.number % 10 < 9, 'wood/', 'lawn/') + t.name)
    place.loc[place.label > 'species c', 'name'] = place.name.str.replace('wood', 'garden')
    assert 'folder' in find_shortcuts(place).query('shortcut').property.tolist()
    genera = items_of().assign(name=lambda t: np.where(t.label > 'species c', 'Russula/', 'Boletus/') + t.name)
    assert not find_shortcuts(genera).shortcut.any()


def test_too_few_images_are_not_judged():
    for items in (items_of(n=2), items_of().head(20), items_of().head(0), items_of().assign(label=None)):
        assert len(find_shortcuts(items)) == 0 and shortcut_messages(find_shortcuts(items)) == []


@pytest.fixture(scope='module')
def thumbnails(tmp_path_factory):
    "Photos of four classes, of which one was downloaded as thumbnails of a lower quality by another camera"
    folder, rng = tmp_path_factory.mktemp('thumbnails'), np.random.default_rng(0)
    for c, label in enumerate(('birch', 'oak', 'pine', 'willow')):
        (folder / label).mkdir()
        for i in range(12):
            exif = Image.Exif()
            exif[0x010F] = 'Phone' if c == 2 else 'Camera'
            image = Image.fromarray(rng.integers(0, 255, (48, 48, 3), np.uint8)).resize(
                (24, 24) if c == 2 else (48, 48)
            )
            image.save(folder / label / f'{i}.jpg', quality=60 if c == 2 else 90, exif=exif)
    return folder


def test_check_and_explore_repeat_it(fungi, thumbnails, tmp_path, monkeypatch):
    text = fungi('check', thumbnails).out
    for words in ('image size predicts the class', 'compression quality', 'camera Phone', '(pine)', 'chance 25%'):
        assert words in text, words
    table = pd.DataFrame(json.loads(fungi('check', thumbnails, '--json').out)['properties']).set_index('property')
    assert table.shortcut[['image size', 'compression quality', 'camera']].all()
    monkeypatch.setattr('fungi_fastai.data.explore._sections', lambda *_: [])  # the figures take seconds
    fungi('explore', thumbnails, '--out', tmp_path / 'page')
    page = (tmp_path / 'page/index.html').read_text('utf8')
    assert (
        f'<title>{thumbnails.name}</title>' in page
        and 'href="items.csv"' in page
        and 'class=warning' in page.replace('"', '')
    )


def test_the_items_of_a_run_keep_it(thumbnails, tmp_path):
    from fungi_fastai.core.files import write_table
    from fungi_fastai.training.fit import prepare_items
    from fungi_fastai.training.recipe import Recipe

    items = prepare_items(Recipe().but(source=thumbnails), progress=False)
    write_table(tmp_path / 'items.parquet', items)
    saved = pd.read_parquet(tmp_path / 'items.parquet').attrs['shortcuts']
    assert saved == items.attrs['shortcuts'] and any('24×24' in message for message in saved)


def test_printed_text_of_two_classes_is_listed_shown_and_predicts_them(fungi, tmp_path, monkeypatch):
    from fungi_fastai.data.galleries import quality_gallery
    from fungi_fastai.data.scan import check

    rng, font = np.random.default_rng(0), ImageFont.load_default(13)
    for c, label in enumerate(('birch', 'oak', 'pine')):
        (tmp_path / label).mkdir()
        for i in range(14):
            grey = Image.fromarray(rng.integers(30, 220, (20, 28), np.uint8)).resize(
                (280, 200), Image.Resampling.BICUBIC
            )
            if c < 2:
                ImageDraw.Draw(grey).text((20 + 9 * i, 30 + 150 * c), f'© Ada {i}, 2026', fill=255 * c, font=font)
            grey.save(tmp_path / label / f'{i}.jpg', quality=90)
    text = fungi('check', tmp_path).out
    assert '28 text' in text and 'a line stands out by' in text
    assert 'the printed text predicts the class' in text and '(pine) consists of images without printed text' in text
    items, facts = check(tmp_path, progress=False)
    assert facts['quality']['text'] == 28 and set(items.label[items.text_contrast > 25]) == {'birch', 'oak'}
    seen = []
    monkeypatch.setattr('fungi_fastai.data.galleries._sheet', lambda rows, *_, **__: seen.extend(rows))
    quality_gallery(items)
    (label, cells) = seen[-1]
    levels = [np.asarray(cell.image.convert('L')) for cell in cells]
    assert label == 'text (28)' and all(min(255 - grey.max(), grey.min()) < 40 for grey in levels)  # the text is in it
