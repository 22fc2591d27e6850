"Ranks from GBIF: pygbif itself, against a local server that answers as GBIF does"

import json
import sys
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import pandas as pd
import pytest
import requests
from conftest import pack

gbifutils = pytest.importorskip('pygbif.gbifutils')


class Gbif(BaseHTTPRequestHandler):
    def do_GET(self):
        parts = urlsplit(self.path)
        name = parse_qs(parts.query)['scientificName'][0]
        match = {'Boletus edulis': 'EXACT', 'Boletus reticulatus': 'FUZZY'}.get(name, 'NONE')
        taxa = [dict(name='Boletus', rank='GENUS'), dict(name='Boletaceae', rank='FAMILY')]
        answer = dict(classification=taxa if match != 'NONE' else [], diagnostics=dict(matchType=match))
        self.send_response(200 if parts.path == '/v2/species/match' else 404)
        self.send_header('content-type', 'application/json')
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *args):
        pass


@pytest.fixture
def finds(own_home):
    return pack(own_home / 'finds.zip', 'Boletus_edulis/1.jpg', 'Boletus reticulatus/2.jpg', 'Dog/3.jpg')


@pytest.fixture
def gbif(monkeypatch):
    "A server that stands at GBIF's address as long as it is not closed"
    server = ThreadingHTTPServer(('127.0.0.1', 0), Gbif)
    Thread(target=partial(server.serve_forever, 0.01), daemon=True).start()
    address = f'http://127.0.0.1:{server.server_port}'
    get = lambda url, **options: requests.get(url.replace('https://api.gbif.org', address), **options)  # noqa: E731
    monkeypatch.setattr(gbifutils, 'requests', SimpleNamespace(get=get, __version__=requests.__version__))
    yield server
    server.shutdown()
    server.server_close()


def test_a_table_for_training(fungi, finds, gbif, tmp_path):
    result = fungi('taxonomy', finds, '--out', tmp_path / 'ranks.csv')
    assert (
        'does not know 1 name; fill their rows: Dog' in result.err and 'Boletus reticulatus (fuzzy match)' in result.err
    )
    table = pd.read_csv(tmp_path / 'ranks.csv', keep_default_na=False).set_index('class')
    assert table.loc['Boletus edulis' if 'Boletus edulis' in table.index else 'Boletus_edulis'].tolist() == [
        'Boletus',
        'Boletaceae',
    ]
    assert table.loc['Dog'].tolist() == ['', '']
    assert 'you may have corrected it' in fungi('taxonomy', finds, '--out', tmp_path / 'ranks.csv', code=2).err


def test_without_a_network_or_pygbif_nothing_is_written(fungi, finds, gbif, tmp_path, monkeypatch):
    gbif.shutdown()
    gbif.server_close()
    assert 'GBIF cannot be reached' in fungi('taxonomy', finds, '--out', tmp_path / 'ranks.csv', code=2).err
    monkeypatch.setitem(sys.modules, 'pygbif', None)
    assert 'pip install pygbif' in fungi('taxonomy', finds, '--out', tmp_path / 'ranks.csv', code=2).err
    assert not (tmp_path / 'ranks.csv').exists()
