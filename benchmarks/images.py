"""The images of the benchmarks, drawn by the library's built-in sample, so that nothing is downloaded:

    python benchmarks/images.py photos FOLDER 2000     640×480 JPEGs of 60-100 KB, as a phone sends them
    python benchmarks/images.py small FOLDER 100000    about 100×100 pixels, 5 KB, to measure growth

Existing photos are kept. Both write FOLDER/table.csv (path, label), with the classes in turn."""

import csv
import os
import random
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageEnhance

from fungi_fastai.samples.datasets import draw, kinds

KIND = 'mushrooms'
LABELS = kinds[KIND].labels


def relative_path(i: int) -> str:
    return f'{LABELS[i % len(LABELS)]}/{i:06}.jpg'


def photo(folder: Path, i: int):
    "Draw image `i`, unless it exists"
    file = folder / relative_path(i)
    if file.exists():
        return
    part = file.with_suffix('.part')
    drawn = draw(KIND, LABELS[i % len(LABELS)], i // len(LABELS), 0, size=640, seed=1)
    drawn.crop((0, 80, 640, 560)).save(part, 'JPEG', quality=91)
    part.rename(file)


@lru_cache(None)
def drawing(label: str, number: int):
    return draw(KIND, label, number, 0, size=144, seed=2)


def small(folder: Path, i: int):
    "Two overlaid pieces of drawings with changed colours: fast, and no two alike"
    rng, label = random.Random(f'{folder.name}/{i}'), LABELS[i % len(LABELS)]
    size = rng.randint(96, 120)

    def piece():
        image = drawing(label, rng.randrange(33))
        width = rng.randint(60, 110)
        left, top = rng.randint(0, 144 - width), rng.randint(0, 144 - width)
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + width, top + width))
        return image.transpose(rng.choice(list(Image.Transpose)))

    image = ImageEnhance.Color(Image.blend(piece(), piece(), rng.uniform(0.3, 0.7))).enhance(rng.uniform(0.5, 1.5))
    image.save(folder / relative_path(i), 'JPEG', quality=rng.randint(88, 95))


def _make(draw_one, folder, numbers):
    for i in numbers:
        draw_one(folder, i)


def make(draw_one, folder: Path, count: int, processes: int = os.cpu_count() or 1) -> Path:
    "Draw images until the folder has at least `count`, and write their table"
    table = folder / 'table.csv'
    if table.exists() and sum(1 for _ in open(table)) > count:
        return folder
    for label in LABELS:
        (folder / label).mkdir(parents=True, exist_ok=True)
    draw_one(folder, 0)  # textures that the processes share
    pieces = [range(k, count, 4 * processes) for k in range(4 * processes)]
    if count < 100:
        _make(draw_one, folder, range(count))
    else:
        with ProcessPoolExecutor(processes) as pool:
            list(pool.map(_make, [draw_one] * len(pieces), [folder] * len(pieces), pieces))
    part = table.with_suffix('.part')
    rows = ((folder / relative_path(i), LABELS[i % len(LABELS)]) for i in range(count))
    with open(part, 'w', newline='') as file:
        csv.writer(file).writerows([('path', 'label'), *rows])
    part.rename(table)
    return folder


if __name__ == '__main__':
    make(dict(photos=photo, small=small)[sys.argv[1]], Path(sys.argv[2]).absolute(), int(sys.argv[3]))
