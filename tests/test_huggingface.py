"Data sets of Hugging Face that hold their images: Parquet and Arrow files"

import json
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import small_jpeg
from pyarrow import parquet

from fungi_fastai.core.errors import MissingFileError, UserError
from fungi_fastai.data.sources import Source

pytestmark = pytest.mark.usefixtures('own_home')


def columns(labels, first=0, **more):
    images = [dict(bytes=small_jpeg(first + i), path=f's{(first + i) // 2}_{i % 2}.jpg') for i in range(len(labels))]
    return pa.table(dict(image=images, label=labels, **more))


def with_names(table, **names):
    features = {column: dict(_type='ClassLabel', names=list(classes)) for column, classes in names.items()}
    return table.replace_schema_metadata({b'huggingface': json.dumps(dict(info=dict(features=features)))})


def write(file, table):
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, file)


def read(source, **options):
    return Source.of(source, **options).read(progress=False)


def test_splits_classes_and_hidden_labels():
    write('set/data/train-00000-of-00002.parquet', with_names(columns([0, 1]), label=['oak', 'elm']))
    write('set/data/train-00001-of-00002.parquet', with_names(columns([1, 0], 2), label=['oak', 'elm']))
    write('set/data/test-00000-of-00001.parquet', with_names(columns([-1, -1], 9), label=['oak', 'elm']))
    table = read('set', group='^(s[0-9]+)_')
    assert table.groupby('given').label.apply(list).to_dict() == {
        'test': [None, None],
        'train': ['oak', 'elm', 'elm', 'oak'],
    }
    assert table.group.nunique() == 6 and all(Path(path).is_file() for path in table.path)
    before = {path: Path(path).stat().st_mtime_ns for path in table.path}
    assert {path: Path(path).stat().st_mtime_ns for path in read('set').path} == before, 'unpacked once'
    one = read('set/data/train-00000-of-00002.parquet')
    assert len(one) == 2 and 'is one of 2 files' in one.attrs['notes'][0]


def test_files_that_differ():
    write('set/train.parquet', with_names(columns([0, 1]), label=['oak', 'elm']))
    write('set/test.parquet', with_names(columns([0, 1], 4, place=['A', 'B']), label=['elm', 'oak']))
    assert read('set').groupby('given').label.apply(list).to_dict() == {'train': ['oak', 'elm'], 'test': ['elm', 'oak']}
    with zipfile.ZipFile('set.zip', 'w') as archive:
        for name in ('train', 'test'):
            archive.write(f'set/{name}.parquet', f'set/data/{name}.parquet')
    assert read('set.zip').label.tolist() == read('set').label.tolist()
    write('set/valid.parquet', pa.table(dict(vector=[[1.0], [2.0]])))
    with pytest.raises(UserError, match='valid.parquet has no column image'):
        read('set')


def test_bytes_that_are_no_images():
    hashes = dict(thumb_hash=[b'1fa', b'2fb'], sound=[dict(bytes=b'RIFF....WAVE', path='a.wav')] * 2)
    write('a.parquet', with_names(columns([0, 1], **hashes), label=['oak', 'elm']))
    assert read('a.parquet').label.tolist() == ['oak', 'elm']
    write('b.parquet', columns([0, 1], **hashes).rename_columns(['scan', 'label', *hashes]))
    assert len(read('b.parquet')) == 2, 'the only column of images'


def test_a_changed_file_is_unpacked_again():
    write('a.parquet', with_names(columns([0, 1]), label=['oak', 'elm']))
    assert len(read('a.parquet')) == 2
    write('a.parquet', with_names(columns([0, 1, 1]), label=['oak', 'elm']))
    assert len(read('a.parquet')) == 3


def test_details_of_the_other_columns():
    more = dict(observed_on=['2024-05-01', '2023-05-01'], license=['CC-BY', 'CC0'], boxes=[[1.0], [2.0]])
    write('a.parquet', with_names(columns([0, 1], **more), label=['oak', 'elm']))
    table = read('a.parquet')
    assert table.date.tolist() == more['observed_on'] and table.licence.tolist() == ['CC BY', 'CC0 1.0']
    assert 'table.boxes' not in table


def test_names_of_classes_in_the_card():
    table = columns([0, 1]).rename_columns(['image', 'species'])
    write('set/data/train-00000-of-00001.parquet', table)
    Path('set/README.md').write_text(
        '---\nlicense: mit\ndataset_info:\n  features:\n  - name: image\n    dtype: image\n  - name: species\n'
        "    dtype:\n      class_label:\n        names:\n          '0': oak\n          '1': elm\n---\n# Trees\n"
    )
    assert read('set').label.tolist() == ['oak', 'elm']


def test_several_configurations_and_several_classes():
    for name in ('en', 'de'):
        write(f'set/{name}/train/0000.parquet', with_names(columns([0, 1]), label=['oak', 'elm']))
    with pytest.raises(UserError, match='several configurations of a data set: de, en'):
        read('set')
    assert len(read('set/en')) == 2
    table = columns([0, 1], coarse=[0, 1]).rename_columns(['image', 'fine', 'coarse'])
    write('b.parquet', with_names(table, fine=['oak', 'elm'], coarse=['tree', 'bush']))
    with pytest.raises(UserError, match='No column of .* looks like labels'):
        read('b.parquet')
    assert read('b.parquet', label='coarse').label.tolist() == ['tree', 'bush']


def test_an_arrow_file_of_save_to_disk():
    table = with_names(columns([0, 1, 1]), label=['oak', 'elm'])
    Path('disk/train').mkdir(parents=True)
    with (
        pa.OSFile('disk/train/data-00000-of-00001.arrow', 'wb') as file,
        pa.ipc.new_stream(file, table.schema) as writer,
    ):
        writer.write_table(table)
    Path('disk/dataset_dict.json').write_text('{"splits": ["train"]}')
    assert read('disk').label.tolist() == ['oak', 'elm', 'elm']


def test_plain_bytes_and_images_beside_the_file():
    write('a.parquet', pa.table(dict(img=[small_jpeg(1), small_jpeg(2)], label=['oak', 'elm'])))
    assert [Path(path).suffix for path in read('a.parquet').path] == ['.jpg', '.jpg']
    Path('x.jpg').write_bytes(small_jpeg(3))
    kind = pa.struct([('bytes', pa.binary()), ('path', pa.string())])
    images = pa.array([dict(bytes=None, path='x.jpg'), dict(bytes=None, path='gone.jpg')], kind)
    write('b.parquet', pa.table(dict(image=images, label=['oak', 'elm'])))
    table = read('b.parquet')
    assert table.path.tolist() == [str(Path('x.jpg').resolve())] and '1 row without an image.' in table.attrs['notes']


def test_names_stay_inside_the_folder():
    images = [dict(bytes=small_jpeg(i), path='../../../evil.jpg') for i in range(2)]
    write('a.parquet', pa.table(dict(image=images, label=['oak', 'elm'])))
    paths = [Path(path) for path in read('a.parquet').path]
    assert len(set(paths)) == 2 and all('unpacked' in path.parts and '..' not in path.parts for path in paths)


def test_files_named_by_numbers_and_a_column_of_paths():
    for number in range(2):
        table = columns(['oak', 'elm'], 4 * number, path=['x/1.jpg', 'x/2.jpg'])
        write(f'set/{number:04}.parquet', table)
    found = read('set')
    assert len(found) == 4 and found.path.is_unique and sorted(found.label) == ['elm', 'elm', 'oak', 'oak']
    assert all('unpacked' in path and Path(path).is_file() for path in found.path)


def test_more_files_than_are_looked_at_of_another_kind(monkeypatch):
    from fungi_fastai.data import parquet_images

    monkeypatch.setattr(parquet_images, '_most_entries', 2)
    for number in range(4):
        write(f'set/train-{number:05}-of-00004.parquet', columns(['oak', 'elm'], 4 * number))
    assert len(read('set')) == 8


def test_damaged_files():
    write('set/data/train-00000-of-00001.parquet', columns(['oak', 'elm']))
    file = Path('set/data/train-00000-of-00001.parquet')
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError, match='train-00000-of-00001.parquet cannot be read'):
        read('set')
    with pytest.raises(MissingFileError):
        read('nothing.parquet')


def test_images_come_before_parquet_files():
    for i in range(4):
        Path(f'photos/c{i % 2}').mkdir(parents=True, exist_ok=True)
        Path(f'photos/c{i % 2}/{i}.jpg').write_bytes(small_jpeg(i))
    write('photos/embeddings.parquet', pa.table(dict(vector=[b'1', b'2'], row=[0, 1])))
    assert sorted(read('photos').label) == ['c0', 'c0', 'c1', 'c1']
