"""The benchmarks' images, drawn by the library's own sample, so that nothing is downloaded:

    python benchmarks/images.py photos FOLDER 2000     640×480 JPEGs of 60-100 KB, as a phone sends them; kept, and added to
    python benchmarks/images.py small FOLDER 100000    about 100×100 pixels, 5 KB: to see how cost grows with their number

Both write FOLDER/table.csv (path, label), classes in turn."""

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


def place(i: int) -> str:
    return f'{LABELS[i % len(LABELS)]}/{i:06}.jpg'


def photo(folder: Path, i: int):
    "Draw image `i`, unless it is there"
    file = folder / place(i)
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
    "Two pieces of drawings over one another, with changed colours: quick, and no two alike"
    chance, label = random.Random(f'{folder.name}/{i}'), LABELS[i % len(LABELS)]
    side = chance.randint(96, 120)

    def piece():
        image = drawing(label, chance.randrange(33))
        width = chance.randint(60, 110)
        left, top = chance.randint(0, 144 - width), chance.randint(0, 144 - width)
        image = image.resize((side, side), Image.Resampling.BILINEAR, box=(left, top, left + width, top + width))
        return image.transpose(chance.choice(list(Image.Transpose)))

    image = ImageEnhance.Color(Image.blend(piece(), piece(), chance.uniform(0.3, 0.7))).enhance(
        chance.uniform(0.5, 1.5)
    )
    image.save(folder / place(i), 'JPEG', quality=chance.randint(88, 95))


def _make(draw_one, folder, numbers):
    for i in numbers:
        draw_one(folder, i)


def make(draw_one, folder: Path, count: int, processes: int = os.cpu_count() or 1) -> Path:
    "The folder with at least `count` images and their table"
    table = folder / 'table.csv'
    if table.exists() and sum(1 for _ in open(table)) > count:
        return folder
    for label in LABELS:
        (folder / label).mkdir(parents=True, exist_ok=True)
    draw_one(folder, 0)  # textures that the processes will share
    pieces = [range(k, count, 4 * processes) for k in range(4 * processes)]
    if count < 100:
        _make(draw_one, folder, range(count))
    else:
        with ProcessPoolExecutor(processes) as pool:
            list(pool.map(_make, [draw_one] * len(pieces), [folder] * len(pieces), pieces))
    part = table.with_suffix('.part')
    rows = ((folder / place(i), LABELS[i % len(LABELS)]) for i in range(count))
    with open(part, 'w', newline='') as file:
        csv.writer(file).writerows([('path', 'label'), *rows])
    part.rename(table)
    return folder


if __name__ == '__main__':
    make(dict(photos=photo, small=small)[sys.argv[1]], Path(sys.argv[2]).absolute(), int(sys.argv[3]))
