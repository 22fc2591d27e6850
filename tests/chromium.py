"Headless Chromium for tests, spoken to over pipes (the DevTools protocol): no driver, no packages, no port"

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time

COMMON = [
    '--headless',
    '--no-sandbox',
    '--disable-gpu',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-extensions',
    '--disable-dev-shm-usage',
    '--no-first-run',
    '--hide-scrollbars',
    '--remote-debugging-pipe',
]


class Chromium:
    "One browser with one page; use as a context manager"

    def __init__(self, program=None):
        self.program = program or find()

    def __enter__(self):
        self.profile = tempfile.mkdtemp(prefix='chromium')
        read_in, self.to = os.pipe()
        self.of, write_out = os.pipe()
        # the browser reads descriptor 3 and writes 4
        script = f'exec 3<&{read_in} 4>&{write_out}; exec "$0" "$@"'
        self.process = subprocess.Popen(
            ['bash', '-c', script, self.program, *COMMON, f'--user-data-dir={self.profile}', 'about:blank'],
            pass_fds=(read_in, write_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_in)
        os.close(write_out)
        self.buffer, self.number, self.session, self.events = b'', 0, None, []
        page = next(t for t in self.call('Target.getTargets')['targetInfos'] if t['type'] == 'page')
        self.session = self.call('Target.attachToTarget', targetId=page['targetId'], flatten=True)['sessionId']
        for domain in ('Page', 'Runtime', 'Log', 'Network'):
            self.call(f'{domain}.enable')
        return self

    def __exit__(self, *_):
        try:
            self.session = None
            self.call('Browser.close', timeout=5)
        except Exception:
            pass
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.to)
        os.close(self.of)
        shutil.rmtree(self.profile, ignore_errors=True)

    def call(self, method, timeout=60, **parameters):
        "A command's result; what happens meanwhile goes to `events`"
        self.number += 1
        message = dict(id=self.number, method=method, params=parameters) | (
            {'sessionId': self.session} if self.session else {}
        )
        data = json.dumps(message).encode() + b'\0'
        while data:
            data = data[os.write(self.to, data) :]
        end = time.monotonic() + timeout
        while True:
            got = self._receive(end - time.monotonic())
            if got is None:
                raise TimeoutError(f'{method}: no answer from Chromium within {timeout} s')
            if got.get('id') == self.number:
                if 'error' in got:
                    raise RuntimeError(f'{method}: {got["error"]["message"]}')
                return got['result']
            self.events.append(got)

    def _receive(self, seconds):
        end = time.monotonic() + max(0, seconds)
        while b'\0' not in self.buffer:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.of], [], [], left)[0]:
                return None
            chunk = os.read(self.of, 1 << 20)
            if not chunk:
                raise RuntimeError('Chromium ended')
            self.buffer += chunk
        message, _, self.buffer = self.buffer.partition(b'\0')
        return json.loads(message)

    def size(self, width, height, phone=False, dark=False):
        "What the page is shown on"
        self.call('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self.call('Emulation.setTouchEmulationEnabled', enabled=phone)
        self.call(
            'Emulation.setEmulatedMedia',
            features=[dict(name='prefers-color-scheme', value='dark' if dark else 'light')],
        )

    def open(self, address, timeout=60):
        "Load a page and wait until it has settled"
        self.events.clear()
        self.call('Page.navigate', url=address)
        self.wait("document.readyState == 'complete'", timeout)
        time.sleep(0.3)

    def run(self, script):
        "The value of a JavaScript expression"
        result = self.call('Runtime.evaluate', expression=script, returnByValue=True, awaitPromise=True)
        if 'exceptionDetails' in result:
            raise RuntimeError(str(result['exceptionDetails'])[:500])
        return result['result'].get('value')

    def wait(self, script, timeout=60):
        "Wait until a JavaScript expression is true"
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            try:
                if self.run(f'!!({script})'):
                    return
            except RuntimeError:
                pass  # the page is being replaced
            time.sleep(0.1)
        raise TimeoutError(f'never true within {timeout} s: {script}')

    def choose(self, path, which='input[type=file]'):
        "Choose a file in a field for files, as a person does in the system's window"
        root = self.call('DOM.getDocument')['root']['nodeId']
        self.call(
            'DOM.setFileInputFiles',
            files=[str(path)],
            nodeId=self.call('DOM.querySelector', nodeId=root, selector=which)['nodeId'],
        )

    def drop(self, path, where):
        "Drag a file onto an element and let it go"
        x, y = self.run(
            f'(box => [box.x+box.width/2, box.y+box.height/2])(document.querySelector({where!r}).getBoundingClientRect())'
        )
        for kind in ('dragEnter', 'dragOver', 'drop'):
            self.call(
                'Input.dispatchDragEvent',
                type=kind,
                x=x,
                y=y,
                data=dict(items=[], files=[str(path)], dragOperationsMask=1),
            )

    def type(self, text):
        self.call('Input.insertText', text=text)

    def make_image(self, path):
        "A PNG of what is shown"
        path.write_bytes(base64.b64decode(self.call('Page.captureScreenshot', format='png')['data']))

    def complaints(self):
        "Errors on the console, and addresses that were fetched in vain"
        found = []
        for event in self.events:
            kind, what = event.get('method'), event.get('params', {})
            if kind == 'Runtime.exceptionThrown':
                thrown = what['exceptionDetails']
                found.append(thrown.get('exception', {}).get('description') or thrown['text'])
            elif kind == 'Runtime.consoleAPICalled' and what['type'] in ('error', 'assert'):
                found.append(str(what['args'])[:300])
            elif kind == 'Log.entryAdded' and what['entry']['level'] == 'error':
                found.append(f'{what["entry"]["text"]} {what["entry"].get("url", "")}')
        return found

    def fetched(self):
        "The addresses that the page asked for"
        return [
            event['params']['request']['url']
            for event in self.events
            if event.get('method') == 'Network.requestWillBeSent'
        ]


def find():
    "The browser's path, or None"
    return next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'chrome'))), None)
