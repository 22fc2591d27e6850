"Downloads from Kaggle: the real client against a local server, and every failure that can happen"

import io
import json
import random
import subprocess
import sys
import threading
import time
import zipfile

import pytest
from kaggle_server import PORT, Server
from PIL import Image

from fungi_fastai.core.errors import TrainingError, UserError
from fungi_fastai.data import downloads
from fungi_fastai.data.sources import Source

dataset, competition = 'maysee/mushrooms', 'plant-seedlings-classification'


def archive(*names, noise=0):
    "The bytes of a zip with a small image under each name; `noise` adds incompressible bytes to each"
    out, image = io.BytesIO(), io.BytesIO()
    Image.new('RGB', (8, 8)).save(image, 'jpeg')
    with zipfile.ZipFile(out, 'w') as z:
        for name in names:
            z.writestr(name, image.getvalue() + random.Random(0).randbytes(noise))
    return out.getvalue()


@pytest.fixture
def machine(tmp_path, monkeypatch):
    "A machine that has no credentials and keeps its data in a temporary folder"
    import os

    for name in [n for n in os.environ if n.startswith('KAGGLE') or n.lower().endswith('_proxy')]:
        monkeypatch.delenv(name)
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    monkeypatch.setenv('KAGGLE_CONFIG_DIR', str(tmp_path / 'home' / '.kaggle'))
    monkeypatch.setenv('KAGGLE_API_ENVIRONMENT', 'TEST')
    (tmp_path / 'settings.ini').write_text('[DEFAULT]\ndata_dir = data\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(downloads, 'pauses', (0.01, 0.01, 0.01))
    monkeypatch.setattr(downloads, 'kaggle_input', tmp_path / 'no' / 'input')
    from kaggle.api.kaggle_api_extended import KaggleApi  # reads the path of its credentials once, when it is imported

    monkeypatch.setattr(KaggleApi, 'config_dir', str(tmp_path / 'home' / '.kaggle'))
    monkeypatch.setattr(KaggleApi, 'config', str(tmp_path / 'home' / '.kaggle' / 'kaggle.json'))
    return tmp_path


@pytest.fixture
def signed_in(monkeypatch):
    monkeypatch.setenv('KAGGLE_USERNAME', 'ada')
    monkeypatch.setenv('KAGGLE_KEY', 'secret')


@pytest.fixture
def kaggle(machine):
    try:
        server = Server()
    except OSError as error:
        pytest.skip(f"port {PORT}, where Kaggle's client looks for a test server, is taken: {error}")
    with server:
        server.kaggle.files = {
            dataset: archive('Mushrooms/Amanita/1.jpg', 'Mushrooms/Boletus/2.jpg', noise=300_000),
            competition: archive('train/Maize/1.jpg', 'train/Fat Hen/2.jpg', 'test/3.jpg'),
        }
        yield server.kaggle


def leftovers(machine):
    "The temporary files of a download, besides locks"
    return sorted(p.name for p in (machine / 'data' / 'kaggle').rglob('.*') if p.suffix not in ('.lock', '.json'))


def test_a_data_set_is_downloaded_once(kaggle, machine, signed_in, capsys):
    table = Source.of(dataset).read()
    assert table.label.tolist() == ['Amanita', 'Boletus']
    assert table.name.tolist() == ['Amanita/1.jpg', 'Boletus/2.jpg']
    assert Source.of(dataset).read().equals(table)
    assert len(kaggle.downloads()) == 1 and leftovers(machine) == []
    assert Source.of(dataset).prepare() == machine / 'data' / 'kaggle' / 'datasets' / 'maysee' / 'mushrooms'
    assert capsys.readouterr().out == ''


def test_a_competition(kaggle, signed_in):
    table = Source.of(f'https://www.kaggle.com/competitions/{competition}/data').read()
    assert table.name.tolist() == ['test/3.jpg', 'train/Fat Hen/2.jpg', 'train/Maize/1.jpg']
    assert table.label.tolist() == [None, 'Fat Hen', 'Maize']
    assert table.given.tolist() == ['test', 'train', 'train']


def test_a_version(kaggle, machine, signed_in):
    assert Source.of(f'https://www.kaggle.com/datasets/{dataset}/versions/3').prepare().name == 'mushrooms-version-3'


def test_lost_files_are_fetched_again(kaggle, signed_in):
    folder = Source.of(dataset).prepare()
    next(folder.rglob('*.jpg')).unlink()
    assert len(Source.of(dataset).read()) == 2
    assert len(kaggle.downloads()) == 2


def test_with_an_access_token(kaggle, monkeypatch):
    kaggle.tokens = {'good'}
    monkeypatch.setenv('KAGGLE_API_TOKEN', 'good')
    assert len(Source.of(f'competition:{competition}').read()) == 3


def test_public_data_needs_no_credentials(kaggle):
    kaggle.needs_credentials = False
    assert len(Source.of(dataset).read()) == 2


@pytest.mark.parametrize('no_redirect', [False, True])
@pytest.mark.parametrize('length', [True, False])
def test_an_interrupted_download_resumes(kaggle, machine, signed_in, no_redirect, length):
    kaggle.no_redirect, kaggle.length, kaggle.cuts = no_redirect, length, [200_000, 250_000]
    size = len(kaggle.files[dataset])
    if not length:  # without a size, only the zip itself shows that it is truncated
        with pytest.raises(UserError, match='cannot be used, and was deleted'):
            Source.of(dataset).read()
        kaggle.cuts = []
    assert len(Source.of(dataset).read()) == 2
    if length:
        assert kaggle.sent < size + 50_000, 'only the end of an interrupted block is sent again'
    assert leftovers(machine) == []


def test_a_download_that_keeps_failing_is_kept_and_resumed(kaggle, machine, signed_in):
    kaggle.cuts = [100_000, 100_000, 100_000, 100_000]
    with pytest.raises(UserError, match='was interrupted. 3.. KB are on disk; the same call resumes') as caught:
        Source.of(dataset).read()
    assert '--source path/to.zip' in str(caught.value)
    assert not (machine / 'data' / 'kaggle' / 'datasets' / 'maysee' / 'mushrooms').exists()
    kaggle.requests.clear()
    assert len(Source.of(dataset).read()) == 2
    assert kaggle.sent < len(kaggle.files[dataset]) + 70_000
    assert int(kaggle.stored()[0][2].removeprefix('bytes=').rstrip('-')) > 300_000


def test_a_changed_file_is_not_resumed(kaggle, signed_in):
    kaggle.cuts = [100_000] * 4
    with pytest.raises(UserError):
        Source.of(dataset).read()
    kaggle.files[dataset] = archive('Mushrooms/Russula/1.jpg', noise=600_000)
    assert Source.of(dataset).read().label.tolist() == ['Russula']


def test_a_server_without_ranges_starts_over(kaggle, signed_in):
    kaggle.ranges, kaggle.cuts = False, [100_000, 100_000]
    assert len(Source.of(dataset).read()) == 2


def test_an_error_page_is_no_data(kaggle, signed_in):
    "The client's own download would append it"
    kaggle.cuts = [100_000] * 4
    with pytest.raises(UserError):
        Source.of(dataset).read()
    kaggle.storage_status = [503, 500]
    assert len(Source.of(dataset).read()) == 2


def test_a_partial_download_that_is_too_long_is_dropped(kaggle, signed_in):
    kaggle.cuts = [100_000] * 4
    with pytest.raises(UserError):
        Source.of(dataset).read()
    kaggle.storage_status = [416]
    assert len(Source.of(dataset).read()) == 2
    assert kaggle.stored()[-1][2] is None


def test_a_range_that_was_not_requested_is_dropped(kaggle, signed_in):
    kaggle.cuts, kaggle.range_offset = [100_000] * 4, 7
    with pytest.raises(UserError):
        Source.of(dataset).read()
    assert len(Source.of(dataset).read()) == 2


def test_a_full_disk_keeps_the_download(kaggle, machine, signed_in, monkeypatch):
    from collections import namedtuple

    usage = namedtuple('Usage', 'total used free')
    free = iter([2**30, 10])  # enough for the download, too little to unpack it
    monkeypatch.setattr(downloads.shutil, 'disk_usage', lambda path: usage(2**30, 0, next(free, 2**30)))
    with pytest.raises(UserError, match='Make room, or set data_dir'):
        Source.of(dataset).read()
    assert leftovers(machine) == ['.mushrooms.zip']
    assert len(Source.of(dataset).read()) == 2 and len(kaggle.downloads()) == 1


def test_a_download_that_is_no_archive_leaves_nothing(kaggle, machine, signed_in):
    kaggle.files[dataset] = b'<html>an error page, but with status 200</html>'
    with pytest.raises(UserError, match='cannot be used, and was deleted'):
        Source.of(dataset).read()
    assert leftovers(machine) == []


def test_damage_in_a_download_is_detected(kaggle, machine, signed_in):
    data = bytearray(kaggle.files[dataset])
    data[1000] ^= 255
    kaggle.files[dataset] = bytes(data)
    with pytest.raises(UserError, match='Bad CRC'):
        Source.of(dataset).read()
    assert leftovers(machine) == []


@pytest.mark.parametrize(
    'status,source,expected',
    [
        (
            401,
            dataset,
            ["does not accept this machine's credentials (401)", 'kaggle auth login', '--source path/to.zip'],
        ),
        (
            403,
            f'competition:{competition}',
            [f'https://www.kaggle.com/competitions/{competition}/rules', 'accept them'],
        ),
        (403, dataset, ['private', f'https://www.kaggle.com/datasets/{dataset}', '--source path/to.zip']),
        (404, dataset, ['does not know the data set maysee/mushrooms (there is no such folder here) (404)']),
        (429, dataset, ['too many requests (429)', 'again in 3600 seconds', '--source path/to.zip']),
        (500, dataset, ['Kaggle answered 500', 'some trouble']),
    ],
)
def test_each_refusal_says_what_to_do(kaggle, machine, signed_in, capsys, status, source, expected):
    kaggle.status, kaggle.message, kaggle.retry_after = status, 'some trouble', '3600' if status == 429 else ''
    start = time.time()
    with pytest.raises(UserError) as caught:
        Source.of(source).read()
    for text in expected:
        assert text in str(caught.value)
    assert '\n' not in str(caught.value)
    assert time.time() - start < 5, 'Retry-After is reported, not waited for'
    assert len(kaggle.downloads()) == (4 if status == 500 else 1)
    assert leftovers(machine) == [] and capsys.readouterr().out == ''


def test_no_credentials(kaggle, capsys):
    for source in (dataset, f'competition:{competition}'):
        with pytest.raises(UserError) as caught:
            Source.of(source).read()
        for text in (
            'kaggle auth login',
            'KAGGLE_API_TOKEN',
            'https://www.kaggle.com/settings',
            '--source path/to.zip',
        ):
            assert text in str(caught.value)
    assert capsys.readouterr().out == ''


def test_a_token_that_is_not_valid(kaggle, monkeypatch):
    monkeypatch.setenv('KAGGLE_API_TOKEN', 'stale')
    with pytest.raises(UserError, match='KAGGLE_API_TOKEN is set, but not valid'):
        Source.of(f'competition:{competition}').read()


def test_a_token_that_kaggle_cannot_check(kaggle, machine, monkeypatch):
    monkeypatch.setenv('KAGGLE_API_TOKEN', 'any')
    kaggle.introspection = 401
    with pytest.raises(UserError, match=r"does not accept this machine's credentials \(401\)"):
        Source.of(dataset).read()
    assert kaggle.downloads() == []


def test_a_folder_that_cannot_be_written(kaggle, machine, signed_in):
    (machine / 'data').write_text('a file where the folder should be')
    with pytest.raises(TrainingError, match='Reading or writing failed'):
        Source.of(dataset).read()


def test_no_network(machine, signed_in):
    import socket

    with socket.socket() as probe:
        if probe.connect_ex(('localhost', PORT)) == 0:
            pytest.skip(f'something answers at port {PORT}')
    with pytest.raises(UserError, match=r'cannot be reached.*--source path/to\.zip'):
        Source.of(dataset).read()


def test_a_killed_download_is_resumed(kaggle, machine, signed_in):
    "A process that exits in the middle of a download"
    code = f"""if True:
        import os, requests
        from fungi_fastai.data.sources import Source
        iter_content = requests.Response.iter_content
        def dies(self, size):
            for number, block in enumerate(iter_content(self, size)):
                yield block
                if number == 1: os._exit(9)
        requests.Response.iter_content = dies
        Source.of({dataset!r}).prepare()"""
    assert subprocess.run([sys.executable, '-c', code]).returncode == 9
    assert leftovers(machine) == ['.mushrooms.download']
    assert len(Source.of(dataset).read()) == 2
    assert [a[2] for a in kaggle.stored()][-1].startswith('bytes=')
    assert leftovers(machine) == []


def test_two_at_once_download_once(kaggle, machine, signed_in):
    tables = []
    threads = [threading.Thread(target=lambda: tables.append(len(Source.of(dataset).read()))) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(300)
    assert tables == [2] * 4
    assert len(kaggle.downloads()) == 1


@pytest.mark.parametrize(
    'source,path',
    [
        (dataset, 'mushrooms'),
        (dataset, f'datasets/{dataset}'),
        (f'competition:{competition}', competition),
        (f'competition:{competition}', f'competitions/{competition}'),
    ],
)
def test_on_kaggle_the_attached_folder_is_used(machine, monkeypatch, source, path):
    monkeypatch.setattr(downloads, 'kaggle_input', machine / 'input')
    image = machine / 'input' / path / 'train' / 'Amanita' / '1.jpg'
    image.parent.mkdir(parents=True)
    Image.new('RGB', (8, 8)).save(image)
    table = Source.of(source).read()
    assert table.path.tolist() == [str(image)] and table.label.tolist() == ['Amanita']


def test_on_kaggle_the_message_says_how_to_attach_data(kaggle, monkeypatch):
    monkeypatch.setenv('KAGGLE_KERNEL_RUN_TYPE', 'Interactive')
    with pytest.raises(UserError, match=r'attach it to the notebook \(Add Input\)'):
        Source.of(f'competition:{competition}').read()


def test_a_source_on_kaggle_is_plain_data():
    source = Source.of('https://www.kaggle.com/c/plant-seedlings-classification')
    assert source == Source.of('competition:plant-seedlings-classification')
    assert Source.from_dict(json.loads(json.dumps(source.to_dict()))) == source
