"The web app in Chromium without a network, and the novelty of images; and what is refused"

import functools
import hashlib
import http.server
import json
import shutil
import tarfile
import threading

import numpy as np
import pytest
from chromium import Chromium, find
from conftest import user_home
from PIL import Image

from fungi_fastai.core.errors import UserError
from fungi_fastai.deploy import web_runtime
from fungi_fastai.deploy.web import write_web_app
from fungi_fastai.deploy.web_runtime import fetch_runtime, npm_registry

pytestmark = pytest.mark.slow
unlike = 'unlike anything it was trained on'


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def serve():
    "serve(folder) → its address and a function that stops the server"
    servers = []

    def start(folder):
        handler = functools.partial(Quiet, directory=str(folder))
        server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f'http://127.0.0.1:{server.server_port}/', lambda: (server.shutdown(), server.server_close())

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope='module')
def novel_bundle(home, small_run):
    "A bundle with a novelty detector, however little it separates, and few validation images to set a threshold on"
    from fungi_fastai.deploy import novelty_fit
    from fungi_fastai.deploy.export import export

    options = dict(examples=12, references=0, images=8, false_alarm_rate=0.3, progress=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(novelty_fit, 'lowest_auroc', 0)
        return export(small_run, home / 'novel bundle', **options)


@pytest.fixture(scope='module')
def app(novel_bundle, tmp_path_factory):
    "Its web app; the runtime comes from the user's cache, or once from the npm registry"
    runtime = fetch_runtime(cache=user_home / '.fungi/cache')
    return write_web_app(novel_bundle, tmp_path_factory.mktemp('web') / 'app', runtime)


@pytest.fixture(scope='module')
def browser():
    if find() is None:
        pytest.skip('no chromium or google-chrome on this machine')
    with Chromium() as chromium:
        yield chromium


# --- novelty


def test_the_novelty_of_a_bundle(novel_bundle, small_run, fungi, tmp_path):
    from fungi_fastai.deploy.predictor import Predictor

    predictor = Predictor.load(novel_bundle)
    about = json.loads((novel_bundle / 'bundle.json').read_text())['novelty']
    card = (novel_bundle / 'README.md').read_text()
    assert about['folds'] == 5 and about['auroc'] == max(about['auroc_by_score'].values())
    assert f'AUROC {about["auroc"]:.2f}' in card and about['test']['images'] == small_run.metrics['n_test']
    valid = small_run.items[small_run.items.split == 'valid'].path.tolist()
    _, _, novelty = predictor.classify_with_novelty([*valid, tmp_path / 'none.jpg'])
    assert (novelty[:-1] >= about['threshold'] - 1e-6).mean() <= 0.3 and np.isnan(novelty[-1])
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / 'noise.png')
    prediction = predictor.predict(tmp_path / 'noise.png')
    row = json.loads(fungi('predict', novel_bundle, tmp_path / 'noise.png', '--json').out)[0]
    assert row['answer'] == prediction.answer and row['novelty'] == pytest.approx(prediction.novelty)
    assert (prediction.answer == unlike) == (prediction.novelty >= about['threshold'] - 1e-6)
    pooled = predictor.predict([[valid[0], tmp_path / 'noise.png']])[0]
    assert pooled.novelty == min(one.novelty for one in pooled.images)


def test_negatives_are_no_class(photos, place, tmp_path):
    from fungi_fastai.training.fit import prepare_items
    from fungi_fastai.training.recipe import Recipe

    source = shutil.copytree(photos, tmp_path / 'set')
    (tulips,) = source.rglob('tulips')
    tulips.rename(tulips.with_name('background'))
    recipe = Recipe(name='flowers', source=str(source), size=32)
    items = prepare_items(recipe, progress=False)
    assert 'background' in set(items.label) and any('--negatives background' in one for one in items.attrs['notes'])
    items = prepare_items(recipe.but(negatives='background'), progress=False)
    assert items.negative.sum() == 12 and set(items.split[items.negative]) == {''}
    assert 'background' not in set(items.label) and any('holds negatives' in one for one in items.attrs['notes'])
    with pytest.raises(UserError, match="no class 'backgrund' for negatives. Did you mean 'background'"):
        prepare_items(recipe.but(negatives='backgrund'), progress=False)


# --- the web app


def test_answers_without_a_network_are_those_of_python(app, novel_bundle, small_run, serve, browser, tmp_path):
    from fungi_fastai.deploy.predictor import Predictor

    predictor, (address, stop) = Predictor.load(novel_bundle), serve(app)
    browser.size(390, 844, phone=True)
    browser.open(address)
    browser.wait("document.querySelector('.offline').textContent.startsWith('Ready')")
    stop()
    browser.call('Network.emulateNetworkConditions', offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)
    browser.open(address)
    large = Image.open(small_run.items.path[7]).convert('RGB').resize((900, 700))
    exif = Image.Exif()
    exif[0x0112] = 6
    large.save(tmp_path / 'turned.jpg', exif=exif, quality=95)
    large.save(tmp_path / 'plain.png')
    for photo in (*small_run.items.path[:2], tmp_path / 'turned.jpg', tmp_path / 'plain.png'):
        browser.choose(photo)
        browser.wait("document.querySelector('.answer h2, .answer .wrong')")
        expected = predictor.predict(photo)
        shown = browser.run(
            "[document.querySelector('.answer h2').textContent, document.querySelector('.bars li span').textContent,"
            "document.querySelector('.bars li u').style.width, document.querySelector('.taxa')?.textContent ?? '']"
        )
        assert shown[0].lower() == expected.answer.lower() and shown[1] == expected.label, photo
        # Pillow scales a large JPEG down while it decodes it, and the browser does not: a network for 32 px sees that
        tolerance = 5.0 if photo == tmp_path / 'turned.jpg' else 1.0
        assert float(shown[2].rstrip('%')) == pytest.approx(100 * expected.confidence, abs=tolerance), photo
        browser.run("document.querySelector('.answer').innerHTML = ''")
    type_list = "var list = document.querySelector('[name=only]'); list.value = {}; list.onchange()"
    names = predictor.classes[1], predictor.classes[3].upper()
    browser.run(type_list.format(json.dumps('\n'.join(names))))
    browser.wait("document.querySelector('.answer h2')")
    expected = predictor.predict(photo, only=names)
    assert 'Your list leaves 2 of the 5 classes.' in browser.run("document.querySelector('.answer').textContent")
    shown = browser.run("[...document.querySelectorAll('.bars li')].map(one => one.textContent)")
    assert shown[0].startswith(expected.label) and all(one.endswith('<1%') for one in shown[2:])
    browser.run(type_list.format("'Bolets'"))
    browser.wait("document.querySelector('.answer .wrong')")
    assert 'does not know Bolets' in browser.run("document.querySelector('.answer').textContent")
    browser.run(type_list.format("''"))
    (tmp_path / 'text.jpg').write_text('no image')
    browser.choose(tmp_path / 'text.jpg')
    browser.wait("document.querySelector('.answer .wrong')")
    assert 'cannot read text.jpg' in browser.run("document.querySelector('.answer').textContent")
    outside = [url for url in browser.requested_urls() if not url.startswith((address, 'blob:', 'data:'))]
    assert outside == [] and browser.errors() == []


def test_the_files_of_the_app(app):
    names = {file.relative_to(app).as_posix() for file in app.rglob('*') if file.is_file()}
    kept = json.loads((app / 'sw.js').read_text().split('const files = ')[1].split(', own =')[0])
    assert set(kept) == names - {'sw.js'} | {'./'}
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in app.rglob('*'))
    own = [app / name for name in names if name.endswith(('.js', '.html', '.css')) and not name.startswith('ort/')]
    texts = [file.read_text() for file in own]
    assert not any('http://' in text or 'https://' in text for text in texts)


# --- what is refused


def test_a_runtime_that_is_not_the_expected_one(serve, tmp_path, monkeypatch):
    folder = tmp_path / 'onnxruntime-web' / '-'
    folder.mkdir(parents=True)
    package = folder / f'onnxruntime-web-{web_runtime.runtime_version}.tgz'
    with tarfile.open(package, 'w:gz'):
        pass
    monkeypatch.setenv('npm_config_registry', serve(tmp_path)[0])
    with pytest.raises(UserError, match='is not the package that was expected.*--web-runtime'):
        fetch_runtime(cache=tmp_path / 'cache')
    package.unlink()
    with pytest.raises(UserError, match='cannot be downloaded: 404.*npm_config_registry'):
        fetch_runtime(cache=tmp_path / 'cache')
    assert not (tmp_path / 'cache').exists()


def test_npm_decides_where_the_registry_is(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    for name in ('npm_config_registry', 'NPM_CONFIG_REGISTRY'):
        monkeypatch.delenv(name, raising=False)
    assert npm_registry() == 'https://registry.npmjs.org'
    (tmp_path / '.npmrc').write_text('fund=false\nregistry = https://npm.example/\n')
    assert npm_registry() == 'https://npm.example'
    monkeypatch.setenv('npm_config_registry', 'https://mirror.example/npm/')
    assert npm_registry() == 'https://mirror.example/npm'


@pytest.mark.parametrize(
    'options, message',
    [
        ([], 'is a bundle already. Add --web'),
        (['--web', '--int8'], '--int8 is for the export of a run'),
        (['--web-runtime', '.'], '--web-runtime is for --web'),
        (['--web', '--web-runtime', 'nowhere'], 'There is no ort.wasm.min.mjs'),
        (['--web', '--out', 'thesis'], 'is not a web app'),
    ],
)
def test_mistakes(fungi, novel_bundle, tmp_path, monkeypatch, options, message):
    (tmp_path / 'thesis').mkdir()
    (tmp_path / 'thesis' / 'one.txt').write_text('years of work')
    monkeypatch.chdir(tmp_path)
    before = hashlib.sha256((novel_bundle / 'bundle.json').read_bytes()).digest()
    assert message in fungi('export', novel_bundle, *options, code=2).err
    assert [file.name for file in tmp_path.rglob('*')] == ['thesis', 'one.txt']
    assert hashlib.sha256((novel_bundle / 'bundle.json').read_bytes()).digest() == before
