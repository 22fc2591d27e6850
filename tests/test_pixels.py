"Unusual images get the pixels that they show, and the same ones in the check, in training and from a bundle"

import io

import numpy as np
import pytest
from odd_images import (
    deep,
    deep_grey,
    grey,
    in_profile,
    on_white,
    opaque,
    png,
    profile,
    saved,
    scene,
    stretched,
    tiff,
    turned,
    turns,
)
from PIL import Image, ImageCms

from fungi_fastai.data.images import ImageError, open_image, read_pixels

orders = {'little': '<', 'big': '>'}
four = np.dstack([deep, opaque])
two = np.dstack([deep_grey, opaque])
in_colour = {  # files of the scene in colour, each of which should look as the scene does
    f'{name}, {order}': file
    for order, o in orders.items()
    for name, file in {
        '12 of 16 bits': tiff(deep * 16, 2, o),
        '12 of 16 bits, compressed': tiff(deep * 16, 2, o, deflate=True),
        '12 of 16 bits, planes': tiff(deep * 16, 2, o, planar=True),
        '14 of 16 bits': tiff(deep * 64, 2, o),
        '16 bits': tiff(deep * 257, 2, o),
        '16 bits, planes, compressed': tiff(deep * 257, 2, o, planar=True, deflate=True),
        '8 bits in 16': tiff(deep, 2, o),
        '16 bits, a fourth channel': tiff(four * 257, 2, o, _338=0),
        'CMYK of 16 bits': tiff(np.asarray(Image.fromarray(scene).convert('CMYK')).astype(np.uint16) * 257, 5, o),
        'YCbCr': tiff(np.asarray(Image.fromarray(scene).convert('YCbCr')), 6, o, _530=[1, 1]),
        **{f'12 bits, turned {n}': tiff(turned(scene, n).astype(np.uint16) * 16, 2, o, _274=n) for n in turns},
    }.items()
}
in_colour |= {
    '12 bits, PNG': png(deep * 16, 16, 2),
    '16 bits, PNG': png(deep * 257, 16, 2),
    '16 bits, PPM': b'P6 80 60 65535\n' + (deep * 257).astype('>u2').tobytes(),
    '12 bits, PPM': b'P6 80 60 65535\n' + (deep * 16).astype('>u2').tobytes(),
    'ProPhoto, PNG': saved(in_profile(profile()), 'png', icc_profile=profile()),
    'ProPhoto, TIFF': saved(in_profile(profile()), 'tiff', icc_profile=profile()),
    'broken profile': saved(scene, 'png', icc_profile=b'no profile at all' * 9),
    'first of two frames, TIFF': saved(scene, 'tiff', save_all=True, append_images=[Image.new('RGB', (80, 60))]),
    'first of two frames, PNG': saved(scene, 'png', save_all=True, append_images=[Image.new('RGB', (80, 60))]),
    'LAB': saved(
        ImageCms.profileToProfile(
            Image.fromarray(scene), ImageCms.createProfile('sRGB'), ImageCms.createProfile('LAB'), outputMode='LAB'
        ),
        'tiff',
    ),
}


def difference(file, expected):
    found = np.asarray(open_image(io.BytesIO(file))).astype(int)
    assert found.shape == (60, 80, 3)
    return np.abs(found - (expected if expected.ndim == 3 else expected[..., None])).mean()


@pytest.mark.parametrize('kind', in_colour)
def test_a_colour_image_looks_as_its_scene(kind):
    assert difference(in_colour[kind], scene) < 2


levels = {  # how the scene's 256 greys may be stored
    '12 of 16 bits': (deep_grey * 16, 1),
    '16 bits': (deep_grey * 257, 1),
    'signed 16 bits': (deep_grey.astype(np.int16) * 100 - 9000, 2),
    '32 bits': (deep_grey.astype(np.uint32) * 1000, 1),
    'signed 32 bits': (deep_grey.astype(np.int32) * 1000 - 9, 2),
    'floats in 0…1': ((grey / 255).astype(np.float32), 3),
    'floats of 64 bits': (grey / 255, 3),
}


@pytest.mark.parametrize('deflate', [False, True], ids=['plain', 'compressed'])
@pytest.mark.parametrize('order', orders)
@pytest.mark.parametrize('kind', levels)
def test_grey_levels_of_any_type(kind, order, deflate):
    values, sample_format = levels[kind]
    assert difference(tiff(values, 1, orders[order], sample_format=sample_format, deflate=deflate), stretched) < 2


@pytest.mark.parametrize('order', orders)
def test_white_is_zero(order):
    assert difference(tiff(4080 - deep_grey * 16, 0, orders[order]), stretched) < 2
    assert difference(tiff(255 - grey, 0, orders[order]), grey) < 2
    assert difference(tiff((1 - grey / 255).astype(np.float32), 0, orders[order], sample_format=3), stretched) < 2


def changed(pixels, value, where):
    result = pixels.copy()
    result[where] = value
    return result


pixel, corner, bar = np.s_[3, 4], np.s_[45:, 60:], np.s_[50:54, 10:50]
outliers = {
    'hot pixel, grey': (tiff(changed(deep_grey * 16, 65_535, pixel), 1), pixel, stretched),
    'hot pixel, colour': (tiff(changed(deep * 16, 65_535, pixel), 2), pixel, scene),
    'dead pixel': (tiff(changed(deep_grey.astype(np.int32) + 40_000, 0, pixel), 1, sample_format=2), pixel, stretched),
    'scale bar': (tiff(changed(deep * 16, 65_535, bar), 2), bar, scene),
    'no data, -9999': (tiff(changed(deep_grey.astype(np.int16), -9999, corner), 1, sample_format=2), corner, stretched),
    'no data, float': (
        tiff(changed(grey.astype(np.float32), -3.4e38, corner), 1, sample_format=3),
        corner,
        stretched,
    ),
    'no data, by GDAL': (tiff(changed(deep_grey * 200, 60_000, corner), 1, _42113=b'60000\0'), corner, stretched),
    'NaN': (tiff(changed(grey.astype(np.float32), np.nan, corner), 1, sample_format=3), corner, stretched),
    'infinite': (tiff(changed(grey.astype(np.float32), np.inf, pixel), 1, sample_format=3), pixel, stretched),
    'hot pixel and no data': (
        tiff(changed(changed(deep_grey.astype(np.int32) * 16, -(10**9), corner), 65_535, pixel), 1, sample_format=2),
        corner,
        stretched,
    ),
}


@pytest.mark.parametrize('kind', outliers)
def test_a_few_extreme_values_do_not_blacken_an_image(kind):
    file, where, expected = outliers[kind]
    elsewhere = np.ones((60, 80), bool)
    elsewhere[where] = False
    found = np.asarray(open_image(io.BytesIO(file))).astype(int)
    assert np.abs(found - (expected if expected.ndim == 3 else expected[..., None]))[elsewhere].mean() < 4


keyed, keyed_grey = changed(deep, (1, 2, 3), np.s_[:, :30]), changed(np.maximum(deep_grey, 1), 0, np.s_[:, :30])
transparent = {
    'RGB of 8 bits with a key': png(keyed, 8, 2, (1, 2, 3)),
    'RGB of 16 bits with a key': png(changed(deep * 257, (1, 2, 3), np.s_[:, :30]), 16, 2, (1, 2, 3)),
    'grey of 8 bits with a key': png(keyed_grey, 8, 0, (0,)),
    'grey of 16 bits with a key': png(changed(deep_grey * 256 + 1, 0, np.s_[:, :30]), 16, 0, (0,)),
    'grey with alpha': png(two, 8, 4),
    'grey of 16 bits with alpha': png(two * 257, 16, 4),
    'RGBA of 8 bits': png(four, 8, 6),
    'RGBA of 16 bits': png(four * 257, 16, 6),
    'RGBA of 12 bits': png(four * 16, 16, 6),
    'TIFF with alpha': tiff(four * 257, 2, _338=2),
    'TIFF, premultiplied': tiff(np.dstack([np.where(opaque[..., None] == 0, 0, deep), opaque]) * 257, 2, _338=1),
    'TIFF, premultiplied, 8 bits': tiff(
        np.dstack([np.where(opaque[..., None] == 0, 0, deep), opaque]).astype(np.uint8), 2, _338=1
    ),
    'ProPhoto with alpha': saved(
        Image.merge('RGBA', [*in_profile(profile()).split(), Image.fromarray(opaque.astype(np.uint8))]),
        'png',
        icc_profile=profile(),
    ),
}


@pytest.mark.parametrize('kind', transparent)
def test_transparent_areas_are_white(kind):
    expected = np.where(opaque == 0, 255, grey) if 'grey' in kind else on_white
    assert difference(transparent[kind], expected) < 3


gammas = {  # what a PNG says of the gamma of its values, and the linear light that it holds
    'of light itself': (100_000, lambda light: light),
    'of old Macs': (55_556, lambda light: light ** (1 / 1.8)),
}


@pytest.mark.parametrize('bits', [8, 16])
@pytest.mark.parametrize('kind', gammas)
def test_a_png_that_states_another_gamma_looks_the_same(kind, bits):
    number, encode = gammas[kind]
    light = np.where(scene <= 10, scene / 255 / 12.92, ((scene / 255 + 0.055) / 1.055) ** 2.4)
    values = (encode(light) * (2**bits - 1)).round().astype(np.uint16)
    gamma, usual = ((b'gAMA', number.to_bytes(4, 'big')) for number in (number, 45_455))

    def read(*stated):
        return np.asarray(open_image(png(values, bits, 2, stated=stated))).astype(int)

    bright = scene > 60  # in the dark, 8 bits of linear light are few
    assert np.abs(read(gamma) - scene)[bright].max() <= 4
    assert (read(gamma, (b'sRGB', b'\0')) == read()).all(), 'a named colour space counts'
    assert (read(usual) == read()).all()


def test_grey_values_with_a_sign():
    content = tiff((grey.astype(int) - 128).astype(np.int8), 1, sample_format=2)
    assert np.abs(np.asarray(open_image(content))[..., 0] - stretched).max() <= 1


@pytest.mark.parametrize('bits', [1, 2, 4])
def test_a_transparent_grey_of_few_bits(bits):
    values = changed(deep_grey >> (8 - bits), 1, np.s_[:, :30])
    expected = np.where(values == 1, 255, values * (255 // (2**bits - 1)))
    assert difference(png(values, bits, 0, (1,)), expected) == 0


@pytest.mark.parametrize('orientation', turns)
def test_a_turned_tiff_is_read_upright_from_its_path(tmp_path, orientation):
    from fungi_fastai.data.scan import inspect_image

    for name, stored in {'eight': turned(grey, orientation), 'deep': turned(deep_grey * 257, orientation)}.items():
        (tmp_path / f'{name}.tif').write_bytes(tiff(stored, 1, _274=orientation))
        found = np.asarray(open_image(tmp_path / f'{name}.tif')).astype(int)
        assert np.abs(found - (grey if name == 'eight' else stretched)[..., None]).mean() < 1
        with Image.open(tmp_path / f'{name}.tif') as lazy:  # Pillow has its path, and would map it into memory
            assert (read_pixels(lazy, 60) == read_pixels(tmp_path / f'{name}.tif', 60)).all()
        row = inspect_image(tmp_path / f'{name}.tif')
        assert (row['width'], row['height'], row['error']) == (80, 60, '')


def test_a_tiff_of_two_channels_is_refused_with_the_reason():
    with pytest.raises(ImageError, match='number or kind of channels that is not read here. Save it as 8-bit RGB'):
        open_image(io.BytesIO(tiff(two, 1)))
    with pytest.raises(ImageError, match='damaged|to its end'):
        open_image(io.BytesIO(tiff(deep, 2)[:60]))


def test_an_srgb_profile_changes_no_pixel_and_a_photo_stays_as_it_was(tmp_path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
    for format, options in dict(jpeg=dict(quality=90), png={}).items():
        with_profile = saved(scene, format, icc_profile=srgb, **options)
        plain = np.asarray(Image.open(io.BytesIO(saved(scene, format, **options))).convert('RGB'))
        assert (np.asarray(open_image(io.BytesIO(with_profile))) == plain).all()


photo = np.asarray(Image.effect_noise((400, 300), 60).convert('RGB'))
jpegs = {
    'baseline': {},
    'optimised': dict(optimize=True),
    'restart markers': dict(restart_marker_rows=1),
    'full chroma': dict(subsampling=0),
    'progressive': dict(progressive=True),
}


@pytest.mark.parametrize('mode', ['RGB', 'L', 'CMYK'])
@pytest.mark.parametrize('kind', jpegs)
def test_a_jpeg_that_ends_early_but_has_an_end_mark(kind, mode):
    whole = saved(Image.fromarray(photo).convert(mode), 'jpeg', **jpegs[kind])
    assert open_image(io.BytesIO(whole)).size == open_image(io.BytesIO(whole + b'trailer' * 50)).size == (400, 300)
    for fraction in (0.3, 0.5):
        cut = whole[: int(len(whole) * fraction)]
        for tail in (b'\xff\xd9', bytes(len(whole) - len(cut)) + b'\xff\xd9'):
            for size in (None, 70):
                with pytest.raises(ImageError, match='cannot be read to its end'):
                    open_image(io.BytesIO(cut + tail), size)


@pytest.mark.parametrize('kind', jpegs)
def test_a_photo_with_a_middle_grey_border_is_whole(kind):
    framed = Image.new('RGB', (400, 450), (128, 128, 128))
    framed.paste(Image.fromarray(photo))
    assert open_image(io.BytesIO(saved(framed, 'jpeg', **jpegs[kind])), 100).size == (200, 225)


def test_a_large_blank_area_is_whole_although_its_code_is_all_zeros():
    blank = Image.new('RGB', (2000, 2000), 'white')
    blank.paste(Image.fromarray(photo))
    file = saved(blank, 'jpeg', optimize=True)
    assert bytes(64) in file[-80:]
    assert open_image(io.BytesIO(file), 100).size == (250, 250)


def test_several_frames_are_reported(fungi, tmp_path):
    for i in range(6):
        frames = [Image.fromarray(np.roll(scene, 9 * i, 1)), Image.new('RGB', (80, 60))]
        (tmp_path / 'set/a').mkdir(parents=True, exist_ok=True)
        (tmp_path / 'set/b').mkdir(exist_ok=True)
        frames[0].save(tmp_path / f'set/a/{i}.tif', save_all=True, append_images=frames[1:])
        Image.fromarray(np.roll(scene, 9 * i + 5, 0)).save(tmp_path / f'set/b/{i}.png')
    assert 'Several frames are in 6 files, such as a/0.tif: the first is read.' in fungi('check', tmp_path / 'set').out


odd = {
    **{kind: in_colour[kind] for kind in ('12 of 16 bits, big', '12 of 16 bits, planes, little', 'ProPhoto, PNG')},
    'grey, turned': tiff(turned(grey, 6), 1, _274=6),
    'hot pixel': outliers['hot pixel, grey'][0],
    'transparent': transparent['RGB of 16 bits with a key'],
    'white is zero': tiff(4080 - deep_grey * 16, 0),
    'photo': saved(photo, 'jpeg'),
}


@pytest.mark.parametrize('kind', odd)
def test_training_bundle_and_server_see_the_same_pixels(kind, small_bundle, tmp_path, monkeypatch):
    import pandas as pd

    from fungi_fastai.data.cache import build_cache
    from fungi_fastai.data.images import square
    from fungi_fastai.data.loaders import OpenPhoto
    from fungi_fastai.data.scan import scan
    from fungi_fastai.deploy.predictor import Predictor
    from fungi_fastai.deploy.uploads import Upload, read_upload
    from fungi_fastai.evaluation.saliency import as_pixels

    monkeypatch.chdir(tmp_path)
    (tmp_path / 'settings.ini').write_text('[DEFAULT]\ncache_dir = cache\nnum_workers = 1\n')
    path = tmp_path / 'image'
    path.write_bytes(odd[kind])
    predictor = Predictor.load(small_bundle)
    size, canvas, resize = predictor.bundle.size, predictor.bundle.canvas, predictor.bundle.resize
    cache = build_cache(scan(pd.DataFrame(dict(path=[str(path)])), progress=False), canvas, resize, progress=False)
    seen = dict(
        path=predictor.read(path),
        content=predictor.read(odd[kind]),
        file=predictor.read(io.BytesIO(odd[kind])),
        training=square(OpenPhoto(canvas, resize).read(str(path)), size, resize),
        cache=square(OpenPhoto(canvas, resize, cache).read(str(path)), size, resize),
        upload=read_upload(Upload(data=bytearray(odd[kind]), size=len(odd[kind])), predictor.read, 2**24, 10**7),
    )
    if kind != 'photo':  # from a Pillow image, a JPEG is decoded at its full size
        with Image.open(path) as image:
            seen['Pillow'] = predictor.read(image)
    assert [name for name, pixels in seen.items() if not (pixels == seen['path']).all()] == []
    assert as_pixels(path, size, resize).shape == (size, size, 3)
