"A planted leak shows, is measured and is named; where there is none, nothing is claimed"

import json

import numpy as np
import pandas as pd
import pytest
from conftest import tiny
from PIL import Image

from fungi_fastai.core.errors import UserError

pytestmark = pytest.mark.usefixtures('place', 'ready')
small = dict(arch='convmixer_16_1', pretrained=False, size=32)


def leak(source, **changes):
    from fungi_fastai.studies.leakage import leakage_report

    return leakage_report(source, k=3, progress=False, **{**small, **changes})


@pytest.fixture(scope='module')
def planted(tmp_path_factory):
    "Thirty things of two classes that have nothing to do with how they look, three photos of each: only memory can tell the class"
    folder, rng = tmp_path_factory.mktemp('planted'), np.random.default_rng(0)
    stripes = [np.kron(rng.integers(-60, 60, (1, 4, 3)), np.ones((16, 4, 1))) for _ in range(30)]
    for number in range(30):
        colour = rng.integers(60, 195, 3)
        (folder / 'ab'[number % 2]).mkdir(exist_ok=True)
        for photo in range(3):
            pattern = rng.integers(
                -15, 15, (16, 16, 1)
            )  # another one in each photo, so that these are no copies of each other
            pixels = np.clip(colour + stripes[number] + pattern, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).resize((48, 48), Image.Resampling.NEAREST).save(
                folder / 'ab'[number % 2] / f'{number:02}-{photo}.png'
            )
    return folder


@pytest.fixture(scope='module')
def found(home, ready, planted, tmp_path_factory):
    import os

    before = os.getcwd()
    os.chdir(home)
    try:
        return leak(
            planted,
            arch='convmixer_128_1',
            group=r'^(?P<group>\d+)-',
            out=tmp_path_factory.mktemp('out') / 'report',
            repeats=2,
        )
    finally:
        os.chdir(before)


def test_a_planted_leak_shows(found):
    rows = found.scores.set_index('way')
    assert rows.leaked['naive'] > 0.8 and rows.leaked['groups'] == 0
    assert rows.accuracy['naive'] > 0.68 and rows.accuracy['groups'] < 0.6  # chance is .5
    gap = found.gaps['groups']['accuracy']
    assert gap['difference'] == pytest.approx(rows.accuracy['naive'] - rows.accuracy['groups'])
    assert 0 < gap['low'] < gap['difference'] < gap['high']
    assert found.verdict.startswith(
        f'Scores by random split are too good by {100 * gap["difference"]:.1f} points (95 % interval '
    )
    assert (rows.accuracy_low <= rows.accuracy).all() and (rows.accuracy <= rows.accuracy_high).all()


def test_the_pictures_at_fault_are_named_with_their_twins(found):
    table = found.at_fault
    assert len(table) > 10 > found.chance and set(table.kind) <= {'sibling', 'copy'}
    assert (table['name'].str[:4] == table.twin.str[:4]).all() and (
        table['name'] != table.twin
    ).all()  # class and number of the thing
    assert (table.label == table['name'].str[0]).all() and (table.predicted != table.label).all()
    first = {way: said[said.draw == 0].set_index('name') for way, said in found.predictions.items()}
    for row in table.itertuples():
        naive, safe = (first[way].loc[row[2]] for way in ('naive', 'groups'))
        assert naive.predicted == row.label != safe.predicted
        assert first['naive'].loc[row.twin].fold != naive.fold and first['groups'].loc[row.twin].fold == safe.fold
    loss = (table.p_naive - table.p_safe).to_numpy()
    assert (np.diff(loss) <= 1e-12).all()


def test_scores_are_those_of_the_predictions(found):
    for row in found.scores.itertuples():
        said = found.predictions[row.way]
        assert row.accuracy == pytest.approx((said.label == said.predicted).groupby(said.draw).mean().mean())
        assert said.groupby('draw')['name'].nunique().eq(90).all() and said.fold.nunique() == 3
    safe = found.predictions['groups']
    assert safe.groupby(['draw', 'split_group']).fold.nunique().max() == 1
    assert found.predictions['naive'].groupby(['draw', 'split_group']).fold.nunique().max() > 1


def test_what_is_written(found, tmp_path):
    page = found.write(tmp_path / 'again')
    assert {p.name for p in page.parent.iterdir()} == {
        'leakage.html',
        'at_fault.csv',
        'predictions.parquet',
        'leakage.json',
    }
    text = page.read_text('utf8')
    assert found.verdict in text and text.count('src="data:image/jpeg;base64,') == 2 * min(len(found.at_fault), 60)
    assert 'src="http' not in text and 'href="http' not in text
    assert json.loads((page.parent / 'leakage.json').read_text('utf8'))['verdict'] == found.verdict
    assert pd.read_csv(page.parent / 'at_fault.csv')['name'].tolist() == found.at_fault['name'].tolist()
    assert found.verdict in str(found) and '0% with a sibling' in str(found)


def test_proposed_groups_are_taken_and_said(planted):
    report = leak(planted, repeats=1)
    assert (
        report.about['group_proposed']
        and report.about['n_groups'] == 30
        and report.scores.set_index('way').leaked['groups'] == 0
    )
    assert (
        report.notes[0].startswith('No groups were declared; proposed ones were taken.')
        and '--group' in report.notes[0]
    )


def test_where_nothing_leaks_nothing_is_claimed(tmp_path):
    rng = np.random.default_rng(1)
    for i in range(40):
        (tmp_path / 'ab'[i % 2]).mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).resize(
            (40, 40), Image.Resampling.NEAREST
        ).save(tmp_path / 'ab'[i % 2] / f'{i}.png')
    report = leak(tmp_path, repeats=1)
    assert report.verdict.startswith('Nothing leaks') and not len(report.at_fault)
    assert report.scores.accuracy.nunique() == 1 and report.gaps['groups']['accuracy'] == dict(
        difference=0.0, low=0.0, high=0.0
    )
    assert 'Nothing leaks' in report.page()


def test_exact_copies_take_part_and_are_named(tmp_path, photos):
    import shutil

    folder = shutil.copytree(photos, tmp_path / 'photos')
    for file in sorted(folder.rglob('*_0.jpg')):
        shutil.copy(file, file.with_name(file.stem + '-copy.jpg'))
    report = leak(folder, group=r'^(?P<group>.*?)(-copy)?\.jpg', repeats=1)
    rows = report.scores.set_index('way')
    assert report.about['n_images'] == 90 and rows.leaked['naive'] > 0.3 and rows.leaked['copies'] == 0
    assert set(report.at_fault.kind) <= {'copy'}


def test_of_a_run(small_run):
    report = leak(small_run.folder, repeats=1, **{'arch': 'convmixer_16_1'})
    assert report.about['source'] == small_run.recipe.source and any(
        "run's own parts share" in note for note in report.notes
    )


@pytest.mark.parametrize(('changes', 'said'), [(dict(retrain=True), '--out'), (dict(out='a file/x'), 'a file')])
def test_mistakes(photos, changes, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'a file').write_text('')
    with pytest.raises(UserError, match=said):
        leak(photos, **changes)


def test_one_class_is_too_few(photos, tmp_path):
    import shutil

    shutil.copytree(
        photos,
        tmp_path / 'one',
        ignore=lambda folder, names: [n for n in names if n in ('roses', 'tulips', 'daisy', 'dandelion')],
    )
    with pytest.raises(UserError, match='1 classes'):
        leak(tmp_path / 'one')


def test_full_trainings(planted, tmp_path):
    from fungi_fastai.studies.leakage import leakage_report
    from fungi_fastai.training.recipe import Recipe

    recipe = Recipe(group=r'^(?P<group>\d+)-', **tiny).but(source=planted)
    report = leakage_report(recipe, k=2, retrain=True, out=tmp_path / 'trained', progress=False)
    assert {p.name for p in (tmp_path / 'trained').iterdir()} >= {'naive', 'groups', 'leakage.html'}
    assert not (
        tmp_path / 'trained' / 'copies'
    ).exists()  # there are no copies, so it would be the naive training again
    assert (
        report.about['retrained']
        and report.about['n_images'] == 90
        and report.scores.set_index('way').leaked['groups'] == 0
    )
    assert report.scores.accuracy[0] == report.scores.accuracy[1] and len(report.at_fault.columns) == 13


def test_full_trainings_with_copies_in_a_table_that_has_groups(photos, tmp_path):
    import shutil

    from fungi_fastai.studies.leakage import leakage_report
    from fungi_fastai.training.recipe import Recipe

    folder = shutil.copytree(photos, tmp_path / 'photos')
    for file in sorted(folder.rglob('00[0-2]_0.jpg')):
        shutil.copy(file, file.with_name(file.stem + 'c.jpg'))
    files = sorted(folder.rglob('*.jpg'))
    table = dict(path=files, label=[f.parent.name for f in files], specimen=[f.parent.name + f.stem[:3] for f in files])
    pd.DataFrame(table).to_csv(tmp_path / 't.csv', index=False)
    report = leakage_report(
        Recipe(**tiny).but(source=tmp_path / 't.csv'), k=2, retrain=True, out=tmp_path / 'trained', progress=False
    )
    rows = report.scores.set_index('way')
    assert (
        rows.leaked['naive'] > rows.leaked['copies'] > 0.3
        and rows.leaked['groups'] == 0
        and report.about['n_images'] == 75
    )
    said = report.predictions['copies']
    assert (
        said.groupby(said['name'].str.replace('c.jpg', '.jpg')).fold.nunique().max() == 1
    )  # a copy stays with its original
