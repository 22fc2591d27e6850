"Sources: every layout, broken and hostile archives, tables, and bad input; the real sets if they are available"

import json
import os
import tarfile
import time
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from conftest import pack, small_jpeg

from fungi_fastai.core.errors import MissingFileError, UserError
from fungi_fastai.data.sources import Source
from fungi_fastai.data.tables import read_table

pytestmark = pytest.mark.usefixtures('own_home')

real = Path(os.environ.get('FUNGI_DATA') or Path(__file__).parents[2] / 'shared' / 'data').resolve()


def write(*names, under='photos'):
    for name in names:
        path = Path(under) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(small_jpeg())
    return under


def rows(table):
    return {row.name: (row.label, row.given) for row in table.itertuples(index=False)}


layouts = {
    'classes at the root': {'A/1.jpg': ('A/1.jpg', 'A', ''), 'B/2.jpg': ('B/2.jpg', 'B', '')},
    'under one folder': {'Mushrooms/A/1.jpg': ('A/1.jpg', 'A', ''), 'Mushrooms/B/2.jpg': ('B/2.jpg', 'B', '')},
    'under two folders': {'x/y/A/1.jpg': ('A/1.jpg', 'A', ''), 'x/y/B/2.jpg': ('B/2.jpg', 'B', '')},
    'one class': {'A/1.jpg': ('A/1.jpg', 'A', ''), 'A/2.jpg': ('A/2.jpg', 'A', '')},
    'one class, wrapped': {'x/A/1.jpg': ('A/1.jpg', 'A', ''), 'x/A/2.jpg': ('A/2.jpg', 'A', '')},
    'splits': {
        'train/A/1.jpg': ('train/A/1.jpg', 'A', 'train'),
        'val/B/2.jpg': ('val/B/2.jpg', 'B', 'valid'),
        'Test/A/3.jpg': ('Test/A/3.jpg', 'A', 'test'),
    },
    'splits, wrapped': {
        'x/train/A/1.jpg': ('train/A/1.jpg', 'A', 'train'),
        'x/validation/B/2.jpg': ('validation/B/2.jpg', 'B', 'valid'),
    },
    'splits, each wrapped again': {
        'train/train/A/1.jpg': ('train/train/A/1.jpg', 'A', 'train'),
        'test/test/2.jpg': ('test/test/2.jpg', None, 'test'),
    },
    'a test without labels': {
        'train/A/1.jpg': ('train/A/1.jpg', 'A', 'train'),
        'test/2.jpg': ('test/2.jpg', None, 'test'),
    },
    'images of trains': {'train/1.jpg': ('train/1.jpg', 'train', ''), 'bus/2.jpg': ('bus/2.jpg', 'bus', '')},
    'a loose image': {
        'A/1.jpg': ('A/1.jpg', 'A', ''),
        'B/1.jpg': ('B/1.jpg', 'B', ''),
        'cover.jpg': ('cover.jpg', None, ''),
    },
    'a loose image, wrapped': {
        'x/A/1.jpg': ('A/1.jpg', 'A', ''),
        'x/B/1.jpg': ('B/1.jpg', 'B', ''),
        'x/cover.jpg': ('cover.jpg', None, ''),
    },
    'odd names': {
        'Söhne & Töchter/Pilz 1.JPG': ('Söhne & Töchter/Pilz 1.JPG', 'Söhne & Töchter', ''),
        '菌/二.jpeg': ('菌/二.jpeg', '菌', ''),
    },
    'decomposed names': {'So\u0308hne/1.jpg': ('Söhne/1.jpg', 'Söhne', ''), 'B/1.jpg': ('B/1.jpg', 'B', '')},
}


@pytest.mark.parametrize('wrapped', ['folder', 'zip', 'tar.gz'])
@pytest.mark.parametrize('layout', layouts)
def test_each_layout(layout, wrapped):
    files = layouts[layout]
    write(*files, '__MACOSX/A/._1.jpg', '.hidden/1.jpg', 'Thumbs/.x.jpg')
    Path('photos/sample_submission.csv').write_text('file,species\n')
    if wrapped == 'folder':
        source = 'photos'
    elif wrapped == 'zip':
        source = pack('photos.zip', *files, '__MACOSX/A/._1.jpg', '.DS_Store', 'sample_submission.csv')
    else:
        source = 'photos.tar.gz'
        with tarfile.open(source, 'w:gz') as t:
            t.add('photos', '.')
    table = Source.of(source).read()
    assert rows(table) == {name: (label, given) for name, label, given in files.values()}
    assert all(os.path.isabs(p) and os.path.isfile(p) for p in table.path)
    assert list(table.columns) == ['path', 'name', 'label', 'group', 'given']
    assert table.name.is_unique and all(label is None or type(label) is str for label in table.label)


def test_linked_folders_are_followed_and_loops_end():
    write('A/1.jpg', under='elsewhere')
    write('B/1.jpg')
    os.symlink(Path('elsewhere/A').resolve(), 'photos/A')
    os.symlink(Path('photos').resolve(), 'photos/B/loop')
    assert Source.of('photos').read().label.tolist() == ['A', 'B']


def test_names_that_are_not_utf8():
    write('A/1.jpg')
    try:
        Path(os.fsdecode(b'photos/A/\xff.jpg')).write_bytes(small_jpeg())
    except OSError:
        pytest.skip('this disk takes only UTF-8 names')
    with pytest.raises(UserError, match=r'1 image with a name that is not UTF-8'):
        Source.of('photos').read()


# labels and groups


def test_labels_from_names():
    write('daisy_1.jpg', 'rose_2.jpg', 'odd.jpg')
    table = Source.of('photos', label=r'^(?P<label>[a-z]+)_').read()
    assert table.label.tolist() == ['daisy', None, 'rose']
    write('2023/plot1/x_Boletus.jpg', under='deep')
    assert Source.of('deep', label=r'/\w+_(\w+)\.').read().label.tolist() == ['Boletus']


def test_groups_keep_a_specimen_together_and_classes_apart():
    write('H1/H1_100a_1.jpg', 'H1/H1_100b_2.jpg', 'H1/H1_10a_1.jpg', 'H2/H2_100a_1.jpg', 'H2/blank.jpg')
    table = Source.of('photos', group=r'^(?P<group>H\d+_\d+)').read()
    assert table.group.tolist() == ['H1_100', 'H1_100', 'H1_10', 'H2_100', 'H2/blank.jpg']
    write('1/001_a.jpg', '1/001_b.jpg', '2/001_a.jpg', under='numbers')
    assert Source.of('numbers', group='(.+)_').read().group.tolist() == ['1/001', '1/001', '2/001']


def test_a_group_pattern_that_matches_nothing_warns():
    write('A/1.jpg', 'A/2.jpg')
    with pytest.warns(UserWarning, match='matches none of the 2 names'):
        table = Source.of('photos', group='(.+)_').read()
    assert table.group.tolist() == ['A/1.jpg', 'A/2.jpg']


@pytest.mark.parametrize('pattern,message', [('(H1', 'is no regular expression'), ('H1', 'has no group')])
@pytest.mark.parametrize('what', ['label', 'group'])
def test_a_bad_pattern(pattern, message, what):
    write('A/1.jpg')
    with pytest.raises(UserError, match=message):
        Source.of('photos', **{what: pattern})


# bad paths


def test_a_wrong_path_suggests_the_closest():
    write('A/1.jpg', under='my images/mushrooms')
    with pytest.raises(MissingFileError, match=r'my images exists, but holds no mushroms \(did you mean mushrooms\?\)'):
        Source.of('my images/mushroms')
    with pytest.raises(MissingFileError, match='holds no nowhere'):
        Source.of('/nowhere/at/all')
    with pytest.raises(FileNotFoundError):
        Source.of('mushrooms.zip')


def test_a_path_wins_over_a_name_on_kaggle():
    write('A/1.jpg', under='owner/name')
    assert Source.of('owner/name').kind == 'folder'
    with pytest.raises(MissingFileError, match='kaggle.com/datasets/OWNER/NAME'):
        Source.of('owner/nam')
    assert Source.of('else/name').kind == 'kaggle'


def test_folders_without_images():
    Path('empty').mkdir()
    with pytest.raises(UserError, match='empty is empty'):
        Source.of('empty').read()
    Path('texts/A').mkdir(parents=True)
    for name in ('1.txt', '2.txt', 'b.docx'):
        Path('texts/A', name).write_text('x')
    with pytest.raises(UserError, match=r'no images: 3 files, of which 2 \.txt, 1 \.docx'):
        Source.of('texts').read()
    with zipfile.ZipFile('texts.zip', 'w') as z:
        z.writestr('a.txt', 'x')
    with pytest.raises(UserError, match=r'no images: 1 file, of which 1 \.txt'):
        Source.of('texts.zip').read()
    write('1.jpg', '2.jpg', under='loose')
    with pytest.raises(UserError, match='holds 2 images .* but no folders to take labels from'):
        Source.of('loose').read()
    assert Source.of('loose').read(labels=False).label.tolist() == [None, None]


@pytest.mark.parametrize(
    'x,message',
    [
        ('', 'is empty'),
        (3, 'not int'),
        ('https://example.com/x.zip', 'is an address'),
        ('https://www.kaggle.com/code/x/y', 'neither a data set nor a competition'),
        ('x' * 5000, 'There is no'),
        ('~nobody/photos', 'There is no'),
        ({'location': 'a', 'kind': 'zipp'}, 'a location and a kind'),
        ({'kind': 'folder'}, 'a location and a kind'),
    ],
)
def test_what_is_no_source(x, message):
    with pytest.raises(UserError, match=message):
        Source.of(x)


def test_a_file_that_is_no_source():
    write('A/1.jpg')
    with pytest.raises(UserError, match='single image'):
        Source.of('photos/A/1.jpg')
    Path('notes.pdf').write_text('x')
    with pytest.raises(UserError, match='Expected a folder, an archive'):
        Source.of('notes.pdf')
    for name, what in {
        'clip.MOV': 'a video',
        'all.lnk': 'a shortcut',
        'x.docx': 'a document',
        'x.npz': 'a file of',
    }.items():
        Path(name).write_bytes(b'PK\3\4')
        with pytest.raises(UserError, match=f'{name} is {what}.* and no source'):
            Source.of(name)
    Path('batch').write_bytes(b'\x80\4\x95abc')
    with pytest.raises(UserError, match='batch is a Python pickle'):
        Source.of('batch')
    for name in ('labels.ods', 'labels.xls', 'labels.csv.gz'):
        Path(name).write_bytes(b'PK\3\4')
        with pytest.raises(UserError, match='is a table in a format that is not read'):
            Source.of(name)


# tables


def test_usual_names_of_columns():
    write('1.jpg')
    for name in ('Picture', 'file name', 'IMG'):
        Path('t.csv').write_text(f'{name},species\nphotos/1.jpg,A\n')
        assert Source.of('t.csv').read().label.tolist() == ['A']


def test_a_table(own_home):
    write('a/1.jpg', 'a/2 é.jpg', 'b/3.jpg')
    Path('photos/list.csv').write_text(
        'Image;Species;Subset;Specimen\na/1.jpg;NA;train;7\na/2 é.jpg;007;Val;7\nb/3.jpg;;test;\n', encoding='utf-8-sig'
    )
    table = Source.of('photos/list.csv').read()
    assert table.drop(columns='path').values.tolist() == [
        ['a/1.jpg', 'NA', 'NA/7', 'train'],
        ['a/2 é.jpg', '007', '007/7', 'valid'],
        ['b/3.jpg', None, 'b/3.jpg', 'test'],
    ]
    assert table.path.tolist()[0] == str(own_home / 'photos' / 'a' / '1.jpg')


def test_a_table_with_named_columns():
    write('1_x.jpg', '1_y.jpg')
    Path('t.csv').write_text('id,where,who\n1,photos/1_x.jpg,A\n2,photos/1_y.jpg,B\n')
    table = Source.of('t.csv', label='who', column='where', group='^(.)_').read()
    assert table.label.tolist() == ['A', 'B'] and table.group.tolist() == ['A/1', 'B/1']
    for options, message in (
        ({'column': 'file'}, 'has no column file. Its columns are id, where, who'),
        ({'column': 'where', 'label': 'species'}, 'has no column species'),
        ({'column': 'where'}, 'No column of .* looks like labels'),
        ({}, 'looks like labels'),  # the column `where` names files that exist
    ):
        with pytest.raises(UserError, match=message):
            Source.of('t.csv', **options).read()


def test_paths_that_exist_come_before_files_in_neighbouring_folders(own_home):
    "The usual name `id` fits two files in a neighbouring folder"
    write('blue/1.jpg', 'green/1.jpg', under='images')
    write('set/photos/x.jpg', 'set/photos/y.jpg', under='.')
    Path('set/t.csv').write_text('id,where,who\n1,photos/x.jpg,A\n2,photos/y.jpg,B\n')
    table = Source.of('set/t.csv', label='who').read()
    assert table.path.tolist() == [str(own_home / f'set/photos/{name}.jpg') for name in 'xy']


def test_a_table_of_paths_alone_takes_labels_from_folders():
    write('A/1.jpg', 'B/2.jpg')
    Path('t.csv').write_text('path\nphotos/A/1.jpg\nphotos/B/2.jpg\n')
    assert Source.of('t.csv').read().label.tolist() == ['A', 'B']


def test_repeated_rows_and_two_labels():
    write('1.jpg', '2.jpg')
    Path('t.csv').write_text('path,label\nphotos/1.jpg,A\nphotos/1.jpg,A\nphotos/2.jpg,A\nphotos/2.jpg,B\n')
    table = Source.of('t.csv').read()
    assert table.name.tolist() == ['photos/1.jpg', 'photos/2.jpg', 'photos/2.jpg#2']
    assert table.label.tolist() == ['A', 'A', 'B']
    assert 't.csv has 1 image with two labels, such as photos/2.jpg' in table.attrs['notes'][-2]
    assert table.attrs['notes'][-1] == '1 row of t.csv repeats an image (line 3).'
    Path('t.csv').write_text('path,label,specimen\nphotos/1.jpg,A,s1\nphotos/1.jpg,A,s2\nphotos/2.jpg,A,s2\n')
    table = Source.of('t.csv').read()
    assert 'two specimens, such as photos/1.jpg (line 2: A/s1, line 3: A/s2). The first one' in table.attrs['notes'][-2]


def test_a_specimen_has_one_spelling():
    write(*(f'{i}.jpg' for i in range(8)))
    spellings = ['FK 1', 'fk  1', 'FK 1', '7', '7.0', '70', '7.5', '']
    lines = [f'photos/{i}.jpg,A,{specimen}' for i, specimen in enumerate(spellings)]
    Path('t.csv').write_text('\n'.join(['path,label,specimen', *lines]))
    table = Source.of('t.csv').read()
    assert table.group.tolist() == ['A/FK 1'] * 3 + ['A/7', 'A/7', 'A/70', 'A/7.5', 'photos/7.jpg']
    (note,) = (note for note in table.attrs['notes'] if note.startswith('One specimen, although case, blanks'))
    assert "'A/FK 1' (2) and 'A/fk  1' (1)" in note and "'A/7' (1) and 'A/7.0' (1)" in note


def test_what_a_given_split_shares_or_lacks():
    sets = ['train', 'test'] * 4
    write(*(f'{i}.jpg' for i in range(8)))
    lines = [f'photos/{i}.jpg,{"AB"[i // 4]},s{i // 2 if i < 6 else i},{name}' for i, name in enumerate(sets)]
    Path('t.csv').write_text('\n'.join(['path,label,specimen,split', *lines]))
    (note,) = (
        note for note in Source.of('t.csv').read().attrs['notes'] if 'specimens' in note and '--split none' in note
    )
    assert note.startswith('3 of the 4 specimens in the validation and test images are in the training images')
    assert not any('optimistic' in note for note in Source.of('t.csv', split='none').read().attrs['notes'])
    write('train/A/1.jpg', 'train/A/2.jpg', 'train/B/3.jpg', 'test/4.jpg', 'test/5.jpg', under='set')
    assert 'None of the 2 test images has a label' in ' '.join(Source.of('set').read().attrs['notes'])


@pytest.mark.parametrize(
    'text,message',
    [
        ('', 'cannot be read as a CSV'),
        ('path,label\n', 'names no images'),
        ('path,label\nnowhere.jpg,A\n', 'None of the 1 image named'),
        ('path,label\nphotos/1.jpg,\n', 'No image in t.csv has a label'),
    ],
)
def test_bad_tables(text, message):
    write('1.jpg')
    Path('t.csv').write_text(text)
    with pytest.raises(UserError, match=message.replace('t.csv', '.*t.csv')):
        Source.of('t.csv').read()
    Path('t.csv').write_bytes(b'path,label\n\xff\xfe\x00,A\n')
    with pytest.raises(UserError, match='not UTF-8'):
        Source.of('t.csv').read()
    Path('t.csv').write_text('path,label\nphotos/1.jpg,A\n')
    with pytest.raises(UserError, match='has no column specimn'):
        Source.of('t.csv', group='specimn').read()
    with pytest.raises(MissingFileError, match='gone.csv cannot be opened'):
        read_table(Path('gone.csv'))


def test_a_dataframe_becomes_a_table_once():
    write('a/1.jpg', 'b/2.jpg')
    frame = pd.DataFrame(
        {'file': [Path('photos/a/1.jpg'), 'photos/b/2.jpg'], 'label': ['A', 'B'], 'given': ['train', 'test']}
    )
    source = Source.of(frame)
    assert source == Source.of(frame.copy()) and source.kind == 'csv'
    os.makedirs('other', exist_ok=True)
    os.chdir('other')  # the paths do not depend on the working directory
    table = Source.from_dict(json.loads(json.dumps(source.to_dict()))).read()
    assert table.drop(columns='path').values.tolist() == [['a/1.jpg', 'A', '', 'train'], ['b/2.jpg', 'B', '', 'test']]
    with pytest.raises(UserError, match='looks like paths'):
        Source.of(pd.DataFrame({'x': [1]}))


def test_a_table_from_read_is_a_source():
    "You can filter the table that `read` returns and use it as a source"
    write('A/1.jpg', 'A/2.jpg', 'B/1.jpg')
    table = Source.of('photos', group='^(.)').read()
    filtered = Source.of(table[table.label == 'A']).read()
    assert filtered.label.tolist() == ['A', 'A'] and filtered.group.tolist() == ['A/1', 'A/2']


# the sample


def test_the_sample(monkeypatch):
    from fungi_fastai.samples import datasets as samples

    def small(kind):
        return samples.make_sample(kind, f'small/{kind}', specimens=2, photos=2, size=64)

    monkeypatch.setattr(samples, 'sample_folder', small)
    assert Source.of('sample', sample='flowers').location == 'flowers'
    assert Source.of('sample:seedlings').location == 'seedlings'
    with pytest.raises(UserError, match='did you mean mushrooms'):
        Source.of('sample:mushroom')
    for kind, classes, group in (
        ('mushrooms', 9, r'^(?P<group>.*\d.*)_'),
        ('defungi', 5, r'^(?P<group>H\d+_\d+)'),
        ('flowers', 5, r'^(?P<group>.+)_'),
        ('seedlings', 12, ''),
    ):
        table = Source.of(f'sample:{kind}', group=group).read()
        assert table.label.nunique() == classes, kind
        assert set(table.given) == ({'train', 'test'} if kind == 'seedlings' else {''}), kind
        if group:
            assert table.groupby('group').size().max() > 1, kind


# the real sets

sets = {  # classes, images, unlabelled, given, pattern and number of groups
    'mushrooms': (10, 800, 0, {'': 800}, r'^(?P<group>.*\d.*)_', 628),
    'defungi': (5, 7687, 0, {'': 7687}, r'^(?P<group>H\d+_\d+)', 380),
    'plant-seedlings-classification': (12, 4750, 723, {'train': 4027, 'test': 723}, '', 1),
    'flowers': (5, 600, 0, {'': 600}, '', 1),
}


@pytest.mark.parametrize('name', sets)
def test_real_sets(name):
    file = real / f'{name}.zip'
    if not file.exists():
        pytest.skip(f'{file} does not exist; set FUNGI_DATA to the folder with the real sets')
    classes, images, unlabelled, given, group, groups = sets[name]
    start = time.time()
    table = Source.of(file, group=group).read()
    first, start = time.time() - start, time.time()
    assert Source.of(file, group=group).read().equals(table)
    print(f'{name}: {images} images unpacked and read in {first:.2f} s, again in {time.time() - start:.2f} s')
    assert (table.label.nunique(), len(table), int(table.label.isna().sum())) == (classes, images, unlabelled)
    assert table.given.value_counts().to_dict() == given
    assert table.group.nunique() == groups and table.name.is_unique
    labelled = table.dropna(subset='label')
    assert (labelled.groupby('label').size() >= 80).all()
    if name == 'defungi':
        assert labelled.groupby('label').size().to_dict() == {'H1': 3749, 'H2': 1924, 'H3': 681, 'H5': 683, 'H6': 650}
        assert labelled.groupby('group').label.nunique().max() == 1
