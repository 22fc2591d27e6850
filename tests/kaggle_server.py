"""A stand-in for Kaggle at http://localhost:7777, which the real client contacts with KAGGLE_API_ENVIRONMENT=TEST.

A POST to a service is redirected to the storage, and the storage serves ranges. For a submission it returns an upload
address, receives the file there, also in parts, and scores it after some requests for the score. A test sets what goes
wrong.
"""

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT = 7777


@dataclass
class Kaggle:
    "The data of the stand-in, the errors to simulate, and the requests that it received"

    files: dict = field(default_factory=dict)  # 'owner/name' or a competition's name → bytes of its zip
    tokens: set = field(default_factory=set)  # access tokens that are valid
    status: int = 0  # status of every response, if not 0
    message: str = ''  # text of that response
    retry_after: str = ''  # header of that response
    cuts: list = field(default_factory=list)  # interrupt the next downloads after so many bytes
    storage_status: list = field(default_factory=list)  # statuses of the next requests to the storage
    needs_credentials: bool = True
    introspection: int = 0  # status of requests about a token, if not 0
    ranges: bool = True  # whether the storage serves ranges
    range_offset: int = 0  # send ranges that begin so many bytes too late
    no_redirect: bool = False  # send the file at once, without a redirect
    length: bool = True  # whether the response has a Content-Length
    uploads: dict = field(default_factory=dict)  # token → bytes uploaded so far
    upload_cuts: list = field(default_factory=list)  # close the connection of the next uploads after so many bytes
    upload_status: list = field(default_factory=list)  # statuses of the next uploads
    no_response_to: str = ''  # end of a service's name: the request is received, but gets no response
    submissions: list = field(default_factory=list)  # submissions, as the service lists them
    polls_before_score: int = 1  # requests for the list before a submission is scored
    score: str = '0.97229'
    scoring_error: str = ''  # why the next submissions cannot be scored
    kernels: list = field(default_factory=list)  # requests of pushed notebooks
    kernel_answer: dict = field(default_factory=dict)  # added to the usual response
    requests: list = field(default_factory=list)  # (method, path, Range) of each request
    sent: int = 0  # bytes of files

    def downloads(self):
        return [a for a in self.requests if 'Download' in a[1]]

    def stored(self):
        return [a for a in self.requests if a[1].startswith('/storage')]


class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def log_message(self, *args):
        pass

    def do_POST(self):
        kaggle = self.server.kaggle
        body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
        kaggle.requests.append(('POST', self.path, self.headers.get('Range')))
        request = json.loads(body or b'{}')
        service = self.path.removeprefix('/api/v1/')
        if service == 'security.OAuthService/IntrospectToken':
            if kaggle.introspection:
                return self.json({'code': kaggle.introspection, 'message': 'no'}, kaggle.introspection)
            known = request.get('token') in kaggle.tokens
            return self.json({'active': known, 'username': 'ada' if known else ''})
        if kaggle.status:
            headers = {'Retry-After': kaggle.retry_after} if kaggle.retry_after else {}
            return self.json({'code': kaggle.status, 'message': kaggle.message}, kaggle.status, headers)
        if kaggle.needs_credentials and 'Authorization' not in self.headers:
            return self.json({'code': 401, 'message': 'Unauthenticated'}, 401)
        if kaggle.no_response_to and service.endswith(kaggle.no_response_to):
            self.close_connection = True
            return self.connection.close()
        if handler := {
            'StartSubmissionUpload': self.start_upload,
            'CreateSubmission': self.submit,
            'ListSubmissions': self.list_submissions,
            'SaveKernel': self.save_kernel,
        }.get(service.rpartition('/')[2]):
            return self.json(*handler(request))
        if service == 'datasets.DatasetApiService/DownloadDataset':
            name = f'{request["ownerSlug"]}/{request["datasetSlug"]}'
        elif service == 'competitions.CompetitionApiService/DownloadDataFiles':
            name = request['competitionName']
        else:
            return self.json({'code': 501, 'message': f'no {service} here'}, 501)
        if name not in kaggle.files:
            return self.json({'code': 404, 'message': 'Not found'}, 404)
        if kaggle.no_redirect:
            return self.file(kaggle.files[name])
        self.send_response(302)
        self.send_header('Location', f'http://localhost:{PORT}/storage/{name}/archive.zip?signature=1')
        self.send_header('Content-Length', '0')
        self.end_headers()

    def start_upload(self, request):
        if request['competitionName'] not in self.server.kaggle.files:
            return {'code': 404, 'message': 'Not found'}, 404
        token = f'token-{len(self.server.kaggle.uploads)}-{request["fileName"]}'
        self.server.kaggle.uploads[token] = b''
        return ({'token': token, 'createUrl': f'http://localhost:{PORT}/upload/{token}'},)

    def submit(self, request):
        kaggle = self.server.kaggle
        ref, token = 1000 + len(kaggle.submissions), request['blobFileTokens']
        kaggle.submissions.insert(
            0,
            dict(
                ref=ref,
                fileName=token.split('-', 2)[2],
                description=request.get('submissionDescription', ''),
                date='2026-11-21T10:00:00.000Z',
                status='PENDING',
                totalBytes=len(kaggle.uploads[token]),
                polls_before_score=kaggle.polls_before_score,
            ),
        )
        return ({'message': 'Successfully submitted', 'ref': ref},)

    def list_submissions(self, request):
        kaggle = self.server.kaggle
        for submission in kaggle.submissions:
            submission['polls_before_score'] -= 1
            if submission['status'] == 'PENDING' and submission['polls_before_score'] < 0:
                submission.update(
                    dict(status='ERROR', errorDescription=kaggle.scoring_error)
                    if kaggle.scoring_error
                    else dict(status='COMPLETE', publicScore=kaggle.score)
                )
        shown = [{k: v for k, v in s.items() if k != 'polls_before_score'} for s in kaggle.submissions]
        return ({'submissions': shown},)

    def save_kernel(self, request):
        kaggle = self.server.kaggle
        kaggle.kernels.append(request)
        url = f'https://www.kaggle.com/code/{request["slug"]}'
        return (
            {
                'ref': '/code/' + request['slug'],
                'url': url,
                'versionNumber': len(kaggle.kernels),
                **kaggle.kernel_answer,
            },
        )

    def do_PUT(self):
        "Google's resumable uploads: a whole file, a later part of it, or a request for the number of bytes received"
        kaggle, token = self.server.kaggle, self.path.removeprefix('/upload/')
        size, part = int(self.headers.get('Content-Length') or 0), self.headers.get('Content-Range', '')
        kaggle.requests.append(('PUT', self.path, part))
        if kaggle.upload_status:
            self.rfile.read(size)
            return self.json({}, kaggle.upload_status.pop(0))
        if part.startswith('bytes */'):
            if len(kaggle.uploads[token]) == int(part.removeprefix('bytes */')):
                return self.json({})
            received = len(kaggle.uploads[token])
            return self.json({}, 308, {'Range': f'bytes=0-{received - 1}'} if received else {})
        first = int(part.removeprefix('bytes ').split('-')[0]) if part else 0
        cut = kaggle.upload_cuts.pop(0) if kaggle.upload_cuts else None
        kaggle.uploads[token] = kaggle.uploads[token][:first] + self.rfile.read(size if cut is None else min(cut, size))
        if cut is None:
            return self.json({})
        self.close_connection = True
        self.connection.close()

    def do_GET(self):
        kaggle = self.server.kaggle
        kaggle.requests.append(('GET', self.path, self.headers.get('Range')))
        if kaggle.storage_status:
            return self.json({}, kaggle.storage_status.pop(0))
        name = self.path.removeprefix('/storage/').split('/archive.zip')[0]
        self.file(kaggle.files[name])

    def json(self, value, status=200, headers=None):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header('Content-Type', 'application/json')
        self.send_header('Content-Length', str(len(data)))
        for key, text in (headers or {}).items():
            self.send_header(key, text)
        self.end_headers()
        self.wfile.write(data)

    def file(self, data):
        kaggle = self.server.kaggle
        tag, first = f'"{hashlib.md5(data).hexdigest()}"', 0
        byte_range = self.headers.get('Range')
        if byte_range and kaggle.ranges and self.headers.get('If-Range', tag) == tag:
            first = int(byte_range.removeprefix('bytes=').rstrip('-')) + kaggle.range_offset
        self.send_response(206 if first else 200)
        self.send_header('Content-Type', 'application/zip')
        self.send_header('ETag', tag)
        if kaggle.ranges:
            self.send_header('Accept-Ranges', 'bytes')
        if first:
            self.send_header('Content-Range', f'bytes {first}-{len(data) - 1}/{len(data)}')
        if kaggle.length:
            self.send_header('Content-Length', str(len(data) - first))
        else:
            self.close_connection = True
        self.end_headers()
        cut = kaggle.cuts.pop(0) if kaggle.cuts else None
        part = data[first:] if cut is None else data[first : first + cut]
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

    def handle_error(self, request, client_address):
        pass  # closed connections are part of the tests

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={'poll_interval': 0.02}, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()
