"Submissions, scores and notebooks: Kaggle's own client with a local server, and everything that can go wrong"

# ruff: noqa: F811  (fixtures of test_kaggle)
import ast
import json
import shlex
import subprocess
import sys

import pytest
from conftest import tiny
from kaggle_server import PORT
from test_kaggle import competition, kaggle, machine, signed_in  # noqa: F401

from fungi_fastai.core.errors import MissingFileError, TrainingError, UserError
from fungi_fastai.data import downloads
from fungi_fastai.deploy import kaggle as deploy
from fungi_fastai.deploy.kaggle import submissions, submit_file
from fungi_fastai.deploy.kaggle_notebook import push_notebook, requirements, save_pretrained, write_notebook
from fungi_fastai.training.recipes import FLOWERS, MUSHROOMS, SEEDLINGS

rows = 'file,species\n' + ''.join(f'{n:09}.png,Sugar beet\n' for n in range(9000))


@pytest.fixture
def file(machine, monkeypatch):
    monkeypatch.setattr(deploy, 'pauses', (0.01, 0.01, 0.01))
    (machine / 'submission.csv').write_text(rows)
    return machine / 'submission.csv'


def send(file, **options):
    return submit_file(competition, file, 'three folds', every=0.01, progress=False, **options)


def test_a_submission_is_sent_and_scored(kaggle, signed_in, file, capsys):
    kaggle.polls_before_score = 2
    status = send(file)
    assert (status.status, status.public, status.private, status.message, status.file) == (
        'complete',
        0.97229,
        None,
        'three folds',
        'submission.csv',
    )
    assert list(kaggle.uploads.values()) == [rows.encode()]
    assert sum(a[1].endswith('ListSubmissions') for a in kaggle.requests) == 3
    assert submissions(f'https://www.kaggle.com/competitions/{competition}') == [status]
    assert '0.97229' in str(status) and json.dumps(status.to_dict())
    assert capsys.readouterr().out == ''


def test_a_score_that_does_not_arrive_in_time(kaggle, signed_in, file):
    kaggle.polls_before_score = 10**9
    assert send(file, wait=0).status == 'pending'
    assert send(file, wait=0.05).status == 'pending'
    assert [status.ref for status in submissions(competition)] == [1001, 1000]


def test_a_submission_that_kaggle_cannot_score(kaggle, signed_in, file):
    kaggle.scoring_error = 'Submission must have 794 rows'
    with pytest.raises(TrainingError, match='could not score submission 1000: Submission must have 794 rows'):
        send(file)


def test_an_interrupted_upload_resumes(kaggle, signed_in, file):
    kaggle.upload_cuts = [100_000, 50_000]
    assert send(file).status == 'complete'
    assert list(kaggle.uploads.values()) == [rows.encode()]
    parts = [a[2] for a in kaggle.requests if a[0] == 'PUT']
    assert parts[0] == '' and parts[-1].startswith('bytes 150000-'), parts


@pytest.mark.parametrize('status', [503, 500])
def test_an_upload_is_repeated_after_an_error_of_the_storage(kaggle, signed_in, file, status):
    kaggle.upload_status = [status, status]
    assert send(file).status == 'complete' and list(kaggle.uploads.values()) == [rows.encode()]


def test_an_upload_that_keeps_breaking_is_not_submitted(kaggle, signed_in, file):
    kaggle.upload_cuts = [10] * 4
    with pytest.raises(TrainingError, match='broke during the request for a submission'):
        send(file)
    assert kaggle.submissions == []


def test_a_submission_without_a_response_is_not_repeated(kaggle, signed_in, file):
    kaggle.no_response_to = 'CreateSubmission'
    with pytest.raises(TrainingError, match=f'Check on .*{competition} whether it was received'):
        send(file)
    assert sum(a[1].endswith('CreateSubmission') for a in kaggle.requests) == 1


@pytest.mark.parametrize(
    'status,kind,texts',
    [
        (401, UserError, ["does not accept this machine's credentials (401)", 'kaggle auth login']),
        (403, UserError, [f'/competitions/{competition}/rules', 'accept them']),
        (404, UserError, [f'does not know a submission to {competition} (404)']),
        (429, UserError, ['too many requests (429)', 'again in 3600 seconds']),
        (500, TrainingError, ['answered 500', 'an error']),
    ],
)
def test_each_error_says_what_to_do(kaggle, signed_in, file, status, kind, texts):
    kaggle.status, kaggle.message, kaggle.retry_after = status, 'an error', '3600' if status == 429 else ''
    with pytest.raises(kind) as caught:
        send(file)
    for text in texts:
        assert text in str(caught.value)
    assert '--source' not in str(caught.value) and '\n' not in str(caught.value)
    if status in (401, 403, 429):
        assert f'Or upload {file} at' in str(caught.value)


def test_no_credentials(kaggle, file):
    with pytest.raises(UserError, match='only from users who signed in.*no credentials.*kaggle auth login'):
        send(file)
    assert kaggle.uploads == {}


def test_no_network(machine, signed_in, file):
    import socket

    with socket.socket() as probe:
        if probe.connect_ex(('localhost', PORT)) == 0:
            pytest.skip(f'something answers at port {PORT}')
    with pytest.raises(UserError, match='cannot be reached for a submission'):
        send(file)


def test_invalid_competitions_and_files(machine):
    with pytest.raises(MissingFileError, match='no file gone.csv'):
        submit_file(competition, 'gone.csv', '')
    with pytest.raises(UserError, match='is not a competition'):
        submissions('maysee/mushrooms')


# --- notebooks


def code(notebook):
    return [''.join(c['source']) for c in json.loads(notebook.read_text('utf8'))['cells'] if c['cell_type'] == 'code']


def test_a_notebook_is_valid_and_attaches_what_it_needs(machine):
    nbformat = pytest.importorskip('nbformat', reason='nbformat is not installed')
    for recipe, data, competitions in (
        (SEEDLINGS, [], [competition]),
        (MUSHROOMS, [MUSHROOMS.source], []),
        (FLOWERS.for_sample(), [], []),
    ):
        notebook = write_notebook(recipe, machine / recipe.name, owner='ada')
        nbformat.validate(nbformat.read(notebook, as_version=4))
        metadata = json.loads((notebook.parent / 'kernel-metadata.json').read_text())
        assert (
            metadata['dataset_sources'] == ['ada/fungi-fastai-wheels', *data]
            and metadata['competition_sources'] == competitions
        )
        assert metadata['enable_gpu'] and not metadata['enable_internet'] and metadata['is_private']
        assert ('submission.csv' in code(notebook)[-1]) == bool(competitions)
    script = (machine / 'seedlings' / 'make_dataset.sh').read_text()
    assert (
        """save_pretrained('"'"'resnet50'"'"', '"'"'dataset/resnet50.safetensors'"'"', '"'"'resnet50'"'"')""" in script
        and 'kaggle datasets create -p dataset' in script
    )
    assert 'save_pretrained' not in (machine / 'flowers' / 'make_dataset.sh').read_text(), (
        'a network from scratch needs no weights'
    )
    assert subprocess.run(['sh', '-n', machine / 'seedlings' / 'make_dataset.sh']).returncode == 0


@pytest.mark.parametrize('flags', [[], ['--folds', 3], ['--epochs', 2, '--arch', 'convnext_tiny']])
def test_the_command_writes_a_notebook(fungi, tmp_path, flags):
    fungi('kaggle', 'notebook', 'seedlings', '--out', tmp_path / 'kernel', *flags)
    cells = code(tmp_path / 'kernel' / 'notebook.ipynb')
    assert any('recipe = Recipe(' in cell for cell in cells)
    assert any('cross_validate(recipe, k=3' in cell for cell in cells) == ('--folds' in flags)
    fungi('kaggle', 'notebook', 'seedlings', '--out', tmp_path / 'other', '--folds', 1, code=2)
    assert not (tmp_path / 'other').exists()


def test_weights_keep_the_normalisation_that_stands_beside_them(machine):
    "A folder of the hub becomes one file of the dataset; a missing file is noticed before anything is written"
    import torch
    from safetensors.torch import save_file

    from fungi_fastai.models.normalization import weight_normalization

    (machine / 'hub').mkdir()
    save_file(dict(weight=torch.zeros(3)), machine / 'hub' / 'model.safetensors')
    (machine / 'hub' / 'config.json').write_text('{"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}')
    for given in (machine / 'hub', machine / 'hub' / 'model.safetensors'):
        notebook = write_notebook(SEEDLINGS.but(weights=str(given)), machine / 'kernel', owner='ada')
        script = (notebook.parent / 'make_dataset.sh').read_text()
        saving = next(line for line in script.splitlines() if 'save_pretrained' in line)
        arguments = ast.literal_eval('(' + shlex.split(saving)[2].partition('save_pretrained(')[2])
        file = notebook.parent / arguments[1]
        save_pretrained(arguments[0], file, arguments[2])
        assert weight_normalization(file, 'resnet50').mean == (0.1, 0.2, 0.3)
        assert f'attached({file.name!r})' in ''.join(code(notebook))
    with pytest.raises(MissingFileError, match='no file of weights'):
        write_notebook(SEEDLINGS.but(weights='gone.safetensors'), machine / 'none', owner='ada')
    assert not (machine / 'none').exists()


def test_file_names_are_quoted_for_the_shell(machine):
    weights = machine / "it's $(touch hacked).safetensors"
    weights.write_bytes(b'weights')
    notebook = write_notebook(SEEDLINGS.but(weights=str(weights)), machine / 'quoted', owner='ada')
    script = (notebook.parent / 'make_dataset.sh').read_text()
    copying = next(line for line in script.splitlines() if line.startswith('cp '))
    subprocess.run(['sh', '-e', '-c', copying], cwd=notebook.parent, check=True)
    assert [p.read_bytes() for p in (notebook.parent / 'dataset').glob('*.safetensors')] == [b'weights'] and not list(
        machine.rglob('hacked')
    )


def test_the_dataset_holds_all_requirements_but_pytorch():
    names = {line.partition('==')[0] for line in requirements()}
    assert {'fastai', 'timm', 'tyro', 'captum', 'alembic'} <= names and not names & {
        'torch',
        'torchvision',
        'pytest',
        'nbdev',
    }


def test_a_notebook_runs_with_everything_attached(machine, ready, monkeypatch):
    "As on Kaggle, cell by cell, in its working folder; the library is already installed"
    from fungi_fastai.samples.datasets import make_sample

    inputs, work = machine / 'input', machine / 'working'
    make_sample('seedlings', inputs / 'competitions' / competition, specimens=6, photos=1, size=32, workers=1)
    recipe = SEEDLINGS.but(**{k: v for k, v in tiny.items() if k != 'device'}).but(cache=False)
    notebook = write_notebook(recipe, machine / 'notebook', folds=0, tta=2)
    monkeypatch.setenv('FUNGI_KAGGLE_INPUT', str(inputs))
    monkeypatch.setattr(downloads, 'kaggle_input', inputs)
    work.mkdir()
    (work / 'settings.ini').write_text('[DEFAULT]\nnum_workers = 0\ndevice = cpu\n')
    monkeypatch.chdir(work)
    namespace = {}
    for cell in code(notebook):
        exec(cell, namespace)
    assert namespace['run'].finished and (work / 'run' / 'report.html').exists()
    sample = (inputs / 'competitions' / competition / 'sample_submission.csv').read_text().splitlines()
    written = (work / 'submission.csv').read_text().splitlines()
    assert [line.split(',')[0] for line in written] == [line.split(',')[0] for line in sample]


def test_a_dataset_that_is_not_attached_is_named(machine, monkeypatch):
    notebook = write_notebook(SEEDLINGS, machine / 'notebook')
    monkeypatch.setenv('FUNGI_KAGGLE_INPUT', str(machine / 'input'))
    cells, namespace = code(notebook), {}
    exec(cells[0], namespace)
    with pytest.raises(FileNotFoundError, match='Attach the dataset fungi-fastai-wheels'):
        exec(cells[1], namespace)


def test_the_library_is_installed_from_the_attached_wheels(machine, monkeypatch):
    "If it is not installed, and without an index"
    wheel = machine / 'input' / 'datasets' / 'ada' / 'fungi-fastai-wheels' / 'fungi_fastai-0.1.0-py3-none-any.whl'
    wheel.parent.mkdir(parents=True)
    wheel.write_bytes(b'')
    monkeypatch.setenv('FUNGI_KAGGLE_INPUT', str(machine / 'input'))
    calls = []
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    monkeypatch.setattr(subprocess, 'run', lambda command, **options: calls.append(command))
    exec(code(write_notebook(SEEDLINGS, machine / 'notebook'))[0], {})
    assert calls == [
        [sys.executable, '-m', 'pip', 'install', '--quiet', '--no-index', f'--find-links={wheel.parent}', str(wheel)]
    ]


def test_a_notebook_is_pushed_under_the_name_of_the_user(kaggle, signed_in, machine, monkeypatch, capsys):
    monkeypatch.delenv('KAGGLE_USERNAME')
    notebook = write_notebook(SEEDLINGS, machine / 'notebook')
    assert 'YOUR-NAME' in (notebook.parent / 'kernel-metadata.json').read_text()
    monkeypatch.setenv('KAGGLE_USERNAME', 'ada')
    pushed = push_notebook(notebook.parent)
    assert pushed == dict(
        slug='ada/seedlings-with-fungi-fastai',
        url='https://www.kaggle.com/code/ada/seedlings-with-fungi-fastai',
        version=1,
    )
    (sent,) = kaggle.kernels
    assert sent['slug'] == pushed['slug'] and sent['enableGpu'] and not sent['enableInternet']
    assert sent['datasetDataSources'] == ['ada/fungi-fastai-wheels'] and sent['competitionDataSources'] == [competition]
    assert [c['source'] for c in json.loads(sent['text'])['cells'] if c['cell_type'] == 'code'] == code(notebook)
    assert 'ada/' in (notebook.parent / 'dataset' / 'dataset-metadata.json').read_text()
    assert push_notebook(notebook.parent)['version'] == 2 and capsys.readouterr().out == ''


@pytest.mark.parametrize(
    'status,kind', [(401, UserError), (403, UserError), (404, UserError), (429, UserError), (500, TrainingError)]
)
def test_a_push_that_fails(kaggle, signed_in, machine, status, kind):
    notebook = write_notebook(SEEDLINGS, machine / 'notebook')
    kaggle.status, kaggle.message = status, 'an error'
    with pytest.raises(kind, match=rf'\({status}\)|answered {status}'):
        push_notebook(notebook.parent)
    assert kaggle.kernels == []


def test_a_push_that_kaggle_rejects(kaggle, signed_in, machine):
    folder = write_notebook(SEEDLINGS, machine / 'notebook').parent
    kaggle.kernel_answer = {'invalidDatasetSources': ['ada/fungi-fastai-wheels']}
    with pytest.raises(
        UserError, match='could not attach ada/fungi-fastai-wheels. Make the dataset with .*make_dataset.sh'
    ):
        push_notebook(folder)
    kaggle.kernel_answer = {'error': 'Maximum weekly GPU quota of 30.00 hours has been reached'}
    with pytest.raises(UserError, match='did not accept the notebook: Maximum weekly GPU quota'):
        push_notebook(folder)
    (folder / 'notebook.ipynb').unlink()
    with pytest.raises(UserError, match='Source file not found'):
        push_notebook(folder)
    with pytest.raises(MissingFileError, match='fungi kaggle notebook RECIPE --out'):
        push_notebook(machine)
