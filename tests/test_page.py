"The page of a server in Chromium, on a desktop and on a phone, and requests that no browser sends"

import gzip
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from chromium import Chromium, find
from page_server import Specimens, coloured, names
from PIL import Image

from fungi_fastai.core.errors import UserError
from fungi_fastai.deploy.novelty import mark_unlike
from fungi_fastai.deploy.page import about_mushrooms, answer, answer_html, evidence_html, explain
from fungi_fastai.evaluation.costs import safety_note

here = Path(__file__).parent
missing = [name for name in ('gradio', 'fastapi', 'uvicorn', 'prometheus_client') if find_spec(name) is None]
needs_server = pytest.mark.skipif(
    bool(missing), reason=f"{', '.join(missing)} not installed: pip install 'fungi_fastai[serve]'"
)
needs_browser = pytest.mark.skipif(find() is None, reason='no chromium or google-chrome on this machine')


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    "(address, folder of the server's temporary files, its log)"
    if missing:
        pytest.skip(f'{", ".join(missing)} not installed')
    folder = tmp_path_factory.mktemp('page')
    (folder / 'temporary').mkdir()
    with socket.socket() as reserved:
        reserved.bind(('127.0.0.1', 0))
        port = reserved.getsockname()[1]
    temporary = {k: str(folder / 'temporary') for k in ('TMPDIR', 'GRADIO_TEMP_DIR')}
    with open(folder / 'log', 'w') as log:
        process = subprocess.Popen(
            [sys.executable, here / 'page_server.py', str(port)],
            stdout=log,
            stderr=log,
            cwd=folder,
            env=os.environ | temporary,
        )
    address, end = f'http://127.0.0.1:{port}/', time.monotonic() + 180
    try:
        while get(address + 'health')[0] != 200:
            assert process.poll() is None and time.monotonic() < end, (folder / 'log').read_text()
            time.sleep(0.2)
        yield address, folder / 'temporary', folder / 'log'
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, 'the page prevents the server from stopping'
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope='module')
def browser():
    if find() is None:
        pytest.skip('no chromium or google-chrome on this machine')
    with Chromium() as chromium:
        yield chromium


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp('images')
    for name, content in dict(
        red=coloured(250, 9, 9, size=300),
        green=coloured(9, 250, 9, size=300),
        grey=coloured(90, 90, 90, size=300),
        white=coloured(255, 255, 255),
        letter=b'Dear Sir or Madam',
        cut=coloured(250, 9, 9, size=900)[:700],
        large=bytes(300_000),
    ).items():
        (folder / f'{name}.jpg').write_bytes(content)
    Image.new('RGB', (90, 60), (250, 9, 9)).save(folder / 'red.tif')
    return folder


def get(address, data=None, **headers):
    try:
        with urllib.request.urlopen(urllib.request.Request(address, data, headers), timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ''


def ask(address, data, function='answer'):
    "The request that the page's script sends"
    status, text = get(address + function, data, **{'Content-Type': 'application/octet-stream'})
    return status, json.loads(text)


def config(address):
    return json.loads(re.search(r'window\.gradio_config = (\{.*?\});</script>', get(address)[1]).group(1))


# --- the HTML ---
def answer_for(*probs):
    model, probs = Specimens(), np.array([probs])
    return answer_html(probs[0], names, model.decide(probs)[0], model.bundle)


def test_a_confident_answer():
    text = answer_for(0.04, 0.06, 0.9)
    assert '<h2>Russula</h2><p class="confidence"><b>90%</b> confidence, very likely correct</p>' in text
    assert 'about 91 to 99 are correct, judging by 150 test images' in text and '0.90 reaches 0.70' in text
    assert 'Only Russula is left' in text
    assert re.findall(r'<b>([^<]*)</b><i', text) == ['90%', '6%', '4%']


@pytest.mark.parametrize('images, low', [(12, 0.75), (25, 0.86), (900, 0.985)])
def test_words_of_confidence_need_test_images(images, low):
    model, probs = Specimens(), np.array([[0.004, 0.004, 0.992]])
    model.bundle.metrics['reliability'][0] |= dict(images=images, accuracy_low=low, accuracy_high=1.0)
    text = answer_html(probs[0], names, model.decide(probs)[0], model.bundle)
    assert 'virtually certain' not in text and 'about 99' not in text  # no lower end of an interval reaches 0.99
    assert ('Only 12 test images' in text) == (images == 12) and ('likely correct</p>' in text) == (images > 12)
    model.bundle.metrics = {}
    assert 'was not measured' in answer_html(probs[0], names, model.decide(probs)[0], model.bundle)


def test_a_training_image_is_recognised():
    model, pixels, probs = Specimens(), np.zeros((1, 16, 16, 3), np.uint8), np.array([[0.05, 0.05, 0.9]])
    assert 'was trained on this image' not in answer(model, pixels, probs)['html']
    model.nearest = lambda features, k: [SimpleNamespace(label='Russula', name='b/<1>.jpg', distance=0.002)]
    for one in (probs, np.array([[0.3, 0.3, 0.4]])):
        text = answer(model, pixels, one)['html']
        assert 'was trained on this image' in text and 'b/&lt;1&gt;.jpg' in text and 'Of 100 answers' not in text
    model.bundle.files = []
    assert 'was trained on this image' not in answer(model, pixels, probs)['html']


def test_an_abstention_says_why_and_what_helps():
    text = answer_for(0.1, 0.3, 0.6)
    assert '<h2 class="unsure">Not sure</h2>' in text and 'below 0.70' in text and 'What helps' in text
    assert '<h2>Russula' not in text
    assert 'Very likely one of these 2' in text and 'contain the correct class 90% of the time' in text


def test_an_unlike_image_is_not_called_confident():
    (sure,) = Specimens().decide(np.array([[0.04, 0.06, 0.9]]))
    (marked,) = mark_unlike([sure], [0.97], 0.95)
    assert 'reaches 0.70' in sure.why and 'reaches' not in marked.why
    assert marked.why.endswith('97% of the validation images. The most probable class is Russula (0.90).')


def test_names_are_text_and_never_code():
    text = answer_for(0.04, 0.9, 0.06) + evidence_html(
        np.zeros((8, 8, 3), np.uint8), names[1], np.eye(8), Specimens().nearest(None, 3)
    )
    assert '<b>$' not in text and '&lt;b&gt;${1+1}&lt;/b&gt; {{x}} `' in text


def test_evidence_without_a_map():
    pixels = np.zeros((8, 8, 3), np.uint8)
    assert evidence_html(pixels, 'Russula') == ''
    assert 'captum is missing' in evidence_html(pixels, 'Russula', why='captum is missing')
    assert 'No single region' in evidence_html(pixels, 'Russula', np.zeros((8, 8)))


def test_the_safety_note_for_mushrooms():
    model = Specimens()
    assert about_mushrooms(model.bundle)
    model.bundle.classes = ['rose', 'tulip']
    assert not about_mushrooms(model.bundle)


# --- the server ---
@needs_server
def test_the_page_does_not_hide_routes_of_the_server(server):
    address, _, _ = server
    for path in ('health', 'ready', 'classes', 'metrics', 'docs', 'openapi.json'):
        assert get(address + path)[0] == 200, path
    assert get(address + 'predict')[0] == 405 and get(address + 'nowhere')[0] == 404
    content = coloured(250, 9, 9)
    assert (
        json.loads(get(address + 'predict', content, **{'Content-Type': 'image/jpeg'})[1])['results'][0]['label']
        == 'Russula'
    )
    for path in (
        'upload',
        'queue/join',
        'run/answer',
        'call/answer',
        'stream/x',
        'component_server',
        'component_server/',
    ):
        assert get(address + 'gradio_api/' + path, b'x')[0] == 404, path
    for path in (
        'gradio_api/file=/etc/passwd',
        'gradio_api/proxy=http://example.org',
        'gradio_api/runs',
        'gradio_api/heartbeat/x',
        'config',
        'monitoring',
    ):
        assert get(address + path)[0] == 404, path


@needs_server
def test_invalid_uploads_get_an_error_in_words(server):
    address, _, log = server
    whole = coloured(250, 9, 9, size=900)
    for data, status, words in (
        (b'', 422, 'empty'),
        (b'text', 415, 'not an image'),
        (whole[:700], 422, 'read to its end'),
        (bytes(4) + b'ftypheic' + bytes(9), 415, 'HEIC.*iPhone'),
        (bytes(200_001), 413, 'bytes'),
    ):
        for function in ('answer', 'explain'):
            actual, content = ask(address, data, function)
            assert actual == status and list(content) == ['error'], content
            assert re.search(words, content['error']), (data[:20], content)
    assert get(address + 'answer', b'x', **{'Content-Type': 'application/json'})[0] == 415
    assert 'Traceback' not in log.read_text()


@needs_server
def test_internal_errors_are_not_shown(server, images):
    address, _, log = server
    status, content = ask(address, (images / 'white.jpg').read_bytes())
    assert status == 500 and 'Internal server error' in content['error'] and 'secret' not in str(content)
    assert 'an internal secret' in log.read_text()


@needs_server
def test_no_other_address_is_named(server):
    address, _, _ = server
    settings = config(address)
    assert not settings['analytics_enabled'] and not settings['run_history'] and not settings['footer_links']
    assert not re.search(r"""@import|@font-face|url\(["']?(http|//)""", get(address + 'theme.css')[1])


@needs_server
def test_the_files_of_the_page_are_compressed(server):
    address, _, _ = server
    script = address + re.search(r'src="\./(assets/[^"]+\.js)"', get(address)[1]).group(1)
    with urllib.request.urlopen(urllib.request.Request(script, headers={'Accept-Encoding': 'gzip'})) as response:
        assert response.headers['Content-Encoding'] == 'gzip'
        assert gzip.decompress(response.read()).decode() == get(script)[1]


@needs_server
def test_a_missing_explanation_says_why():
    model = Specimens()
    text = explain(model, np.zeros((16, 16, 3), np.uint8), np.array([0.1, 0.8, 0.1]))['html']
    assert 'Where the model looked</h3><p>There is no map of this.' in text and text.count('similarity') == 6

    def changed(features, k):
        raise UserError('examples.safetensors is not the file that was exported')

    model.nearest = changed
    text = explain(model, np.zeros((16, 16, 3), np.uint8), np.array([0.8, 0.1, 0.1]))['html']
    assert 'Where the model looked</h3><p>examples.safetensors is not the file' in text and 'similarity' not in text


# --- in a browser ---
@needs_server
@needs_browser
@pytest.mark.parametrize('width, dark', [(1280, False), (390, True)])
def test_an_image_is_classified(server, browser, images, width, dark):
    address, temporary, _ = server
    browser.size(width, 844, phone=width < 800, dark=dark)
    browser.open(address)
    browser.wait("document.querySelector('.drop')")

    def text(what='body'):
        return browser.run(f'document.querySelector({what!r}).innerText')

    assert safety_note in browser.run("document.querySelector('.note').textContent")
    assert 'Do not eat' in text() and 'not determinations' not in text()  # until it is unfolded
    assert '88% of its answers' in text() and 'at most 0.191 MB each' in text()
    assert browser.run("document.querySelectorAll('input[type=file][aria-label]').length") == 3
    assert browser.run("getComputedStyle(document.querySelector('.camera')).display != 'none'") == (width < 800)
    channel = browser.run('Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])')
    assert channel < 60 if dark else channel > 200

    browser.choose(images / 'red.jpg')
    browser.wait("document.querySelector('.answer h2')")
    assert (
        text('.answer h2') == 'Russula'
        and 'very likely' in text('.answer')
        and 'The most likely of 3 classes' in text('.answer')
    )
    box = "document.querySelector('{}').getBoundingClientRect().top"
    assert browser.run(f'{box.format(".answer h2")} < {box.format(".note")}')
    assert width > 800 or browser.run(f'{box.format(".answer h2")} < {box.format(".drop")}')  # answer before buttons
    browser.wait("document.querySelectorAll('.near img').length == 6")
    browser.wait('[...document.images].every(i => i.hidden || i.naturalWidth)')
    assert 'evidence for Russula' in text('.evidence') and '2 of these 6 are Russula' in text('.evidence')
    assert browser.run("[...document.querySelectorAll('.stage img, .evidence img')].every(i => i.alt)")
    assert browser.run("document.querySelector('.shown').naturalWidth") == 300
    assert browser.run('document.documentElement.scrollWidth') <= width

    browser.choose(images / 'grey.jpg', '.camera input')
    browser.wait("document.querySelector('.unsure')")
    assert (
        text('.answer h2') == 'Not sure'
        and 'below 0.70' in text('.answer')
        and 'No class can be ruled out' in text('.answer')
    )
    browser.choose(images / 'red.jpg', '.more input')  # another photo of the specimen
    browser.wait("document.querySelector('.answer .single')")
    assert text('.answer h2') == 'Russula' and 'pooled from 2 photos' in text('.answer')
    assert 'Photo 1: Amanita' in text('.single') and 'Photo 2: Russula' in text('.single')
    browser.wait("document.querySelectorAll('.photos img').length == 2")
    assert browser.run('document.documentElement.scrollWidth') <= width
    type_list = "var list = document.querySelector('[name=only]'); list.value = {}; list.onchange()"
    browser.run(type_list.format("'amanita'"))
    browser.wait("document.querySelector('.answer h2').innerText == 'Amanita'")
    assert 'Your list leaves 1 of the 3 classes.' in text('.answer')
    browser.run(type_list.format("'Bolets'"))
    browser.wait("document.querySelector('.answer .wrong')")
    assert 'does not know Bolets' in text('.answer')
    browser.run(type_list.format("''"))
    browser.wait("document.querySelector('.answer .single')")
    browser.run("document.querySelector('.answer').innerHTML = ''")
    browser.choose(images / 'letter.jpg', '.more input')  # is not kept
    browser.wait("document.querySelector('.answer .wrong')")
    assert 'Photo 3: ' in text('.answer') and 'not an image' in text('.answer')
    assert browser.run("document.querySelectorAll('.photos img').length") == 2
    assert [c for c in browser.errors() if not re.search(r'status of (415|422) .*/answer(\?only=Bolets)?$', c)] == []
    outside = [u for u in browser.requested_urls() if not u.startswith((address, 'data:', 'blob:' + address))]
    assert outside == []
    assert [p for p in temporary.rglob('*') if p.is_file()] == []  # no image is left behind


@needs_server
@needs_browser
def test_a_rejected_file_gets_a_message_and_the_next_is_classified(server, browser, images):
    address, _, _ = server
    browser.size(1280, 900)
    browser.open(address)
    browser.wait("document.querySelector('.drop')")
    for name, words in (
        ('letter', 'not an image'),
        ('large', 'at most 0.191 MB'),
        ('cut', 'cannot be read|damaged|cut'),
    ):
        browser.run("document.querySelector('.answer').innerHTML = ''")
        browser.choose(images / f'{name}.jpg')
        browser.wait("document.querySelector('.answer .wrong')")
        text = browser.run("document.querySelector('.answer').innerText")
        assert re.search(words, text) and len(text) < 300, text
        browser.wait(f"document.querySelector('.shown').hidden == {str(name != 'cut').lower()}")  # once it is loaded
    browser.choose(images / 'green.jpg')
    browser.wait("document.querySelector('.answer h2') && document.querySelector('.evidence h3')")
    assert browser.run("document.querySelector('.answer h2').innerText") == names[1]
    assert 'There is no map of this.' in browser.run("document.querySelector('.evidence').innerText")
    browser.drop(images / 'red.tif', '.drop')  # no browser shows TIFF: the page shows the square that the network saw
    browser.wait("document.querySelector('.answer h2')?.innerText == 'Russula'")
    browser.wait("!document.querySelector('.shown').hidden && document.querySelector('.shown').naturalWidth == 16")
    assert [
        c for c in browser.errors() if not re.search(r'status of 4\d\d .*/answer$', c)
    ] == []  # a browser logs each rejected request


# --- with an exported bundle ---
@pytest.mark.skipif(
    bool(not_installed := [name for name in ('onnx', 'onnxscript') if find_spec(name) is None]),
    reason=f'{", ".join(not_installed)} not installed',
)
def test_the_page_of_a_real_bundle(small_bundle):
    from fungi_fastai.deploy.predictor import Predictor

    model = Predictor.load(small_bundle)
    pixels = model.read(coloured(200, 30, 30, size=90))
    probs, features = model.run_with_features(pixels[None])
    (decision,) = model.decide(probs)
    text = answer_html(probs[0], model.classes, decision, model.bundle)
    assert f'The most likely of {len(model.classes)} classes' in text and model.classes[int(probs.argmax())] in text
    examples = model.nearest(features[0], 6)
    text = evidence_html(pixels, model.classes[0], model.explain(pixels[None], [0])[0], examples)
    assert (
        text.count('<img') == len(examples) + 2 * ('class="pair"' in text)
        and 'The most similar training images' in text
    )
    assert not about_mushrooms(model.bundle)
