"""Measures this library on a GPU in at most eight minutes: `make bench-gpu`.

    python benchmarks/gpu.py                  everything; writes benchmarks/results/gpu.json
    python benchmarks/gpu.py epoch profile    some parts, shown and not written
    python benchmarks/gpu.py --quick          everything on tiny images, also without a GPU: a test, nothing is written

Each measurement is a separate process in a new folder. A part that does not fit into the time is recorded as not run.
Nothing is downloaded: the images are drawn, and only tf_efficientnet_lite0, which a package brings, is pretrained."""

import argparse
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from run import CORES, HERE, RESULTS, ROOT, Bench, environment, log, machine

NETWORKS = ('resnet50', 'convnext_tiny', 'vit_small_patch16_224', 'tf_efficientnet_lite0', 'convmixer_256_8')


@dataclass
class Session:
    "The time that is left, and where measurements run"

    bench: Bench
    deadline: float  # by `time.monotonic`

    @property
    def quick(self):
        return self.bench.quick

    @property
    def left(self):
        return self.deadline - time.monotonic()

    def folder(self, name: str) -> Path:
        "A new folder with settings of its own, so that nothing is cached from an earlier measurement"
        folder = self.bench.work / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / 'settings.ini').write_text('[DEFAULT]\ndata_dir = data\ncache_dir = cache\nruns_dir = runs\n')
        return folder

    def call(self, command: list, folder: Path, timeout: float | None = None) -> dict:
        "Run a command: its seconds, its output, or why there is no result"
        start = time.monotonic()
        try:
            process = subprocess.run(
                [sys.executable, *map(str, command)],
                cwd=folder,
                capture_output=True,
                text=True,
                env=environment(),
                timeout=max(1, min(self.left, timeout or self.left)),
            )
        except subprocess.TimeoutExpired:
            return dict(failed='the time was over')
        if process.returncode:
            output = process.stderr.strip() or process.stdout.strip()
            log(output[-1500:])
            return dict(failed=output.splitlines()[-1])
        return dict(seconds=round(time.monotonic() - start, 2), output=process.stdout)

    def measure(self, file: str, contender: str, parameters: dict, timeout: float | None = None) -> dict:
        "The line of JSON that a measuring process prints"
        result = self.call([HERE / file, contender, json.dumps(parameters)], self.folder(contender), timeout)
        if 'failed' in result:
            return result
        return json.loads(result['output'].strip().splitlines()[-1])


def fungi(*arguments) -> list:
    return ['-c', 'from fungi_fastai.cli import main; main()', *arguments]


# --- the parts ---------------------------------------------------------------------------------------------------
def epoch(session: Session) -> dict:
    "Images a second of one epoch: plain fastai in half precision, ours, and the limit of one ready batch"
    size, bs = (32, 8) if session.quick else (224, 64)
    count = 32 if session.quick else 1920
    table = session.bench.photos(train=count, valid=8)
    results = {}
    for arch in ('convmixer_16_1',) if session.quick else NETWORKS:
        one = dict(table=table, arch=arch, size=size, bs=bs)
        rows = dict(limit=session.measure('epoch.py', 'limit', one, 60))
        rows['ours'] = session.measure('epoch.py', 'ours', one | dict(epochs=2 if session.quick else 4), 90)
        workers = sorted({min(8, CORES), CORES}) if arch == 'resnet50' else [CORES]
        for n in [0] if session.quick else workers:
            beside = one | dict(workers=n, half_precision=not session.quick)
            rows[f'fastai, {n} workers'] = session.measure('epoch.py', 'fastai', beside, 90)
        results[arch] = rows | ratios(rows)
        log(f'epoch {arch}: {results[arch]["ours_of_limit"]} of the limit, {results[arch]["ours_of_fastai"]} × fastai')
    return results


def ratios(rows: dict) -> dict:
    "Ours as a fraction of the limit, and as a multiple of the fastest plain fastai"
    rate = {name: row['rate'] for name, row in rows.items() if 'rate' in row}
    plain = max((value for name, value in rate.items() if name.startswith('fastai')), default=None)
    ours, limit = rate.get('ours'), rate.get('limit')
    return dict(
        ours_of_limit=round(ours / limit, 3) if ours and limit else None,
        ours_of_fastai=round(ours / plain, 2) if ours and plain else None,
    )


def profile(session: Session) -> dict:
    "Where the time of an epoch goes: reading, the cache, copies and augmentation, the step and its variants"
    size, bs, arch = (32, 8, 'convmixer_16_1') if session.quick else (224, 64, 'resnet50')
    parameters = dict(table=session.bench.photos(train=32 if session.quick else 960, valid=8))
    return session.measure('gpu_profile.py', 'profile', parameters | dict(arch=arch, size=size, bs=bs), 120)


def budget(session: Session) -> dict:
    "A training with a time budget, its report with saliency maps, and its export with the parity gate"
    folder = session.folder('budget')
    seconds = 20 if session.quick else 120
    train = ['train', 'mushrooms', '--source', 'sample', '--trainable', 'auto', '--head-init', 'probe']
    trained = session.call(fungi(*train, '--budget', f'{seconds}s', '--out', 'run'), folder)
    if 'failed' in trained:
        return dict(train=trained)
    exported = session.call(fungi('export', 'run', '--out', 'bundle'), folder)
    metrics = json.loads((folder / 'run' / 'metrics.json').read_text())
    plan = json.loads((folder / 'run' / 'plan.json').read_text())
    return dict(
        budget=seconds,
        train=trained['seconds'],
        plan=plan['reason'],
        accuracy=metrics['accuracy'],
        report=(folder / 'run' / 'report.html').exists(),
        export=exported.get('failed') or exported['seconds'],
        prediction=session.measure('gpu_profile.py', 'prediction', prediction_parameters(session, folder), 60),
    )


def prediction_parameters(session: Session, folder: Path) -> dict:
    table = session.bench.photos(wanted=32 if session.quick else 960)
    return dict(table=table, bundle=str(folder / 'bundle'))


def resume(session: Session) -> dict:
    "A deterministic training that is killed after an epoch and resumed has the weights of one that was not"
    folder = session.folder('resume')
    train = ['train', 'mushrooms', '--source', 'sample', '--arch', 'convmixer_64_4', '--no-pretrained']
    train += ['--trainable', 'all', '--size', '64', '--epochs', '3', '--deterministic', '--no-refit-head']
    whole = session.call(fungi(*train, '--out', 'whole'), folder)
    if 'failed' in whole:
        return whole
    process = subprocess.Popen(
        [sys.executable, *fungi(*train, '--out', 'killed')],
        cwd=folder,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    state = folder / 'killed' / 'checkpoint' / 'state.safetensors'
    while not state.exists() and process.poll() is None and session.left > 0:
        time.sleep(0.02)
    was_killed = process.poll() is None
    process.kill()
    process.wait()
    resumed = session.call(fungi('train', '--resume', 'killed'), folder)
    if 'failed' in resumed:
        return resumed
    return dict(killed=was_killed, same_weights=same_weights(folder / 'whole', folder / 'killed'))


def same_weights(*runs: Path) -> bool:
    "Whether two runs have the same weights, bit for bit"
    from safetensors.numpy import load_file

    whole, other = (load_file(run / 'model.safetensors') for run in runs)
    return whole.keys() == other.keys() and all(whole[name].tobytes() == other[name].tobytes() for name in whole)


def precision(session: Session) -> dict:
    "Accuracy of mixed precision and of float32, on the same images with the same seeds"
    folder = session.folder('precision')
    train = ['train', 'mushrooms', '--source', 'sample', '--trainable', 'all', '--head-init', 'probe']
    train += ['--epochs', '1' if session.quick else '5', '--size', '64' if session.quick else '224']
    results = {}
    for seed in (1,) if session.quick else (1, 2, 3):
        for name in ('fp32', 'auto'):
            out = f'{name}-{seed}'
            done = session.call(fungi(*train, '--precision', name, '--seed', str(seed), '--out', out), folder)
            if 'failed' in done:
                return results | {out: done}
            results[out] = json.loads((folder / out / 'metrics.json').read_text())['accuracy']
    return results


PARTS = dict(epoch=epoch, profile=profile, budget=budget, resume=resume, precision=precision)


# --- the command -------------------------------------------------------------------------------------------------
def gpu_name() -> str:
    "The name of the GPU; '' without one"
    code = 'import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else "")'
    return subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, env=environment()
    ).stdout.strip()


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('parts', nargs='*', metavar='PART', help=f'of {", ".join(PARTS)} (default: all)')
    parser.add_argument('--quick', action='store_true', help='tiny images and networks, with or without a GPU')
    parser.add_argument('--minutes', type=float, default=8, help='time limit (default: 8)')
    parser.add_argument('--out', type=Path, default=RESULTS / 'gpu.json', help='the file that is written')
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f'there is no part {", ".join(unknown)}; there are {", ".join(PARTS)}')
    if not (name := gpu_name()) and not options.quick:
        parser.error('this machine has no CUDA device; --quick tests the script without one')
    session = Session(Bench(options.quick), time.monotonic() + 60 * options.minutes)
    result = dict(gpu=name or 'none: a test on the CPU', date=str(date.today()), machine=machine(), parts={})
    try:
        for part in options.parts or PARTS:
            log(part)
            result['parts'][part] = PARTS[part](session) if session.left > 10 else dict(failed='the time was over')
            print(json.dumps({part: result['parts'][part]}, indent=1, ensure_ascii=False), flush=True)
            if not (options.quick or options.parts):
                write(result, options.out)
    finally:
        shutil.rmtree(session.bench.folder if options.quick else session.bench.work, ignore_errors=True)
    failures = list(failed(result['parts']))
    for where in failures:
        log(f'FAILED {where}')
    return int(bool(failures))


def failed(results: dict, where: str = ''):
    "The names of the measurements without a result"
    for name, value in results.items():
        if name == 'failed':
            yield f'{where}: {value}'
        elif isinstance(value, dict):
            yield from failed(value, f'{where} {name}'.strip())


def write(result: dict, file: Path):
    "Write the results, without paths of this machine"
    from fungi_fastai.core.files import write_text

    file.parent.mkdir(exist_ok=True)
    write_text(file, json.dumps(result, indent=1, ensure_ascii=False).replace(f'{ROOT}/', '') + '\n')


if __name__ == '__main__':
    sys.exit(main())
