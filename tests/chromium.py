"Headless Chromium for tests, controlled over pipes (the DevTools protocol): no driver, no packages, no port"

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
        browser_input, self.commands = os.pipe()
        self.responses, browser_output = os.pipe()
        # the browser reads from descriptor 3 and writes to 4
        script = f'exec 3<&{browser_input} 4>&{browser_output}; exec "$0" "$@"'
        self.process = subprocess.Popen(
            ['bash', '-c', script, self.program, *COMMON, f'--user-data-dir={self.profile}', 'about:blank'],
            pass_fds=(browser_input, browser_output),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(browser_input)
        os.close(browser_output)
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
        os.close(self.commands)
        os.close(self.responses)
        shutil.rmtree(self.profile, ignore_errors=True)

    def call(self, method, timeout=60, **parameters):
        "The result of a command; events that arrive meanwhile are appended to `events`"
        self.number += 1
        message = dict(id=self.number, method=method, params=parameters) | (
            {'sessionId': self.session} if self.session else {}
        )
        data = json.dumps(message).encode() + b'\0'
        while data:
            data = data[os.write(self.commands, data) :]
        end = time.monotonic() + timeout
        while True:
            response = self._receive(end - time.monotonic())
            if response is None:
                raise TimeoutError(f'{method}: no response from Chromium within {timeout} s')
            if response.get('id') == self.number:
                if 'error' in response:
                    raise RuntimeError(f'{method}: {response["error"]["message"]}')
                return response['result']
            self.events.append(response)

    def _receive(self, seconds):
        end = time.monotonic() + max(0, seconds)
        while b'\0' not in self.buffer:
            remaining = end - time.monotonic()
            if remaining <= 0 or not select.select([self.responses], [], [], remaining)[0]:
                return None
            chunk = os.read(self.responses, 1 << 20)
            if not chunk:
                raise RuntimeError('Chromium has exited')
            self.buffer += chunk
        message, _, self.buffer = self.buffer.partition(b'\0')
        return json.loads(message)

    def size(self, width, height, phone=False, dark=False):
        "Set the size and kind of the screen"
        self.call('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self.call('Emulation.setTouchEmulationEnabled', enabled=phone)
        self.call(
            'Emulation.setEmulatedMedia',
            features=[dict(name='prefers-color-scheme', value='dark' if dark else 'light')],
        )

    def open(self, address, timeout=60):
        "Load a page and wait until it is complete"
        self.events.clear()
        self.call('Page.navigate', url=address)
        self.wait("document.readyState == 'complete'", timeout)
        time.sleep(0.1)  # what its scripts do then

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
            time.sleep(0.05)
        raise TimeoutError(f'never true within {timeout} s: {script}')

    def choose(self, path, selector='input[type=file]'):
        "Choose a file in a file input, as a user does"
        root = self.call('DOM.getDocument')['root']['nodeId']
        self.call(
            'DOM.setFileInputFiles',
            files=[str(path)],
            nodeId=self.call('DOM.querySelector', nodeId=root, selector=selector)['nodeId'],
        )

    def drop(self, path, selector):
        "Drag a file onto an element and drop it"
        box = f'document.querySelector({selector!r}).getBoundingClientRect()'
        x, y = self.run(f'(box => [box.x+box.width/2, box.y+box.height/2])({box})')
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

    def screenshot(self, path):
        "Save a PNG of the visible page"
        path.write_bytes(base64.b64decode(self.call('Page.captureScreenshot', format='png')['data']))

    def errors(self):
        "Errors on the console, and requests that failed"
        errors = []
        for event in self.events:
            kind, params = event.get('method'), event.get('params', {})
            if kind == 'Runtime.exceptionThrown':
                thrown = params['exceptionDetails']
                errors.append(thrown.get('exception', {}).get('description') or thrown['text'])
            elif kind == 'Runtime.consoleAPICalled' and params['type'] in ('error', 'assert'):
                errors.append(str(params['args'])[:300])
            elif kind == 'Log.entryAdded' and params['entry']['level'] == 'error':
                errors.append(f'{params["entry"]["text"]} {params["entry"].get("url", "")}')
        return errors

    def requested_urls(self):
        "The addresses that the page requested"
        return [
            event['params']['request']['url']
            for event in self.events
            if event.get('method') == 'Network.requestWillBeSent'
        ]


def find():
    "The browser's path, or None"
    return next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'chrome'))), None)
