"""The same training time for this library and for plain fastai, on the same images, split and weights.

    python benchmarks/budget.py ../shared OUT --minutes 5 --seeds 1 2 3 --sets mushrooms flowers

For each set and seed it calls `fungi train --budget`, and then plain fastai (plain.py, as its tutorials teach it)
in another process, with as many epochs of `fine_tune` as fit into the same time; the time of an epoch is estimated
from a few batches. Both are scored on the run's test set, which neither has seen. Each leaves a folder in OUT for
`fungi compare`. An existing folder is not computed again."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

start_time = time.monotonic()  # the imports of plain fastai count, as ours do
plain_sizes = dict(
    mushrooms=192, defungi=160, flowers=192, seedlings=150
)  # as in the reference measurements beside the data
archives = dict(
    mushrooms='mushrooms.zip',
    defungi='defungi.zip',
    flowers='flowers.zip',
    seedlings='plant-seedlings-classification.zip',
)
arch, weights = 'mobilenetv2_100', 'mobilenetv2_100.coral_ptq_in1k.safetensors'


def seconds_an_epoch(learn) -> tuple[float, float]:
    "Training all layers, and validating; changes the Learner's weights"
    from fastai.callback.core import Callback

    class Stopwatch(Callback):
        def __init__(self):
            self.ends = {True: [], False: []}

        def before_batch(self):
            self.start_time = time.perf_counter()

        def after_batch(self):
            self.ends[self.training].append((self.start_time, time.perf_counter()))

    class FewBatches(Callback):
        def after_batch(self):
            from fastai.callback.core import CancelTrainException, CancelValidException

            if self.iter == 2:
                raise CancelTrainException if self.training else CancelValidException

    stopwatch = Stopwatch()
    learn.unfreeze()
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, cbs=[stopwatch, FewBatches()])

    def epoch_seconds(training, loader):  # from the end of a batch to the end of the next, which includes loading
        ends = [end for _, end in stopwatch.ends[training]]
        durations = [b - a for a, b in zip(ends[:-1], ends[1:], strict=True)] or [
            end - start for start, end in stopwatch.ends[training]
        ]
        return min(durations) * len(loader)

    return epoch_seconds(True, learn.dls.train), epoch_seconds(False, learn.dls.valid)


def plain(run_folder: Path, size: int, seconds: float, out: Path):
    "Train plain fastai within a number of seconds; writes a folder like a run's"
    from fastai.vision.all import set_seed
    from plain import plain_learner, plain_loaders

    from fungi_fastai.runs.run import Run

    run = Run.load(run_folder)
    recipe, items = run.recipe, run.items
    test_items = items[items.split == 'test']
    set_seed(recipe.seed)
    dls = plain_loaders(
        items, size, workers=min(16, len(os.sched_getaffinity(0)))
    )  # fastai's own default, and so is the batch of 64
    train_seconds, valid_seconds = seconds_an_epoch(plain_learner(dls, recipe.arch, recipe.weights))
    set_seed(recipe.seed)
    learn = plain_learner(dls, recipe.arch, recipe.weights)
    testing = valid_seconds * len(test_items) / (items.split == 'valid').sum()
    left = (
        seconds - (time.monotonic() - start_time) - testing - train_seconds / 2 - valid_seconds
    )  # the first epoch trains the head alone, in about half the time
    epochs = max(1, int(left / (train_seconds + valid_seconds)))
    with learn.no_bar():
        learn.fine_tune(epochs)
    with learn.no_bar(), learn.no_logging():
        probs, _ = learn.get_preds(dl=dls.test_dl(test_items))
    write_scored(
        out,
        recipe.but(name='plain fastai', size=size, epochs=0, budget=0.0),
        run_folder,
        test_items,
        probs.numpy(),
        list(dls.vocab),
        seconds=round(time.monotonic() - start_time, 1),
        epochs=epochs,
    )


def write_scored(out: Path, recipe, run_folder: Path, test_items, probs, classes: list[str], **more_metrics):
    "Write other predictions for a run's test images, as a folder that `fungi compare` accepts as a run"
    from fungi_fastai.core.files import write_json, write_table
    from fungi_fastai.evaluation.metrics import Evaluation, predictions_table

    predictions = predictions_table(test_items, probs, classes)
    out.mkdir(parents=True)
    write_json(out / 'recipe.json', json.loads(recipe.to_json()))
    shutil.copy(run_folder / 'items.parquet', out)
    write_table(out / 'predictions.parquet', predictions.assign(split='test'))
    write_json(
        out / 'metrics.json',
        Evaluation.of(predictions).metrics() | dict(evaluated_on='test', classes=classes) | more_metrics,
    )


def ours(name: str, data: Path, minutes: float, seed: int, out: Path):
    "Run the command as a user does, with an empty cache"
    home = out.with_name(f'home of {out.name}')
    home.mkdir(parents=True, exist_ok=True)
    (home / 'settings.ini').write_text(f'[DEFAULT]\ndata_dir = {out.parents[1]}/data\ncache_dir = cache\n')
    subprocess.run(
        [
            Path(sys.executable).parent / 'fungi',
            'train',
            name,
            '--source',
            data / 'data' / archives[name],
            '--arch',
            arch,
            '--weights',
            data / 'weights' / weights,
            '--budget',
            f'{minutes}m',
            '--seed',
            str(seed),
            '--out',
            out,
        ],
        check=True,
        cwd=home,
    )
    shutil.rmtree(home)


def table(out: Path) -> dict:
    "The scores of both, and their differences with 95 % intervals over images (by specimen) and seeds"
    from run import machine

    from fungi_fastai.runs.compare import compare

    rows, differences = [json.loads(line) for line in (out / 'rows.jsonl').read_text().splitlines()], []
    for folder in sorted(p for p in out.glob('*m') if p.is_dir()):
        seeds = [
            seed
            for seed in range(100)
            if all((folder / f'{side}-{seed}' / 'metrics.json').exists() for side in ('fastai', 'fungi'))
        ]
        if not seeds:
            continue
        sides = [[folder / f'{side}-{seed}' for seed in seeds] for side in ('fastai', 'fungi')]
        for _, row in compare([*sides[0], *sides[1]]).differences.iterrows():
            numbers = {k: float(row[k]) for k in ('difference', 'low', 'high', 'p_permutation')}
            differences.append(dict(set=folder.name, seeds=len(seeds), score=row.score, **numbers))
    return dict(machine=machine(), rows=rows, differences=differences)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('data', type=Path, help='the folder with data/ and weights/')
    parser.add_argument('out', type=Path)
    parser.add_argument('--minutes', type=float, default=5)
    parser.add_argument('--seeds', type=int, nargs='+', default=[1, 2, 3])
    parser.add_argument('--sets', nargs='+', choices=list(archives), default=list(archives))
    parser.add_argument('--only', choices=['ours', 'plain'])
    parser.add_argument('--table', action='store_true', help='print the results in OUT as JSON, and measure nothing')
    arguments = parser.parse_args()
    arguments.data, arguments.out = arguments.data.resolve(), arguments.out.resolve()
    if arguments.table:
        print(json.dumps(table(arguments.out), indent=1))
        return
    for name in arguments.sets:
        for seed in arguments.seeds:
            mine, other = (
                arguments.out / f'{name}-{arguments.minutes:g}m' / f'{side}-{seed}' for side in ('fungi', 'fastai')
            )
            for side, folder in dict(ours=mine, plain=other).items():
                if (folder / 'metrics.json').exists() or arguments.only not in (None, side):
                    continue
                start = time.monotonic()
                if side == 'ours':
                    ours(name, arguments.data, arguments.minutes, seed, folder)
                else:
                    subprocess.run(
                        [
                            sys.executable,
                            __file__,
                            'PLAIN',
                            mine,
                            str(plain_sizes[name]),
                            str(60 * arguments.minutes),
                            folder,
                        ],
                        check=True,
                        env=os.environ | dict(PYTHONWARNINGS='ignore'),
                    )
                metrics = json.loads((folder / 'metrics.json').read_text())
                row = dict(
                    set=name,
                    side=side,
                    minutes=arguments.minutes,
                    seed=seed,
                    wall=round(time.monotonic() - start, 1),
                    epochs=metrics['epochs'],
                    accuracy=metrics['accuracy'],
                    macro_f1=metrics['macro_f1'],
                    n_test=metrics['n_test'],
                )
                with open(arguments.out / 'rows.jsonl', 'a') as file:
                    file.write(json.dumps(row) + '\n')
                print(row, flush=True)


if __name__ == '__main__':
    if sys.argv[1:2] == ['PLAIN']:
        plain(Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), Path(sys.argv[5]))
    else:
        main()
