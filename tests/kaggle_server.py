"""A stand-in for Kaggle at http://localhost:7777, where the real client goes with KAGGLE_API_ENVIRONMENT=TEST.

It speaks what the client sends: a POST to a service answers with a redirect to storage, and the storage serves ranges.
A test scripts what goes wrong.
"""
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT = 7777


@dataclass
class Kaggle:
    "What the stand-in holds, how it misbehaves, and what was asked of it"
    files: dict = field(default_factory=dict)     # 'owner/name' or a competition's name → bytes of its zip
    tokens: set = field(default_factory=set)      # access tokens that are valid
    status: int = 0                               # answer every download with this instead
    message: str = ''                             # with this text
    retry_after: str = ''                         # and this header
    cuts: list = field(default_factory=list)      # break the next answers off after so many bytes
    storage_status: list = field(default_factory=list)  # answer the next requests to the storage with these
    needs_credentials: bool = True
    introspection: int = 0                        # answer questions about a token with this instead
    ranges: bool = True                           # whether the storage serves parts
    shifted: int = 0                              # send parts that begin so many bytes later than asked
    direct: bool = False                          # send the file at once, without a redirect
    length: bool = True                           # whether the size is told
    asked: list = field(default_factory=list)     # (method, path, Range) of each request
    sent: int = 0                                 # bytes of files

    def downloads(self): return [a for a in self.asked if 'Download' in a[1]]
    def stored(self): return [a for a in self.asked if a[1].startswith('/storage')]


class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def log_message(self, *args): pass

    def do_POST(self):
        kaggle = self.server.kaggle
        body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
        kaggle.asked.append(('POST', self.path, self.headers.get('Range')))
        request = json.loads(body or b'{}')
        service = self.path.removeprefix('/api/v1/')
        if service == 'security.OAuthService/IntrospectToken':
            if kaggle.introspection: return self.json({'code': kaggle.introspection, 'message': 'no'}, kaggle.introspection)
            known = request.get('token') in kaggle.tokens
            return self.json({'active': known, 'username': 'ada' if known else ''})
        if kaggle.status:
            headers = {'Retry-After': kaggle.retry_after} if kaggle.retry_after else {}
            return self.json({'code': kaggle.status, 'message': kaggle.message}, kaggle.status, headers)
        if kaggle.needs_credentials and 'Authorization' not in self.headers:
            return self.json({'code': 401, 'message': 'Unauthenticated'}, 401)
        if service == 'datasets.DatasetApiService/DownloadDataset': name = f"{request['ownerSlug']}/{request['datasetSlug']}"
        elif service == 'competitions.CompetitionApiService/DownloadDataFiles': name = request['competitionName']
        else: return self.json({'code': 501, 'message': f'no {service} here'}, 501)
        if name not in kaggle.files: return self.json({'code': 404, 'message': 'Not found'}, 404)
        if kaggle.direct: return self.file(kaggle.files[name])
        self.send_response(302)
        self.send_header('Location', f'http://localhost:{PORT}/storage/{name}/archive.zip?signature=1')
        self.send_header('Content-Length', '0')
        self.end_headers()

    def do_GET(self):
        kaggle = self.server.kaggle
        kaggle.asked.append(('GET', self.path, self.headers.get('Range')))
        if kaggle.storage_status: return self.json({}, kaggle.storage_status.pop(0))
        name = self.path.removeprefix('/storage/').split('/archive.zip')[0]
        self.file(kaggle.files[name])

    def json(self, value, status=200, headers=None):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header('Content-Type', 'application/json')
        self.send_header('Content-Length', str(len(data)))
        for key, text in (headers or {}).items(): self.send_header(key, text)
        self.end_headers()
        self.wfile.write(data)

    def file(self, data):
        kaggle = self.server.kaggle
        tag, first = f'"{hashlib.md5(data).hexdigest()}"', 0
        asked = self.headers.get('Range')
        if asked and kaggle.ranges and self.headers.get('If-Range', tag) == tag:
            first = int(asked.removeprefix('bytes=').rstrip('-')) + kaggle.shifted
        self.send_response(206 if first else 200)
        self.send_header('Content-Type', 'application/zip')
        self.send_header('ETag', tag)
        if kaggle.ranges: self.send_header('Accept-Ranges', 'bytes')
        if first: self.send_header('Content-Range', f'bytes {first}-{len(data)-1}/{len(data)}')
        if kaggle.length: self.send_header('Content-Length', str(len(data)-first))
        else: self.close_connection = True
        self.end_headers()
        cut = kaggle.cuts.pop(0) if kaggle.cuts else None
        part = data[first:] if cut is None else data[first:first+cut]
        self.wfile.write(part)
        kaggle.sent += len(part)
        if cut is not None:
            self.close_connection = True
            self.connection.close()


class Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self):
        self.kaggle = Kaggle()
        super().__init__(('localhost', PORT), Handler)

    def handle_error(self, request, client_address): pass   # a client that goes away is part of the tests

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={'poll_interval': .02}, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()
