"Group proposals: found where specimens exist, none where there are none"

import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fungi_fastai.core.errors import UserError
from fungi_fastai.data.exif import photo_headers
from fungi_fastai.data.groups import (
    bursts,
    group_similarity,
    has_groups,
    name_patterns,
    propose_groups,
    write_groups,
)
from fungi_fastai.data.scan import check, scan


@pytest.fixture(scope='module')
def flowers(tmp_path_factory):
    from fungi_fastai.samples.datasets import make_sample

    return make_sample('flowers', tmp_path_factory.mktemp('flowers'), specimens=12, photos=3, size=64, workers=1)


@pytest.fixture(scope='module')
def items(flowers):
    return check(flowers, progress=False, workers=1)[0]


def photograph(path, number, taken=None, model='Camera A'):
    "A photo with the EXIF data of a camera"
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(number)
    pixels = Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)).resize((64, 64))
    exif = Image.Exif()
    if model:
        exif[0x0110] = model
    if taken:
        exif.get_ifd(0x8769)[0x9003] = taken
    pixels.save(path, exif=exif)


def test_specimens_are_read_from_names(items):
    best = propose_groups(items)[0]
    specimens = pd.Series([re.search(best.pattern, name.rsplit('/', 1)[-1])['group'] for name in items['name']])
    assert best.kind == 'name' and best.n_groups == 60 and best.n_images == len(items)
    assert (
        best.groups.groupby(items.label + specimens.to_numpy()).nunique() == 1
    ).all() and best.groups.nunique() == 60
    assert f"--group '{best.pattern}'" in best.message and best.similarity > 0.55


def test_the_pattern_as_an_option_gives_the_proposed_groups(items, flowers):
    best = propose_groups(items)[0]
    declared, _ = check(flowers, group=best.pattern, progress=False, workers=1)
    assert has_groups(declared) and not has_groups(items)
    assert declared.set_index('name').group.to_dict() == dict(zip(items['name'], best.groups, strict=True))


def test_crops_of_all_photos_of_a_specimen_are_one_group(tmp_path):
    from fungi_fastai.samples.datasets import make_sample

    crops, _ = check(
        make_sample('defungi', tmp_path, specimens=6, photos=2, size=64, workers=1), progress=False, workers=1
    )
    best, finer = [p for p in propose_groups(crops) if p.kind == 'name'][:2]
    assert (
        best.groups.nunique() == crops['name'].str.extract(r'([^/]+_\d+)[a-z]_')[0].nunique() < finer.groups.nunique()
    )


@pytest.mark.parametrize('seed', range(3))
def test_random_names_give_no_proposal(items, seed):
    rng = np.random.default_rng(seed)
    letters = rng.choice(list('abcdefgh'), len(items))
    renamed = items.assign(
        name=[
            f'{label}/{letter}{letter}_{i}.jpg'
            for i, (label, letter) in enumerate(zip(items.label, letters, strict=True))
        ]
    )
    assert propose_groups(renamed) == []
    shuffled = items.assign(name=items.groupby('label')['name'].transform(lambda names: rng.permutation(names)))
    assert propose_groups(shuffled) == []


def test_group_similarity_is_a_probability(items):
    truth = items.label + items['name'].str.extract(r'/(\d+)_')[0]
    similarity, p = group_similarity(items, truth)
    assert similarity > 0.55 and p == 0.01
    similarity, p = group_similarity(items, items['name'])  # no pairs at all
    assert np.isnan(similarity) and p == 1.0


@pytest.mark.parametrize('pattern', name_patterns)
def test_patterns_have_a_named_group(pattern):
    assert 'group' in re.compile(pattern).groupindex


@pytest.mark.parametrize(
    ('name', 'group'),
    [
        ('ABANI2017-9223025_HJFB9gEhZ.jpg', 'ABANI2017-9223025'),
        ('H1_100a_3.jpg', 'H1_100'),
        ('IMG_7 (2).jpg', 'IMG_7'),
        ('0123_a.jpg', '0123'),
        ('x/23/1.jpg', 'x/23'),
        ('inat-4711000-2.png', 'inat-4711000'),
    ],
)
def test_usual_names_match_a_pattern(name, group):
    matches = [re.search(p, name if '/' in p else name.rsplit('/', 1)[-1]) for p in name_patterns]
    assert group in {m['group'] for m in matches if m}


def test_bursts_of_a_camera(tmp_path):
    for c, label in enumerate('ab'):
        for i in range(24):  # four shots in ten seconds every hour
            taken = pd.Timestamp('2024-09-01 08:00:00') + pd.Timedelta(hours=i // 4, seconds=3 * (i % 4) + 7200 * c)
            photograph(tmp_path / label / f'{i}{label}.jpg', 100 * c + i // 4, taken.strftime('%Y:%m:%d %H:%M:%S'))
            with Image.open(tmp_path / label / f'{i}{label}.jpg') as image:  # similar, not the same
                exif = image.getexif()
                image.rotate(4 * (i % 4)).save(tmp_path / label / f'{i}{label}.jpg', exif=exif)
    items = scan(
        pd.DataFrame(dict(path=sorted(map(str, tmp_path.rglob('*.jpg'))))).assign(
            label=lambda t: t['path'].str[-5], name=lambda t: t['path'].str.rsplit('/', n=1).str[-1]
        ),
        progress=False,
        workers=1,
    )
    headers = photo_headers(items)
    assert set(headers.exif_camera) == {'Camera A'} and headers.exif_time.notna().all()
    groups = bursts(items, headers)
    assert groups.nunique() == 12 and groups.value_counts().eq(4).all()
    assert (
        bursts(items, headers, seconds=1).nunique() == 48
        and bursts(items, headers.assign(exif_camera=np.arange(48).astype(str))).nunique() == 48
    )
    burst = next(p for p in propose_groups(items) if p.kind == 'burst')
    assert burst.n_groups == 12 and 'write_groups' in burst.message
    table = pd.read_csv(write_groups(items, burst, tmp_path / 'photos.csv'))
    declared, _ = check(tmp_path / 'photos.csv', progress=False, workers=1)
    assert len(table) == 48 and declared.group.nunique() == 12


def test_broken_headers_count_as_no_header(tmp_path):
    photograph(tmp_path / 'dated.jpg', 1, '0000:00:00 00:00:00')
    photograph(tmp_path / 'plain.png', 1, model='')
    (tmp_path / 'text.jpg').write_text('no image')
    files = [tmp_path / name for name in ('dated.jpg', 'plain.png', 'text.jpg', 'missing.jpg')]
    headers = photo_headers(pd.DataFrame(dict(path=files)), 1)
    assert headers.exif_camera.tolist() == ['Camera A', '', '', ''] and headers.exif_time.isna().all()


def test_no_images_give_no_proposal(items):
    assert propose_groups(items.iloc[:0]) == [] and propose_groups(items.assign(label=None)) == []
    assert propose_groups(items.head(1)) == []


def test_write_groups_needs_a_csv_name(items, tmp_path):
    with pytest.raises(UserError, match=r'photos\.txt.*\.csv'):
        write_groups(items, propose_groups(items)[0], tmp_path / 'photos.txt')
