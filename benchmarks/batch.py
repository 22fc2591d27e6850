"""Batch prediction with one worker and with two, by each engine: python benchmarks/batch.py BUNDLE FOLDER [--engines local ray] [--times 4]

Rates are of the images after the start (a folder once, then so many times; the difference counts), so that neither the seconds
that a cluster takes to start nor the first chunk is in them; the start is told beside. All files are compared, byte by byte."""

import argparse
import tempfile
import time
from pathlib import Path

from fungi_fastai.runs.batch_prediction import engines, predict_to


def seconds(bundle, folder, times, out, **options):
    began = time.perf_counter()
    tally = predict_to(bundle, [folder] * times, out, progress=False, **options)
    return time.perf_counter() - began, tally.images


def measure(bundle, folder, times, engine, workers, place):
    "Images a second, seconds to start, and the file of `times` folders"
    out = Path(place) / f'{engine}-{workers}.csv'
    once, n = seconds(bundle, folder, 1, out.with_suffix('.parquet'), engine=engine, workers=workers)
    many, more = seconds(bundle, folder, times, out, engine=engine, workers=workers)
    rate = (more - n) / (many - once)
    return rate, max(0, many - more / rate), out.read_bytes()


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('bundle')
    parser.add_argument('folder', help='images; some hundred at least')
    parser.add_argument('--engines', nargs='+', default=engines, choices=engines)
    parser.add_argument('--workers', nargs='+', type=int, default=[1, 2])
    parser.add_argument('--times', type=int, default=4, help='the folder is predicted so many times over')
    given = parser.parse_args()
    files = set()
    with tempfile.TemporaryDirectory() as place:
        for engine in given.engines:
            first = None
            for workers in given.workers:
                rate, start, file = measure(given.bundle, given.folder, given.times, engine, workers, place)
                files.add(file)
                first = first or rate
                print(
                    f'{engine:>6}, workers {workers}: {rate:7.1f} images/s, {rate / first:.2f} times the first; {start:4.1f} s to start',
                    flush=True,
                )
    print('All files are the same, byte by byte.' if len(files) == 1 else f'{len(files)} different files!')
