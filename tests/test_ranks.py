"Taxonomies that people bring, in their own forms, and those that contradict themselves"

import json

import pytest
from conftest import flags, tiny

from fungi_fastai.core.errors import UserError
from fungi_fastai.evaluation.taxonomy import binomial_taxonomy, read_taxonomy

birds = ['Parus major', 'Parus ater', 'Corvus corax', 'Corvus corone', 'Falco peregrinus']
rows = [
    ('Parus', 'Paridae'),
    ('Parus', 'Paridae'),
    ('Corvus', 'Corvidae'),
    ('Corvus', 'Corvidae'),
    ('Falco', 'Falconidae'),
]
order = ['Passeriformes'] * 4 + ['Falconiformes']
lines = [f'{name},{genus},{family},{top}' for name, (genus, family), top in zip(birds, rows, order, strict=True)]


def table(folder, header, lines, name='t.csv', encoding='utf-8'):
    (folder / name).write_text('\n'.join([header, *lines]), encoding)
    return folder / name


@pytest.mark.parametrize(
    'header, change',
    [
        ('species,genus,family,order', str),
        ('class;Gattung;Familie;Ordnung', lambda line: line.replace(',', ';')),
        ('Order\tFamily\tGenus\tScientific Name', lambda line: '\t'.join(line.split(',')[::-1])),
        ('label,genus,family,order,edible', lambda line: line + ',no'),
        ('label,genus,family,order,class', lambda line: line + ',Aves'),
        ('espèce,genre,famille,ordre', str),
    ],
)
def test_tables_of_ranks(tmp_path, header, change):
    taxonomy = read_taxonomy(table(tmp_path, header, map(change, lines)), birds)
    assert taxonomy.rank == 'species' and list(taxonomy.taxa) == ['genus', 'order']  # families are the same as genera
    assert taxonomy.taxa['genus'] == [genus for genus, _ in rows] and taxonomy.taxa['order'] == order
    assert any('Each family has one genus only' in note for note in taxonomy.notes)


def test_genera_with_families(tmp_path):
    classes = ['Corvus', 'Falco', 'Parus', 'Pica']
    lines = ['Corvus,Corvidae', 'Falco,Falconidae', 'Parus,Paridae', 'Pica,Corvidae', 'Larus,Laridae']
    taxonomy = read_taxonomy(table(tmp_path, 'genus,family', lines), classes)
    assert (taxonomy.rank, taxonomy.taxa) == ('genus', dict(family=['Corvidae', 'Falconidae', 'Paridae', 'Corvidae']))
    assert 't.csv has 1 class without images: Larus.' in taxonomy.notes


@pytest.mark.parametrize(
    'header, lines, words',
    [
        (
            'species,genus,family,order',
            [*lines, 'Parus ater,Periparus,Paridae,Passeriformes'],
            'Parus ater has two taxa',
        ),
        ('species,genus,family,order', lines[1:], 'no row for 1 class of 5: Parus major'),
        ('species,genus', [line.split(',')[0] + ',' for line in lines], 'Parus major has no genus'),
        ('species,colour', [line.split(',')[0] + ',red' for line in lines], 'no column of a rank'),
        (
            'species,genus,family,order',
            [*lines[:1], lines[1].replace('Paridae', 'Corvidae'), *lines[2:]],
            'the genus Parus belongs to two taxa of the rank family: Paridae and Corvidae',
        ),
    ],
)
def test_contradictions_are_refused(tmp_path, header, lines, words):
    with pytest.raises(UserError, match=words):
        read_taxonomy(table(tmp_path, header, lines), birds)


@pytest.mark.parametrize(
    'names, genera',
    [
        (birds, ['Parus', 'Parus', 'Corvus', 'Corvus', 'Falco']),
        (['quercus_robur', 'quercus_petraea', 'fagus_sylvatica'], ['Quercus', 'Quercus', 'Fagus']),
        (['Quercus robur L.', 'Quercus petraea (Matt.) Liebl.', 'Acer sp.'], ['Quercus', 'Quercus', 'Acer']),
        (['Mentha × piperita', 'Mentha aquatica', 'weed'], ['Mentha', 'Mentha', 'weed']),
        (['Ford Fiesta', 'Ford Focus', 'Opel Corsa', 'Opel Kadett'], None),
        (['Field Rose', 'Dog Rose', 'Dog Violet'], None),
        (['A. muscaria', 'A. phalloides'], None),
        (['H1', 'H2'], None),
    ],
)
def test_genera_in_names(names, genera):
    taxonomy = binomial_taxonomy(names)
    assert (taxonomy and taxonomy.taxa['genus']) == genera


def test_a_bad_taxonomy_stops_a_training_before_it_begins(fungi, photos, tmp_path):
    flowers = sorted({file.parent.name for file in photos.rglob('*.jpg')})
    file = table(tmp_path, 'class,genus', [f'{name},one' for name in flowers])
    call = ['train', photos, *flags(**tiny), '--out', tmp_path / 'run', '--taxonomy']
    assert 'no rank that joins classes' in fungi(*call, file, code=2).err
    assert 'There is no table of ranks' in fungi(*call, tmp_path / 'none.csv', code=2).err
    assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_a_training_with_ranks(fungi, photos, tmp_path):
    flowers = sorted({file.parent.name for file in photos.rglob('*.jpg')})
    file = table(tmp_path, 'class,family', [f'{name},{"one" if i < 2 else "two"}' for i, name in enumerate(flowers)])
    run = tmp_path / 'run'
    log = fungi('train', photos, *flags(**tiny), '--out', run, '--taxonomy', file).err
    assert 'Ranks are read from t.csv: family.' in log
    file.unlink()  # the run has its own copy
    ranks = json.loads((run / 'metrics.json').read_text())['ranks']
    assert ranks['taxa'] == dict(family=['one', 'one', 'two', 'two', 'two'])
    assert [row['rank'] for row in ranks['test']['by_rank']] == ['class', 'family', 'all']
    report = (run / 'report.html').read_text()
    assert 'Answers at higher ranks' in report and 'Several photos of a specimen' in report
    fungi('report', run)
