"`scan` on the files that people really have, and how the time of the search for duplicates grows with their number"

import io
import json
import os
import struct
import subprocess
import sys
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from fungi_fastai.core.errors import UserError
from fungi_fastai.core.progress import track
from fungi_fastai.data.duplicates import near_pairs
from fungi_fastai.data.problems import Checks, count_problems, default_policy, exclude, find_problems, problem_names
from fungi_fastai.data.scan import check, scan, summary, summary_text

real = Path(os.environ.get('FUNGI_DATA', Path(__file__).parents[2] / 'shared/data'))


def make_image(seed, size=(320, 240)):
    "A photo-like image: coarse and fine structure, different for each seed"
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    fine = Image.fromarray(rng.integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)).resize(size)
    return Image.blend(coarse, fine, 0.15)


def table(root):
    files = sorted(p for p in Path(root).rglob('*') if p.is_file())
    return pd.DataFrame(
        dict(
            path=[str(p) for p in files],
            name=[p.relative_to(root).as_posix() for p in files],
            label=[p.parent.name for p in files],
            group='',
            given='',
        )
    )


def scanned(root, **options):
    return scan(table(root), progress=False, **options).set_index('name', drop=False)


@pytest.fixture
def photos(tmp_path):
    "Two classes of eight different images, with names that need care"
    for species in ('Röhrling & Co', 'b c'):
        (tmp_path / species).mkdir()
        for n in range(8):
            make_image(len(species) * 100 + n).save(tmp_path / species / f'Foto №{n} & mehr.jpg', quality=92)
    return tmp_path


def test_a_clean_set_has_no_problems(photos):
    items = scanned(photos)
    assert (items.problem == '').all() and (items.cluster == '').all()
    assert count_problems(items) == dict.fromkeys(problem_names, 0)
    assert list(items[['width', 'height', 'mode', 'format']].iloc[0]) == [320, 240, 'RGB', 'JPEG']
    assert 'No problems found' in summary_text(items)


@pytest.mark.parametrize(
    'format,options',
    [('jpeg', {}), ('jpeg', dict(progressive=True)), ('png', {}), ('webp', {}), ('tiff', {}), ('bmp', {}), ('gif', {})],
)
@pytest.mark.parametrize('missing', [0.5, 0.05])
def test_a_truncated_file_is_unreadable(photos, format, options, missing):
    "Also where a large JPEG is decoded at a fraction of its size"
    buffer = io.BytesIO()
    make_image(1, (900, 700)).save(buffer, format, **options)
    content = buffer.getvalue()
    (photos / 'b c' / f'cut.{format}').write_bytes(content[: int(len(content) * (1 - missing))])
    row = scanned(photos).loc[f'b c/cut.{format}']
    assert row.problem == 'unreadable' and row.error.startswith(f'b c/cut.{format} '), row.error
    assert row.sha and not row.phash and np.isnan(row.variance)


def test_files_that_are_no_images(photos):
    (photos / 'b c/text.jpg').write_text('Spores brown')
    (photos / 'b c/empty.jpg').write_bytes(b'')
    (photos / 'b c/empty too.jpg').write_bytes(b'')
    frame = table(photos)
    frame.loc[len(frame)] = [str(photos / 'gone.jpg'), 'gone.jpg', 'b c', '', '']
    items = scan(frame, progress=False).set_index('name')
    bad = items.loc[['b c/text.jpg', 'b c/empty.jpg', 'b c/empty too.jpg', 'gone.jpg']]
    assert (bad.problem == 'unreadable').all() and (bad.cluster == '').all()
    assert [next(word for word in ('not an image', '0 bytes', 'no file') if word in error) for error in bad.error] == [
        'not an image',
        '0 bytes',
        '0 bytes',
        'no file',
    ]
    assert count_problems(items)['duplicate'] == 0  # two empty files are not two copies of an image


def test_odd_modes_are_read(photos):
    rgb = make_image(77)
    grey16 = np.asarray(rgb.convert('L')).astype(np.uint16) * 16
    odd = {
        'cmyk.jpg': rgb.convert('CMYK'),
        'rgba.png': rgb.convert('RGBA'),
        'palette.png': rgb.convert('P'),
        'grey.jpg': rgb.convert('L'),
        'deep.png': Image.fromarray(grey16),
        'deep.tif': Image.fromarray(grey16),
        'float.tif': rgb.convert('F'),
        'la.png': rgb.convert('LA'),
        'anim.gif': rgb.convert('P'),
    }
    (photos / 'odd').mkdir()
    for name, image in odd.items():
        image.save(photos / 'odd' / name)
    rgb.save(photos / 'odd/phone.jpg', 'mpo', save_all=True, append_images=[rgb])
    (photos / 'odd/phone.mpo').write_bytes((photos / 'odd/phone.jpg').read_bytes())
    items = scanned(photos)
    odd = items[items.label == 'odd']
    assert not odd.problem.str.contains('unreadable|extension|label_conflict').any()
    assert set(odd['mode']) >= {'CMYK', 'RGBA', 'P', 'L', 'LA', 'F'} and set(odd.format) >= {'MPO', 'TIFF', 'GIF'}
    assert odd.cluster.nunique() == 1 and odd.cluster.iloc[0]  # the same scene in all: one cluster
    assert count_problems(items)['duplicate'] == 1


def test_exif_rotation_is_applied(photos):
    upright = make_image(5, (400, 300))
    upright.save(photos / 'b c/upright.jpg', quality=95)
    turns = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    for orientation, turn in turns.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        upright.transpose(turn).save(photos / f'b c/turned {orientation}.jpg', exif=exif, quality=95)
    items = scanned(photos)
    turned = items[items.name.str.contains('turned|upright')]
    assert (turned.width == 400).all() and (turned.height == 300).all()
    assert turned.cluster.nunique() == 1 and count_problems(items)['near_duplicate'] == 3


def test_wrong_extensions(photos):
    make_image(9).save(photos / 'b c/png.jpg', 'png')
    make_image(10).save(photos / 'b c/jpeg.JPEG', 'jpeg')
    make_image(11).save(photos / 'b c/jpeg.tif', 'jpeg')
    items = scanned(photos)
    assert set(items.index[items.problem == 'extension']) == {'b c/png.jpg', 'b c/jpeg.tif'}
    assert len(exclude(items)) == len(items)


def test_sizes_from_one_pixel_to_too_many(photos):
    Image.new('RGB', (1, 1), 'red').save(photos / 'b c/pixel.png')
    buffer = io.BytesIO()
    Image.new('L', (1, 1)).save(buffer, 'png')
    content = buffer.getvalue()  # the first 33 bytes say how large it is
    header = b'IHDR' + struct.pack('>II', 20_000, 20_000) + content[24:29]
    (photos / 'b c/huge.png').write_bytes(content[:12] + header + struct.pack('>I', zlib.crc32(header)) + content[33:])
    Image.new('L', (20_000, 100), 90).save(photos / 'b c/strip.png')
    make_image(3, (300, 20)).save(photos / 'b c/label.png')
    items = scanned(photos)
    assert items.loc['b c/pixel.png', 'problem'] == 'tiny low_variance'
    assert items.loc['b c/label.png', 'problem'] == 'tiny'
    assert items.loc['b c/strip.png', 'problem'] == 'low_variance'
    huge = items.loc['b c/huge.png']
    assert (
        huge.problem == 'unreadable' and '20000×20000' in huge.error and (huge.width, huge.height) == (20_000, 20_000)
    )
    assert count_problems(find_problems(items, Checks(tiny=0)))['tiny'] == 0


def test_a_set_of_small_images_is_not_tiny(tmp_path):
    (tmp_path / 'a').mkdir()
    for n in range(10):
        make_image(n, (28, 28)).save(tmp_path / f'a/{n}.png')
    assert count_problems(scanned(tmp_path))['tiny'] == 0


def test_exact_duplicates(photos):
    first = photos / 'b c/Foto №0 & mehr.jpg'
    for n in range(3):
        (photos / f'b c/z copy {n}.jpg').write_bytes(first.read_bytes())
    items = scanned(photos)
    assert count_problems(items)['duplicate'] == 3 == len(items) - items.sha.nunique()
    assert items.loc['b c/Foto №0 & mehr.jpg', 'problem'] == ''
    assert len(set(items.cluster) - {''}) == 1 and (items.cluster != '').sum() == 4
    assert exclude(items).sha.is_unique and len(exclude(items)) == 16
    assert count_problems(items)['near_duplicate'] == count_problems(items)['label_conflict'] == 0


def test_the_same_image_under_two_labels(photos):
    original = photos / 'b c/Foto №0 & mehr.jpg'
    (photos / 'Röhrling & Co/zz.jpg').write_bytes(original.read_bytes())
    Image.open(photos / 'b c/Foto №1 & mehr.jpg').save(photos / 'Röhrling & Co/zz again.jpg', quality=70)
    items = scanned(photos)
    conflict = set(items.index[items.problem.str.contains('label_conflict')])
    assert conflict == {
        'b c/Foto №0 & mehr.jpg',
        'Röhrling & Co/zz.jpg',
        'b c/Foto №1 & mehr.jpg',
        'Röhrling & Co/zz again.jpg',
    }
    assert conflict.isdisjoint(exclude(items).index)
    assert 'Röhrling & Co/zz.jpg' in summary_text(items)


def test_an_unlabelled_copy_is_no_conflict_and_stays(photos):
    "A competition's test image that is also in the training set still has to be predicted"
    frame = table(photos)
    frame.loc[len(frame)] = [frame.path[0], 'test/1.jpg', None, '', 'test']
    frame = frame.iloc[::-1].reset_index(drop=True)
    items = scan(frame, progress=False).set_index('name')
    assert items.loc['test/1.jpg', 'problem'] == 'duplicate' and count_problems(items)['label_conflict'] == 0
    assert len(exclude(items)) == len(frame)


def test_of_two_copies_the_one_in_the_given_test_set_stays(photos):
    frame = table(photos)
    frame.loc[len(frame)] = [frame.path[0], 'test/1.jpg', frame.label[0], '', 'test']
    items = scan(frame, progress=False).set_index('name')
    assert items.loc['test/1.jpg', 'problem'] == '' and items.problem.iloc[0] == 'duplicate'


@pytest.mark.parametrize(
    'change',
    [
        lambda image: image.resize((160, 120)),
        lambda image: image.resize((640, 480)),
        lambda image: ImageEnhance.Brightness(image).enhance(1.15),
        lambda image: ImageEnhance.Contrast(image).enhance(0.8),
        lambda image: image.convert('L'),
        lambda image: image.filter(ImageFilter.GaussianBlur(2)),
        lambda image: image.crop((3, 3, 316, 238)),
        lambda image: image.resize((320, 200)),
    ],
)
def test_a_changed_copy_is_a_near_duplicate(tmp_path, change):
    for n in range(20):
        make_image(n).save(tmp_path / f'{n}.jpg', quality=92)
        change(make_image(n)).save(tmp_path / f'{n} changed.jpg', quality=75)
    items = scanned(tmp_path)
    for n in range(20):
        assert items.loc[f'{n}.jpg', 'cluster'] == items.loc[f'{n} changed.jpg', 'cluster'] != ''
    assert items.cluster.nunique() == 20 and count_problems(items)['near_duplicate'] == 20
    assert count_problems(find_problems(items, Checks(phash_bits=None)))['near_duplicate'] == 0


def test_blank_images_are_empty_but_not_duplicates_of_each_other(photos):
    for grey in range(60, 90, 3):
        Image.new('RGB', (320, 240), (grey, grey, grey)).save(photos / f'b c/blank {grey}.png')
    items = scanned(photos)
    blank = items[items.name.str.contains('blank')]
    assert (blank.problem == 'low_variance').all() and (blank.cluster == '').all()


def test_noise_does_not_cluster(tmp_path):
    "Empty microscope fields have almost no structure, and no two are the same"
    rng = np.random.default_rng(0)
    for n in range(200):
        Image.fromarray(rng.normal(128, 2, (64, 64)).clip(0, 255).astype(np.uint8)).save(tmp_path / f'{n}.png')
    assert count_problems(scanned(tmp_path))['near_duplicate'] == 0


def test_small_classes(photos):
    (photos / 'rare').mkdir()
    for n in range(3):
        make_image(900 + n).save(photos / f'rare/{n}.jpg')
    (photos / 'broken').mkdir()
    (photos / 'broken/1.jpg').write_text('x')
    items = scanned(photos)
    assert summary(items)['small_classes'] == ['broken', 'rare'] and count_problems(items)['small_class'] == 4
    assert count_problems(find_problems(items, Checks(small_class=9)))['small_class'] == len(items)
    assert 'rare: 3 usable' in summary_text(items) and 'broken: 0 usable' in summary_text(items)


def test_policies(photos):
    (photos / 'b c/text.jpg').write_text('x')
    items = scanned(photos)
    assert len(exclude(items)) == len(items) - 1 and len(exclude(items, ())) == len(items)
    with pytest.raises(UserError, match="no problem 'blurry'.*Known: unreadable"):
        exclude(items, ('blurry',))
    assert set(default_policy) <= set(problem_names)


def test_nothing_on_disk_changes(photos):
    (photos / 'b c/cut.jpg').write_bytes((photos / 'b c/Foto №0 & mehr.jpg').read_bytes()[:500])
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in photos.rglob('*.jpg')}
    scanned(photos)
    assert before == {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in photos.rglob('*.jpg')}


def test_the_table_goes_through_parquet_and_json(photos, tmp_path_factory):
    (photos / 'b c/text.jpg').write_text('x')
    frame = table(photos)
    frame.loc[3, 'label'] = None
    items = scan(frame, progress=False)
    file = tmp_path_factory.mktemp('out') / 'items.parquet'
    items.to_parquet(file)
    pd.testing.assert_frame_equal(pd.read_parquet(file), items)
    facts = json.loads(json.dumps(summary(items)))
    assert facts['images'] == 17 and facts['unlabelled'] == 1 and list(facts['problems']) == list(problem_names)


def test_workers_do_not_change_the_result(photos):
    one, four = scan(table(photos), workers=1, progress=False), scan(table(photos), workers=4, progress=False)
    pd.testing.assert_frame_equal(one, four)


def test_cluster_names_stay_when_files_come(photos):
    (photos / 'b c/copy.jpg').write_bytes((photos / 'b c/Foto №3 & mehr.jpg').read_bytes())
    before = scanned(photos)
    make_image(4711).save(photos / 'b c/0 new.jpg')
    assert scanned(photos).loc[before.index, 'cluster'].equals(before.cluster)


def test_an_empty_table():
    items = scan(pd.DataFrame(columns=['path', 'name', 'label', 'group', 'given']), progress=False)
    assert not len(items) and count_problems(items)['duplicate'] == 0 and summary(items)['images'] == 0
    assert summary_text(items).startswith('0 images')


def test_a_second_scan_reads_only_what_changed(tmp_path, monkeypatch):
    import fungi_fastai.data.scan as module

    monkeypatch.chdir(tmp_path)
    (tmp_path / 'settings.ini').write_text('[DEFAULT]\ncache_dir = cache\n')
    (tmp_path / 'set').mkdir()
    for n in range(100):
        (tmp_path / f'set/{n:04}.jpg').write_bytes(b'no image %d' % n)
    make_image(1).save(tmp_path / 'set/0000.jpg')
    first = scan(table(tmp_path / 'set'), progress=False)
    inspected, inspect_image = [], module.inspect_image
    monkeypatch.setattr(module, 'inspect_image', lambda path, name: inspected.append(name) or inspect_image(path, name))
    pd.testing.assert_frame_equal(scan(table(tmp_path / 'set'), progress=False), first)
    assert not inspected
    make_image(2).save(tmp_path / 'set/0001.jpg')
    make_image(3).save(tmp_path / 'set/1001.jpg')
    (tmp_path / 'set/0002.jpg').unlink()
    items = scan(table(tmp_path / 'set'), progress=False)
    assert sorted(inspected) == ['0001.jpg', '1001.jpg'] and len(items) == 100
    assert items[items.error == ''].name.tolist() == ['0000.jpg', '0001.jpg', '1001.jpg']
    next((tmp_path / 'cache/scans').iterdir()).write_text('broken')
    assert len(scan(table(tmp_path / 'set'), progress=False)) == 100


def test_progress_in_a_log_and_in_a_terminal(monkeypatch):
    log = io.StringIO()
    list(track([100] * 3, 300, every=0, out=log))
    assert not set(log.getvalue()) & set('\r\x1b\b') and '200 of 300 images' in log.getvalue()
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    seconds = iter(range(100))
    monkeypatch.setattr(time, 'monotonic', lambda: next(seconds))
    list(track([100] * 3, 300, out=terminal))
    assert (
        terminal.getvalue().endswith('\r\x1b[K')
        and '\n' not in terminal.getvalue()
        and '1 s left' in terminal.getvalue()
    )


def test_warnings_of_pillow_do_not_stop_a_scan(photos):
    "A palette with transparency as bytes makes Pillow warn"
    image = make_image(6).convert('P')
    image.info['transparency'] = bytes(range(256))
    image.save(photos / 'b c/glass.png', transparency=bytes(range(256)))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert scanned(photos).loc['b c/glass.png', 'problem'] == ''


def test_a_script_without_a_main_guard_beside_torch(photos):
    script = f"""if True:
        import sys, torch
        torch.ones(200, 200) @ torch.ones(200, 200)
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_scan import scanned
        print(len(scanned({str(photos)!r}, workers=4)))"""
    assert run_python(script) == '16'


def test_import_is_light():
    script = (
        "import sys, fungi_fastai.data.scan; print([m for m in ('torch', 'scipy', 'imagehash') if m in sys.modules])"
    )
    assert run_python(script) == '[]'


def run_python(script):
    done = subprocess.run(
        [sys.executable, '-c', script], capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[1]
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_checking_a_folder(photos):
    (photos / 'b c/text.jpg').write_text('x')
    items, facts = check(str(photos), progress=False)
    assert facts['images'] == 17 and facts['classes'] == 2 and facts['problems']['unreadable'] == 1
    assert set(items.columns) >= set(
        'path name label group given width height mode format variance brightness phash sha cluster problem'.split()
    )


def test_the_search_for_duplicates_is_not_quadratic():
    rng = np.random.default_rng(0)
    for count in (1_000, 10_000, 100_000):
        phash = rng.integers(0, 2**64, count, dtype=np.uint64)
        dhash = rng.integers(0, 2**64, count, dtype=np.uint64)
        n_pairs = count // 10
        phash[-n_pairs:] = phash[:n_pairs] ^ np.uint64(0b1001)
        dhash[-n_pairs:] = dhash[:n_pairs]
        start = time.perf_counter()
        pairs = near_pairs(phash, dhash)
        seconds = time.perf_counter() - start
        print(f'{count:>7,} hashes: {seconds:.2f} s, {seconds / count * 1e6:.0f} µs each')
        assert len(pairs) == n_pairs  # each of them, and none by chance
    assert seconds < 60  # all pairs in Python: about an hour


def test_many_equal_and_many_crowded_hashes():
    same = np.full(100_000, 7, np.uint64)
    assert len(near_pairs(same, same)) == 99_999
    crowded = np.arange(3_000, dtype=np.uint64)  # all within a few bits of each other
    pairs = near_pairs(crowded, np.zeros(3_000), max_neighbours=50)
    assert set(pairs.reshape(-1)) == set(range(3_000))


@pytest.mark.skipif(not (real / 'mushrooms.zip').exists(), reason=f'the real images are not in {real} (FUNGI_DATA)')
def test_the_real_mushrooms(tmp_path):
    import zipfile

    zipfile.ZipFile(real / 'mushrooms.zip').extractall(tmp_path)
    items = scan(table(tmp_path), progress=False)
    assert count_problems(items) == dict(dict.fromkeys(problem_names, 0), duplicate=9, near_duplicate=2, low_variance=1)
    near = items[items.problem == 'near_duplicate']
    for _, row in near.iterrows():
        assert items[items.cluster == row.cluster].label.nunique() == 1
