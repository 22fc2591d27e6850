"The server: what it answers, everything it refuses and why, stopping, being killed, a swapped model"

import asyncio
import base64
import gc
import io
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import weakref
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from serving import Colours, photo
from starlette.testclient import TestClient

from fungi_fastai.deploy.batching import Batcher
from fungi_fastai.deploy.server import BundleWatch, Limits, Upload, make_app, need_server_packages, serve, statuses
from fungi_fastai.core.errors import UserError

here = Path(__file__).parent


@pytest.fixture
def client():
    with TestClient(make_app(Colours(), page=False), raise_server_exceptions=False) as found:
        yield found


def client_of(model=None, **options):
    return TestClient(make_app(model or Colours(), page=False, **options), raise_server_exceptions=False)


def send(client, *contents, **options):
    return client.post('/predict', files=[('files', (f'{i}.jpg', c)) for i, c in enumerate(contents)], **options)


def refused(answer, status, words):
    "An answer is a refusal, in JSON, with its reason"
    assert answer.status_code == status, answer.text
    assert answer.headers['content-type'] == 'application/json'
    assert re.search(words, answer.json()['error']), answer.text
    return True


# ---- answers


def test_one_picture(client):
    answer = send(client, photo(kind='JPEG')).json()
    assert answer['model'] == dict(name='colours', fingerprint=Colours.fingerprint)
    (result,) = answer['results']
    assert list(result) == ['file', 'label', 'confidence', 'answer', 'why', 'set', 'top']
    assert result['file'] == '0.jpg' and result['label'] == result['answer'] == 'red' and result['confidence'] > 0.9
    assert [t['label'] for t in result['top']][0] == 'red' and sum(
        t['probability'] for t in result['top']
    ) == pytest.approx(1, abs=1e-5)


def test_several_pictures_keep_their_order(client):
    answer = send(client, *[photo(colour=c) for c in ('blue', 'lime', 'red', 'blue')], params=dict(top=1)).json()
    assert [r['label'] for r in answer['results']] == ['blue', 'green', 'red', 'blue']
    assert [r['file'] for r in answer['results']] == ['0.jpg', '1.jpg', '2.jpg', '3.jpg'] and all(
        len(r['top']) == 1 for r in answer['results']
    )


def test_a_picture_as_the_body(client):
    for kind in ('image/jpeg', 'image/png', 'application/octet-stream'):  # the bytes say what it is, not the type
        answer = client.post('/predict', content=photo(colour='blue'), headers={'content-type': kind})
        assert (
            answer.status_code == 200
            and answer.json()['results'][0]['label'] == 'blue'
            and answer.json()['results'][0]['file'] is None
        )


@pytest.mark.parametrize(
    'kind, mode',
    [
        ('JPEG', 'L'),
        ('JPEG', 'CMYK'),
        ('PNG', 'RGBA'),
        ('PNG', 'P'),
        ('PNG', '1'),
        ('PNG', 'LA'),
        ('GIF', 'P'),
        ('BMP', 'RGB'),
        ('TIFF', 'CMYK'),
        ('TIFF', 'F'),
        ('WEBP', 'RGB'),
        ('PPM', 'L'),
        ('MPO', 'RGB'),
        ('PNG', 'I;16'),
    ],
)
def test_formats_and_modes(client, kind, mode):
    if mode == 'I;16':
        buffer = io.BytesIO()
        Image.fromarray(np.arange(32 * 32, dtype=np.uint16).reshape(32, 32)).save(buffer, kind)
        data = buffer.getvalue()
    else:
        data = photo(kind=kind, mode=mode)
    assert send(client, data).status_code == 200


def test_names_come_back_as_they_were_sent(client):
    for name in ('Steinpilz in Öhringen.jpg', '../../etc/passwd', 'きのこ.png', '<b>x</b>'):
        result = client.post('/predict', files=dict(files=(name, photo()))).json()['results'][0]
        assert result['file'] == name and result['label'] == 'red'
    assert len(client.post('/predict', files=dict(files=('x' * 2000, photo()))).json()['results'][0]['file']) == 300


def test_classes_health_ready_metrics(client):
    assert client.get('/classes').json()['classes'] == Colours.classes
    assert client.get('/health').json() == dict(healthy=True)
    assert client.get('/ready').json()['ready'] is True
    send(client, photo(), b'')
    client.get('/no/such/path')
    text = client.get('/metrics').text
    for line in (
        'fungi_requests_total{path="/predict",status="200"} 1.0',
        'fungi_pictures_total{status="200"} 1.0',
        'fungi_pictures_total{status="422"} 1.0',
        'fungi_places_taken 0.0',
        'fungi_places 256.0',
        'fungi_ready 1.0',
        'fungi_batch_pictures_count 1.0',
        'fungi_run_seconds_count 1.0',
        'fungi_requests_total{path="page",status="404"} 1.0',
    ):
        assert line in text, line
    assert 'fungi_model_info{' in text and 'name="colours"' in text
    assert 'fungi_requests_total{path="/predict"' not in client_of().get('/metrics').text  # a registry for each app


def test_the_documentation_names_every_status_and_needs_no_network(client):
    spec = client.get('/openapi.json').json()
    asked = spec['paths']['/predict']['post']
    assert {int(k) for k in asked['responses']} == set(statuses)
    assert asked['requestBody']['content']['multipart/form-data']['schema']['properties']['files']['type'] == 'array'
    assert (
        set(spec['paths']) == {'/predict', '/classes', '/health', '/ready', '/metrics'}
        and '503' in spec['paths']['/ready']['get']['responses']
    )
    page = client.get('/docs')
    assert (
        all(f'<code>{s}</code>' in page.text for s in statuses)
        and "default-src 'none'" in page.headers['content-security-policy']
    )
    assert not re.search(r'(src|href)="(https?:)?//', page.text) and '<script' not in page.text
    assert client.get('/', follow_redirects=False).headers['location'] == '/docs'


# ---- refusals


def chunk(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def bomb(width=100_000, height=100_000, colour=2):
    "A small PNG that says it unpacks to ten thousand million pixels"
    head = chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, colour, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + head + chunk(b'IDAT', zlib.compress(bytes(10**6))) + chunk(b'IEND', b'')


def scans(count):
    "A progressive JPEG that goes over its pixels again and again"
    data = photo(kind='JPEG', progressive=True)
    last = data.rindex(b'\xff\xda')
    return data[:last] + data[last:-2] * count + data[-2:]


damaged = {
    'zero bytes': (b'', 422, 'empty'),
    'a letter': (b'Dear Sir or Madam,', 415, 'not an image'),
    'zeros': (bytes(1000), 415, 'not an image'),
    'a PDF': (b'%PDF-1.7\n1 0 obj', 415, 'not an image'),
    'HTML': (b'<html><script>alert(1)</script>', 415, 'not an image'),
    'SVG': (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 415, 'not an image'),
    'HEIC': (b'\0\0\0\x18ftypheic\0\0\0\0mif1heic', 415, 'HEIC'),
    'EPS, which Pillow would start Ghostscript for': (
        b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n',
        415,
        'not an image',
    ),
    'a pickle': (b'\x80\x04\x95\x10\0\0\0\0\0\0\0\x8c\x05posix\x94', 415, 'not an image'),
    'a JPEG cut short': (photo(side=200, kind='JPEG')[:500], 422, 'cut short|read to its end'),
    'a JPEG cut in its pixels': (photo(side=200, kind='JPEG')[:-40], 422, 'cut short|read to its end'),
    'a PNG cut short': (photo(side=200)[:90], 422, 'cut short|read to its end'),
    'a PNG of which a byte is wrong': (photo(side=200)[:60] + b'\0\xff' + photo(side=200)[62:], 422, 'read to its end'),
    'only a signature': (b'\x89PNG\r\n\x1a\n', 415, 'not an image'),
    'a decompression bomb': (bomb(), 413, 'At most 50,000,000 pixels'),
    'an image a little too large': (bomb(7072, 7072), 413, '7072×7072 pixels. At most 50,000,000'),
    'a thousand scans': (scans(1000), 422, 'more than 100 scans'),
    'transparency, which takes several times the memory': (
        bomb(3600, 3600, 6),
        413,
        '3600×3600 pixels of RGBA. At most 12,500,000',
    ),
    'an image written as text': (b'P3 2 1 255 ' + b'255 0 0 ' * 2, 415, 'written as text'),
    'filling between the parts of a JPEG': (b'\xff\xd8\xff' + b'\xff' * 40_000, 422, 'too many parts'),
    'zeros between them': (b'\xff\xd8\xff\xfe\0\2' + bytes(40_000), 422, 'too many parts'),
    'empty parts of a PNG': (bomb(9, 9)[:33] + chunk(b'teXt', b'') * 20_000, 422, 'too many parts'),
}


@pytest.mark.parametrize('what', damaged)
def test_what_is_no_good_picture(client, what):
    data, status, words = damaged[what]
    assert refused(send(client, data), status, words)
    mixed = send(client, photo(), data, photo(colour='blue'))  # the others of its request are answered
    assert mixed.status_code == 200 and 'error' not in mixed.json()
    good, bad, other = mixed.json()['results']
    assert (
        (good['label'], other['label']) == ('red', 'blue')
        and bad['status'] == status
        and re.search(words, bad['error'])
        and 'label' not in bad
    )
    assert 'BytesIO' not in mixed.text and '0x' not in mixed.text


def test_errors_of_several_files(client):
    assert refused(send(client, b'', b''), 422, 'No file could be answered')
    assert refused(send(client, b'text', b'more text'), 415, 'No file could be answered')
    assert refused(send(client, b'', b'text'), 422, 'No file could be answered')
    assert [r['status'] for r in send(client, b'', b'text').json()['results']] == [422, 415]


def test_content_types(client):
    for kind in ('text/html', 'application/pdf', 'video/mp4'):
        assert refused(client.post('/predict', files=dict(files=('a.jpg', photo(), kind))), 415, f'declared as {kind}')
    for kind in ('image/png', 'image/x-anything', 'application/octet-stream', 'IMAGE/JPEG'):
        assert client.post('/predict', files=dict(files=('a.jpg', photo(), kind))).status_code == 200
    for kind in ('application/json', 'text/plain', 'application/x-www-form-urlencoded', ''):
        assert refused(
            client.post('/predict', content=photo(), headers={'content-type': kind}), 415, 'Send multipart/form-data'
        )


def test_forms(client):
    def form(body, boundary='x'):
        return client.post(
            '/predict', content=body, headers={'content-type': f'multipart/form-data; boundary={boundary}'}
        )

    part = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
    assert form(part + photo() + b'\r\n--x--\r\n').status_code == 200
    assert refused(form(part + photo()), 400, 'breaks off before its end')
    assert refused(form(b''), 400, 'breaks off')
    assert refused(form(b'--x--\r\n'), 400, 'no file|breaks off|cannot be read')
    assert refused(form(part, boundary='other'), 400, 'cannot be read')
    assert refused(
        client.post('/predict', content=part, headers={'content-type': 'multipart/form-data'}),
        400,
        'cannot be read|breaks off',
    )
    assert refused(form(b'--x\r\nno header at all\r\n\r\n'), 400, 'cannot be read')
    assert refused(form(b'--x\r\n' + b'a' * 100_000), 400, 'cannot be read')
    assert refused(form(b'--x\r\n' + b'A: b\r\n' * 1000), 400, 'cannot be read')
    other = client.post('/predict', files=dict(image=photo()), data=dict(note='hello'))
    assert refused(other, 400, r'no file in the field `files`. It has: (note|image), (note|image)')
    assert (
        client.post('/predict', files=dict(files=photo()), data=dict(note='x' * 10_000)).status_code == 200
    )  # other fields are passed over
    assert refused(form((part.replace(b'"files"', b'"note"') + b'\r\n') * 101), 413, 'more than 100 other fields')
    result = client.post('/predict', files=dict(files=('a', photo(), 'text/' + 'x' * 1000))).json()['results'][0]
    assert result['status'] == 415 and len(result['error']) < 250


def test_parameters_methods_and_paths(client):
    for top in ('0', '-1', 'many', '1.5'):
        assert refused(send(client, photo(), params=dict(top=top)), 422, '^top: ')
    assert len(send(client, photo(), params=dict(top=1000)).json()['results'][0]['top']) == 3
    assert (
        refused(client.get('/predict'), 405, 'GET')
        and refused(client.get('/predictions'), 404, '/docs')
        and refused(client.get('/../etc/passwd'), 404, '')
    )


def test_sizes():
    with client_of(limits=Limits(max_bytes=2000, max_memory=20_000, max_files=3, max_pixels=1000)) as client:
        assert refused(send(client, bytes(2001)), 413, r'2,001 bytes; at most 2,000')
        mixed = send(client, photo(16), bytes(2001)).json()['results']
        assert mixed[0]['label'] == 'red' and mixed[1]['status'] == 413
        assert refused(send(client, *[photo(16)] * 4), 413, 'more than 3 files')
        assert refused(send(client, photo(32)), 413, '32×32 pixels. At most 1,000 pixels are read')
        assert refused(
            send(client, bytes(6000)), 413, 'larger than 5,000 bytes'
        )  # told by content-length, before anything is read

        def pieces():
            for _ in range(100):
                yield bytes(100)

        assert refused(
            client.post('/predict', content=pieces(), headers={'content-type': 'image/png'}),
            413,
            'larger than 5,000 bytes',
        )
        assert send(client, photo(16)).status_code == 200


def in_app(app, *receivers):
    "The app asked directly, by clients whose body is what an async function gives: (status, JSON) of each"

    async def ask(receive):
        sent = []

        async def send(message):
            sent.append(message)

        scope = dict(
            type='http',
            method='POST',
            path='/predict',
            raw_path=b'/predict',
            query_string=b'',
            headers=[(b'content-type', b'image/png')],
            http_version='1.1',
            scheme='http',
            client=('x', 1),
            server=('y', 2),
            root_path='',
            state={},
        )
        await app(scope, receive, send)
        return sent[0]['status'], dict(sent[0]['headers']), json.loads(sent[1]['body'])

    async def all_of_them():
        return await asyncio.gather(*map(ask, receivers))

    return asyncio.run(all_of_them())


def test_an_upload_that_stalls():
    async def stalls():
        await asyncio.sleep(3600)

    ((status, _, answer),) = in_app(make_app(Colours(), page=False, limits=Limits(timeout=0.05)), stalls)
    assert status == 408 and 'took more than 0.05 s' in answer['error']


def test_an_upload_that_breaks_off():
    async def leaves():
        return dict(type='http.disconnect')

    app = make_app(Colours(), page=False)
    assert in_app(app, leaves)[0][0] == 400 and app.state.batcher.taken == 0


def test_uploads_share_an_allowance():
    "Each of eight is small enough; together they are not, so some are told to come again, and nothing is kept of them"
    app = make_app(Colours(), page=False, limits=Limits(max_bytes=1000, max_memory=4000, timeout=5))

    def client():
        sent = 0

        async def receive():
            nonlocal sent
            sent += 1
            await asyncio.sleep(0.01)  # all are under way at once
            return dict(type='http.request', body=bytes(450), more_body=sent < 2)

        return receive

    answers = in_app(app, *[client() for _ in range(8)])
    busy = [(h, a) for s, h, a in answers if s == 503]
    assert busy and all(b'retry-after' in h and 'hold 4,000 bytes' in a['error'] for h, a in busy)
    assert {s for s, _, _ in answers} <= {503, 415}

    async def one():
        return dict(type='http.request', body=photo(16), more_body=False)

    assert in_app(app, one)[0][0] == 200


def test_no_answer_in_time(tmp_path, monkeypatch):
    gate = tmp_path / 'gate'
    sent = []
    monkeypatch.setattr('fungi_fastai.deploy.server.Upload', lambda *what: sent.append(Upload(*what)) or sent[-1])
    with client_of(Colours(gate), limits=Limits(timeout=0.05, places=4, max_files=3)) as client:
        assert refused(send(client, photo()), 504, 'no answer within 0.05 s')
        assert refused(send(client, photo()), 504, 'no answer')
        assert refused(send(client, photo(), photo()), 504, 'No file could be answered')
        assert [(f.size, len(f.data)) for f in sent] == [(len(photo()), 0)] * 4  # as the allowance of uploads says
        busy = send(client, photo())  # those given up keep their places until the network has let go of them
        assert refused(busy, 503, '4 of 4 places are taken') and int(busy.headers['retry-after']) >= 1
        gate.touch()
        client.app.state.batcher.close()
        assert (
            client.app.state.batcher.taken == 0 and sum(client.app.state.predictor.batches) <= 2
        )  # the last were never run
        assert refused(send(client, photo()), 503, 'stopping')


def test_what_was_refused_is_let_go_at_once():
    "And not when the garbage collector comes by"

    class Source:
        pass

    def read(source):
        raise UserError('no image')

    source, batcher = Source(), Batcher(read, None)
    seen = weakref.ref(source)
    gc.disable()
    try:
        (future,) = batcher.submit([source])
        assert 'no image' in str(future.exception())
        batcher.close()
        del future, source
        assert seen() is None
    finally:
        gc.enable()


def test_a_picture_given_up_is_not_counted_as_read():
    gate, stages = threading.Event(), []

    def read(source):
        gate.wait()
        return np.zeros((2, 2, 3), np.uint8)

    batcher = Batcher(read, lambda pixels: pixels.mean((1, 2)), readers=1, seen=lambda stage, *_: stages.append(stage))
    _, second = batcher.submit([1, 2])
    assert second.cancel()
    gate.set()
    batcher.close()
    assert stages.count('read') == 1


def test_faults_of_the_model(caplog):
    model = Colours()
    model.run = lambda pixels: pixels / 0
    with client_of(model) as client:
        np.seterr(all='ignore')
        model.run = lambda pixels: [][1]
        client.app.state.batcher.run = model.run
        assert refused(send(client, photo()), 500, 'A fault of the server')
        assert 'IndexError' in caplog.text
        client.app.state.batcher.run = Colours().run
        assert send(client, photo()).status_code == 200


def test_api_key():
    with client_of(api_key='Fliegenpilz ä') as client:
        key = 'Fliegenpilz ä'.encode()
        basic = lambda password: b'Basic ' + base64.b64encode(b'me:' + password)
        for headers in (
            {},
            {'x-api-key': b'wrong'},
            {'x-api-key': b''},
            {'authorization': b'Bearer wrong'},
            {'authorization': basic(b'wrong')},
            {'authorization': b'Basic ???'},
            {'authorization': b'Bearer'},
            {'authorization': b'Digest ' + key},
        ):
            for path in ('/classes', '/metrics', '/docs', '/openapi.json', '/', '/nowhere'):
                answer = client.get(path, headers=headers)
                assert refused(answer, 401, 'X-API-Key') and answer.headers['www-authenticate'].startswith('Basic')
            assert refused(send(client, photo(), headers=headers), 401, 'X-API-Key')
        for headers in ({'x-api-key': key}, {'authorization': b'Bearer ' + key}, {'authorization': basic(key)}):
            assert (
                client.get('/classes', headers=headers).status_code == 200
                and send(client, photo(), headers=headers).status_code == 200
            )
        assert (
            client.get('/health').status_code == client.get('/ready').status_code == 200
        )  # whatever watches it has no key


def test_a_key_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv('FUNGI_API_KEY', 'toadstool')  # where `ps` does not show it
    with Server(tmp_path / 'gate', timeout=1.0) as server:
        assert [server.ask(p)[0][0] for p in ('/classes', '/ready')] == [401, 200]
        with socket.create_connection(('127.0.0.1', server.port), timeout=20) as silent:
            assert silent.recv(1) == b''  # who says nothing is shown out


# ---- many at once


def test_pictures_of_many_clients_share_batches(tmp_path):
    model = Colours(tmp_path / 'gate')
    batcher = Batcher(model.read, model.run, max_batch=4)
    futures = batcher.submit([photo(colour=c) for c in ('red', 'blue', 'lime') * 5])
    while batcher._reading:
        time.sleep(0.001)
    (tmp_path / 'gate').touch()
    assert [int(f.result().argmax()) for f in futures] == [2, 0, 1] * 5
    assert max(model.batches) == 4 and len(model.batches) <= 5
    batcher.close()


def test_random_cancelling_leaves_no_place_taken():
    "Futures given up at any moment, errors among them: all places are free again, and the rest has its answers"

    def read(source):
        if source % 7 == 0:
            raise ValueError(source)
        return np.full((2, 2, 3), source % 256, np.uint8)

    batcher = Batcher(read, lambda pixels: pixels.mean((1, 2, 3))[:, None], places=10_000, max_wait=0.001, readers=4)
    chance = np.random.RandomState(0)
    futures, given_up = [], []
    for _ in range(100):
        futures += batcher.submit(list(range(1, 21)))
        given_up += [futures[-i].cancel() for i in chance.randint(1, 21, 5)]
    batcher.close()
    assert batcher.taken == 0 and batcher._reading == 0 and sum(given_up) > 0
    for i, future in enumerate(futures):
        source = i % 20 + 1
        if future.cancelled():
            continue
        if source % 7 == 0:
            assert isinstance(future.exception(timeout=0), ValueError)
        else:
            assert future.result(timeout=0)[0] == source


class Server:
    "A server in a process of its own"

    def __init__(self, gate, port=0, places=256, drain=0.0, timeout=30.0):
        self.process = subprocess.Popen(
            [sys.executable, here / 'serving.py', gate, *map(str, (port, places, drain, timeout))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, 'PYTHONPATH': str(here.parent), 'PYTHONWARNINGS': 'error'},
        )
        self.greeting = self.process.stdout.readline()
        found = re.search(r'http://127\.0\.0\.1:(\d+)$', self.greeting.strip())
        self.port = int(found[1]) if found else None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.communicate()

    def ask(self, path='/predict', data=None, count=1):
        "(status, headers, JSON) of so many clients at once; None for one whose connection broke"

        async def one():
            try:
                reader, writer = await asyncio.open_connection('127.0.0.1', self.port)
                method = 'GET' if data is None else 'POST'
                writer.write(
                    f'{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: image/png\r\n'.encode()
                    + f'content-length: {len(data or b"")}\r\n\r\n'.encode()
                    + (data or b'')
                )
                answer = await reader.read()
                writer.close()
                head, _, body = answer.partition(b'\r\n\r\n')
                status, *lines = head.decode().split('\r\n')
                headers = dict(line.lower().split(': ', 1) for line in lines)
                return (
                    int(status.split()[1]),
                    headers,
                    json.loads(body) if headers['content-type'] == 'application/json' else body.decode(),
                )
            except (OSError, ValueError, IndexError):
                return None

        async def all_of_them():
            return await asyncio.gather(*[one() for _ in range(count)])

        return asyncio.run(all_of_them())

    def taken(self):
        (answer,) = self.ask('/metrics')
        return float(re.search(r'^fungi_places_taken (.*)$', answer[2], re.M)[1])


def wait_until(true, seconds=300):
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, 'it never came true'
        time.sleep(0.01)


def in_background(function):
    found = []
    thread = threading.Thread(target=lambda: found.append(function()), daemon=True)
    thread.start()
    return thread, found


def test_two_hundred_clients_at_once(tmp_path):
    (tmp_path / 'gate').touch()
    with Server(tmp_path / 'gate') as server:
        assert 'Serving colours (3 classes, f00df00df00d) on http://127.0.0.1:' in server.greeting
        answers = server.ask(data=photo(), count=200)
        assert [a[0] for a in answers] == [200] * 200 and {a[2]['results'][0]['label'] for a in answers} == {'red'}
        assert server.taken() == 0


def test_two_hundred_clients_and_eight_places(tmp_path):
    with Server(tmp_path / 'gate', places=8) as server:
        asking, answers = in_background(lambda: server.ask(data=photo(), count=200))
        wait_until(lambda: 'fungi_requests_total{path="/predict",status="503"} 192.0' in server.ask('/metrics')[0][2])
        assert server.ask('/health')[0][0] == server.ask('/ready')[0][0] == 200  # full is not ill
        (tmp_path / 'gate').touch()
        asking.join(300)
        good, busy = [a for a in answers[0] if a[0] == 200], [a for a in answers[0] if a[0] == 503]
        assert (len(good), len(busy)) == (8, 192)
        assert all(int(a[1]['retry-after']) >= 1 and 'places are taken' in a[2]['error'] for a in busy)
        assert server.ask(data=photo())[0][0] == 200


@pytest.mark.parametrize('sign', [signal.SIGTERM, signal.SIGINT])
def test_a_graceful_stop(tmp_path, sign):
    with Server(tmp_path / 'gate', drain=600) as server:
        asking, answers = in_background(lambda: server.ask(data=photo(), count=3))
        wait_until(lambda: server.taken() == 3)
        server.process.send_signal(sign)
        wait_until(lambda: server.ask('/ready')[0][0] == 503)
        assert 'stopping' in server.ask('/ready')[0][2]['error'] and server.ask('/health')[0][0] == 200
        late, more = in_background(lambda: server.ask(data=photo()))  # a load balancer that has not looked yet
        wait_until(lambda: server.taken() == 4)
        server.process.send_signal(sign)  # impatience: no more connections
        wait_until(lambda: server.ask('/ready') == [None])
        assert server.process.poll() is None  # it waits for those in flight
        (tmp_path / 'gate').touch()
        asking.join(300), late.join(300)
        assert [a[0] for a in answers[0] + more[0]] == [200] * 4
        assert server.process.wait(60) == 0
        assert 'Traceback' not in server.process.stderr.read()


def test_killed_under_load_and_started_again(tmp_path):
    with Server(tmp_path / 'gate') as server:
        asking, answers = in_background(lambda: server.ask(data=photo(), count=50))
        wait_until(lambda: server.taken() > 10)
        server.process.kill()
        asking.join(300)
        assert answers[0] == [None] * 50  # no half answer
        (tmp_path / 'gate').touch()
        server.process.wait()
        with Server(tmp_path / 'gate', port=server.port) as again:
            assert again.port == server.port
            assert [a[0] for a in again.ask(data=photo(), count=50)] == [200] * 50


# ---- a swapped model


@pytest.fixture
def bundle(tmp_path):
    "A bundle as far as its files go"
    from fungi_fastai.deploy.bundle import Bundle

    for name in ('model.safetensors', 'model.onnx', 'classes.txt'):
        (tmp_path / name).write_bytes(name.encode() * 100)
    return Bundle.write(
        tmp_path,
        name='colours',
        classes=Colours.classes,
        network=dict(arch='none', head='linear', hidden=0, n_out=3, features=1),
        preprocessing=dict(size=16, canvas=16, resize='crop', mean=[0, 0, 0], std=[1, 1, 1], resampling='bicubic'),
        temperature=1.0,
        threshold=None,
        conformal=None,
        metrics={},
        data={},
        recipe={},
        parity={},
        engines={},
        created='2026-01-01',
        fungi_fastai='1',
    )


def test_a_swapped_model_file_is_noticed(bundle):
    file, old = bundle.folder / 'model.onnx', (bundle.folder / 'model.onnx').read_bytes()
    with client_of(Colours(bundle=bundle)) as client:
        assert client.get('/ready').status_code == 200
        swapped = bundle.folder / 'new'
        swapped.write_bytes(old[::-1])  # as large as the old one
        stat = file.stat()
        os.utime(swapped, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # and as old
        swapped.replace(file)
        answer = client.get('/ready')
        assert (
            refused(answer, 503, r'model\.onnx is not the file that was exported: its checksum differs')
            and answer.json()['ready'] is False
        )
        assert (
            send(client, photo()).status_code == 200 and client.get('/health').status_code == 200
        )  # what is in memory is whole
        assert 'fungi_ready 0.0' in client.get('/metrics').text
        file.write_bytes(old)
        assert client.get('/ready').status_code == 200
        file.unlink()
        assert refused(client.get('/ready'), 503, 'lacks model.onnx')
        file.write_bytes(old)
        (bundle.folder / 'bundle.json').write_text((bundle.folder / 'bundle.json').read_text() + ' ')
        assert refused(client.get('/ready'), 503, 'bundle.json is not what it was')


def test_checksums_are_computed_only_when_something_was_touched(bundle):
    looks = []
    watch = BundleWatch(bundle.folder, lambda: looks.append(1))
    assert watch.check() == watch.check() == '' and not looks
    (bundle.folder / 'classes.txt').touch()
    assert watch.check() == watch.check() == '' and len(looks) == 1


def test_a_swap_is_told_without_being_asked(bundle, capsys):
    with client_of(Colours(bundle=bundle), check_every=0.01) as client:
        (bundle.folder / 'model.onnx').write_bytes(b'other')
        said = ''

        def heard():
            nonlocal said
            said += capsys.readouterr().err
            return 'model.onnx is not the file' in said

        wait_until(heard)
        assert client.get('/health').status_code == 200


# ---- starting


def test_what_cannot_be_served(tmp_path, monkeypatch):
    with socket.create_server(('127.0.0.1', 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=rf'Port {port} of 127.0.0.1 is taken.*--port {port + 1}'):
            serve('nowhere', port=port)
    for port in (-1, 65536):
        with pytest.raises(UserError, match='expected 0 to 65535'):
            serve('nowhere', port=port)
    with pytest.raises(UserError, match='no address'):
        serve('nowhere', host='256.0.0.1.x')
    with pytest.raises(UserError, match='no address 192.0.2.1'):
        serve('nowhere', host='192.0.2.1', port=0)
    with pytest.raises(UserError, match='There is no bundle folder'):
        serve(tmp_path / 'nowhere', port=0)
    with pytest.raises(UserError, match='is not a bundle'):
        serve(tmp_path, port=0)
    for wrong, words in ((dict(max_batch=0), 'max_batch is 0'), (dict(api_key=''), 'API key is empty')):
        with pytest.raises(UserError, match=words):
            make_app(Colours(), **wrong)
    for wrong, words in (
        (dict(places=0), 'places is 0'),
        (dict(max_bytes=2**30), 'a quarter of max_memory'),
        (dict(places=3), 'Raise places'),
        (dict(timeout=-1), 'timeout'),
    ):
        with pytest.raises(UserError, match=words):
            Limits(**wrong)
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        'fungi_fastai.deploy.server.find_spec',
        lambda name: None if name in ('uvicorn', 'python_multipart') else find(name),
    )
    with pytest.raises(
        UserError, match=r"Serving needs uvicorn, python-multipart. Install with: pip install 'fungi_fastai\[serve\]'"
    ):
        need_server_packages()


def test_importing_it_is_light():
    code = 'import fungi_fastai.deploy.server, sys; print([m for m in ("torch", "fastai", "timm", "fastapi", "gradio", "onnxruntime") if m in sys.modules])'
    assert (
        subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'
    )
