"corrections.csv beside folders, archives and tables: applied, counted, and refused where somebody has to decide"

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from conftest import pack, small_jpeg
from PIL import Image

from fungi_fastai.core.errors import UserError
from fungi_fastai.data.corrections import apply_corrections, content_hash
from fungi_fastai.data.sources import Source

pytestmark = pytest.mark.usefixtures('own_home')
names = ('Boletus/1.jpg', 'Boletus/22.jpg', 'Russula/333.jpg', 'Russula/4444.jpg', 'Russula/deep/22.jpg')


@pytest.fixture
def finds(tmp_path):
    "Three Russulas and two Boletuses, each file with another content; a function that writes corrections.csv there"
    folder = tmp_path / 'finds'
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(small_jpeg(10 * number))

    def correct(*rows, header='image,label,exclude,specimen', file=folder / 'corrections.csv'):
        file.write_text('\n'.join([header, *rows]) + '\n')
        return folder

    return correct


def read(source, **options):
    table = Source.of(source, **options).read()
    return dict(zip(table.name, table.label, strict=True)), ' '.join(table.attrs['notes']), table


def test_folder_archive_and_table(finds, tmp_path):
    folder = finds('333.jpg,boletus', '4444.jpg,,yes', r'Boletus\1.jpg,Boletus')
    expected = {names[0]: 'Boletus', names[1]: 'Boletus', names[2]: 'Boletus', names[4]: 'Russula'}
    expected_note = '1 label changed, 1 label confirmed, 1 image left out'
    assert read(folder)[0] == expected and expected_note in read(folder)[1]
    inside = pack(
        tmp_path / 'a' / 'inside.zip', *names, extra=[('corrections.csv', (folder / 'corrections.csv').read_text())]
    )
    assert read(inside)[0] == expected
    beside = pack(tmp_path / 'b' / 'beside.zip', *names)
    shutil.copy(folder / 'corrections.csv', beside.parent)
    assert read(beside)[0] == expected and expected_note in read(beside)[1]
    table = folder.parent / 'table' / 'labels.csv'
    table.parent.mkdir()
    paths = [str(folder / name) for name in names]
    pd.DataFrame(dict(path=paths, label=[name.split('/')[0] for name in names])).to_csv(table, index=False)
    shutil.copy(folder / 'corrections.csv', table.parent)
    assert sorted(read(table)[0].values()) == sorted(expected.values()) and expected_note in read(table)[1]
    assert set(read(table, corrections='none')[0].values()) == {'Boletus', 'Russula'} and len(read(table)[0]) == 4
    frame = pd.read_csv(table)
    shutil.copy(folder / 'corrections.csv', Source.of(frame).prepare().parent)
    assert len(read(frame)[0]) == 5  # the tables of all DataFrames share this folder


def test_the_outer_file_overrules_the_inner_one(finds, tmp_path):
    finds('333.jpg,Boletus', '1.jpg,Russula')
    folder = finds('1.jpg,,yes', file=tmp_path / 'finds' / 'Boletus' / 'corrections.csv')
    labels, notes, _ = read(folder)
    assert labels[names[0]] == 'Russula' and labels[names[2]] == 'Boletus' and '1 decided again' in notes
    labels, _, _ = read(folder.parent / 'finds', corrections=str(folder / 'Boletus' / 'corrections.csv'))
    assert names[0] not in labels and labels[names[2]] == 'Russula'


def test_an_image_that_moved_or_was_replaced(finds, tmp_path):
    folder = tmp_path / 'finds'
    sizes = {name: (folder / name).stat().st_size for name in names}
    hashes = {name: content_hash(folder / name) for name in names}
    rows = [f'{name},Boletus,{hashes[name]},{sizes[name]}' for name in names[2:4]]
    finds(*rows, f',Boletus,{hashes[names[4]].upper()},', header='image,label,sha,bytes')
    (folder / names[2]).rename(folder / 'Russula/other name.jpg')
    (folder / names[3]).write_bytes(small_jpeg(200) + b'longer')
    labels, notes, _ = read(folder)
    assert labels['Russula/other name.jpg'] == labels[names[4]] == 'Boletus' and labels[names[3]] == 'Russula'
    assert 'replaced by another one of that name, such as Russula/4444.jpg (line 3)' in notes


@pytest.mark.parametrize(
    'rows, message',
    [
        (['333.jpg,Bolets'], "line 2: there is no class 'Bolets'. Did you mean 'Boletus'?"),
        (['333.jpg,Boletus', '4444.jpg,new:'], 'line 3: the label is'),
        (['22.jpg,Russula'], 'line 2: 22.jpg may be Boletus/22.jpg, Russula/deep/22.jpg'),
        (['333.jpg,Boletus', '"Russula/333.jpg",Russula'], 'line 2: label Boletus, line 3: label Russula'),
        (['333.jpg,Boletus', '333.jpg,,yes'], 'line 2: exclude no, line 3: exclude yes'),
        (['333.jpg,,maybe'], "line 2: exclude is 'maybe'"),
        ([f'{name},,yes' for name in names], 'has a label, with or without'),
    ],
)
def test_what_somebody_has_to_decide_is_refused(finds, rows, message):
    with pytest.raises(UserError) as error:
        read(finds(*rows))
    assert message in str(error.value)


def test_corrections_of_no_image_are_listed(finds):
    _, notes, table = read(finds('5.jpg,Boletus', '333.jpg,new:Lactarius,,find 7'))
    assert 'of no image of this source, such as 5.jpg (line 2)' in notes and 'new: Lactarius' in notes
    assert table.attrs['corrections']['new_classes'] == ['Lactarius']
    assert read(finds(header='image,label'))[0][names[0]] == 'Boletus'  # no correction yet


def test_another_table_of_that_name(finds, fungi, tmp_path):
    folder = finds('a,b', header='shape,colour')
    assert 'is no list of corrections' in fungi('check', folder, code=2).err
    assert '5 images' in fungi('check', folder, '--corrections', 'none').out
    assert 'is a list of corrections and no source' in fungi('check', folder / 'corrections.csv', code=2).err
    assert 'There is no' in fungi('check', folder, '--corrections', tmp_path / 'none.csv', code=2).err


def test_labels_from_corrections_alone(finds, tmp_path):
    folder = tmp_path / 'loose'
    folder.mkdir()
    for number in range(3):
        (folder / f'{number}.jpg').write_bytes(small_jpeg(number))
    with pytest.raises(UserError, match='no folders to take labels from'):
        read(folder)
    finds('0.jpg,new:Boletus', '1.jpg,new:Russula', file=folder / 'corrections.csv')
    assert read(folder)[0] == {'0.jpg': 'Boletus', '1.jpg': 'Russula', '2.jpg': None}


def test_a_corrected_specimen_does_not_replace_the_assumed_ones(photos, tmp_path):
    from fungi_fastai.training.fit import prepare_items
    from fungi_fastai.training.recipe import Recipe

    folder = shutil.copytree(photos, tmp_path / 'set')
    recipe = Recipe(name='custom', source=str(folder), group='auto')
    before = prepare_items(recipe, progress=False).set_index('name')
    first, other = before.index[before.group != before.group.iloc[0]][:1].tolist() + [before.index[0]]
    (folder / 'corrections.csv').write_text(f'image,specimen\n{first},find 1\n{other},find 1\n')
    after = prepare_items(recipe, progress=False).set_index('name')
    assert (after.group.drop([first, other]) == before.group.drop([first, other])).all()
    assert after.split[first] == after.split[other] and 'corrected_specimen' not in after


def test_check_counts_them(finds, fungi):
    counts = json.loads(fungi('check', finds('333.jpg,Boletus', '4444.jpg,,yes'), '--json').out)
    assert counts['corrections']['relabelled'] == counts['corrections']['excluded'] == 1 and counts['images'] == 4
    assert set(counts['quality']) == {'dark', 'overexposed', 'blurred', 'screenshot', 'margin', 'shape', 'text'}


def test_files_of_one_size_differ_by_their_content(tmp_path):
    images = []
    for name, grey in (('x', 10), ('y', 200)):
        (tmp_path / name).mkdir()
        Image.new('RGB', (8, 8), (grey, grey, grey)).save(tmp_path / name / '1.bmp')
        images.append(dict(path=str(tmp_path / name / '1.bmp'), name=f'{name}/1.bmp', label=name, group='', given=''))
    first = Path(images[0]['path'])
    row = f'1.bmp,y,{content_hash(first)},{first.stat().st_size}'
    (tmp_path / 'corrections.csv').write_text(f'image,label,sha,bytes\n{row}\n')
    corrected = apply_corrections(pd.DataFrame(images), [tmp_path / 'corrections.csv'])
    assert corrected.attrs['corrections']['relabelled'] == 1 and corrected.attrs['corrections']['confirmed'] == 0
