"Leakage: a planted leak is measured and its images are named; without a leak, nothing is claimed"

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
    "Thirty objects, three photos of each; the class is unrelated to the look, so only memory can predict it"
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
def report_of_planted(home, ready, planted, tmp_path_factory):
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


def test_a_planted_leak_shows(report_of_planted):
    rows = report_of_planted.scores.set_index('scheme')
    assert rows.leaked['naive'] > 0.8 and rows.leaked['groups'] == 0
    assert rows.accuracy['naive'] > 0.68 and rows.accuracy['groups'] < 0.6  # chance is .5
    gap = report_of_planted.gaps['groups']['accuracy']
    assert gap['difference'] == pytest.approx(rows.accuracy['naive'] - rows.accuracy['groups'])
    assert 0 < gap['low'] < gap['difference'] < gap['high']
    size = f'{100 * gap["difference"]:.1f} points (95 % interval '
    assert report_of_planted.verdict.startswith(f'The scores of a random split are optimistic by {size}')
    assert (rows.accuracy_low <= rows.accuracy).all() and (rows.accuracy <= rows.accuracy_high).all()


def test_leak_dependent_images_come_with_the_nearest_one_in_training(report_of_planted):
    table = report_of_planted.leak_dependent
    assert len(table) > 10 > report_of_planted.n_reversed and set(table.kind) <= {'same specimen', 'near-duplicate'}
    assert (table['name'].str[:4] == table.nearest.str[:4]).all()  # class and number of the object
    assert (table['name'] != table.nearest).all()
    assert (table.label == table['name'].str[0]).all() and (table.predicted != table.label).all()
    first = {scheme: rows[rows.draw == 0].set_index('name') for scheme, rows in report_of_planted.predictions.items()}
    for row in table.itertuples():
        naive, grouped = (first[scheme].loc[row[2]] for scheme in ('naive', 'groups'))
        assert naive.predicted == row.label != grouped.predicted
        assert first['naive'].loc[row.nearest].fold != naive.fold
        assert first['groups'].loc[row.nearest].fold == grouped.fold
    loss = (table.p_naive - table.p_grouped).to_numpy()
    assert (np.diff(loss) <= 1e-12).all()


def test_scores_are_those_of_the_predictions(report_of_planted):
    for row in report_of_planted.scores.itertuples():
        table = report_of_planted.predictions[row.scheme]
        assert row.accuracy == pytest.approx((table.label == table.predicted).groupby(table.draw).mean().mean())
        assert table.groupby('draw')['name'].nunique().eq(90).all() and table.fold.nunique() == 3
    grouped = report_of_planted.predictions['groups']
    assert grouped.groupby(['draw', 'split_group']).fold.nunique().max() == 1
    assert report_of_planted.predictions['naive'].groupby(['draw', 'split_group']).fold.nunique().max() > 1


def test_written_files(report_of_planted, tmp_path):
    page = report_of_planted.write(tmp_path / 'again')
    assert {p.name for p in page.parent.iterdir()} == {
        'leakage.html',
        'leak_dependent.csv',
        'predictions.parquet',
        'leakage.json',
    }
    text = page.read_text('utf8')
    assert report_of_planted.verdict in ' '.join(text.split()) and text.count(
        'src="data:image/jpeg;base64,'
    ) == 2 * min(len(report_of_planted.leak_dependent), 60)
    assert 'src="http' not in text and 'href="http' not in text
    assert json.loads((page.parent / 'leakage.json').read_text('utf8'))['verdict'] == report_of_planted.verdict
    assert (
        pd.read_csv(page.parent / 'leak_dependent.csv')['name'].tolist()
        == report_of_planted.leak_dependent['name'].tolist()
    )
    assert report_of_planted.verdict in str(report_of_planted) and '0% with a related image' in str(report_of_planted)


def test_proposed_groups_are_used_and_noted(planted):
    report = leak(planted, repeats=1)
    assert (
        report.about['group_proposed']
        and report.about['n_groups'] == 30
        and report.scores.set_index('scheme').leaked['groups'] == 0
    )
    assert (
        report.notes[0].startswith('No groups are declared; the proposed ones are used.')
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
    assert report.verdict.startswith('Nothing leaks') and not len(report.leak_dependent)
    assert report.scores.accuracy.nunique() == 1 and report.gaps['groups']['accuracy'] == dict(
        difference=0.0, low=0.0, high=0.0
    )
    assert 'Nothing leaks' in report.page()


def test_exact_duplicates_take_part_and_are_named(tmp_path, photos):
    import shutil

    folder = shutil.copytree(photos, tmp_path / 'photos')
    for file in sorted(folder.rglob('*_0.jpg')):
        shutil.copy(file, file.with_name(file.stem + '-copy.jpg'))
    report = leak(folder, group=r'^(?P<group>.*?)(-copy)?\.jpg', repeats=1)
    rows = report.scores.set_index('scheme')
    assert report.about['n_images'] == 90 and rows.leaked['naive'] > 0.3 and rows.leaked['duplicates'] == 0
    assert set(report.leak_dependent.kind) <= {'near-duplicate'}


def test_of_a_run(small_run):
    report = leak(small_run.folder, repeats=1, **{'arch': 'convmixer_16_1'})
    assert report.about['source'] == small_run.recipe.source and any(
        "run's own sets share" in note for note in report.notes
    )


@pytest.mark.parametrize(('changes', 'message'), [(dict(retrain=True), '--out'), (dict(out='a file/x'), 'a file')])
def test_mistakes(photos, changes, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'a file').write_text('')
    with pytest.raises(UserError, match=message):
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
    # there are no near-duplicates, so their folds are the naive ones
    assert not (tmp_path / 'trained' / 'duplicates').exists()
    assert (
        report.about['retrained']
        and report.about['n_images'] == 90
        and report.scores.set_index('scheme').leaked['groups'] == 0
    )
    assert report.scores.accuracy[0] == report.scores.accuracy[1] and len(report.leak_dependent.columns) == 13


def test_full_trainings_with_duplicates_in_a_table_that_has_groups(photos, tmp_path):
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
    rows = report.scores.set_index('scheme')
    assert (
        rows.leaked['naive'] > rows.leaked['duplicates'] > 0.3
        and rows.leaked['groups'] == 0
        and report.about['n_images'] == 75
    )
    table = report.predictions['duplicates']
    original = table['name'].str.replace('c.jpg', '.jpg')
    assert table.groupby(original).fold.nunique().max() == 1  # a duplicate stays with its original
