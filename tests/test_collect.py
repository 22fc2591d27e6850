"Darwin Core archives, tables of addresses, and polite downloads from a local server"

import hashlib
import re
import socket
import threading
import zipfile
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest
from conftest import small_jpeg

from fungi_fastai.core.errors import UserError
from fungi_fastai.data import open_data, web_images
from fungi_fastai.data.collect import collect, read_addresses
from fungi_fastai.data.darwin_core import read_darwin_core
from fungi_fastai.data.sources import Source
from fungi_fastai.deploy.attribution import attribution_facts

terms = 'http://rs.tdwg.org/dwc/terms/'
occurrences = [
    'id\tscientificName\tgenus\teventDate\tdecimalLatitude\tlicense\trightsHolder',
    '7\tAmanita muscaria (L.) Lam.\tAmanita\t2024-10-03T10:00\t55.7\tCC_BY_4_0\tMuseum "A',
    '8\tBoletus edulis Bull.\tBoletus\t2023-09-01\t55.8\tCC0_1_0\tMuseum B',
    '9\tRussula\tRussula\t2023-09-02\t55.9\t\tMuseum B',
]


@dataclass
class Site:
    "What the local server does, and what it was asked"

    busy: list = field(default_factory=list)  # (status, Retry-After) of the next answers
    fail_after: int = 10**6  # requests, after which it answers no more
    requests: list = field(default_factory=list)  # (path, headers)
    address: str = ''


@pytest.fixture
def site(monkeypatch):
    "A server of small images: /…jpg; /gone is missing, /page is a web page"
    state = Site()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = 'HTTP/1.1'

        def log_message(self, *_):
            pass

        def answer(self, status, body=b'', **headers):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace('_', '-'), value)
            self.send_header('Content-Length', str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            state.requests.append((self.path, dict(self.headers)))
            if len(state.requests) > state.fail_after:
                self.close_connection = True
                return self.connection.close()
            if state.busy:
                status, seconds = state.busy.pop(0)
                return self.answer(status, Retry_After=str(seconds))
            if self.path == '/gone':
                return self.answer(404)
            if self.path == '/page':
                return self.answer(200, b'<html><body>removed</body></html>')
            body = small_jpeg(sum(self.path.encode()) % 256)
            tag = f'"{hashlib.md5(body).hexdigest()}"'
            return self.answer(304) if self.headers.get('If-None-Match') == tag else self.answer(200, body, ETag=tag)

    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    state.address = f'http://127.0.0.1:{server.server_port}'
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(web_images, '_pauses', (0, 0))
    yield state
    server.shutdown()
    server.server_close()


def write_archive(file, site, photos=None, rows=occurrences, extension=True, **changes):
    "An archive with the photos a.jpg … of three observations"
    names = rows[0].split('\t')
    photos = photos or ['7\tStillImage\t/a.jpg\tAda', '7\tStillImage\t/b.jpg\tBo', '8\tStillImage\t/c.jpg\t']
    media = [line.replace('\t/', f'\t{site.address}/', 1) for line in photos]
    options = dict(separator='\\t', quote='', encoding='utf-8') | changes

    def described(tag, key, name, fields, kind):
        found = ''.join(f'<field index="{i}" term="{terms}{one}"/>' for i, one in enumerate(fields) if i)
        return (
            f'<{tag} encoding="{options["encoding"]}" fieldsTerminatedBy="{options["separator"]}" '
            f'ignoreHeaderLines="1" fieldsEnclosedBy="{options["quote"]}" rowType="{kind}">'
            f'<files><location>{name}</location></files><{key} index="0"/>{found}</{tag}>'
        )

    text = described('core', 'id', 'occurrence.txt', names, f'{terms}Occurrence')
    if extension:
        fields = ['coreid', 'type', 'identifier', 'creator']
        kind = 'http://rs.gbif.org/terms/1.0/Multimedia'
        text += described('extension', 'coreid', 'multimedia.txt', fields, kind)
    separator = options['separator'].replace('\\t', '\t')
    with zipfile.ZipFile(file, 'w') as z:
        z.writestr('download/meta.xml', f'<archive xmlns="http://rs.tdwg.org/dwc/text/">{text}</archive>')
        for name, lines in (
            ('occurrence.txt', rows),
            ('multimedia.txt', ['coreid\ttype\tidentifier\tcreator', *media]),
        ):
            content = '\n'.join(lines).replace('\t', separator) + '\n'
            z.writestr(f'download/{name}', content.encode(options['encoding']))
    return Path(file)


def fetch(archive, out, **options):
    return collect(archive, out, rate=1000, progress=False, **options)


def test_from_an_archive_to_attribution(tmp_path, site):
    photos = ['7\tStillImage\t/a.jpg\tAda', '7\tSound\t/s.mp3\t', '8\tStillImage\t/c.jpg\t', '8\tStillImage\t/gone\t']
    photos += ['8\tStillImage\t/page\t', '9\tStillImage\t/r.jpg\t', '7\tStillImage\t/b.jpg\tBo']
    result = fetch(write_archive(tmp_path / 'a.zip', site, photos), tmp_path / 'out')
    assert (result.images, result.classes) == (3, 2)
    missing = pd.read_csv(tmp_path / 'out/not_downloaded.csv')
    assert missing.reason.tolist() == ['404 Not Found', 'not an image but a web page', 'no species']
    items = Source.of(tmp_path / 'out').read()
    assert sorted(items.label) == ['Amanita muscaria', 'Amanita muscaria', 'Boletus edulis']
    assert items.group.nunique() == 2 and items.latitude.tolist() == [55.7, 55.8, 55.7]
    assert items.date.tolist() == ['2024-10-03', '2023-09-01', '2024-10-03']
    assert items.rights_holder[0] == 'Museum "A' and items.author.tolist() == ['Ada', '', 'Bo']
    facts = attribution_facts(items.assign(split='train'))
    assert facts == dict(licences={'CC BY 4.0': 2, 'CC0 1.0': 1}, authors=3)
    assert all('fungi_fastai/' in headers['User-Agent'] for _, headers in site.requests)


def test_an_interrupted_download_resumes(tmp_path, site):
    out = tmp_path / 'out'
    site.fail_after = 1
    with pytest.raises(UserError, match='cannot be reached'):
        photos = [f'7\tStillImage\t/{i}.jpg\t' for i in range(9)]
        fetch(write_archive(tmp_path / 'b.zip', site, photos), out)
    assert not (out / 'images.csv').exists() and len(list((out / 'images').iterdir())) == 1
    with open(out / '.downloads.jsonl', 'a') as journal:
        journal.write('{"url": "http://cut')  # as a kill leaves it
    site.fail_after, site.requests = 10**6, site.requests[:1]
    assert fetch(tmp_path / 'b.zip', out).images == 9
    assert site.requests[0][0] not in [path for path, _ in site.requests[1:]], 'the first one was there'
    before = len(site.requests)
    assert fetch(tmp_path / 'b.zip', out).images == 9 and len(site.requests) == before
    (next((out / 'images').iterdir())).unlink()
    assert fetch(tmp_path / 'b.zip', out).images == 9 and len(site.requests) == before + 1


def test_refresh_asks_under_a_condition(tmp_path, site):
    archive, out = (
        write_archive(tmp_path / 'a.zip', site, ['7\tStillImage\t/a.jpg\t', '8\tStillImage\t/gone\t']),
        tmp_path,
    )
    fetch(archive, out)
    fetch(archive, out)
    assert len(site.requests) == 2
    assert fetch(archive, out, refresh=True).images == 1
    assert [('If-None-Match' in headers) for path, headers in site.requests[2:] if path == '/a.jpg'] == [True]
    site.busy = [(503, 0)] * 9
    collection = fetch(archive, out, refresh=True)
    assert collection.images == 1 and 'kept as before' in str(collection), 'a server that fails makes nothing forgotten'


def test_a_busy_server_gets_the_request_later(tmp_path, site):
    site.busy = [(429, 0), (503, 0)]
    assert fetch(write_archive(tmp_path / 'a.zip', site), tmp_path / 'out').images == 3
    site.busy = [(429, 3600)] * 9
    with pytest.raises(UserError, match='requests a pause of 60 minutes'):
        fetch(write_archive(tmp_path / 'b.zip', site, ['7\tStillImage\t/z.jpg\t']), tmp_path / 'other')


@pytest.mark.parametrize(
    'changes',
    [dict(separator=','), dict(separator=';', quote='&quot;'), dict(encoding='iso-8859-1'), dict(extension=False)],
)
def test_archives_of_other_publishers(tmp_path, site, changes):
    rows = [line.replace('Museum "A', 'Muséum') for line in occurrences]
    if not changes.get('extension', True):
        rows = [rows[0] + '\tassociatedMedia'] + [
            f'{line}\t{site.address}/{line[0]}.jpg | http://x/2' for line in rows[1:]
        ]
    photos = read_darwin_core(write_archive(tmp_path / 'a.zip', site, rows=rows, **changes))
    assert photos.rightsHolder[0] == 'Muséum' and photos.scientificName[0].startswith('Amanita')
    assert len(photos) == (4 if 'extension' in changes else 3)


def test_options(tmp_path, site):
    archive = write_archive(tmp_path / 'a.zip', site)
    assert fetch(archive, tmp_path / '1', per_class=1).images == 2
    assert fetch(archive, tmp_path / '2', licences='cc0').images == 1
    assert fetch(archive, tmp_path / '3', label='genus').classes == 2
    with pytest.raises(UserError, match="Did you mean 'genus'"):
        fetch(archive, tmp_path / '4', label='genuss')
    with pytest.raises(UserError, match='No photo'):
        fetch(archive, tmp_path / '4', licences='CC-BY-SA')
    assert not (tmp_path / '4').exists()


def test_what_is_no_archive(tmp_path, site, fungi):
    archive = write_archive(tmp_path / 'a.zip', site)
    assert '--out FOLDER' in fungi('check', archive, code=2).err
    assert 'fungi fetch' in fungi('fetch', archive, code=2).err
    assert '--rate is for an archive' in fungi('fetch', archive, '--rate', '1', code=2).err
    (tmp_path / 'b.zip').write_bytes(archive.read_bytes()[:200])
    assert 'is no Darwin Core archive' in fungi('fetch', tmp_path / 'b.zip', '--out', tmp_path / 'o', code=2).err
    with zipfile.ZipFile(tmp_path / 'c.zip', 'w') as z:
        z.writestr('meta.xml', '<archive xmlns="http://rs.tdwg.org/dwc/text/"></archive>')
    assert 'does not describe an archive' in fungi('fetch', tmp_path / 'c.zip', '--out', tmp_path / 'o', code=2).err


def test_tables_of_addresses(tmp_path, site):
    rows = [f'{i},{site.address}/{i}.jpg,https://x.org/{i},sp {"ab"[i % 2]},2024-05-0{i + 1}' for i in range(4)]
    table = tmp_path / 'observations.csv'
    table.write_text('\n'.join(['id,image_url,url,taxon_species_name,observed_on', *rows]))
    assert fetch(table, tmp_path / 'out').classes == 2
    items = Source.of(tmp_path / 'out').read()
    assert (
        items.reference.tolist() == [f'https://x.org/{i}' for i in range(4)] and items.date.str.startswith('2024').all()
    )
    with pytest.raises(UserError, match='fungi fetch'):
        Source.of(table).read()
    table.write_text(f'a,b\n{site.address}/1.jpg,{site.address}/2.jpg\n')
    with pytest.raises(UserError, match='several columns of addresses'):
        fetch(table, tmp_path / 'other')


def test_one_dead_server_of_several(tmp_path, site):
    with socket.socket() as unused:
        unused.bind(('127.0.0.1', 0))
        dead = f'http://127.0.0.1:{unused.getsockname()[1]}'
    rows = [f'{site.address}/{name}.jpg,oak' for name in 'abc'] + [f'{dead}/{n}.jpg,elm' for n in range(7)]
    (tmp_path / 'list.csv').write_text(
        '\n'.join(['url,label', *rows, 'http://[x/1.jpg,elm', f'{site.address}/a.jpg,elm'])
    )
    found = collect(tmp_path / 'list.csv', tmp_path / 'out', rate=1000, progress=False)
    assert found.images == 3 and any('1 row with an address that an earlier row has' in note for note in found.notes)
    missing = pd.read_csv(tmp_path / 'out/not_downloaded.csv')
    assert len(missing) == 8 and missing.reason.str.contains('not an address').sum() == 1


def test_a_table_of_the_user_is_not_replaced(tmp_path, site):
    (tmp_path / 'images.csv').write_text(f'url,label\n{site.address}/a.jpg,oak\n')
    before = (tmp_path / 'images.csv').read_bytes()
    with pytest.raises(UserError, match='is not from fungi fetch'):
        collect(tmp_path / 'images.csv', tmp_path, rate=1000, progress=False)
    assert (tmp_path / 'images.csv').read_bytes() == before


def test_epithets_belong_to_their_genus(tmp_path, site):
    rows = ['url,genus,species', f'{site.address}/a.jpg,Amanita,alba', f'{site.address}/b.jpg,Russula,alba']
    (tmp_path / 'list.csv').write_text('\n'.join(rows))
    collect(tmp_path / 'list.csv', tmp_path / 'out', rate=1000, progress=False)
    assert sorted(pd.read_csv(tmp_path / 'out/images.csv').label) == ['Amanita alba', 'Russula alba']


ac, dc, dcterms, xmp = (
    'http://rs.tdwg.org/ac/terms/',
    'http://purl.org/dc/elements/1.1/',
    'http://purl.org/dc/terms/',
    'http://ns.adobe.com/xap/1.0/rights/',
)
audubon = [  # as museums publish it: two columns named rights, and two named type
    dcterms + 'identifier',
    ac + 'accessURI',
    ac + 'variantLiteral',
    dc + 'type',
    dcterms + 'type',
    dcterms + 'format',
    dcterms + 'rights',
    dc + 'rights',
    xmp + 'WebStatement',
    xmp + 'Owner',
    dc + 'creator',
]
still, cc = 'http://purl.org/dc/dcmitype/StillImage', 'http://creativecommons.org/licenses/by-nc/4.0/'
media = [
    ['7', 'urn:1', '/1-small.jpg', 'ac:Thumbnail', '', still, 'image/jpeg', '© Museum', '', cc, 'Museum', 'Ada'],
    ['7', 'urn:1', '/1-large.jpg', 'ac:BestQuality', '', still, 'image/jpeg', '© Museum', '', cc, 'Museum', 'Ada'],
    ['7', 'urn:2', '/2.jpg', 'Good Quality', 'Image', '', 'JPG', '', cc, '', 'Museum', 'Ada'],
    ['7', 'urn:2', '/2-again.jpg', 'Good Quality', 'Image', '', 'JPG', '', cc, '', 'Museum', 'Ada'],
    ['8', '', '/8-small.jpg', 'Thumbnail', 'Image', '', '', 'CC0', 'see there', '', '', ''],
    ['8', '', '/8-a.jpg', 'Medium Quality', 'Image', '', '', 'CC0', 'see there', '', '', ''],
    ['8', '', '/8-b.jpg', 'Best Quality', 'Image', '', '', 'CC0', 'see there', '', '', ''],
    ['8', 'urn:s', '/8.wav', 'Best Quality', 'Sound', '', 'audio/x-wav', '', '', '', '', ''],
    ['9', 'urn:9', '/9.jpg', 'Thumbnail', 'Image', '', 'image/jpeg', '', '', '', 'Museum', ''],
]


def test_audubon_core(tmp_path, site):
    names = occurrences[0].split('\t')
    core = ''.join(f'<field index="{i}" term="{terms}{one}"/>' for i, one in enumerate(names) if i)
    fields = ''.join(f'<field index="{i}" term="{one}"/>' for i, one in enumerate(audubon, 1))
    tabs = 'fieldsTerminatedBy="\\t" ignoreHeaderLines="1" fieldsEnclosedBy=""'
    text = (
        f'<archive xmlns="http://rs.tdwg.org/dwc/text/"><core {tabs} rowType="{terms}Occurrence">'
        f'<files><location>occurrence.txt</location></files><id index="0"/>{core}</core>'
        f'<extension {tabs} rowType="{ac}Multimedia"><files><location>audiovisual.txt</location></files>'
        f'<coreid index="0"/>{fields}<field default="Museum C" term="{xmp}Owner"/></extension></archive>'
    )
    for row in media:
        row[2] = row[2].replace('/', f'{site.address}/', 1) if row[2].startswith('/') else row[2]
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as z:
        z.writestr('meta.xml', text)
        z.writestr('occurrence.txt', '\n'.join(occurrences))
        z.writestr('audiovisual.txt', '\n'.join(['coreid', *('\t'.join(row) for row in media)]))
    photos = read_darwin_core(tmp_path / 'a.zip')
    files = photos.url.str.rpartition('/')[2].tolist()
    assert files == ['1-large.jpg', '2.jpg', '2-again.jpg', '8-a.jpg', '8-b.jpg', '9.jpg']
    assert photos.license.tolist() == [cc] * 3 + ['CC0'] * 2 + ['']
    assert photos.rightsHolder.tolist() == ['Museum'] * 3 + ['Museum C'] * 2 + ['Museum']
    assert any('2 smaller versions' in note for note in photos.attrs['notes'])
    found = fetch(tmp_path / 'a.zip', tmp_path / 'out')
    assert (found.images, found.classes) == (5, 2)
    assert Source.of(tmp_path / 'out').read().licence.tolist() == ['CC BY-NC 4.0'] * 3 + ['CC0 1.0'] * 2


def test_open_data_of_inaturalist(tmp_path, site, monkeypatch, fungi):
    monkeypatch.setattr(open_data, 'address', site.address + '/{}/medium.{}')
    tables = dict(
        photos=[
            'photo_uuid photo_id observation_uuid observer_id extension license width height position',
            *(f'u{i} {i} {"abc"[i % 3]} {i % 2} jpg CC-BY 900 600 {i // 3}' for i in range(6)),
            'u9 9 z 1 jpeg CC-BY 900 600 0',
        ],
        observations=[
            'observation_uuid observer_id latitude longitude positional_accuracy taxon_id quality_grade observed_on',
            'a 0 55.7 12.5 10 3 research 2023-05-01',
            'b 1 55.8 12.6 10 5 needs_id 2024-05-01',
            'c 0 55.9 12.7 10 1 research 2024-06-01',
        ],
        taxa=[
            'taxon_id ancestry rank_level rank name active',
            '1 48460/47170 20 genus Amanita true',
            '2 48460/47170/1 10 species Amanita_muscaria true',
            '3 48460/47170/1/2 5 variety Amanita_muscaria_alba true',
            '4 48460/47170 20 genus Boletus true',
            '5 48460/47170/4 10 species Boletus_edulis true',
            '47170 48460 70 kingdom Fungi true',
        ],
        observers=['observer_id login name', '0 ada Ada_L.', '1 bo '],
    )
    folder = tmp_path / 'open'
    folder.mkdir()

    def write(name):
        lines = '\n'.join(row.replace(' ', '\t').replace('_L', ' L') for row in tables[name])
        (folder / f'{name}.csv').write_text(re.sub(r'(?<=[a-z])_(?=(muscaria|edulis|alba))', ' ', lines) + '\n')

    write('photos')
    assert 'put observations.csv and taxa.csv' in ' '.join(read_addresses(folder / 'photos.csv').attrs['notes'])
    for name in tables:
        write(name)
    output = fungi('fetch', folder, '--out', tmp_path / 'out', '--rate', 1000).out
    assert '2 photos of observations that are not of research grade' in output
    assert '1 photo of observations that observations.csv does not hold' in output
    items = Source.of(tmp_path / 'out').read()
    assert sorted(items.label) == ['Amanita muscaria'] * 2 + ['Boletus edulis'] * 2
    assert items.group.nunique() == 2 and set(items.date) == {'2023-05-01', '2024-05-01'}
    assert set(items.author) == {'Ada L.', 'bo'} and set(items.licence) == {'CC BY'}
    assert items.kingdom.tolist() == ['Fungi'] * 4 and items.reference.str.contains('/photos/').all()
    assert collect(folder, tmp_path / '2', label='genus', rate=1000, progress=False).images == 6
