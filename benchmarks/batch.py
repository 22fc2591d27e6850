"""Batch prediction with one and two workers, by each engine:

    python benchmarks/batch.py BUNDLE FOLDER [--engines local ray] [--times 4]

A folder is predicted once, then `--times` times. The rate is taken from the difference, so it includes neither the
start of a cluster nor the first chunk; the start is printed beside it. All files are compared byte by byte."""

import argparse
import tempfile
import time
from pathlib import Path

from fungi_fastai.runs.batch_prediction import engines, predict_to


def seconds(bundle, folder, times, out, **options):
    start = time.perf_counter()
    tally = predict_to(bundle, [folder] * times, out, progress=False, **options)
    return time.perf_counter() - start, tally.images


def measure(bundle, folder, times, engine, workers, folder_out):
    "Images a second, seconds to start, and the file of `times` folders"
    out = Path(folder_out) / f'{engine}-{workers}.csv'
    once, n = seconds(bundle, folder, 1, out.with_suffix('.parquet'), engine=engine, workers=workers)
    many, more = seconds(bundle, folder, times, out, engine=engine, workers=workers)
    rate = (more - n) / (many - once)
    return rate, max(0, many - more / rate), out.read_bytes()


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('bundle')
    parser.add_argument('folder', help='at least a few hundred images')
    parser.add_argument('--engines', nargs='+', default=engines, choices=engines)
    parser.add_argument('--workers', nargs='+', type=int, default=[1, 2])
    parser.add_argument('--times', type=int, default=4, help='how often the folder is predicted')
    arguments = parser.parse_args()
    files = set()
    with tempfile.TemporaryDirectory() as folder_out:
        for engine in arguments.engines:
            first = None
            for workers in arguments.workers:
                rate, startup, file = measure(
                    arguments.bundle, arguments.folder, arguments.times, engine, workers, folder_out
                )
                files.add(file)
                first = first or rate
                print(
                    f'{engine:>6}, workers {workers}: {rate:7.1f} images/s, {rate / first:.2f} times the first; '
                    f'{startup:4.1f} s to start',
                    flush=True,
                )
    print('All files are the same, byte by byte.' if len(files) == 1 else f'{len(files)} different files!')
