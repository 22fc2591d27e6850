"""Takes the screenshots of the README and the home page again: `python docs/images.py`

drawn mushrooms ─► fungi train ─► fungi export ─► Chromium ─► nbs/images/report.jpg, nbs/images/page.jpg

Nothing is downloaded. A folder with a run and a bundle, such as the one that `make demo` writes, is used as it is:
`python docs/images.py demo`.
"""

import argparse
import contextlib
import io
import socket
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import numpy as np
from PIL import Image

root = Path(__file__).parents[1]
sys.path[:0] = [str(root), str(root / 'tests')]
import chromium  # noqa: E402

fungi = [sys.executable, '-m', 'fungi_fastai.cli']
separator = (223, 229, 226)


def shot(browser, width, height, scale=1.0, top=0):
    "A part of the page as wide as the window, as a Pillow image; `width`, `height` and `top` in CSS pixels"
    clip = dict(x=0, y=top, width=width, height=height, scale=scale)
    taken = browser.call('Page.captureScreenshot', format='png', clip=clip, captureBeyondViewport=True)
    return Image.open(io.BytesIO(chromium.base64.b64decode(taken['data']))).convert('RGB')


def report_image(browser, report):
    "The first screen of a report, from the title to the three scores"
    browser.size(1000, 800)
    browser.open(report.as_uri())
    top = browser.run("document.querySelector('h1').getBoundingClientRect().top + scrollY - 24")
    bottom = browser.run("document.querySelector('.facts').getBoundingClientRect().bottom + scrollY + 10")
    return shot(browser, 1000, bottom - top, 1.4, top)


def photos(run, predictor):
    "A test photo with a confident correct answer, and one for which two classes are about equally likely"
    test = run.items[run.items.split == 'test']
    confident, undecided = [], []
    for path, label, one in zip(test.path, test.label, predictor.predict(list(test.path)), strict=True):
        if one.answer == label:
            confident.append((one.confidence, path))
        elif one.answer == 'not sure':
            undecided.append((np.sort(one.probabilities)[-2], path))
    if not confident or not undecided:
        sys.exit('The run needs a test image that is answered, and one that is not.')
    return max(confident)[1], max(undecided)[1]


@contextlib.contextmanager
def served(bundle):
    "The address of the page of a bundle"
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([*fungi, 'serve', bundle, '--port', str(port)], stdout=subprocess.DEVNULL)
    try:
        address = f'http://127.0.0.1:{port}/'
        yield address
    finally:
        process.terminate()
        process.wait()


def answered(browser, address, photo, width, phone=False):
    "Open the page, choose a photo and wait for the explanation"
    browser.size(width, 1180, phone)
    browser.open(address)
    browser.wait("document.querySelector('.drop')")
    browser.choose(photo)
    browser.wait("document.querySelector('.near img')", timeout=120)
    browser.wait('[...document.images].every(image => image.hidden || image.naturalWidth)')
    browser.run('scrollTo(0, 0)')


def page_image(browser, bundle, confident, unsure, height=1180):
    "The page on a desktop with an answer, beside the page on a phone without one"
    with served(bundle) as address:
        _wait_for(address)
        answered(browser, address, confident, 800)
        desktop = shot(browser, 800, height)
        answered(browser, address, unsure, 390, phone=True)
        phone = shot(browser, 390, height)
    image = Image.new('RGB', (800 + 16 + 390, height), separator)
    image.paste(desktop, (0, 0))
    image.paste(phone, (816, 0))
    return image


def _wait_for(address, seconds=120):
    for _ in range(seconds):
        with contextlib.suppress(OSError), urllib.request.urlopen(address + 'ready', timeout=1):
            return
        chromium.time.sleep(1)
    sys.exit(f'{address} did not start within {seconds} s.')


def trained(folder):
    "Train and export the built-in sample into a folder, unless it is there"
    if not (folder / 'run' / 'report.html').exists():
        subprocess.run([*fungi, 'train', 'mushrooms', '--source', 'sample', '--out', folder / 'run'], check=True)
    if not (folder / 'bundle').exists():
        subprocess.run([*fungi, 'export', folder / 'run', '--out', folder / 'bundle'], check=True)


def main(folder, out):
    "Write the two screenshots"
    from fungi_fastai import Predictor
    from fungi_fastai.run_folder import RunFolder

    trained(folder)
    with contextlib.closing(Predictor.load(folder / 'bundle')) as predictor:
        chosen = photos(RunFolder.load(folder / 'run'), predictor)
    with chromium.Chromium() as browser:
        images = dict(report=report_image(browser, (folder / 'run' / 'report.html').resolve()))
        images['page'] = page_image(browser, folder / 'bundle', *chosen)
    for name, image in images.items():
        file = out / f'{name}.jpg'
        image.save(file, quality=82, optimize=True, progressive=True)
        print(f'{file}: {image.width} × {image.height} px, {file.stat().st_size / 1000:.0f} KB')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', nargs='?', type=Path, help='with run/ and bundle/ (default: a temporary folder)')
    parser.add_argument('--out', type=Path, default=root / 'nbs' / 'images', help='default: nbs/images')
    given = parser.parse_args()
    if chromium.find() is None:
        sys.exit('There is no chromium or google-chrome on this machine.')
    with tempfile.TemporaryDirectory() as temporary:
        main((given.folder or Path(temporary)).resolve(), given.out)
