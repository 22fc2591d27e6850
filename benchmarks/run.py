"""Measures this library beside plain fastai, a plain torch loop, Hugging Face's Trainer, and the limit that the machine sets.

    python benchmarks/run.py                      everything: `make bench`, about an hour on two cores
    python benchmarks/run.py epoch accuracy       some parts
    python benchmarks/run.py epoch --only resnet50_224
    python benchmarks/run.py --quick              all of it on tiny images, in minutes: it proves that it works, and keeps nothing

Each measurement is a process of its own, contenders take turns, and of at least three rounds the median counts. A part's numbers
are written to benchmarks/results/PART.json when the part ends. Stopped half-way, the same call goes on where it was."""

import argparse
import csv
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
CORES = os.cpu_count() or 1
RESULTS = HERE / 'results'


@dataclass(frozen=True)
class Contender:
    "One of those that are compared"

    label: str  # as tables call it
    file: str  # the script that measures it; '' where `command` is measured as a whole
    given: dict = field(default_factory=dict)  # parameters of its own
    needs: str = ''  # 'hf': runs in the environment with Hugging Face's packages
    command: tuple = ()


@dataclass(frozen=True)
class Case:
    "What they are compared at"

    name: str
    title: str
    contenders: dict  # name → Contender
    ratios: dict  # 'fastai ÷ ours' → ((contenders, figure), (contenders, figure)): the best of the first over the best of the second
    given: dict = field(default_factory=dict)
    facts: dict = field(default_factory=dict)  # to be told beside the numbers
    rounds: int = 3  # at least


def say(text):
    print(f'{time.strftime("%H:%M:%S")}  {text}', flush=True)


# --- places and images -----------------------------------------------------------------------------------------
class Bench:
    "Where images and measurements are kept, and how large all is"

    def __init__(self, quick: bool):
        self.quick = quick
        if quick:
            self.folder = Path(tempfile.mkdtemp(prefix='fungi-bench-'))
        else:
            from fungi_fastai.core.settings import settings

            self.folder = Path(os.environ.get('BENCH_DIR', settings(ROOT).data_dir / 'bench'))
        self.work = self.folder / 'work'
        self.measured = self.folder / 'measured.jsonl'
        self.skipped = {}
        self.work.mkdir(parents=True, exist_ok=True)

    def images(self, kind: str, folder: str, count: int) -> list[list]:
        "The first `count` images of a kind: path and label"
        table = self.folder / folder / 'table.csv'
        if not table.exists() or sum(1 for _ in open(table)) <= count:
            say(f'drawing {count:,} images')
            subprocess.run(
                [sys.executable, HERE / 'images.py', kind, self.folder / folder, str(count)],
                check=True,
                env=environment(),
                stdout=subprocess.DEVNULL,
            )
            os.sync()  # or the disk is still busy with them while the first of them are measured
        with open(table) as file:
            return list(csv.reader(file))[1 : count + 1]

    def photos(self, **parts) -> str:
        "A CSV with path, label and split of so many photos: photos(train=480, valid=8)"
        rows = self.images('photos', 'photos', sum(parts.values()))
        splits = [part for part, count in parts.items() for _ in range(count)]
        name = self.folder / ('-'.join(f'{part}{count}' for part, count in parts.items()) + '.csv')
        with open(name, 'w', newline='') as file:
            csv.writer(file).writerows(
                [('path', 'label', 'split'), *((*row, part) for row, part in zip(rows, splits, strict=True))]
            )
        return str(name)

    def forget(self, folder: str):
        if not os.environ.get('BENCH_KEEP'):
            shutil.rmtree(self.folder / folder, ignore_errors=True)


def environment() -> dict:
    return os.environ | dict(
        PYTHONPATH=str(ROOT),
        HF_HUB_OFFLINE='1',
        TOKENIZERS_PARALLELISM='false',
        MPLBACKEND='Agg',
        PYTHONWARNINGS='ignore',
    )


def shared(*names) -> Path | None:
    "A file of the real sets beside the project, where they are there"
    file = Path(os.environ.get('FUNGI_DATA', ROOT.parent / 'shared' / 'data')).resolve().joinpath(*names)
    return file if file.exists() else None


def hf_python(bench: Bench) -> str | None:
    "The interpreter of .venv-bench: the same packages as here, and Hugging Face's; made when first needed"
    python, mark = ROOT / '.venv-bench' / 'bin' / 'python', ROOT / '.venv-bench' / '.installed'
    wanted = (HERE / 'huggingface.txt').read_text()
    if mark.exists() and mark.read_text() == wanted:
        return str(python)
    if bench.quick:
        bench.skipped['hf'] = '.venv-bench is not there, and --quick makes none'
        return None
    beside = Path(sys.executable).parent / 'uv'
    uv = str(beside) if beside.exists() else shutil.which('uv')
    if uv is None:
        bench.skipped['hf'] = 'uv is not installed: pip install uv'
        return None
    say('making .venv-bench for Hugging Face')
    try:
        frozen = subprocess.run(
            [uv, 'pip', 'freeze', '--quiet', '--exclude-editable', '--python', sys.executable],
            check=True,
            capture_output=True,
            text=True,
        )
        (bench.folder / 'constraints.txt').write_text(frozen.stdout)
        subprocess.run(
            [uv, 'venv', '--quiet', '--clear', '--python', sys.executable, ROOT / '.venv-bench'],
            check=True,
            capture_output=True,
            text=True,
        )
        subprocess.run(
            [
                uv,
                'pip',
                'install',
                '--quiet',
                '--python',
                python,
                '-c',
                bench.folder / 'constraints.txt',
                '-r',
                HERE / 'huggingface.txt',
                'torch',
                'torchvision',
                'timm',
                'pillow',
            ],
            check=True,
            capture_output=True,
            text=True,
        )
    except subprocess.CalledProcessError as error:
        bench.skipped['hf'] = "Hugging Face's packages could not be installed"
        say(f'{bench.skipped["hf"]}: {error.stderr.strip()[-500:]}')
        return None
    mark.write_text(wanted)
    return str(python)


# --- the parts ---------------------------------------------------------------------------------------------------
def plain_variants(bench: Bench, file: str) -> dict:
    "Plain fastai with the workers that could suit this machine: its default, and none where that might be quicker"
    found = dict(fastai=Contender('plain fastai', file, dict(workers=0 if CORES <= 2 else min(16, CORES))))
    if CORES <= 2 and not bench.quick:
        found['fastai_workers'] = Contender(f'plain fastai, {CORES} worker processes', file, dict(workers=CORES))
    return found


PLAIN = ('fastai', 'fastai_workers')


def start(bench):
    python = sys.executable
    contenders = dict(
        python=Contender('Python itself', '', command=(python, '-c', 'pass')),
        package=Contender('`import fungi_fastai`', '', command=(python, '-c', 'import fungi_fastai')),
        help=Contender(
            '`fungi --help`', '', command=(python, '-c', 'from fungi_fastai.cli import main; main()', '--help')
        ),
        fastai=Contender(
            '`from fastai.vision.all import *`', '', command=(python, '-c', 'from fastai.vision.all import *')
        ),
    )
    ratios = {'fastai ÷ fungi --help': (('fastai', 'seconds'), ('help', 'seconds'))}
    yield Case('start', 'Until it is there', contenders, ratios, rounds=1 if bench.quick else 5)


def loader(bench):
    count, size, bs = (16, 32, 8) if bench.quick else (480, 224, 32)
    contenders = plain_variants(bench, 'loader.py') | dict(
        ours=Contender('ours, files read each time', 'loader.py'),
        ours_cached=Contender('ours, from its cache', 'loader.py'),
    )
    yield Case(
        f'loader_{size}',
        f'Loading {count} JPEGs of 640×480 for training at {size} px',
        contenders,
        {
            'ours cached ÷ fastai': (('ours_cached', 'rate'), (PLAIN, 'rate')),
            'ours ÷ fastai': (('ours', 'rate'), (PLAIN, 'rate')),
        },
        dict(table=bench.photos(train=count, valid=8), size=size, bs=bs, passes=2),
        dict(images=count, size=size, batch=bs),
    )


def epoch(
    bench,
):  # network, size, images, epochs of ours (the first with the cache's making), plain fastai also with worker processes
    nets = (
        [('convmixer_16_1', 32, 16, 2, True)]
        if bench.quick
        else [('resnet50', 224, 96, 2, False), ('mobilenetv2_100', 192, 480, 3, False)]
    )
    yield from epochs(bench, nets)


def small(bench):
    if bench.quick:
        bench.skipped['small'] = 'the part epoch has shown that it works'
        return
    for case in epochs(bench, [('convmixer_256_8', 128, 96, 3, False), ('resnet18', 128, 256, 3, True)]):
        del case.contenders['torch'], case.contenders['hf']  # to keep the whole within the hour
        yield case


def epochs(bench, nets):
    bs = 8 if bench.quick else 32
    for arch, size, count, rounds, workers in nets:
        plain = plain_variants(bench, 'epoch.py')
        if not workers:
            plain.pop('fastai_workers', None)
        beside = dict(workers=0 if CORES <= 2 else min(16, CORES))
        contenders = plain | dict(
            torch=Contender('timm and a torch loop', 'epoch_timm.py', beside),
            hf=Contender('timm and Hugging Face Trainer', 'epoch_timm.py', beside, needs='hf'),
            ours=Contender('ours', 'epoch.py', dict(epochs=rounds)),
            limit=Contender('the limit: one ready batch again and again', 'epoch.py'),
        )
        yield Case(
            f'{arch}_{size}',
            f'{arch} at {size} px',
            contenders,
            epoch_ratios(plain),
            dict(table=bench.photos(train=count, valid=8), arch=arch, size=size, bs=bs),
            dict(images=count, arch=arch, size=size, batch=bs),
        )


def epoch_ratios(plain):
    mine = ('ours', 'seconds')
    return {
        'fastai ÷ ours': ((tuple(plain), 'seconds'), mine),
        'fastai ÷ ours, first epoch': ((tuple(plain), 'seconds'), ('ours', 'first_seconds')),
        'torch ÷ ours': (('torch', 'seconds'), mine),
        'hf ÷ ours': (('hf', 'seconds'), mine),
        'ours ÷ limit': (mine, ('limit', 'seconds')),
        'memory: ours ÷ fastai': (('ours', 'peak_mb'), ('fastai', 'peak_mb')),
    }


def prediction(bench):
    count, arch, size = (16, 'resnet18', 32) if bench.quick else (2000, 'mobilenetv2_100', 192)
    wanted, contenders = (
        bench.photos(wanted=count),
        plain_variants(bench, 'prediction.py') | dict(ours=Contender('ours', 'prediction.py')),
    )
    yield Case(
        f'{arch}_{size}',
        f'{count:,} JPEGs of 640×480 by {arch} at {size} px',
        contenders,
        {'fastai ÷ ours': ((PLAIN, 'seconds'), ('ours', 'seconds'))},
        dict(table=bench.photos(train=64, valid=8), wanted=wanted, arch=arch, size=size),
        dict(images=count, arch=arch, size=size, batch=64),
    )


def accuracy(bench):
    if bench.quick:
        bench.images('small', 'few', 90)
        given = dict(source=str(bench.folder / 'few'), arch='resnet18', weights='', size=32, epochs=1)
        what = 'drawn images'
    else:
        archive, weights = (
            shared('mushrooms.zip'),
            shared('..', 'weights', 'mobilenetv2_100.coral_ptq_in1k.safetensors'),
        )
        if not (archive and weights):
            bench.skipped['accuracy'] = 'mushrooms.zip and the weights of mobilenetv2_100 are not there: see FUNGI_DATA'
            return
        if not (bench.folder / 'mushrooms').exists():
            shutil.unpack_archive(archive, bench.folder / 'mushrooms.part')
            (bench.folder / 'mushrooms.part').rename(bench.folder / 'mushrooms')
        given = dict(
            source=str(bench.folder / 'mushrooms'), arch='mobilenetv2_100', weights=str(weights), size=192, epochs=5
        )
        what = '10 species × 80 field photos, longer side at most 384 px, re-encoded smaller'
    yield Case(
        'mushrooms',
        f'Until the best accuracy of `fine_tune({given["epochs"]})` is reached',
        dict(
            fastai=Contender(
                f'plain fastai, `fine_tune({given["epochs"]})`',
                'accuracy.py',
                dict(workers=0 if CORES <= 2 else min(16, CORES)),
            ),
            ours=Contender('ours, `train` as it is', 'accuracy.py'),
        ),
        {
            'fastai ÷ ours': (('fastai', 'goal_seconds'), ('ours', 'goal_seconds')),
            'memory: ours ÷ fastai': (('ours', 'peak_mb'), ('fastai', 'peak_mb')),
        },
        given,
        dict(images=what, arch=given['arch'], size=given['size']),
    )


def growth(bench):
    for count in (60,) if bench.quick else (1_000, 10_000, 100_000):
        bench.images('small', f'growth/{count}', count)
        given = dict(folder=str(bench.folder / 'growth' / str(count)), size=64)
        yield Case(
            str(count), f'{count:,} files', dict(ours=Contender('ours', 'growth.py')), {}, given, dict(images=count)
        )
    bench.forget('growth')


def gpu(bench):
    there = subprocess.run(
        [
            sys.executable,
            '-c',
            'import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else "")',
        ],
        capture_output=True,
        text=True,
        env=environment(),
    ).stdout.strip()
    if not there:
        bench.skipped['gpu'] = 'there is no CUDA device on this machine'
        return
    count, bs, nets = (16, 8, ('convmixer_16_1',)) if bench.quick else (1920, 128, ('resnet50', 'convnext_tiny'))
    for arch in nets:
        yield Case(
            f'{arch}_224',
            f'{arch} at 224 px on {there}',
            dict(
                ours=Contender('ours, from JPEGs', 'epoch.py', dict(epochs=4)),
                limit=Contender('one ready batch again and again', 'epoch.py'),
            ),
            {'ours ÷ ready batches': (('ours', 'rate'), ('limit', 'rate'))},
            dict(table=bench.photos(train=count, valid=8), arch=arch, size=224, bs=bs),
            dict(images=count, arch=arch, size=224, batch=bs, device=there),
        )


PARTS = dict(
    start=start,
    loader=loader,
    epoch=epoch,
    small=small,
    prediction=prediction,
    accuracy=accuracy,
    growth=growth,
    gpu=gpu,
)


# --- measuring ---------------------------------------------------------------------------------------------------
class Failed(Exception):
    "A measuring process that did not end well"


def measure(bench: Bench, case: Case, who: str, turn: int) -> dict:
    "One fresh process in a fresh folder, with settings and caches of its own"
    contender, place = case.contenders[who], bench.work / 'now'
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    (place / 'settings.ini').write_text('[DEFAULT]\ndata_dir = data\ncache_dir = cache\nruns_dir = runs\n')
    given = json.dumps(case.given | contender.given | dict(seed=turn + 1))
    python = hf_python(bench) if contender.needs == 'hf' else sys.executable
    command = contender.command or (python, str(HERE / contender.file), who, given)
    try:
        began = time.perf_counter()
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, env=environment())
        seconds = time.perf_counter() - began
    finally:
        shutil.rmtree(place, ignore_errors=True)
    lines = done.stdout.strip().splitlines() or ['']
    if done.returncode or not (contender.command or lines[-1].startswith('{')):
        raise Failed((done.stderr.strip() or done.stdout.strip())[-1500:])
    return (dict(seconds=seconds) if contender.command else json.loads(lines[-1])) | dict(process_seconds=seconds)


def code_key() -> str:
    "Changes with the library, the benchmarks and the threads"
    files = [*sorted((ROOT / 'fungi_fastai').rglob('*.py')), *sorted(HERE.glob('*.py'))]
    return hashlib.blake2b(
        b''.join([*(f.read_bytes() for f in files), os.environ.get('OMP_NUM_THREADS', '').encode()]), digest_size=8
    ).hexdigest()


def kept(bench: Bench, key: str) -> dict:
    "Measurements of an earlier call that was stopped, with the same code, not older than half a day"
    if not bench.measured.exists():
        return {}
    rows = [json.loads(line) for line in bench.measured.read_text().splitlines() if line.endswith('}')]
    return {tuple(row['of']): row['found'] for row in rows if row['key'] == key and time.time() - row['at'] < 43_200}


def run_part(bench: Bench, part: str, repeat: int, only: str, known: dict, key: str) -> tuple[dict, dict]:
    "All cases of a part, contenders in turn: (case → numbers, contender → why it failed)"
    cases, failed = {}, {}
    for case in PARTS[part](bench):
        if only and only != case.name:
            continue
        there = {who: c for who, c in case.contenders.items() if c.needs != 'hf' or hf_python(bench)}
        turns = max(case.rounds if part == 'start' else 0, repeat)
        rounds = {who: [] for who in there}
        for turn in range(turns):
            for who in there:
                if f'{case.name} {who}' in failed:
                    continue
                of = (part, case.name, who, turn)
                if of not in known:
                    try:
                        known[of] = measure(bench, case, who, turn)
                    except Failed as error:
                        failed[f'{case.name} {who}'] = re.sub(
                            r'/\S*/', '', str(error).strip().splitlines()[-1]
                        )  # no paths of this machine
                        say(f'{part} {case.name} {who} FAILED\n{error}')
                        continue
                    if not only:
                        with open(bench.measured, 'a') as file:
                            file.write(json.dumps(dict(of=of, key=key, at=time.time(), found=known[of])) + '\n')
                rounds[who].append(known[of])
                say(f'{part} {case.name}  round {turn + 1}/{turns}  {who}: {brief(known[of])}')
        if part == 'accuracy':
            to_goal(rounds)
        cases[case.name] = summary(case, there, {who: found for who, found in rounds.items() if found})
        for name, ratio in cases[case.name]['ratios'].items():
            say(f'{part} {case.name}  {name} = {ratio["value"]}')
    return cases, failed


def brief(found):
    units = dict(seconds='{:.2f} s', rate='{:.1f} images/s', peak_mb='{:.0f} MB')
    said = [text.format(found[name]) for name, text in units.items() if isinstance(found.get(name), float)]
    if 'history' in found:
        said = [f'{100 * row["accuracy"]:.1f} % at {row["seconds"]:.0f} s' for row in found['history']] + said
    if 'scan_ms' in found:
        said = [f'{k[:-3]} {v:.3f} ms' for k, v in found.items() if k.endswith('_ms')] + said
    return ', '.join(said)


def to_goal(rounds: dict):
    "The goal of a round is plain fastai's best; the seconds until each reached it"
    for plain, mine in zip(rounds['fastai'], rounds['ours'], strict=False):
        goal = max(row['accuracy'] for row in plain['history'])
        for found in (plain, mine):
            found |= dict(
                goal=goal,
                goal_seconds=next((row['seconds'] for row in found['history'] if row['accuracy'] >= goal), None),
                best=max(row['accuracy'] for row in found['history']),
            )


def summary(case: Case, contenders: dict, rounds: dict) -> dict:
    "Medians of all figures, and the ratios"
    figures = {
        who: sorted({k for row in found for k, v in row.items() if isinstance(v, int | float)})
        for who, found in rounds.items()
    }
    medians = {
        who: {
            k: statistics.median(row[k] for row in found)
            for k in figures[who]
            if all(row.get(k) is not None for row in found)
        }
        for who, found in rounds.items()
    }
    ratios = {}
    for name, (above, below) in case.ratios.items():
        one, two = (best(side, medians) for side in (above, below))
        if one is None or two is None:
            continue
        each = [a[above[1]] / b[below[1]] for a, b in zip(rounds[one], rounds[two], strict=False)]
        ratios[name] = dict(
            value=medians[one][above[1]] / medians[two][below[1]], least=min(each), most=max(each), of=[one, two]
        )
    return shorter(
        dict(
            title=case.title,
            **case.facts,
            ratios=ratios,
            contenders={
                who: dict(label=contenders[who].label, median=medians[who], rounds=found)
                for who, found in rounds.items()
            },
        )
    )


def best(side, medians):
    "Of several contenders the one that did best"
    names, figure = (side[0],) if isinstance(side[0], str) else side[0], side[1]
    there = [name for name in names if figure in medians.get(name, {})]
    pick = max if figure == 'rate' else min
    return pick(there, key=lambda name: medians[name][figure], default=None)


def shorter(value):
    "Four digits are enough"
    if isinstance(value, dict):
        return {k: shorter(v) for k, v in value.items()}
    if isinstance(value, list):
        return [shorter(v) for v in value]
    return (
        float(f'{value:.4g}')
        if isinstance(value, float) and abs(value) < 1e4
        else round(value)
        if isinstance(value, float)
        else value
    )


def machine() -> dict:
    "What this was measured on; nothing that tells whose it is"
    info = Path('/proc/cpuinfo').read_text() if Path('/proc/cpuinfo').exists() else ''
    name, flags = (
        re.search(r'^model name\s*:\s*(.*)$', info, re.M),
        re.search(r'^(?:flags|Features)\s*:(.*)$', info, re.M),
    )
    telling = ('avx2', 'avx512f', 'avx512_bf16', 'avx512_vnni', 'amx_tile', 'amx_bf16', 'asimd', 'bf16', 'sve')

    def found(package):
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    def git(*arguments):
        return subprocess.run(['git', *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    commit = git('rev-parse', '--short', 'HEAD') + '-changed' * bool(git('status', '--porcelain', '--', 'fungi_fastai'))
    return dict(
        cores=CORES,
        cpu=name[1] if name else platform.machine(),
        flags=[f for f in telling if flags and f in flags[1].split()],
        memory_gb=round(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9, 1),
        system=platform.system(),
        threads=os.environ.get('OMP_NUM_THREADS', 'one a core'),
        python=platform.python_version(),
        commit=commit,
        packages={
            p: found(p) for p in ('fungi_fastai', 'fastai', 'torch', 'torchvision', 'timm', 'pillow', 'numpy', 'pandas')
        }
        | dict(line.split('==') for line in (HERE / 'huggingface.txt').read_text().split()),
    )


def refresh_page():
    "Run the notebook that shows the results, so that its saved tables are these"
    notebook = ROOT / 'nbs' / 'explanations' / 'benchmarks.ipynb'
    code = (
        'import sys, os; from fastcore.nbio import read_nb, write_nb; from execnb.shell import CaptureShell\n'
        'nb, file = read_nb(sys.argv[1]), sys.argv[1]; os.chdir(os.path.dirname(file)); CaptureShell().run_all(nb, exc_stop=True); write_nb(nb, file)\n'
        'from nbdev.clean import nbdev_clean; nbdev_clean(file)'
    )
    done = subprocess.run([sys.executable, '-c', code, str(notebook)], capture_output=True, text=True, cwd=ROOT)
    say(
        f'{notebook.name} shows the new numbers'
        if not done.returncode
        else f'{notebook.name} could not be run:\n{done.stderr[-800:]}'
    )


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('parts', nargs='*', metavar='PART', help=f'of {", ".join(PARTS)} (default: all)')
    parser.add_argument('--quick', action='store_true', help='tiny images and networks, nothing kept')
    parser.add_argument('--repeat', type=int, help='rounds (default: 3; 1 with --quick)')
    parser.add_argument('--only', default='', metavar='CASE', help='one case, such as resnet50_224: shown, not written')
    given = parser.parse_args(arguments)
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f'there is no part {", ".join(unknown)}; there are {", ".join(PARTS)}')
    repeat, bench, key, bad = given.repeat or (1 if given.quick else 3), Bench(given.quick), code_key(), {}
    known = {} if given.only else kept(bench, key)
    if known:
        say(f'going on: {len(known)} measurements of a stopped call are kept')
    from tables import table

    try:
        for part in given.parts or PARTS:
            cases, failed = run_part(bench, part, repeat, given.only, known, key)
            bad |= failed
            why = {k: v for k, v in bench.skipped.items() if k == part or k == 'hf' and part == 'epoch'}
            for name, reason in why.items():
                say(f'{part}: {name} is skipped, as {reason}')
            if not cases:
                continue
            rounds = [found['rounds'] for case in cases.values() for found in case['contenders'].values()]
            minutes = round(sum(row['process_seconds'] for found in rounds for row in found) / 60, 1)
            result = dict(
                part=part,
                date=str(date.today()),
                command='python benchmarks/run.py ' + shlex.join(sys.argv[1:] if arguments is None else arguments),
                rounds=min(map(len, rounds), default=0),
                minutes=minutes,
                machine=machine(),
                skipped=why,
                failed=failed,
                cases=cases,
            )
            say(f'{part} took {minutes} min\n\n{table(result)}\n')
            if given.quick or given.only:
                continue
            RESULTS.mkdir(exist_ok=True)
            temporary = RESULTS / f'.{part}.part'
            temporary.write_text(json.dumps(result, indent=1, ensure_ascii=False) + '\n', encoding='utf8')
            temporary.replace(RESULTS / f'{part}.json')
        if not given.only:
            bench.measured.unlink(missing_ok=True)
    finally:
        shutil.rmtree(bench.folder if given.quick else bench.work, ignore_errors=True)
    if not (given.quick or given.only):
        refresh_page()
    for name, reason in bad.items():
        say(f'FAILED {name}: {reason}')
    return int(bool(bad))


if __name__ == '__main__':
    sys.exit(main())
