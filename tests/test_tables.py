"Tables: encodings, inconsistent lines, kinds of files, files that are spelled differently; `layout_cases` has the rest"

import builtins
import json
import os
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from fungi_fastai.core.errors import MissingFileError, UserError
from fungi_fastai.data.table_files import may_name_images, read_frame
from fungi_fastai.data.tables import read_table


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    "Each test has its own working directory with four images"
    monkeypatch.chdir(tmp_path)
    touch(*(f'{i}.jpg' for i in range(4)))
    return tmp_path


def touch(*names):
    "Write empty files; a table does not open its images"
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def write(*lines, file='t.csv', encoding='utf-8'):
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_bytes(''.join(f'{line}\n' for line in lines).encode(encoding))
    return Path(file)


def notes(table):
    return ' '.join(table.attrs['notes'])


# text


@pytest.mark.parametrize(
    'encoding,labels',
    [
        ('utf-8-sig', ['Täubling', 'Röhrling']),
        ('utf-16', ['Täubling', 'Röhrling']),
        ('utf-16-le', ['Täubling', 'Röhrling']),
        ('cp1252', ['Täubling', 'Röhrling']),
        ('mac_roman', ['Érable', 'Chêne à feuilles']),
        ('cp1253', ['Πεύκο', 'Βελανιδιά']),
        ('cp1255', ['אלון', 'אורן']),
        ('iso8859_2', ['Gąska zielonka', 'Koźlarz']),
        ('cp1250', ['Křehutka', 'Hřib žlutomasý']),
        ('cp1251', ['Подосиновик', 'Рыжик настоящий']),
        ('gbk', ['牛肝菌', '松口蘑']),
        ('cp932', ['マツタケ', 'シメジ']),
    ],
)
def test_encodings(encoding, labels):
    file = write('path,label', f'0.jpg,{labels[0]}', f'1.jpg,{labels[1]}', encoding=encoding)
    table = read_table(file)
    assert table.label.tolist() == labels
    assert ('utf-8' in encoding) != ('UTF-' in notes(table)), 'anything but UTF-8 is told'


def test_lines_in_two_encodings_are_refused():
    lines = ['path,label', '0.jpg,Täubling', '1.jpg,Röhrling', '2.jpg,Schüppling']
    Path('t.csv').write_bytes('\n'.join(lines).encode() + b'\n3.jpg,R\xf6hrling\n')
    with pytest.raises(UserError, match='is UTF-8 except for line 5'):
        read_table('t.csv')


@pytest.mark.parametrize('separator', [',', ';', '\t', '|'])
def test_separators_and_blanks_around_cells(separator):
    rows = ['File Name,Species,Note', ' 0.jpg , oak ,"1,5"', '1.jpg,elm, ', ',,']
    file = write(*(row.replace(',', separator).replace(f'1{separator}5', '1,5') for row in rows))
    table = read_table(file)
    assert table.label.tolist() == ['oak', 'elm'] and len(table) == 2
    assert 'Blanks around the cells' in notes(table)


def test_row_names_and_separators_at_the_end_of_lines():
    for rows in (['"path","label"', '"1","0.jpg","a"', '"2","1.jpg","b"'], ['path,label', '0.jpg,a,', '1.jpg,b,']):
        assert read_table(write(*rows)).label.tolist() == ['a', 'b']


@pytest.mark.parametrize('header', ['#image species', '#image species\n#species: 1:Cat 2:Dog', '# mine\n#image label'])
def test_a_header_with_a_mark_of_comments(header):
    table = read_table(write(header, *(f'{i} {"AB"[i % 2]}' for i in range(4)), file='list.txt'))
    assert table.label.tolist() == list('ABAB') and table.name.tolist() == [f'{i}.jpg' for i in range(4)]


def test_a_title_above_the_header():
    table = read_table(write('Trees of the park', '', 'path,label', '0.jpg,oak', '1.jpg,elm'))
    assert table.label.tolist() == ['oak', 'elm']


def test_a_table_without_a_header():
    assert read_table(write('0.jpg,oak', '1.jpg,elm')).label.tolist() == ['oak', 'elm']
    table = read_table(write('0.jpg,oak,x', '1.jpg,elm,x'), label='column 2')
    assert table.label.tolist() == ['oak', 'elm'] and 'has no header' in notes(table)


@pytest.mark.parametrize(
    'lines,message',
    [
        (['path,label,mm', '0.jpg,oak,1,5', '1.jpg,elm,2,5'], 'more than the 3 cells of the header: lines 2, 3'),
        (['path,label', '0.jpg,oak', '1.jpg'], 'fewer cells than the header: line 3'),
        (['path,label', '0.jpg,"oak', '1.jpg,elm', '2.jpg,elm'], 'quotation mark in line 2 is not closed'),
        (['path,label,split', '0.jpg,a,train', '1.jpg,b,', '0.jpg,a,test'], r'two splits.*line 2: train, line 4: test'),
        (
            ['path,label,subset', '0.jpg,a,1', '1.jpg,b,2'],
            r"not all of its values are understood: '1', '2' \(lines 2, 3",
        ),
        (['url,label', 'https://example.org/a.jpg,a'], 'holds addresses on the web.*Download the images'),
        (['path,height', '0.jpg,3', '1.jpg,3', '2.jpg,4'], r'looks like labels.*values of height repeat.*pattern'),
    ],
)
def test_what_is_refused(lines, message):
    with pytest.raises(UserError, match=message):
        read_table(write(*lines))


def test_lines_are_numbered_as_in_an_editor():
    file = write('path,label,note', '0.jpg,a,"two', 'lines"', '', '1.jpg,b,x', '9.jpg,b,x')
    assert read_frame(file).index.tolist() == [2, 5, 6]
    assert '9.jpg (line 6)' in notes(read_table(file))


def test_a_cell_that_ends_early_is_empty_if_its_column_is_not_used():
    assert read_table(write('path,label,note', '0.jpg,a,x', '1.jpg,b')).label.tolist() == ['a', 'b']


def test_values_stay_text():
    table = read_table(write('path,label', '0.jpg,007', '1.jpg,NA', '2.jpg,1.50', '3.jpg,'))
    assert table.label.tolist() == ['007', 'NA', '1.50', None]
    assert 'The label NA (1 row) was read as the name of a class' in notes(table)
    assert '1 row without a label' in notes(table)


# files on the disk


@pytest.mark.parametrize(
    'value,file',
    [
        ('P-1', 'deep/er/P-1.JPG'),
        ('p-1.jpg', 'P-1.JPG'),
        ('u\u0308.jpg', '\u00fc.jpg'),
        ('12', 'scans/0012.png'),
        ('12.0', 'scans/0012.png'),
        ('a.png', 'a.webp'),
        ('/photos/a.jpg', 'photos/a.jpg'),
        ('C:\\Users\\me\\photos\\a.jpg', 'photos/a.jpg'),
        ('/kaggle/input/trees/photos/a.jpg', 'photos/a.jpg'),
        ('https://example.org/x/a.jpg?size=large', 'photos/a.jpg'),
        ('./photos//a.jpg', 'photos/a.jpg'),
        ('file://photos/a.jpg', 'photos/a.jpg'),
    ],
)
def test_a_file_is_found(home, value, file):
    touch(f'set/{file}')
    table = read_table(write('image;label', f'{value};oak', file='set/t.csv'))
    assert table.path.tolist() == [str(home / 'set' / file)]


def test_images_beside_the_folder_of_the_table(home):
    touch('trees/images/7.png', 'trees/2020/8.png')
    assert read_table(write('id,label', '7,oak', file='trees/csv/t.csv')).name.tolist() == ['images/7.png']
    assert read_table(write('id,label', '8,oak', file='trees/metadata/t.csv')).name.tolist() == ['2020/8.png']


def test_a_missing_file_is_not_replaced_by_one_of_another_folder():
    touch('a/train/1.jpg', 'a/test/2.jpg')
    table = read_table(write('path,label', 'train/1.jpg,x', 'test/1.jpg,x', 'test/2.jpg,y', file='a/t.csv'))
    assert [os.path.exists(path) for path in table.path] == [True, False, True]


def test_the_table_of_a_split_prefers_its_folder():
    touch('s/train_images/1.jpg', 's/test_images/1.jpg')
    table = read_table(write('image,label', '1,oak', file='s/train.csv'))
    assert table.name.tolist() == ['train_images/1.jpg'] and 'train_images was taken' in notes(table)


def test_two_files_of_one_stem_are_not_guessed():
    touch('s/1.jpg', 's/1.png')
    with pytest.raises(UserError, match='looks like paths|more than one folder|exists'):
        read_table(write('image,label', '1,oak', file='s/t.csv'))


# columns


def test_the_class_is_a_rank_only_if_it_looks_like_one():
    def label_of(*lines):
        return read_table(write(*lines)).label.tolist()

    assert label_of('file,class,species', '0.jpg,edible,cep', '1.jpg,deadly,deathcap') == ['edible', 'deadly']
    ranks = ['file,class,species', '0.jpg,Agaricomycetes,cep', '1.jpg,Pezizomycetes,morel']
    assert label_of(*ranks) == ['cep', 'morel']
    assert read_table(write(*ranks), label='class').label.tolist() == ['Agaricomycetes', 'Pezizomycetes']


def test_a_group_needs_several_images():
    table = read_table(write('file,label,catalogNumber,patient', '0.jpg,a,1,p', '1.jpg,a,2,p', '2.jpg,b,3,q'))
    assert table.group.tolist() == ['a/p', 'a/p', 'b/q']
    table = read_table(write('file,label,group', '0.jpg,a,train', '1.jpg,a,train', '2.jpg,b,test'))
    assert not table.group.any() and table.given.tolist() == ['train', 'train', 'test']


def test_two_questions_give_three_splits():
    rows = ['0.jpg,a,False,False', '1.jpg,b,True,False', '2.jpg,a,False,True']
    assert read_table(write('file,label,is_valid,is_test', *rows)).given.tolist() == ['train', 'valid', 'test']
    assert not read_table(write('file,label,is_valid,is_test', *rows), split='none').given.any()
    assert read_table(write('file,label,is_train', '0.jpg,a,1', '1.jpg,b,0')).given.tolist() == ['train', 'test']


def test_unlabelled_rows_have_no_label():
    table = read_table(write('file,label,split', '0.jpg,a,train', '1.jpg,b,unlabelled', '2.jpg,,test'))
    assert table.label.tolist() == ['a', None, None] and table.given.tolist() == ['train', '', 'test']


def test_two_files_with_different_names_are_not_used():
    Path('classes.txt').write_text('oak\nelm\n')
    file = write('file,label', '0.jpg,0', '1.jpg,1')
    assert read_table(file).label.tolist() == ['oak', 'elm']
    Path('names.json').write_text('{"fir": 0, "yew": 1}')
    assert read_table(file).label.tolist() == ['0', '1'] and 'different names' in notes(read_table(file))


def test_a_table_of_images_has_no_names_for_numbers():
    write('id,photo,finder', '0,P-1,Ann', '1,P-2,Ben', file='class_list.csv')
    assert read_table(write('file,label', '0.jpg,0', '1.jpg,1')).label.tolist() == ['0', '1']


def test_the_taxa_of_inaturalist():
    write('photo_id\tobservation_uuid', '0\tx', '1\tx', '2\ty', file='photos.csv')
    write('observation_uuid\ttaxon_id', 'x\t70', 'y\t90', file='observations.csv')
    write('taxon_id\trank\tname', '70\tspecies\tBoletus edulis', '90\tspecies\tAmanita rubescens', file='taxa.csv')
    table = read_table('photos.csv')
    assert table.label.tolist() == ['Boletus edulis', 'Boletus edulis', 'Amanita rubescens']
    assert table.group.tolist() == ['Boletus edulis/x', 'Boletus edulis/x', 'Amanita rubescens/y']


# other kinds of files


def test_json_and_parquet():
    rows = [dict(file_name='0.jpg', label='oak', size=1), dict(file_name='1.jpg', label=None, size=2)]
    Path('t.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    Path('t.json').write_text(json.dumps(rows))
    pd.DataFrame(rows).to_parquet('t.parquet')
    for name in ('t.jsonl', 't.json', 't.parquet'):
        assert read_table(name).label.tolist() == ['oak', None], name
    pd.DataFrame({'image': [dict(bytes=b'x', path='0.jpg')], 'label': ['oak']}).to_parquet('inside.parquet')
    for name, text, message in (
        ('inside.parquet', None, 'holds the images themselves'),
        ('bad.parquet', 'x', 'cannot be read as Parquet'),
        ('bad.jsonl', '{"file_name": "0.jpg"}\n{', 'Line 2 of .*bad.jsonl is not JSON'),
        ('bad.json', '{"images": [{"file": 1}]}', 'not as COCO has them'),
    ):
        if text:
            Path(name).write_text(text)
        with pytest.raises(UserError, match=message):
            read_table(name)
    with pytest.raises(MissingFileError):
        read_table('gone.parquet')


def test_excel(monkeypatch):
    Path('t.xlsx').write_bytes(b'PK')
    real = builtins.__import__

    def without_openpyxl(name, *args, **kwargs):
        if name == 'openpyxl':
            raise ImportError(name)
        return real(name, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, 'openpyxl', raising=False)
        patch.setattr(builtins, '__import__', without_openpyxl)
        with pytest.raises(UserError, match='pip install openpyxl, or save the table as a CSV'):
            read_table('t.xlsx')
    openpyxl = pytest.importorskip('openpyxl')
    with pytest.raises(UserError, match='cannot be read as an Excel table'):
        read_table('t.xlsx')
    book = openpyxl.Workbook()
    book.active.append(['About this survey'])
    sheet = book.create_sheet('Trees')
    for row in (['Bild', 'Art', 'Fund'], ['0.jpg', 'oak', 7], ['1.jpg', 'oak', 7], ['2.jpg', 'elm', 8.0]):
        sheet.append(row)
    book.save('t.xlsx')
    table = read_table('t.xlsx')
    assert table.group.tolist() == ['oak/7', 'oak/7', 'elm/8'] and '2 sheets; Trees is read' in notes(table)


def test_a_spreadsheet_is_read_as_it_looks():
    openpyxl = pytest.importorskip('openpyxl')
    book = openpyxl.Workbook()
    sheet = book.active
    for row in (
        ['Trees of the park'],
        ['Bild', 'Art'],
        ['0.jpg', 'oak'],
        ['1.jpg'],
        ['2.jpg', 'elm'],
        ['3.jpg', '="a"'],
    ):
        sheet.append(row)
    sheet.merge_cells('B3:B4')
    sheet.row_dimensions[5].hidden = True
    old = book.create_sheet('old')
    for row in (['path', 'label', 'specimen'], ['0.jpg', 'wrong', '1'], ['1.jpg', 'wrong', '2']):
        old.append(row)
    old.sheet_state = 'hidden'
    book.save('t.xlsx')
    Path('t.xlsx').rename('named like.csv')
    table = read_table('named like.csv')
    assert table.label.tolist() == ['oak', 'oak', 'elm', None]
    for text in ('below a title: Trees', '1 merged cell', '1 hidden row (row 5)', '1 formula without a result'):
        assert text in notes(table)
    book = openpyxl.Workbook()
    book.active.title = 'Training'
    for sheet, name in ((book.active, '0.jpg'), (book.create_sheet('Test'), '1.jpg')):
        sheet.append(['path', 'label'])
        sheet.append([name, 'oak'])
    book.save('t.xlsx')
    assert read_table('t.xlsx').given.tolist() == ['train', 'test']


def test_names_of_tables_in_a_folder():
    touch('image_class_labels.txt')
    names = 'a.csv images.txt classes.txt sample_submission.csv metadata.jsonl label_map.json instances_val.json x.md'
    assert [name for name in names.split() if may_name_images(name)] == [
        'a.csv',
        'images.txt',
        'metadata.jsonl',
        'instances_val.json',
    ]


def test_a_large_table_is_read_at_once():
    "20,000 rows; a search of the disk for each would take many seconds"
    images = [f'p/{i // 500}/{i}.jpg' for i in range(2000)]
    touch(*images)
    rows = [f'{images[i]},sp {i % 50},{i // 2}' for i in range(2000)]
    rows += [f'p/0/x{i}.jpg,sp 1,x' for i in range(18_000)]
    start = time.process_time()
    table = read_table(write('path,species,observationID', *rows))
    assert time.process_time() - start < 2 and len(table) == 20_000
