"A server with a page, for a fast stand-in for a Predictor: python tests/page_server.py PORT"

import io
import sys
import time
from types import SimpleNamespace

import numpy as np
from PIL import Image
from serving import Colours

from fungi_fastai.core.errors import UserError
from fungi_fastai.evaluation.conformal import Conformal
from fungi_fastai.evaluation.pooling import Pooling
from fungi_fastai.evaluation.selective import Threshold, decide

names = [
    'Amanita',
    '<b>${1+1}</b> {{x}} `',
    'Russula',
]  # for blue, green and red; the second would be code if it were not escaped


def coloured(*colour, size=32):
    file = io.BytesIO()
    Image.new('RGB', (size, size), colour).save(file, 'JPEG')
    return file.getvalue()


class Specimens(Colours):
    "Confident about red images, unsure about grey ones; has similar images; has no map for green, and fails for white"

    classes = names

    def __init__(self):
        bundle = SimpleNamespace(
            name='finds',
            metrics=dict(
                accuracy=0.875,
                n_test=400,
                reliability=[dict(low=0.8, high=1.0, accuracy_low=0.91, accuracy_high=0.99, images=150)],
            ),
            data=dict(source='sample'),
            classes=names,
            pooling=Pooling(correlation=0.3, photos=4, specimens=40),
            files=['examples.safetensors'],
            conformal=Conformal('lac', 0.9, 0.8, images=200),
            threshold=Threshold(
                0.7, 0.8, 0.95, 0.08, 0.95, '95% of the answers correct', True, 200, 'chosen on 200 images'
            ),
        )
        super().__init__(bundle=bundle)

    def run(self, pixels):
        if pixels.min() == 255:
            raise RuntimeError('an internal secret')
        return super().run(pixels)

    def run_with_features(self, pixels):
        return self.run(pixels), np.zeros((len(pixels), 4), np.float32)

    def decide(self, probs):
        return decide(probs, names, 1.0, self.bundle.threshold, self.bundle.conformal)

    def nearest(self, features, k):
        return [
            SimpleNamespace(label=names[i % 3], name=f'{i}', distance=0.1 * (i + 1), thumbnail=coloured(250, 9, 9))
            for i in range(k)
        ]

    def explain(self, pixels, classes):
        if classes == [1]:
            raise UserError('There is no map of this.')
        time.sleep(0.3)
        maps = np.zeros((len(pixels), 16, 16), np.float32)
        maps[:, 4:9, 4:9] = 1
        return maps


if __name__ == '__main__':
    from fungi_fastai.deploy.server import serve
    from fungi_fastai.deploy.uploads import Limits

    sys.exit(
        serve(Specimens(), port=int(sys.argv[1]), drain=0.0, limits=Limits(max_bytes=200_000, max_memory=2_000_000))
    )
