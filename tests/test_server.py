"The server: predictions, rejected requests, load, shutdown, a changed bundle"

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
from serving import Colours, photo, placeholder_bundle
from starlette.testclient import TestClient

from fungi_fastai.core.errors import UserError
from fungi_fastai.deploy.api_docs import statuses
from fungi_fastai.deploy.batching import Batcher
from fungi_fastai.deploy.monitoring import BundleWatch
from fungi_fastai.deploy.server import check_server_packages, make_app, serve
from fungi_fastai.deploy.uploads import Limits, Upload

here = Path(__file__).parent


@pytest.fixture
def client():
    with TestClient(make_app(Colours(), page=False), raise_server_exceptions=False) as client:
        yield client


def client_of(model=None, **options):
    return TestClient(make_app(model or Colours(), page=False, **options), raise_server_exceptions=False)


def send(client, *contents, **options):
    return client.post('/predict', files=[('files', (f'{i}.jpg', c)) for i, c in enumerate(contents)], **options)


def is_error(response, status, words):
    "A response is an error in JSON, with its reason"
    assert response.status_code == status, response.text
    assert response.headers['content-type'] == 'application/json'
    assert re.search(words, response.json()['error']), response.text
    return True


# ---- predictions


def test_one_image(client):
    response = send(client, photo(kind='JPEG')).json()
    assert response['model'] == dict(name='colours', fingerprint=Colours.fingerprint)
    (result,) = response['results']
    assert list(result) == ['file', 'label', 'confidence', 'answer', 'why', 'set', 'top']
    assert result['file'] == '0.jpg' and result['label'] == result['answer'] == 'red' and result['confidence'] > 0.9
    assert [t['label'] for t in result['top']][0] == 'red' and sum(
        t['probability'] for t in result['top']
    ) == pytest.approx(1, abs=1e-5)


def test_several_images_keep_their_order(client):
    response = send(client, *[photo(colour=c) for c in ('blue', 'lime', 'red', 'blue')], params=dict(top=1)).json()
    assert [r['label'] for r in response['results']] == ['blue', 'green', 'red', 'blue']
    assert [r['file'] for r in response['results']] == ['0.jpg', '1.jpg', '2.jpg', '3.jpg'] and all(
        len(r['top']) == 1 for r in response['results']
    )


def test_an_image_as_the_body(client):
    for kind in ('image/jpeg', 'image/png', 'application/octet-stream'):  # the bytes decide, not the type
        response = client.post('/predict', content=photo(colour='blue'), headers={'content-type': kind})
        assert (
            response.status_code == 200
            and response.json()['results'][0]['label'] == 'blue'
            and response.json()['results'][0]['file'] is None
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
        'fungi_images_total{status="200"} 1.0',
        'fungi_images_total{status="422"} 1.0',
        'fungi_queue_images 0.0',
        'fungi_queue_size 256.0',
        'fungi_ready 1.0',
        'fungi_batch_images_count 1.0',
        'fungi_run_seconds_count 1.0',
        'fungi_requests_total{path="page",status="404"} 1.0',
    ):
        assert line in text, line
    assert 'fungi_model_info{' in text and 'name="colours"' in text
    assert (
        'fungi_requests_total{path="/predict"' not in client_of().get('/metrics').text
    )  # each app has its own registry


def test_the_documentation_names_every_status_and_needs_no_network(client):
    spec = client.get('/openapi.json').json()
    route = spec['paths']['/predict']['post']
    assert {int(k) for k in route['responses']} == set(statuses)
    assert route['requestBody']['content']['multipart/form-data']['schema']['properties']['files']['type'] == 'array'
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
    assert client.get('/', follow_redirects=False).headers['location'] == 'docs'  # relative: a proxy may add a prefix


# ---- rejected requests


def chunk(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def bomb(width=100_000, height=100_000, colour=2):
    "A small PNG that declares ten thousand million pixels"
    head = chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, colour, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + head + chunk(b'IDAT', zlib.compress(bytes(10**6))) + chunk(b'IEND', b'')


def scans(count):
    "A progressive JPEG with many scans"
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
    'EPS, for which Pillow would start Ghostscript': (
        b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n',
        415,
        'not an image',
    ),
    'a pickle': (b'\x80\x04\x95\x10\0\0\0\0\0\0\0\x8c\x05posix\x94', 415, 'not an image'),
    'a JPEG cut short': (photo(size=200, kind='JPEG')[:500], 422, 'cut short|read to its end'),
    'a JPEG cut in its pixels': (photo(size=200, kind='JPEG')[:-40], 422, 'cut short|read to its end'),
    'a PNG cut short': (photo(size=200)[:90], 422, 'cut short|read to its end'),
    'a PNG with a wrong byte': (photo(size=200)[:60] + b'\0\xff' + photo(size=200)[62:], 422, 'read to its end'),
    'only a signature': (b'\x89PNG\r\n\x1a\n', 415, 'not an image'),
    'a decompression bomb': (bomb(), 413, 'At most 50,000,000 pixels'),
    'an image slightly too large': (bomb(7072, 7072), 413, '7072×7072 pixels. At most 50,000,000'),
    'a thousand scans': (scans(1000), 422, 'more than 100 scans'),
    'transparency, which takes several times the memory': (
        bomb(3600, 3600, 6),
        413,
        '3600×3600 pixels of RGBA. At most 12,500,000',
    ),
    'an image written as text': (b'P3 2 1 255 ' + b'255 0 0 ' * 2, 415, 'written as text'),
    'padding between the segments of a JPEG': (b'\xff\xd8\xff' + b'\xff' * 40_000, 422, 'too many segments'),
    'zeros between them': (b'\xff\xd8\xff\xfe\0\2' + bytes(40_000), 422, 'too many segments'),
    'empty chunks of a PNG': (bomb(9, 9)[:33] + chunk(b'teXt', b'') * 20_000, 422, 'too many segments'),
}


@pytest.mark.parametrize('what', damaged)
def test_invalid_images(client, what):
    data, status, words = damaged[what]
    assert is_error(send(client, data), status, words)
    mixed = send(client, photo(), data, photo(colour='blue'))  # the other files of its request are classified
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
    assert is_error(send(client, b'', b''), 422, 'No file could be classified')
    assert is_error(send(client, b'text', b'more text'), 415, 'No file could be classified')
    assert is_error(send(client, b'', b'text'), 422, 'No file could be classified')
    assert [r['status'] for r in send(client, b'', b'text').json()['results']] == [422, 415]


def test_content_types(client):
    for kind in ('text/html', 'application/pdf', 'video/mp4'):
        assert is_error(client.post('/predict', files=dict(files=('a.jpg', photo(), kind))), 415, f'declared as {kind}')
    for kind in ('image/png', 'image/x-anything', 'application/octet-stream', 'IMAGE/JPEG'):
        assert client.post('/predict', files=dict(files=('a.jpg', photo(), kind))).status_code == 200
    for kind in ('application/json', 'text/plain', 'application/x-www-form-urlencoded'):
        assert is_error(
            client.post('/predict', content=photo(), headers={'content-type': kind}), 415, 'Send multipart/form-data'
        )


def test_forms(client):
    def form(body, boundary='x'):
        return client.post(
            '/predict', content=body, headers={'content-type': f'multipart/form-data; boundary={boundary}'}
        )

    part = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
    assert form(part + photo() + b'\r\n--x--\r\n').status_code == 200
    assert is_error(form(part + photo()), 400, 'breaks off before its end')
    assert is_error(form(b''), 400, 'breaks off')
    assert is_error(form(b'--x--\r\n'), 400, 'no file|breaks off|cannot be read')
    assert is_error(form(part, boundary='other'), 400, 'cannot be read')
    assert is_error(
        client.post('/predict', content=part, headers={'content-type': 'multipart/form-data'}),
        400,
        'cannot be read|breaks off',
    )
    assert is_error(form(b'--x\r\nno header at all\r\n\r\n'), 400, 'cannot be read')
    assert is_error(form(b'--x\r\n' + b'a' * 100_000), 400, 'cannot be read')
    assert is_error(form(b'--x\r\n' + b'A: b\r\n' * 1000), 400, 'cannot be read')
    other = form((part.replace(b'; filename="a"', b'').replace(b'"files"', b'"note"') + b'hello\r\n') + b'--x--\r\n')
    assert is_error(other, 400, r'no file, such as one in the field `files`. It has the fields: note')
    assert (
        client.post('/predict', files=dict(files=photo()), data=dict(note='x' * 10_000)).status_code == 200
    )  # other fields are ignored
    note = part.replace(b'"files"; filename="a"', b'"note"') + b'\r\n'
    assert is_error(form(note * 101), 413, 'more than 100 other fields')
    result = client.post('/predict', files=dict(files=('a', photo(), 'text/' + 'x' * 1000))).json()['results'][0]
    assert result['status'] == 415 and len(result['error']) < 250


disposition_names = {  # the header of a part, and the name of its file
    'form-data; name=files; filename=oak.jpg': 'oak.jpg',
    'form-data; name="upload[]"; filename="oak; 1.jpg"': 'oak; 1.jpg',
    'form-data; name="photo"; filename*=utf-8\'\'Birken%20r%C3%B6hrling.jpg': 'Birken röhrling.jpg',
    'form-data; name="files"; filename="_.jpg"; filename*=UTF-8\'\'%E6%9C%A8.jpg': '木.jpg',
    'form-data; name="files"; filename*=ISO-8859-15\'\'%A4.jpg; x=y': '€.jpg',
    'form-data; name="files"; filename*=no-encoding\'\'a.jpg': 'a.jpg',
    'attachment; filename="leaf.jpg"': 'leaf.jpg',
}


@pytest.mark.parametrize('disposition', disposition_names)
@pytest.mark.parametrize('kind', ['', 'Content-Type: multipart/form-data\r\n', 'Content-Type: */*\r\n'])
def test_forms_of_other_clients(client, disposition, kind):
    head = f'--x\r\nContent-Disposition: {disposition}\r\n{kind}\r\n'.encode()
    response = client.post(
        '/predict',
        content=head + photo() + b'\r\n--x--\r\n',
        headers={'content-type': 'multipart/form-data; boundary=x'},
    )
    assert [r['label'] for r in response.json()['results']] == ['red']
    assert response.json()['results'][0]['file'] == disposition_names[disposition]


def test_a_body_without_a_type(client):
    for headers in ({}, {'content-type': '*/*'}, {'content-type': 'binary/octet-stream'}):
        assert client.post('/predict', content=photo(), headers=headers).json()['results'][0]['label'] == 'red'
    assert is_error(client.post('/predict', content=b'a=b'), 415, 'not an image')


def test_head_is_get_without_a_body(client):
    for path in ('/health', '/ready', '/classes', '/metrics', '/docs', '/openapi.json'):
        response = client.head(path)
        assert response.status_code == 200 and not response.content and int(response.headers['content-length']) > 0
    assert client.head('/nowhere').status_code == 404 and client.head('/predict').status_code == 405


# ---- behind a proxy


@pytest.mark.parametrize(
    'root_path, header', [('/oaks', None), ('oaks/', None), ('', '/oaks'), ('/elsewhere', '/oaks'), ('', '/oaks/')]
)
def test_a_prefix(root_path, header):
    headers = {'x-forwarded-prefix': header} if header else {}
    with client_of(root_path=root_path) as client:
        client.headers |= headers
        for path in ('/health', '/oaks/health'):  # a proxy removes the prefix, or does not
            assert client.get(path).json() == dict(healthy=True)
        assert client.get('/oaks', follow_redirects=False).headers['location'] == '/oaks/'
        assert client.get('/oaks/', follow_redirects=False).headers['location'] == 'docs'
        assert client.get('/oaks/openapi.json').json()['servers'] == [dict(url='/oaks')]
        docs = client.get('/oaks/docs').text
        assert not re.search(r'(src|href|action)="/', docs) and 'http://testserver/oaks/predict' in docs
        assert '/oaks/docs' in client.get('/oaks/nowhere').json()['error']
        assert client.post('/oaks/predict', files=dict(files=photo())).status_code == 200
        assert 'path="/predict",status="200"' in client.get('/oaks/metrics').text


def test_an_invalid_prefix():
    for header in ('//evil.org', 'javascript:x', '/a"b', '/a/../..', '/x y'):
        with client_of() as client:
            response = client.get('/', headers={'x-forwarded-prefix': header}, follow_redirects=False)
            assert response.headers['location'] == 'docs'
            assert 'servers' not in client.get('/openapi.json', headers={'x-forwarded-prefix': header}).json()
    with pytest.raises(UserError, match='such as /fungi'):
        make_app(Colours(), root_path='http://site.org/oaks')


def test_a_prefix_does_not_bypass_the_key():
    with client_of(api_key='toadstool') as client:
        for path, prefix in (('/predict', '/health'), ('/health/classes', '/health'), ('/oaks/classes', '/oaks')):
            assert client.get(path, headers={'x-forwarded-prefix': prefix}).status_code == 401
        assert client.get('/oaks/health', headers={'x-forwarded-prefix': '/oaks'}).status_code == 200


def test_parameters_methods_and_paths(client):
    for top in ('0', '-1', 'many', '1.5'):
        assert is_error(send(client, photo(), params=dict(top=top)), 422, '^top: ')
    assert len(send(client, photo(), params=dict(top=1000)).json()['results'][0]['top']) == 3
    assert (
        is_error(client.get('/predict'), 405, 'GET')
        and is_error(client.get('/predictions'), 404, '/docs')
        and is_error(client.get('/../etc/passwd'), 404, '')
    )


def test_sizes():
    with client_of(limits=Limits(max_bytes=2000, max_memory=20_000, max_files=3, max_pixels=1000)) as client:
        assert is_error(send(client, bytes(2001)), 413, r'2,001 bytes; at most 2,000')
        mixed = send(client, photo(16), bytes(2001)).json()['results']
        assert mixed[0]['label'] == 'red' and mixed[1]['status'] == 413
        assert is_error(send(client, *[photo(16)] * 4), 413, 'more than 3 files')
        assert is_error(send(client, photo(32)), 413, '32×32 pixels. At most 1,000 pixels are accepted')
        assert is_error(
            send(client, bytes(6000)), 413, 'larger than 5,000 bytes'
        )  # known from content-length, before anything is read

        def pieces():
            for _ in range(100):
                yield bytes(100)

        assert is_error(
            client.post('/predict', content=pieces(), headers={'content-type': 'image/png'}),
            413,
            'larger than 5,000 bytes',
        )
        assert send(client, photo(16)).status_code == 200


def in_app(app, *receivers):
    "Call the app directly; each receiver gives the body of a request: (status, headers, JSON) of each"

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

    ((status, _, response),) = in_app(make_app(Colours(), page=False, limits=Limits(timeout=0.05)), stalls)
    assert status == 408 and 'took more than 0.05 s' in response['error']


def test_an_upload_that_breaks_off():
    async def leaves():
        return dict(type='http.disconnect')

    app = make_app(Colours(), page=False)
    assert in_app(app, leaves)[0][0] == 400 and app.state.service.batcher.queued == 0


def test_uploads_share_memory():
    "Each of eight uploads is small enough, together they are not: some are rejected, and their memory is freed"
    app = make_app(Colours(), page=False, limits=Limits(max_bytes=1000, max_memory=4000, timeout=5))

    def client():
        sent = 0

        async def receive():
            nonlocal sent
            sent += 1
            await asyncio.sleep(0.01)  # all arrive at the same time
            return dict(type='http.request', body=bytes(450), more_body=sent < 2)

        return receive

    responses = in_app(app, *[client() for _ in range(8)])
    busy = [(h, a) for s, h, a in responses if s == 503]
    assert busy and all(b'retry-after' in h and 'hold 4,000 bytes' in a['error'] for h, a in busy)
    assert {s for s, _, _ in responses} <= {503, 415}

    async def one():
        return dict(type='http.request', body=photo(16), more_body=False)

    assert in_app(app, one)[0][0] == 200


def test_no_prediction_in_time(tmp_path, monkeypatch):
    gate = tmp_path / 'gate'
    uploads = []

    def make_upload(*values):
        uploads.append(Upload(*values))
        return uploads[-1]

    monkeypatch.setattr('fungi_fastai.deploy.uploads.Upload', make_upload)
    with client_of(Colours(gate), limits=Limits(timeout=0.05, queue_size=4, max_files=3)) as client:
        assert is_error(send(client, photo()), 504, 'no prediction within 0.05 s')
        assert is_error(send(client, photo()), 504, 'no prediction')
        assert is_error(send(client, photo(), photo()), 504, 'No file could be classified')
        assert [(f.size, len(f.data)) for f in uploads] == [(len(photo()), 0)] * 4  # their memory was freed
        busy = send(client, photo())  # cancelled images keep their slots until the network is done with them
        assert is_error(busy, 503, '4 of 4 slots are taken') and int(busy.headers['retry-after']) >= 1
        gate.touch()
        client.app.state.service.batcher.close()
        assert (
            client.app.state.service.batcher.queued == 0 and sum(client.app.state.service.predictor.batches) <= 2
        )  # the last ones were never run
        assert is_error(send(client, photo()), 503, 'stopping')


def test_rejected_uploads_are_freed_at_once():
    "Without the garbage collector"

    class Source:
        pass

    def read(source):
        raise UserError('no image')

    source, batcher = Source(), Batcher(read, None)
    reference = weakref.ref(source)
    gc.disable()
    try:
        (future,) = batcher.submit([source])
        assert 'no image' in str(future.exception())
        batcher.close()
        del future, source
        assert reference() is None
    finally:
        gc.enable()


def test_a_cancelled_image_is_not_counted_as_read():
    gate, stages = threading.Event(), []

    def read(source):
        gate.wait()
        return np.zeros((2, 2, 3), np.uint8)

    batcher = Batcher(
        read, lambda pixels: pixels.mean((1, 2)), readers=1, on_stage=lambda stage, *_: stages.append(stage)
    )
    _, second = batcher.submit([1, 2])
    assert second.cancel()
    gate.set()
    batcher.close()
    assert stages.count('read') == 1


def test_errors_of_the_model(caplog):
    model = Colours()
    with client_of(model) as client:
        works, model.run = model.run, lambda pixels: [][1]
        assert is_error(send(client, photo()), 500, 'Internal server error')
        assert 'IndexError' in caplog.text
        model.run = works
        assert send(client, photo()).status_code == 200


def test_api_key():
    with client_of(api_key='Fliegenpilz ä') as client:
        key = 'Fliegenpilz ä'.encode()

        def basic(password):
            return b'Basic ' + base64.b64encode(b'me:' + password)

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
                response = client.get(path, headers=headers)
                assert is_error(response, 401, 'X-API-Key') and response.headers['www-authenticate'].startswith('Basic')
            assert is_error(send(client, photo(), headers=headers), 401, 'X-API-Key')
        for headers in ({'x-api-key': key}, {'authorization': b'Bearer ' + key}, {'authorization': basic(key)}):
            assert (
                client.get('/classes', headers=headers).status_code == 200
                and send(client, photo(), headers=headers).status_code == 200
            )
        assert (
            client.get('/health').status_code == client.get('/ready').status_code == 200
        )  # a load balancer has no key


def test_a_key_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv('FUNGI_API_KEY', 'toadstool')  # where `ps` does not show it
    with Server(tmp_path / 'gate', timeout=1.0) as server:
        assert [server.ask(p)[0][0] for p in ('/classes', '/ready')] == [401, 200]
        with socket.create_connection(('127.0.0.1', server.port), timeout=20) as silent:
            assert silent.recv(1) == b''  # a silent connection is closed


# ---- load


def test_images_of_many_clients_share_batches(tmp_path):
    model = Colours(tmp_path / 'gate')
    batcher = Batcher(model.read, model.run, max_batch=4)
    futures = batcher.submit([photo(colour=c) for c in ('red', 'blue', 'lime') * 5])
    while batcher._reading:
        time.sleep(0.001)
    (tmp_path / 'gate').touch()
    assert [int(f.result().argmax()) for f in futures] == [2, 0, 1] * 5
    assert max(model.batches) == 4 and len(model.batches) <= 5
    batcher.close()


def test_random_cancellation_frees_all_slots():
    "Futures are cancelled at any moment, and some fail: all slots are free in the end, and the others have results"

    def read(source):
        if source % 7 == 0:
            raise ValueError(source)
        return np.full((2, 2, 3), source % 256, np.uint8)

    batcher = Batcher(
        read, lambda pixels: pixels.mean((1, 2, 3))[:, None], queue_size=10_000, max_wait=0.001, readers=4
    )
    rng = np.random.RandomState(0)
    futures, cancelled = [], []
    for _ in range(100):
        futures += batcher.submit(list(range(1, 21)))
        cancelled += [futures[-i].cancel() for i in rng.randint(1, 21, 5)]
    batcher.close()
    assert batcher.queued == 0 and batcher._reading == 0 and sum(cancelled) > 0
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

    def __init__(self, gate, port=0, queue_size=256, drain=0.0, timeout=30.0):
        self.process = subprocess.Popen(
            [sys.executable, here / 'serving.py', gate, *map(str, (port, queue_size, drain, timeout))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, 'PYTHONPATH': str(here.parent), 'PYTHONWARNINGS': 'error'},
        )
        self.greeting = self.process.stdout.readline()
        match = re.search(r'http://127\.0\.0\.1:(\d+)$', self.greeting.strip())
        self.port = int(match[1]) if match else None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.communicate()

    def ask(self, path='/predict', data=None, count=1):
        "(status, headers, JSON) for `count` clients at the same time; None if the connection broke"

        async def one():
            try:
                reader, writer = await asyncio.open_connection('127.0.0.1', self.port)
                method = 'GET' if data is None else 'POST'
                writer.write(
                    f'{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: image/png\r\n'.encode()
                    + f'content-length: {len(data or b"")}\r\n\r\n'.encode()
                    + (data or b'')
                )
                response = await reader.read()
                writer.close()
                head, _, body = response.partition(b'\r\n\r\n')
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

    def queued(self):
        (response,) = self.ask('/metrics')
        return float(re.search(r'^fungi_queue_images (.*)$', response[2], re.M)[1])


def wait_until(condition, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, 'the condition never became true'
        time.sleep(0.01)


def in_background(function):
    results = []
    thread = threading.Thread(target=lambda: results.append(function()), daemon=True)
    thread.start()
    return thread, results


def test_two_hundred_clients_at_once(tmp_path):
    (tmp_path / 'gate').touch()
    with Server(tmp_path / 'gate') as server:
        assert 'Serving colours (3 classes, f00df00df00d) on http://127.0.0.1:' in server.greeting
        responses = server.ask(data=photo(), count=200)
        assert [a[0] for a in responses] == [200] * 200 and {a[2]['results'][0]['label'] for a in responses} == {'red'}
        assert server.queued() == 0


def test_two_hundred_clients_and_eight_slots(tmp_path):
    with Server(tmp_path / 'gate', queue_size=8) as server:
        asking, responses = in_background(lambda: server.ask(data=photo(), count=200))
        wait_until(lambda: 'fungi_requests_total{path="/predict",status="503"} 192.0' in server.ask('/metrics')[0][2])
        assert server.ask('/health')[0][0] == server.ask('/ready')[0][0] == 200  # a full queue is not a failure
        (tmp_path / 'gate').touch()
        asking.join(300)
        good, busy = [a for a in responses[0] if a[0] == 200], [a for a in responses[0] if a[0] == 503]
        assert (len(good), len(busy)) == (8, 192)
        assert all(int(a[1]['retry-after']) >= 1 and 'slots are taken' in a[2]['error'] for a in busy)
        assert server.ask(data=photo())[0][0] == 200


@pytest.mark.parametrize('stop_signal', [signal.SIGTERM, signal.SIGINT])
def test_a_graceful_stop(tmp_path, stop_signal):
    with Server(tmp_path / 'gate', drain=600) as server:
        asking, responses = in_background(lambda: server.ask(data=photo(), count=3))
        wait_until(lambda: server.queued() == 3)
        server.process.send_signal(stop_signal)
        wait_until(lambda: server.ask('/ready')[0][0] == 503)
        assert 'stopping' in server.ask('/ready')[0][2]['error'] and server.ask('/health')[0][0] == 200
        late, more = in_background(lambda: server.ask(data=photo()))  # a load balancer that has not checked /ready yet
        wait_until(lambda: server.queued() == 4)
        server.process.send_signal(stop_signal)  # a second signal: no more connections
        wait_until(lambda: server.ask('/ready') == [None])
        assert server.process.poll() is None  # it waits for those in flight
        (tmp_path / 'gate').touch()
        asking.join(300), late.join(300)
        assert [a[0] for a in responses[0] + more[0]] == [200] * 4
        assert server.process.wait(60) == 0
        assert 'Traceback' not in server.process.stderr.read()


def test_killed_under_load_and_restarted(tmp_path):
    with Server(tmp_path / 'gate') as server:
        asking, responses = in_background(lambda: server.ask(data=photo(), count=50))
        wait_until(lambda: server.queued() > 10)
        server.process.kill()
        asking.join(300)
        assert responses[0] == [None] * 50  # no incomplete response
        (tmp_path / 'gate').touch()
        server.process.wait()
        with Server(tmp_path / 'gate', port=server.port) as restarted:
            assert restarted.port == server.port
            assert [a[0] for a in restarted.ask(data=photo(), count=50)] == [200] * 50


# ---- a changed bundle


@pytest.fixture
def bundle(tmp_path):
    return placeholder_bundle(tmp_path)


def test_a_changed_model_file_is_detected(bundle):
    file, old = bundle.folder / 'model.onnx', (bundle.folder / 'model.onnx').read_bytes()
    with client_of(Colours(bundle=bundle)) as client:
        assert client.get('/ready').status_code == 200
        swapped = bundle.folder / 'new'
        swapped.write_bytes(old[::-1])  # as large as the old one
        stat = file.stat()
        os.utime(swapped, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # and as old
        swapped.replace(file)
        response = client.get('/ready')
        assert (
            is_error(response, 503, r'model\.onnx is not the file that was exported: its checksum differs')
            and response.json()['ready'] is False
        )
        assert (
            send(client, photo()).status_code == 200 and client.get('/health').status_code == 200
        )  # the model in memory is intact
        assert 'fungi_ready 0.0' in client.get('/metrics').text
        file.write_bytes(old)
        assert client.get('/ready').status_code == 200
        file.unlink()
        assert is_error(client.get('/ready'), 503, 'lacks model.onnx')
        file.write_bytes(old)
        (bundle.folder / 'bundle.json').write_text((bundle.folder / 'bundle.json').read_text() + ' ')
        assert is_error(client.get('/ready'), 503, 'bundle.json has changed since')


def test_checksums_are_computed_only_when_something_was_touched(bundle):
    calls = []
    watch = BundleWatch(bundle.folder, lambda: calls.append(1))
    assert watch.check() == watch.check() == '' and not calls
    (bundle.folder / 'classes.txt').touch()
    assert watch.check() == watch.check() == '' and len(calls) == 1


def test_a_changed_bundle_is_reported(bundle, capsys):
    with client_of(Colours(bundle=bundle), check_every=0.01) as client:
        (bundle.folder / 'model.onnx').write_bytes(b'other')
        log = ''

        def is_reported():
            nonlocal log
            log += capsys.readouterr().err
            return 'model.onnx is not the file' in log

        wait_until(is_reported)
        assert client.get('/health').status_code == 200


# ---- start


def test_servers_that_cannot_start(tmp_path, monkeypatch):
    with socket.create_server(('127.0.0.1', 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=rf'Port {port} of 127.0.0.1 is in use.*--port {port + 1}'):
            serve('nowhere', port=port)
    for port in (-1, 65536):
        with pytest.raises(UserError, match='expected 0 to 65535'):
            serve('nowhere', port=port)
    with pytest.raises(UserError, match='not an address'):
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
        (dict(queue_size=0), 'queue_size is 0'),
        (dict(max_bytes=2**30), 'a quarter of max_memory'),
        (dict(queue_size=3), 'Raise queue_size'),
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
        UserError,
        match=r"The server needs uvicorn, python-multipart. Install with: pip install 'fungi_fastai\[serve\]'",
    ):
        check_server_packages()


def test_the_import_is_light():
    heavy = ('torch', 'fastai', 'timm', 'fastapi', 'gradio', 'onnxruntime')
    code = f'import fungi_fastai.deploy.server, sys; print({{*{heavy}}} & {{*sys.modules}})'
    process = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == 'set()'


# ---- specimens


@pytest.mark.parametrize('where', ['field', 'query'])
def test_several_files_of_one_specimen(client, where):
    files = [('files', (f'{c}.jpg', photo(colour=c))) for c in ('red', 'purple', 'red')]
    options = dict(data=dict(specimen='1')) if where == 'field' else dict(params=dict(specimen='true'))
    response = client.post('/predict', files=files, **options).json()
    specimen = response['specimen']
    assert specimen['images'] == 3 and specimen['label'] == 'red' and len(response['results']) == 3
    rows = [
        [{t['label']: t['probability'] for t in one['top']}[c] for c in Colours.classes] for one in response['results']
    ]
    expected = np.exp(np.log(rows).mean(0))
    assert specimen['confidence'] == pytest.approx((expected / expected.sum()).max(), abs=1e-5)
    assert 'pooled from 3 photos' in specimen['why'] and 'too few specimens' in specimen['why']


def test_a_specimen_without_its_unreadable_files(client):
    files = [('files', ('a.jpg', photo())), ('files', ('b.txt', b'no image'))]
    response = client.post('/predict?specimen=1', files=files).json()
    assert response['specimen']['images'] == 1 and response['results'][1]['status'] == 415
    assert 'specimen' not in client.post('/predict?specimen=1', files=files[1:]).json()
    assert 'specimen' not in client.post('/predict', files=files).json()


@pytest.mark.parametrize(
    'field, query, words',
    [
        ('maybe', '', "The field specimen is 'maybe'; expected 1 or 0"),
        ('0', '?specimen=1', 'contradict'),
        (None, '?specimen=2', 'specimen'),
        ('1' * 200_000, '', 'The field specimen has 200,000 bytes'),
    ],
)
def test_invalid_specimen(client, field, query, words):
    data = {} if field is None else dict(specimen=field)
    response = client.post(f'/predict{query}', files=[('files', ('a.jpg', photo()))], data=data)
    assert is_error(response, 413 if len(field or '') > 9 else 422, words)


def test_a_list_of_species(client):
    for options in (dict(params=dict(only='blue|green')), dict(data=dict(only='green\nBlue\n'))):
        response = client.post('/predict', files=[('files', ('a.jpg', photo(colour='purple')))], **options).json()
        top = {one['label']: one['probability'] for one in response['results'][0]['top']}
        assert response['results'][0]['label'] == 'blue' and top['red'] == 0 and sum(top.values()) == pytest.approx(1)
    both = client.post('/predict?only=red', files=[('files', ('a.jpg', photo()))], data=dict(only='red'))
    assert is_error(both, 422, 'Send one')
    assert is_error(send(client, photo(), params=dict(only='red|rde')), 422, "does not know rde. Did you mean 'red'")
    assert is_error(send(client, photo(), params=dict(only=' ')), 422, 'list of species is empty')
