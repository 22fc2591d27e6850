"Submissions to a competition: order, columns, spelling, ensembles, and refusals"

import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import tiny

from fungi_fastai.core.errors import MissingFileError, UserError
from fungi_fastai.deploy.submission_format import spelling


@pytest.fixture(scope='session')
def plants(tmp_path_factory):
    "A competition of twelve seedlings with underscores in their folders; its sample names Sugar beet in every row"
    from fungi_fastai.samples.datasets import make_sample

    folder = tmp_path_factory.mktemp('plants') / 'set'
    make_sample('seedlings', folder, specimens=4, photos=1, size=32, workers=1)
    for one in (folder / 'train').iterdir():
        one.rename(one.with_name(one.name.replace(' ', '_')))
    sample = pd.read_csv(folder / 'sample_submission.csv', dtype=str)
    sample.sample(frac=1, random_state=3).to_csv(folder / 'sample_submission.csv', index=False)
    return folder


@pytest.fixture(scope='session')
def grown(home, ready, plants):
    "A run, and a cross-validation of two folds"
    import os

    from fungi_fastai import SEEDLINGS, cross_validate, train_seedlings

    before = os.getcwd()
    os.chdir(home)
    changes = {**tiny, 'exclude': (), 'cache': False}
    try:
        return SimpleNamespace(
            run=train_seedlings(plants, out=home / 'grown', progress=False, **changes),
            folds=cross_validate(SEEDLINGS.but(source=plants, **changes), 2, home / 'grown folds', progress=False),
        )
    finally:
        os.chdir(before)


@pytest.fixture
def submit(place, grown, tmp_path):
    from fungi_fastai.deploy.submission import submission

    def call(runs=None, **options):
        return submission(grown.run if runs is None else runs, tmp_path / 'out.csv', **{'progress': False} | options)

    return call


def test_the_file_has_the_samples_order_columns_and_spelling(submit, plants, grown):
    found = submit()
    sample, written = (pd.read_csv(f, dtype=str) for f in (plants / 'sample_submission.csv', found.file))
    assert written.columns.tolist() == ['file', 'species'] and written.file.tolist() == sample.file.tolist()
    assert found.file.read_bytes().startswith(b'file,species\n') and b'\r' not in found.file.read_bytes()
    assert set(written.species) <= {c.replace('_', ' ') for c in grown.run.classes}
    assert found.facts['respelled']['Sugar_beet'] == 'Sugar beet' and 'Maize' not in found.facts['respelled']
    predicted = grown.run.predict([str(plants / 'test' / f) for f in sample.file]).predicted
    assert written.species.tolist() == [c.replace('_', ' ') for c in predicted]


def test_several_networks_in_any_order_give_the_same_bytes(submit, grown):
    one, folds = grown.run, grown.folds
    first = submit([one.folder, folds.folder], tta='flips', probabilities=True)
    kept = first.file.read_bytes(), first.file.with_suffix('.parquet').read_bytes()
    again = submit([folds, *[one]], tta=8, probabilities=True)
    assert (again.file.read_bytes(), again.file.with_suffix('.parquet').read_bytes()) == kept
    assert (first.networks, first.views) == (3, 8) and again.views == 8
    table = pd.read_parquet(first.file.with_suffix('.parquet'))
    assert (
        table.columns[:4].tolist() == ['file', 'path', 'predicted', 'confidence']
        and table.file.tolist() == first.table.file.tolist()
    )
    assert np.allclose(table.filter(like='p_').sum(axis=1), 1, atol=1e-5)


def test_weights_count(submit, grown):
    alone = submit(probabilities=True).file.with_suffix('.parquet').read_bytes()
    assert (
        submit([grown.folds, grown.run], weights=[0, 2], probabilities=True).file.with_suffix('.parquet').read_bytes()
        == alone
    )
    for weights in ([1], [0, 0], [1, -1]):
        with pytest.raises(UserError, match='expected a number of at least 0 for each of the 2 runs'):
            submit([grown.folds, grown.run], weights=weights)


def test_images_and_sample_may_be_given(submit, plants, tmp_path):
    usual = submit().file.read_text()
    sample = pd.read_csv(plants / 'sample_submission.csv', dtype=str)
    shutil.copytree(plants / 'test', tmp_path / 'elsewhere')
    sample.assign(file=sample.file.str[:-4]).to_csv(tmp_path / 'ids.csv', index=False)  # names without extension
    assert submit(test=tmp_path / 'elsewhere', sample=plants / 'sample_submission.csv').file.read_text() == usual
    assert submit(test=tmp_path / 'elsewhere').file.read_text() == usual, 'the sample of the source that was trained on'
    assert submit(sample=tmp_path / 'ids.csv').file.read_text() == usual.replace('.jpg', '')
    sample[['species', 'file']].to_csv(tmp_path / 'turned.csv', index=False)  # the column of files is not the first
    turned = submit(sample=tmp_path / 'turned.csv')
    rows = [','.join(reversed(line.split(','))) for line in usual.splitlines()]
    assert turned.file.read_text().splitlines() == rows and set(turned.facts['predicted']) <= set(
        turned.labels.values()
    )
    archive = shutil.make_archive(str(tmp_path / 'all'), 'zip', plants)
    assert submit(test=archive).file.read_text() == usual


def test_probabilities_if_the_sample_has_a_column_for_each_class(submit, plants, grown, tmp_path):
    classes = sorted((c.replace('_', ' ') for c in grown.run.classes), reverse=True)
    ids = pd.read_csv(plants / 'sample_submission.csv', dtype=str).file
    pd.DataFrame({'id': ids} | {c: 1 / 12 for c in classes}).to_csv(tmp_path / 'sample.csv', index=False)
    table = pd.read_csv(submit(sample=tmp_path / 'sample.csv').file)
    assert table.columns.tolist() == ['id', *classes] and table.id.tolist() == ids.tolist()
    assert np.allclose(table[classes].sum(axis=1), 1, atol=1e-5)
    pd.DataFrame({'id': ids, 'Maize': 0, 'Charlock': 0}).to_csv(tmp_path / 'sample.csv', index=False)
    with pytest.raises(
        UserError, match='has 2 columns beside id: expected one, for the class, or one for each of the 12 classes'
    ):
        submit(sample=tmp_path / 'sample.csv')


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda s: pd.concat([s, s.assign(file='lost.jpg')[:1]]), r'lacks 1 file \(lost.jpg\), of 10 rows'),
        (lambda s: s[2:], r'has 2 files \(.*\), which the sample submission does not have'),
        (lambda s: pd.concat([s, s[:1]]), r'The sample submission has 1 file \(.*jpg\) more than once'),
        (lambda s: s.assign(species='Triffid'), r'names 1 class \(Triffid\), which the runs do not know'),
        (lambda s: s[:0], 'expected an id and a label for each image'),
        (lambda s: s[['file']], 'expected an id and a label for each image'),
    ],
)
def test_what_does_not_fit_is_refused_before_predicting(submit, plants, tmp_path, monkeypatch, change, message):
    out = submit().file
    before = out.read_bytes()
    change(pd.read_csv(plants / 'sample_submission.csv', dtype=str)).to_csv(tmp_path / 'sample.csv', index=False)
    monkeypatch.setattr('fungi_fastai.deploy.submission.predict_tta', None)
    with pytest.raises(UserError, match=message):
        submit(sample=tmp_path / 'sample.csv')
    assert out.read_bytes() == before


def test_two_images_with_one_name(submit, plants, tmp_path):
    shutil.copytree(plants / 'test', tmp_path / 'twice' / 'a')
    shutil.copytree(plants / 'test', tmp_path / 'twice' / 'b')
    with pytest.raises(UserError, match='has 9 files .* more than once'):
        submit(test=tmp_path / 'twice', sample=plants / 'sample_submission.csv')


def test_labels_may_be_given(submit, plants, grown, tmp_path):
    pd.read_csv(plants / 'sample_submission.csv', dtype=str).assign(species='0').to_csv(
        tmp_path / 'sample.csv', index=False
    )
    numbers = {c: i for i, c in enumerate(grown.run.classes)}
    table = submit(sample=tmp_path / 'sample.csv', labels=numbers).table
    assert set(table.species) <= {str(i) for i in range(12)}


@pytest.mark.parametrize(
    'name, content',
    [
        ('map.json', '{"healthy leaf": 0, "rust, orange": 1}'),
        ('label_num_to_disease.json', '{"0": "healthy leaf", "1": "rust, orange"}'),
        ('map.csv', 'disease,number\nhealthy leaf,0\n"rust, orange",1\n'),
        ('map.csv', '\ufeffnumber,disease\n1,"rust, orange"\n0,healthy leaf\n'),
    ],
)
def test_labels_from_a_file(tmp_path, name, content):
    (tmp_path / name).write_text(content, 'utf8')
    spelled = spelling(['healthy leaf', 'rust, orange'], ['0'], tmp_path / name)
    assert spelled == {'healthy leaf': '0', 'rust, orange': '1'}


def test_labels_as_text_and_labels_that_cannot_be_read(tmp_path):
    assert spelling(['a = b', 'c'], ['1'], 'a = b=1, c=2') == {'a = b': '1', 'c': '2'}
    (tmp_path / 'one.csv').write_text('only\nx\n')
    (tmp_path / 'list.json').write_text('[1, 2]')
    (tmp_path / 'broken.json').write_text('{')
    for wrong, message in {
        'healthy': 'cannot be read',
        'a=1,b=': 'cannot be read',
        'a=1,a=2': 'more than once',
        'd=1': "'d', which|d that the runs do not know|class .*d",
        'a=1,c=1': 'spelled alike',
        'a=1': 'a number, and none to 1 class .c.: the submission would have numbers and names',
        'gone.csv': 'no file of labels gone.csv',
        **{str(tmp_path / name): 'is not a table' for name in ('one.csv', 'list.json', 'broken.json')},
    }.items():
        with pytest.raises(UserError, match=message):
            spelling(['a', 'c'], ['1'], wrong)


def test_an_unreadable_image_gets_the_mean_prediction(submit, plants, tmp_path):
    shutil.copytree(plants / 'test', tmp_path / 'some')
    broken = sorted((tmp_path / 'some').iterdir())[4]
    broken.write_bytes(broken.read_bytes()[:90])
    found = submit(test=tmp_path / 'some')
    assert (
        len(found.table) == 9
        and found.unreadable == [broken.name]
        and f'1 image ({broken.name}) could not be read' in str(found)
    )
    for one in (tmp_path / 'some').iterdir():
        one.write_bytes(b'')
    with pytest.raises(UserError, match='None of the 9 images can be read'):
        submit(test=tmp_path / 'some')


def test_runs_that_cannot_be_averaged(submit, grown, small_run, tmp_path):
    with pytest.raises(UserError, match='do not know the same classes: 17 classes'):
        submit([grown.run, small_run])
    with pytest.raises(UserError, match='was given more than once'):
        submit([grown.run, grown.run.folder])
    with pytest.raises(UserError, match='was given more than once'):
        submit([grown.folds, grown.folds.folder / 'fold-2'])
    with pytest.raises(UserError, match='No run was given'):
        submit([])
    with pytest.raises(MissingFileError, match='There is no run folder'):
        submit(tmp_path / 'gone')


def test_a_loaded_learner_is_used(submit, grown, monkeypatch):
    from fungi_fastai import Run

    run = Run.load(grown.run.folder)
    assert run.learner
    expected = submit().table
    monkeypatch.setattr('fungi_fastai.training.load.trained_learner', lambda *_: pytest.fail('loaded again'))
    pd.testing.assert_frame_equal(submit(run).table, expected)


def test_it_is_imported_without_fastai():
    code = 'import sys, fungi_fastai.deploy.submission; print({"torch", "fastai", "timm"} & {*sys.modules})'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.strip() == 'set()', done.stderr


def test_a_source_without_test_images(place, small_run, photos, plants, tmp_path):
    from fungi_fastai.deploy.submission import submission

    with pytest.raises(UserError, match='no unlabelled images in a folder test. .*--test'):
        submission(small_run, tmp_path / 'out.csv')
    inside = next(path for path in sorted(photos.iterdir()) if path.is_dir())
    with pytest.raises(UserError, match=f'folder {inside.name}, .* holds no sample_submission.csv. .*--sample'):
        submission(small_run, tmp_path / 'out.csv', test=inside)
    with pytest.raises(UserError, match='should end in .csv'):
        submission(small_run, tmp_path / 'out.txt')
    with pytest.raises(MissingFileError, match='under Data'):
        submission(small_run, tmp_path / 'out.csv', test=plants, sample=tmp_path / 'gone.csv')
    with pytest.raises(UserError, match="expected a number of at least 1, or 'flips'"):
        submission(small_run, tmp_path / 'out.csv', tta=0)
