"""A fast stand-in for a Predictor, without torch, and a server of it:

    python tests/serving.py GATE [PORT QUEUE_SIZE DRAIN TIMEOUT]

The network waits until the file GATE exists"""

import io
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from PIL import Image

from fungi_fastai.data.images import read_pixels, square
from fungi_fastai.evaluation.pooling import Pooling
from fungi_fastai.evaluation.species_list import listed_classes


class Colours:
    "Red, green or blue, by the mean colour"

    classes, fingerprint = ['blue', 'green', 'red'], 'f00d' * 16

    def __init__(self, gate: Path | None = None, bundle=None):
        self.gate, self.bundle, self.batches = gate, bundle or SimpleNamespace(name='colours', pooling=Pooling()), []

    def read(self, data):
        return square(read_pixels(io.BytesIO(data) if isinstance(data, bytes) else data, 16), 16)

    def run(self, pixels):
        while self.gate and not self.gate.exists():
            time.sleep(0.01)
        self.batches.append(len(pixels))
        mean = pixels.mean((1, 2))[:, ::-1] + 1
        return mean / mean.sum(1, keepdims=True)

    def listed(self, only):
        return listed_classes(only, self.classes)

    def pool(self, probs):
        return self.bundle.pooling.pool(probs)

    def decide(self, probs):
        return [
            SimpleNamespace(label=self.classes[p.argmax()], why=f'The confidence is {p.max():.2f}.', set=())
            for p in probs
        ]


def photo(size: int = 32, colour: str = 'red', kind: str = 'PNG', mode: str = 'RGB', **options) -> bytes:
    buffer = io.BytesIO()
    Image.new('RGB', (size, size), colour).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def placeholder_bundle(folder: Path, **values):
    "A bundle for `Colours` whose files are placeholders"
    from fungi_fastai.deploy.bundle import Bundle

    folder.mkdir(exist_ok=True)
    for name in ('model.safetensors', 'model.onnx', 'classes.txt'):
        (folder / name).write_bytes(name.encode() * 100)
    required = dict(
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
    return Bundle.write(folder, **required | values)


if __name__ == '__main__':
    from fungi_fastai.deploy.server import serve
    from fungi_fastai.deploy.uploads import Limits

    gate, port, queue_size, drain, timeout = (sys.argv[1:] + ['0', '256', '0', '30'][len(sys.argv) - 2 :])[:5]
    limits = Limits(queue_size=int(queue_size), max_files=min(64, int(queue_size)), timeout=float(timeout))
    sys.exit(serve(Colours(Path(gate)), port=int(port), drain=float(drain), limits=limits, page=False))
