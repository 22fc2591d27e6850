"Every small source of `layout_cases` is read as stated there"

import json
import os
import time
from pathlib import Path

import pytest
from layout_cases import cases
from PIL import Image

from fungi_fastai.core.errors import UserError
from fungi_fastai.data.companions import leave_out_companions
from fungi_fastai.data.layout import FolderTree
from fungi_fastai.data.layout_detection import detect_layout
from fungi_fastai.data.scan import inspect_image
from fungi_fastai.data.sources import Source


@pytest.fixture(autouse=True)
def home(own_home):
    "A working directory with the folder `set`"
    (own_home / 'set').mkdir()
    return own_home


def draw(path):
    Image.new('RGB', (8, 8)).save(path)


def write(*names, under='set'):
    for name in names:
        path = Path(under) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(path)


def counts(values):
    return {value: int(n) for value, n in values.value_counts().items() if value}


@pytest.mark.parametrize('case', cases, ids=lambda case: case.title)
def test_each_case(case, home):
    case.write(home / 'set', draw)
    source = Source.of(home / 'set' / case.source, **case.options)
    if case.refused:
        with pytest.raises(UserError) as error:
            source.read()
        for text in case.refused:
            assert text in str(error.value)
        return
    table = source.read()
    assert counts(table.label) == case.classes
    assert counts(table.given) == case.splits
    assert table.group[table.group != ''].nunique() == case.groups
    assert table.label.isna().sum() == case.unlabelled
    assert table.path.is_unique and table.name.is_unique
    for text in case.notes:
        assert any(text in note for note in table.attrs['notes']), table.attrs['notes']


# what a folder holds that is not read


def test_a_folder_without_permission_is_an_error(monkeypatch):
    write('Amanita/1.jpg', 'Boletus/2.jpg')
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith('Boletus'):
            raise PermissionError(13, 'Permission denied', path)
        return scandir(path)

    monkeypatch.setattr(os, 'scandir', refuse)
    with pytest.raises(UserError, match=r'Boletus cannot be read: Permission denied\. Its images would be missing'):
        Source.of('set').read()


def test_links_to_nowhere_are_named():
    write('Amanita/1.jpg', 'Boletus/2.jpg')
    os.symlink('/media/stick/Russula', 'set/Russula')
    os.symlink('/media/stick/3.jpg', 'set/Boletus/3.jpg')
    table = Source.of('set').read()
    assert len(table) == 3  # an image that cannot be opened is a problem that `fungi check` lists
    assert any('1 link to something that does not exist: Russula' in note for note in table.attrs['notes'])


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='Windows has no named pipes')
def test_pipes_devices_and_folders_named_like_images_are_not_read():
    write('oak/1.jpg', 'elm/1.jpg')
    for name in ('oak/pipe', 'oak/pipe.jpg', 'labels.csv'):
        os.mkfifo(Path('set', name))  # opening it would never end
    os.symlink('/dev/zero', 'set/oak/zero.jpg')
    Path('set/oak/folder.jpg').mkdir()
    table = Source.of('set').read()
    assert counts(table.label) == dict(oak=1, elm=1)
    assert (
        'Left out, because they are pipes, sockets or devices and not files: labels.csv, oak/pipe, oak/pipe.jpg, '
        'oak/zero.jpg.' in table.attrs['notes']
    )
    for name in ('pipe.jpg', 'zero.jpg'):  # as a table may name them
        assert 'pipe or a device' in inspect_image(f'set/oak/{name}')['error']
    assert 'Is a directory' in inspect_image('set/oak/folder.jpg')['error']


def test_files_without_a_known_extension_are_images_by_their_content():
    write('Amanita/1.jpg', 'Boletus/2.jpg', 'Boletus/3.png')
    Path('set/Boletus/2.jpg').rename('set/Boletus/2.jpg!d')
    Path('set/Boletus/3.png').rename('set/Boletus/IMG 3')
    Path('set/Boletus/LICENSE').write_text('BM, GIF and JPEG are formats.')
    assert Source.of('set').read().name.tolist() == ['Amanita/1.jpg', 'Boletus/2.jpg!d', 'Boletus/IMG 3']


def test_every_folder_that_yields_nothing_is_named(fungi):
    write('Amanita/1.jpg', 'Boletus/2.jpg')
    Path('set/Mycena/day 1').mkdir(parents=True)
    Path('set/Panus').mkdir()
    for name in 'a.cr2', 'b.cr2', 'list.txt':
        Path('set/Panus', name).write_text('?')
    facts = json.loads(fungi('check', 'set', '--json').out)
    assert facts['notes'][0] == 'Folders are read as class.'
    notes = ' '.join(facts['notes'])
    assert 'empty folder: Mycena' in notes and 'Panus (2 .cr2, 1 .txt)' in notes
    text = fungi('check', 'set').out
    assert all(note in text for note in facts['notes'])


# choosing a layout


def test_layouts_that_are_not_understood():
    write('A/1.jpg')
    for layout in 'genus/species', '', 'split/split/class':
        with pytest.raises(UserError, match='is not understood. Expected auto, or the meaning of each folder'):
            Source.of('set', layout=layout)
    with pytest.raises(UserError, match=r'takes A/ for a split'):
        Source.of('set', layout='split/class').read()


def test_images_to_predict_may_lie_in_any_folders():
    write('Amanita/alba/1.jpg', 'Russula/alba/2.jpg', 'Russula/nigra/3.jpg')
    table = Source.of('set').read(labels=False)
    assert table.label.isna().all() and len(table) == 3


def test_what_is_not_predicted_is_a_warning():
    write('1.jpg')
    Path('set/2.cr2').write_bytes(b'1')
    with pytest.warns(UserWarning, match=r'1 RAW image .*\(1 \.cr2\)'):
        assert len(Source.of('set').read(labels=False)) == 1


def test_two_links_to_a_folder_are_named():
    write('A/1.jpg', 'B/2.jpg')
    os.symlink(Path('set/B').resolve(), 'set/A2')
    table = Source.of('set').read()
    assert table.label.tolist() == ['A', 'A2']
    assert 'Left out: B/ is the same folder as A2/.' in table.attrs['notes']


def test_a_label_pattern_needs_no_layout_but_keeps_the_split():
    write('train/x/y/Amanita_1.jpg', 'train/z/Boletus_2.jpg', 'test/x/Amanita_3.jpg')
    table = Source.of('set', label=r'^(.+)_').read()
    assert table.label.tolist() == ['Amanita', 'Amanita', 'Boletus']
    assert table.given.tolist() == ['test', 'train', 'train']


def test_a_given_split_is_ignored_only_if_you_say_so():
    write('train/A/1.jpg', 'test/A/2.jpg', 'test/B/3.jpg')
    assert set(Source.of('set').read().given) == {'train', 'test'}
    assert set(Source.of('set', split='none').read().given) == {''}


def test_a_pattern_for_groups_comes_before_folders_of_specimens():
    write('Amanita/specimen 1/a_1.jpg', 'Amanita/specimen 2/a_2.jpg')
    assert Source.of('set').read().group.nunique() == 2
    assert Source.of('set', group='^(.)_').read().group.nunique() == 1


def test_the_options_of_check_explore_probe_and_labels_are_the_same(fungi):
    for command in 'check', 'explore', 'probe', 'labels', 'evaluate':
        text = fungi(command, '--help').out
        for option in '--label', '--group', '--column', '--layout', '--split', '--zip-encoding':
            assert f'{option} ' in text, (command, option)


def test_check_with_a_layout(fungi):
    write(
        *[f'{genus}/alba/{genus}{i}.jpg' for genus in ('Amanita', 'Russula') for i in range(2)], 'Russula/nigra/1.jpg'
    )
    refused = fungi('check', 'set', code=2)
    assert '--layout class/class: 3 classes (Amanita alba, Russula alba, Russula nigra)' in refused.err
    facts = json.loads(fungi('check', 'set', '--layout', 'class/class', '--json').out)
    assert facts['per_class'] == {'Amanita alba': 2, 'Russula alba': 2, 'Russula nigra': 1}


def test_a_folder_called_sample_is_not_taken_for_the_sample():
    write('A/1.jpg', 'B/2.jpg', under='sample')
    with pytest.raises(UserError, match=r'Write \./sample for the folder, or sample:mushrooms'):
        Source.of('sample')
    assert Source.of('./sample').read().label.tolist() == ['A', 'B']


# tables in a folder


def test_a_table_for_each_split():
    write(*[f'photos/{i}.jpg' for i in range(6)])
    for name, numbers in dict(train=range(3), dev=(3,), test=(4, 5)).items():
        Path(f'set/{name}.csv').write_text('path,label\n' + ''.join(f'photos/{i}.jpg,{"ab"[i % 2]}\n' for i in numbers))
    table = Source.of('set').read()
    assert counts(table.given) == {'train': 3, 'valid': 1, 'test': 2}
    Path('set/more.csv').write_text('path,label\nphotos/1.jpg,b\n')
    with pytest.raises(UserError, match='several tables with labels: dev.csv, more.csv'):
        Source.of('set').read()


def test_a_table_beside_class_folders_is_mentioned():
    write('A/1.jpg', 'B/2.jpg')
    Path('set/weather.csv').write_text('day,rain\n1,2\n')
    assert any('weather.csv' in note for note in Source.of('set').read().attrs['notes'])


# speed


def test_the_layout_of_many_images_is_found_in_seconds():
    paths = [('x', 'train' if i % 5 else 'val', f'Genus {i % 300}', f'obs_{i // 3}', f'{i}.jpg') for i in range(30_000)]
    begin = time.process_time()
    tree = FolderTree.of(leave_out_companions(paths)[0])
    roles = detect_layout(tree)
    assert roles.layout == 'split/class/specimen' and len(roles.classes(tree)) == 300
    assert time.process_time() - begin < 3  # half a second on a laptop
