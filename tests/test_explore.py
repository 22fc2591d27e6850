"The figures and the page of `explore`, for datasets of every shape"

import html.parser
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_scan import make_image, run_python, scanned

from fungi_fastai.core.errors import UserError
from fungi_fastai.data.explore import brightness_variance, class_counts, explore, sizes
from fungi_fastai.data.galleries import duplicates_gallery, low_variance_gallery, mean_images, sample_grid
from fungi_fastai.data.problems import Checks, find_problems

figures = (
    class_counts,
    sizes,
    brightness_variance,
    sample_grid,
    mean_images,
    duplicates_gallery,
    low_variance_gallery,
)


def make_folder(root, classes, each=2, size=(60, 45)):
    for c, name in enumerate(classes):
        (root / name).mkdir()
        for n in range(each):
            make_image(c * 100 + n, size).save(root / name / f'{n}.png')
    return root


@pytest.fixture
def problem_folder(tmp_path):
    "A folder with names that need escaping, and with every problem"
    root = make_folder(tmp_path, ['Röhrling & <Söhne>', '$x_1$ "und" $y', '鳳尾菇'], each=4)
    a, b, c = (root / name for name in ('Röhrling & <Söhne>', '$x_1$ "und" $y', '鳳尾菇'))
    (b / '<script>alert(1)<⁄script>.png').write_bytes((b / '0.png').read_bytes())
    (b / 'from a.png').write_bytes((a / '1.png').read_bytes())
    make_image(2, (60, 45)).resize((120, 90)).save(a / 'larger.jpg', 'png')
    (c / 'broken & <b>.jpg').write_text('x')
    Image.new('RGB', (60, 45), 'grey').save(c / 'empty.png')
    Image.new('RGB', (1, 1)).save(c / 'pixel.png')
    return root


class Reader(html.parser.HTMLParser):
    "Count tags and collect links"

    def __init__(self, text):
        super().__init__()
        self.tags, self.links = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ('src', 'href') and value]


def test_page_and_files(problem_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp('out') / 'new' / 'folder'
    items = scanned(problem_folder).reset_index(drop=True)
    page = explore(items, out, 'Pilze & <Söhne>', checks=Checks())
    assert page == out / 'index.html'
    assert {p.name for p in out.iterdir()} == {
        'index.html',
        'items.csv',
        'class_counts.svg',
        'sizes.svg',
        'brightness_variance.svg',
        'samples.png',
        'means.png',
        'duplicates.png',
        'low_variance.png',
        'quality.png',
    }
    text = page.read_text(encoding='utf-8')
    reader = Reader(text)
    assert reader.tags.count('script') == 1  # the library's own, which marks the section that is read
    assert 'söhne' not in reader.tags and '<b>.jpg' not in text
    assert reader.tags.count('svg') == 5 and reader.tags.count('img') == 5 and reader.tags.count('details') >= 6
    other = [link for link in reader.links if not link.startswith(('data:', '#'))]  # the page needs no other file
    assert set(other) == {path.name for path in out.iterdir()} - {'index.html'}  # and offers those that it has
    assert 'Pilze &amp; &lt;Söhne&gt;' in text and '鳳尾菇' in text and 'prefers-color-scheme: dark' in text
    assert len(pd.read_csv(out / 'items.csv')) == len(items)
    with Image.open(out / 'samples.png') as image:
        assert image.width > 300


def test_the_page_is_deterministic(problem_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp('out')
    items = scanned(problem_folder).reset_index(drop=True)
    first = explore(items, out / 'a').read_bytes()
    assert explore(items, out / 'b').read_bytes() == first


@pytest.mark.parametrize('classes', [1, 2, 61, 200])
@pytest.mark.filterwarnings('error')
def test_any_number_of_classes(tmp_path, classes):
    items = scanned(
        make_folder(tmp_path, [f'Species number {n} with a rather long name {n}' for n in range(classes)], 1, (16, 16))
    )
    for draw in figures:
        figure = draw(items)
        figure.canvas.draw()
        assert max(figure.get_size_inches()) < 60


def test_without_labels_without_images_and_without_problems(tmp_path):
    items = scanned(make_folder(tmp_path, ['a'], 3)).reset_index(drop=True)
    unlabelled = find_problems(items.assign(label=None))
    broken = find_problems(items.assign(error='broken', variance=np.nan, sha='', phash='', dhash='', width=0, height=0))
    for n, case in enumerate((unlabelled, broken, items, items.head(0))):
        for draw in figures:
            draw(case).canvas.draw()
        assert 'Problems' in explore(case, tmp_path / f'out{n}').read_text()
    assert 'None found' in (tmp_path / 'out0/index.html').read_text()


def test_a_deleted_image_is_grey(tmp_path):
    items = scanned(make_folder(tmp_path, ['a', 'b'], 3))
    for path in items.path[:2]:
        (tmp_path / path).unlink()
    for draw in figures:
        draw(items).canvas.draw()


def test_the_given_limit_is_drawn(tmp_path):
    items = scanned(make_folder(tmp_path, ['a', 'b'], 3))
    checks = Checks(low_variance=1e6)
    ax = brightness_variance(find_problems(items, checks), checks).axes[0]
    assert any('6 of 6' in text.get_text() for text in ax.texts)


def test_class_counts_note_excluded_images(problem_folder):
    texts = [text.get_text() for text in class_counts(scanned(problem_folder)).axes[0].texts]
    assert any(re.search(r'left out', text) for text in texts)


def test_a_folder_is_scanned_and_a_file_as_output_is_an_error(tmp_path):
    (tmp_path / 'in').mkdir()
    make_folder(tmp_path / 'in', ['a', 'b'], 3)
    page = explore(tmp_path / 'in', tmp_path / 'out', progress=False)
    assert '>6<' in page.read_text()
    with pytest.raises(UserError, match='is a file'):
        explore(tmp_path / 'in', tmp_path / 'out/items.csv', progress=False)


def test_pyplot_is_not_imported():
    assert run_python("import sys, fungi_fastai.data.explore; print('matplotlib.pyplot' in sys.modules)") == 'False'
