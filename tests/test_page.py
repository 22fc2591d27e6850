"The page of a server, as a visitor sees it: Chromium on a desktop and on a phone, and requests that no browser would send"

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

import numpy as np
import pytest
from chromium import Chromium, find
from page_server import Specimens, coloured, names
from PIL import Image

from fungi_fastai.deploy.page import about_mushrooms, answer_html, evidence_html, explain
from fungi_fastai.evaluation.costs import safety_note
from fungi_fastai.core.errors import UserError

here = Path(__file__).parent
missing = [name for name in ('gradio', 'fastapi', 'uvicorn', 'prometheus_client') if find_spec(name) is None]
needs_server = pytest.mark.skipif(
    bool(missing), reason=f"{', '.join(missing)} not installed: pip install 'fungi_fastai[serve]'"
)
needs_browser = pytest.mark.skipif(find() is None, reason='no chromium or google-chrome on this machine')


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    "(address, folder that temporary files of the server go to, its log)"
    if missing:
        pytest.skip(f'{", ".join(missing)} not installed')
    folder = tmp_path_factory.mktemp('page')
    (folder / 'temporary').mkdir()
    with socket.socket() as one:
        one.bind(('127.0.0.1', 0))
        port = one.getsockname()[1]
    away = {k: str(folder / 'temporary') for k in ('TMPDIR', 'GRADIO_TEMP_DIR')}
    with open(folder / 'log', 'w') as log:
        process = subprocess.Popen(
            [sys.executable, here / 'page_server.py', str(port)],
            stdout=log,
            stderr=log,
            cwd=folder,
            env=os.environ | away,
        )
    address, end = f'http://127.0.0.1:{port}/', time.monotonic() + 180
    try:
        while get(address + 'health')[0] != 200:
            assert process.poll() is None and time.monotonic() < end, (folder / 'log').read_text()
            time.sleep(0.2)
        yield address, folder / 'temporary', folder / 'log'
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, 'the page keeps the server from stopping'
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope='module')
def browser():
    if find() is None:
        pytest.skip('no chromium or google-chrome on this machine')
    with Chromium() as started:
        yield started


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp('images')
    for name, content in dict(
        red=coloured(250, 9, 9, side=300),
        green=coloured(9, 250, 9, side=300),
        grey=coloured(90, 90, 90, side=300),
        white=coloured(255, 255, 255),
        letter=b'Dear Sir or Madam',
        cut=coloured(250, 9, 9, side=900)[:700],
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


def ask(address, data, function='look'):
    "The question that the page's script asks"
    status, told = get(address + function, data, **{'Content-Type': 'application/octet-stream'})
    return status, json.loads(told)


def config(address):
    return json.loads(re.search(r'window\.gradio_config = (\{.*?\});</script>', get(address)[1]).group(1))


# --- what is said ---
def said(*probs):
    model, probs = Specimens(), np.array([probs])
    return answer_html(probs[0], names, model.decide(probs)[0], model.bundle)


def test_a_sure_answer():
    told = said(0.04, 0.06, 0.9)
    assert '<h2>Russula</h2><p class="sure"><b>90%</b> very likely</p>' in told
    assert 'about 90 are right' in told and '0.90 reaches 0.70' in told
    assert 'Only Russula is left' in told
    assert re.findall(r'<b>([^<]*)</b><i', told) == ['90%', '6%', '4%']


def test_an_unsure_answer_says_why_and_what_could_help():
    told = said(0.1, 0.3, 0.6)
    assert '<h2 class="unsure">Not sure</h2>' in told and 'below 0.70' in told and 'What helps' in told
    assert '<h2>Russula' not in told
    assert 'Very likely one of these 2' in told and 'hold the right class 90% of the time' in told


def test_names_are_text_and_never_code():
    told = said(0.04, 0.9, 0.06) + evidence_html(
        np.zeros((8, 8, 3), np.uint8), names[1], np.eye(8), Specimens().nearest(None, 3)
    )
    assert '<b>$' not in told and '&lt;b&gt;${1+1}&lt;/b&gt; {{x}} `' in told


def test_evidence_without_a_map():
    pixels = np.zeros((8, 8, 3), np.uint8)
    assert evidence_html(pixels, 'Russula') == ''
    assert 'captum is missing' in evidence_html(pixels, 'Russula', why='captum is missing')
    assert 'No place' in evidence_html(pixels, 'Russula', np.zeros((8, 8)))


def test_note_where_somebody_could_eat_it():
    model = Specimens()
    assert about_mushrooms(model.bundle)
    model.bundle.classes = ['rose', 'tulip']
    assert not about_mushrooms(model.bundle)


# --- the server below it ---
@needs_server
def test_the_page_takes_no_address_of_the_server(server):
    address, _, _ = server
    for path in ('health', 'ready', 'classes', 'metrics', 'docs', 'openapi.json'):
        assert get(address + path)[0] == 200, path
    assert get(address + 'predict')[0] == 405 and get(address + 'nowhere')[0] == 404
    content = coloured(250, 9, 9)
    assert (
        json.loads(get(address + 'predict', content, **{'Content-Type': 'image/jpeg'})[1])['results'][0]['label']
        == 'Russula'
    )
    for path in ('upload', 'queue/join', 'run/look', 'call/look', 'stream/x', 'component_server', 'component_server/'):
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
def test_strange_questions_are_answered_in_words(server):
    address, _, log = server
    whole = coloured(250, 9, 9, side=900)
    for data, status, words in (
        (b'', 422, 'empty'),
        (b'text', 415, 'not an image'),
        (whole[:700], 422, 'read to its end'),
        (bytes(4) + b'ftypheic' + bytes(9), 415, 'HEIC.*iPhone'),
        (bytes(200_001), 413, 'bytes'),
    ):
        for function in ('look', 'explain'):
            found, told = ask(address, data, function)
            assert found == status and list(told) == ['error'] and re.search(words, told['error']), (data[:20], told)
    assert get(address + 'look', b'x', **{'Content-Type': 'application/json'})[0] == 415
    assert 'Traceback' not in log.read_text()


@needs_server
def test_what_breaks_inside_stays_inside(server, images):
    address, _, log = server
    status, told = ask(address, (images / 'white.jpg').read_bytes())
    assert status == 500 and 'A fault of the server' in told['error'] and 'secret' not in str(told)
    assert 'a secret of the inside' in log.read_text()


@needs_server
def test_nothing_outside_is_named(server):
    address, _, _ = server
    settings = config(address)
    assert not settings['analytics_enabled'] and not settings['run_history'] and not settings['footer_links']
    assert not re.search(r"""@import|@font-face|url\(["']?(http|//)""", get(address + 'theme.css')[1])


@needs_server
def test_reasons_that_cannot_be_given_are_said_where_they_would_be():
    model = Specimens()
    told = explain(model, np.zeros((16, 16, 3), np.uint8), np.array([0.1, 0.8, 0.1]))['html']
    assert 'Where it looked</h3><p>There is no map of this.' in told and told.count('likeness') == 6

    def swapped(features, k):
        raise UserError('examples.safetensors is not the file that was exported')

    model.nearest = swapped
    told = explain(model, np.zeros((16, 16, 3), np.uint8), np.array([0.8, 0.1, 0.1]))['html']
    assert 'Where it looked</h3><p>examples.safetensors is not the file' in told and 'likeness' not in told


# --- in a browser ---
@needs_server
@needs_browser
@pytest.mark.parametrize('width, dark', [(1280, False), (390, True)])
def test_a_picture_is_answered(server, browser, images, width, dark):
    address, temporary, _ = server
    browser.size(width, 844, phone=width < 800, dark=dark)
    browser.open(address)
    browser.wait("document.querySelector('.drop')")
    text = lambda what='body': browser.run(f'document.querySelector({what!r}).innerText')
    assert safety_note in text() and '88% of its answers' in text() and 'at most 0.191 MB' in text()
    assert browser.run("document.querySelectorAll('input[type=file][aria-label]').length") == 2
    assert browser.run("getComputedStyle(document.querySelector('.camera')).display != 'none'") == (width < 800)
    channel = browser.run('Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])')
    assert channel < 60 if dark else channel > 200

    browser.choose(images / 'red.jpg')
    browser.wait("document.querySelector('.said h2')")
    assert (
        text('.said h2') == 'Russula'
        and 'very likely' in text('.said')
        and 'The likeliest of 3 classes' in text('.said')
    )
    browser.wait(
        "document.querySelectorAll('.near img').length == 6 && [...document.images].every(i => i.hidden || i.naturalWidth)"
    )
    assert 'what speaks for Russula' in text('.evidence') and '2 of these 6 are Russula' in text('.evidence')
    assert browser.run("[...document.querySelectorAll('.stage img, .evidence img')].every(i => i.alt)")
    assert browser.run("document.querySelector('.shown').naturalWidth") == 300
    assert browser.run('document.documentElement.scrollWidth') <= width

    browser.choose(images / 'grey.jpg', '.camera input')
    browser.wait("document.querySelector('.unsure')")
    assert (
        text('.said h2') == 'Not sure'
        and 'below 0.70' in text('.said')
        and 'No class can be ruled out' in text('.said')
    )
    assert browser.complaints() == []
    outside = [u for u in browser.fetched() if not u.startswith((address, 'data:', 'blob:' + address))]
    assert outside == []
    assert [p for p in temporary.rglob('*') if p.is_file()] == []  # no image is left behind


@needs_server
@needs_browser
def test_what_is_no_picture_is_refused_kindly_and_the_next_is_answered(server, browser, images):
    address, _, _ = server
    browser.size(1280, 900)
    browser.open(address)
    browser.wait("document.querySelector('.drop')")
    for name, words in (
        ('letter', 'not an image'),
        ('large', 'at most 0.191 MB'),
        ('cut', 'cannot be read|damaged|cut'),
    ):
        browser.run("document.querySelector('.said').innerHTML = ''")
        browser.choose(images / f'{name}.jpg')
        browser.wait("document.querySelector('.said .wrong')")
        told = browser.run("document.querySelector('.said').innerText")
        assert re.search(words, told) and len(told) < 300, told
        assert browser.run("document.querySelector('.shown').hidden") == (name != 'cut')
    browser.choose(images / 'green.jpg')
    browser.wait("document.querySelector('.said h2') && document.querySelector('.evidence h3')")
    assert browser.run("document.querySelector('.said h2').innerText") == names[1]
    assert 'There is no map of this.' in browser.run("document.querySelector('.evidence').innerText")
    browser.drop(
        images / 'red.tif', '.drop'
    )  # which no browser shows: the square that the network saw stands in for it
    browser.wait("document.querySelector('.said h2')?.innerText == 'Russula'")
    browser.wait("!document.querySelector('.shown').hidden && document.querySelector('.shown').naturalWidth == 16")
    assert [
        c for c in browser.complaints() if not re.search(r'status of 4\d\d .*/look$', c)
    ] == []  # a browser tells each refusal


# --- with a bundle that somebody exported ---
@pytest.mark.skipif(
    bool(absent := [name for name in ('onnx', 'onnxscript') if find_spec(name) is None]),
    reason=f'{", ".join(absent)} not installed',
)
def test_a_real_bundle_gives_all_that_the_page_shows(small_bundle):
    from fungi_fastai.deploy.predictor import Predictor

    model = Predictor.load(small_bundle)
    pixels = model.read(coloured(200, 30, 30, side=90))
    probs, features = model.run_with_features(pixels[None])
    (decision,) = model.decide(probs)
    told = answer_html(probs[0], model.classes, decision, model.bundle)
    assert f'The likeliest of {len(model.classes)} classes' in told and model.classes[int(probs.argmax())] in told
    known = model.nearest(features[0], 6)
    shown = evidence_html(pixels, model.classes[0], model.explain(pixels[None], [0])[0], known)
    assert shown.count('<img') == len(known) + 2 * ('what speaks for' in shown) and 'The nearest known images' in shown
    assert not about_mushrooms(model.bundle)
