"""Measures this library against plain fastai, a plain torch loop, Hugging Face's Trainer, and the machine's limit.

    python benchmarks/run.py                      everything: `make bench`, about an hour on two cores
    python benchmarks/run.py epoch accuracy       some parts
    python benchmarks/run.py epoch --only resnet50_224
    python benchmarks/run.py --quick              everything on tiny images in minutes: a test that writes no results

Each measurement is a separate process. Contenders take turns, and the median of at least three rounds counts. The
results of a part are written to benchmarks/results/PART.json when the part ends. An interrupted call resumes where
it was."""

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
    "A competitor in a measurement"

    label: str  # in tables
    file: str  # the script that measures it; '' where the whole `command` is measured
    parameters: dict = field(default_factory=dict)  # its own
    needs: str = ''  # 'hf': runs in the environment with Hugging Face's packages
    command: tuple = ()


@dataclass(frozen=True)
class Case:
    "A task on which contenders are compared"

    name: str
    title: str
    contenders: dict  # name → Contender
    # 'fastai ÷ ours' → ((contenders, figure), (contenders, figure)): the best of the first over the best of the second
    ratios: dict
    parameters: dict = field(default_factory=dict)  # of all contenders
    facts: dict = field(default_factory=dict)  # shown beside the results
    rounds: int = 3  # at least


def log(text):
    print(f'{time.strftime("%H:%M:%S")}  {text}', flush=True)


# --- folders and images -----------------------------------------------------------------------------------------
class Bench:
    "The folders of images and measurements"

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
        "The path and label of the first `count` images of a kind"
        table = self.folder / folder / 'table.csv'
        if not table.exists() or sum(1 for _ in open(table)) <= count:
            log(f'drawing {count:,} images')
            subprocess.run(
                [sys.executable, HERE / 'images.py', kind, self.folder / folder, str(count)],
                check=True,
                env=environment(),
                stdout=subprocess.DEVNULL,
            )
            os.sync()  # so that writing them does not disturb the measurements
        with open(table) as file:
            return list(csv.reader(file))[1 : count + 1]

    def photos(self, **counts) -> str:
        "A CSV with path, label and split of a number of photos for each: photos(train=480, valid=8)"
        rows = self.images('photos', 'photos', sum(counts.values()))
        splits = [split for split, count in counts.items() for _ in range(count)]
        name = self.folder / ('-'.join(f'{split}{count}' for split, count in counts.items()) + '.csv')
        with open(name, 'w', newline='') as file:
            csv.writer(file).writerows(
                [('path', 'label', 'split'), *((*row, split) for row, split in zip(rows, splits, strict=True))]
            )
        return str(name)

    def delete(self, folder: str):
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
    "A file of the real data sets beside the project, or None"
    file = Path(os.environ.get('FUNGI_DATA', ROOT.parent / 'shared' / 'data')).resolve().joinpath(*names)
    return file if file.exists() else None


def hf_python(bench: Bench) -> str | None:
    "The interpreter of .venv-bench: the packages of this environment, and Hugging Face's; created when first needed"
    python, marker = ROOT / '.venv-bench' / 'bin' / 'python', ROOT / '.venv-bench' / '.installed'
    wanted = (HERE / 'huggingface.txt').read_text()
    if marker.exists() and marker.read_text() == wanted:
        return str(python)
    if bench.quick:
        bench.skipped['hf'] = '.venv-bench does not exist, and --quick does not create it'
        return None
    neighbour = Path(sys.executable).parent / 'uv'
    uv = str(neighbour) if neighbour.exists() else shutil.which('uv')
    if uv is None:
        bench.skipped['hf'] = 'uv is not installed: pip install uv'
        return None
    log('creating .venv-bench for Hugging Face')
    try:
        freeze = subprocess.run(
            [uv, 'pip', 'freeze', '--quiet', '--exclude-editable', '--python', sys.executable],
            check=True,
            capture_output=True,
            text=True,
        )
        (bench.folder / 'constraints.txt').write_text(freeze.stdout)
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
        log(f'{bench.skipped["hf"]}: {error.stderr.strip()[-500:]}')
        return None
    marker.write_text(wanted)
    return str(python)


# --- the parts ---------------------------------------------------------------------------------------------------
def plain_variants(bench: Bench, file: str) -> dict:
    "Plain fastai with its default number of workers, on two cores with none and with one per core"
    variants = dict(fastai=Contender('plain fastai', file, dict(workers=0 if CORES <= 2 else min(16, CORES))))
    if CORES <= 2 and not bench.quick:
        variants['fastai_workers'] = Contender(f'plain fastai, {CORES} worker processes', file, dict(workers=CORES))
    return variants


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
    yield Case('start', 'Start-up time', contenders, ratios, rounds=1 if bench.quick else 5)


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


def epoch(bench):
    # network, image size, images, epochs of ours (the first builds the cache), plain fastai also with worker processes
    nets = (
        [('convmixer_16_1', 32, 16, 2, True)]
        if bench.quick
        else [('resnet50', 224, 96, 2, False), ('mobilenetv2_100', 192, 480, 3, False)]
    )
    yield from epochs(bench, nets)


def small(bench):
    if bench.quick:
        bench.skipped['small'] = 'the part epoch tests the same code'
        return
    for case in epochs(bench, [('convmixer_256_8', 128, 96, 3, False), ('resnet18', 128, 256, 3, True)]):
        del case.contenders['torch'], case.contenders['hf']  # to keep everything within an hour
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
            limit=Contender('the limit: one batch repeated', 'epoch.py'),
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
        parameters = dict(source=str(bench.folder / 'few'), arch='resnet18', weights='', size=32, epochs=1)
        what = 'drawn images'
    else:
        archive, weights = (
            shared('mushrooms.zip'),
            shared('..', 'weights', 'mobilenetv2_100.coral_ptq_in1k.safetensors'),
        )
        if not (archive and weights):
            bench.skipped['accuracy'] = 'mushrooms.zip or the weights of mobilenetv2_100 are missing: see FUNGI_DATA'
            return
        if not (bench.folder / 'mushrooms').exists():
            shutil.unpack_archive(archive, bench.folder / 'mushrooms.part')
            (bench.folder / 'mushrooms.part').rename(bench.folder / 'mushrooms')
        parameters = dict(
            source=str(bench.folder / 'mushrooms'), arch='mobilenetv2_100', weights=str(weights), size=192, epochs=5
        )
        what = '10 species × 80 field photos, longer side at most 384 px, re-encoded smaller'
    yield Case(
        'mushrooms',
        f'Time to the best accuracy of `fine_tune({parameters["epochs"]})`',
        dict(
            fastai=Contender(
                f'plain fastai, `fine_tune({parameters["epochs"]})`',
                'accuracy.py',
                dict(workers=0 if CORES <= 2 else min(16, CORES)),
            ),
            ours=Contender('ours, `train` with defaults', 'accuracy.py'),
        ),
        {
            'fastai ÷ ours': (('fastai', 'goal_seconds'), ('ours', 'goal_seconds')),
            'memory: ours ÷ fastai': (('ours', 'peak_mb'), ('fastai', 'peak_mb')),
        },
        parameters,
        dict(images=what, arch=parameters['arch'], size=parameters['size']),
    )


def growth(bench):
    for count in (60,) if bench.quick else (1_000, 10_000, 100_000):
        bench.images('small', f'growth/{count}', count)
        parameters = dict(folder=str(bench.folder / 'growth' / str(count)), size=64)
        yield Case(
            str(count),
            f'{count:,} files',
            dict(ours=Contender('ours', 'growth.py')),
            {},
            parameters,
            dict(images=count),
        )
    bench.delete('growth')


PARTS = dict(
    start=start,
    loader=loader,
    epoch=epoch,
    small=small,
    prediction=prediction,
    accuracy=accuracy,
    growth=growth,
)


# --- measuring ---------------------------------------------------------------------------------------------------
class MeasurementError(Exception):
    "A measuring process failed"


def measure(bench: Bench, case: Case, who: str, turn: int) -> dict:
    "One new process in a new folder, with its own settings and caches"
    contender, folder = case.contenders[who], bench.work / 'current'
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / 'settings.ini').write_text('[DEFAULT]\ndata_dir = data\ncache_dir = cache\nruns_dir = runs\n')
    parameters = json.dumps(case.parameters | contender.parameters | dict(seed=turn + 1))
    python = hf_python(bench) if contender.needs == 'hf' else sys.executable
    command = contender.command or (python, str(HERE / contender.file), who, parameters)
    try:
        start = time.perf_counter()
        process = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment())
        seconds = time.perf_counter() - start
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    lines = process.stdout.strip().splitlines() or ['']
    if process.returncode or not (contender.command or lines[-1].startswith('{')):
        raise MeasurementError((process.stderr.strip() or process.stdout.strip())[-1500:])
    return (dict(seconds=seconds) if contender.command else json.loads(lines[-1])) | dict(process_seconds=seconds)


def code_key() -> str:
    "A hash of the library, the benchmarks and the number of threads"
    files = [*sorted((ROOT / 'fungi_fastai').rglob('*.py')), *sorted(HERE.glob('*.py'))]
    return hashlib.blake2b(
        b''.join([*(f.read_bytes() for f in files), os.environ.get('OMP_NUM_THREADS', '').encode()]), digest_size=8
    ).hexdigest()


def saved_measurements(bench: Bench, key: str) -> dict:
    "Measurements of an interrupted call with the same code, not older than half a day"
    if not bench.measured.exists():
        return {}
    rows = [json.loads(line) for line in bench.measured.read_text().splitlines() if line.endswith('}')]
    return {tuple(row['of']): row['result'] for row in rows if row['key'] == key and time.time() - row['at'] < 43_200}


def run_part(bench: Bench, part: str, repeat: int, only: str, known: dict, key: str) -> tuple[dict, dict]:
    "All cases of a part, contenders in turn: (case → results, contender → why it failed)"
    cases, failed = {}, {}
    for case in PARTS[part](bench):
        if only and only != case.name:
            continue
        available = {who: c for who, c in case.contenders.items() if c.needs != 'hf' or hf_python(bench)}
        turns = max(case.rounds if part == 'start' else 0, repeat)
        rounds = {who: [] for who in available}
        for turn in range(turns):
            for who in available:
                if f'{case.name} {who}' in failed:
                    continue
                of = (part, case.name, who, turn)
                if of not in known:
                    try:
                        known[of] = measure(bench, case, who, turn)
                    except MeasurementError as error:
                        failed[f'{case.name} {who}'] = re.sub(
                            r'/\S*/', '', str(error).strip().splitlines()[-1]
                        )  # without paths of this machine
                        log(f'{part} {case.name} {who} FAILED\n{error}')
                        continue
                    if not only:
                        with open(bench.measured, 'a') as file:
                            file.write(json.dumps(dict(of=of, key=key, at=time.time(), result=known[of])) + '\n')
                rounds[who].append(known[of])
                log(f'{part} {case.name}  round {turn + 1}/{turns}  {who}: {brief(known[of])}')
        if part == 'accuracy':
            to_goal(rounds)
        cases[case.name] = summary(case, available, {who: result for who, result in rounds.items() if result})
        for name, ratio in cases[case.name]['ratios'].items():
            log(f'{part} {case.name}  {name} = {ratio["value"]}')
    return cases, failed


def brief(result):
    units = dict(seconds='{:.2f} s', rate='{:.1f} images/s', peak_mb='{:.0f} MB')
    texts = [text.format(result[name]) for name, text in units.items() if isinstance(result.get(name), float)]
    if 'history' in result:
        texts = [f'{100 * row["accuracy"]:.1f} % at {row["seconds"]:.0f} s' for row in result['history']] + texts
    if 'scan_ms' in result:
        texts = [f'{k[:-3]} {v:.3f} ms' for k, v in result.items() if k.endswith('_ms')] + texts
    return ', '.join(texts)


def to_goal(rounds: dict):
    "The goal of a round is the best accuracy of plain fastai; adds the seconds until each reached it"
    for plain, mine in zip(rounds['fastai'], rounds['ours'], strict=False):
        goal = max(row['accuracy'] for row in plain['history'])
        for result in (plain, mine):
            result |= dict(
                goal=goal,
                goal_seconds=next((row['seconds'] for row in result['history'] if row['accuracy'] >= goal), None),
                best=max(row['accuracy'] for row in result['history']),
            )


def summary(case: Case, contenders: dict, rounds: dict) -> dict:
    "Medians of all figures, and their ratios"
    figures = {
        who: sorted({k for row in result for k, v in row.items() if isinstance(v, int | float)})
        for who, result in rounds.items()
    }
    medians = {
        who: {
            k: statistics.median(row[k] for row in result)
            for k in figures[who]
            if all(row.get(k) is not None for row in result)
        }
        for who, result in rounds.items()
    }
    ratios = {}
    for name, (above, below) in case.ratios.items():
        one, two = (best(operand, medians) for operand in (above, below))
        if one is None or two is None:
            continue
        each = [a[above[1]] / b[below[1]] for a, b in zip(rounds[one], rounds[two], strict=False)]
        ratios[name] = dict(
            value=medians[one][above[1]] / medians[two][below[1]], least=min(each), most=max(each), of=[one, two]
        )
    return shortened(
        dict(
            title=case.title,
            **case.facts,
            ratios=ratios,
            contenders={
                who: dict(label=contenders[who].label, median=medians[who], rounds=result)
                for who, result in rounds.items()
            },
        )
    )


def best(operand, medians):
    "The best of several contenders"
    names, figure = (operand[0],) if isinstance(operand[0], str) else operand[0], operand[1]
    there = [name for name in names if figure in medians.get(name, {})]
    pick = max if figure == 'rate' else min
    return pick(there, key=lambda name: medians[name][figure], default=None)


def shortened(value):
    "Numbers with four digits"
    if isinstance(value, dict):
        return {k: shortened(v) for k, v in value.items()}
    if isinstance(value, list):
        return [shortened(v) for v in value]
    return (
        float(f'{value:.4g}')
        if isinstance(value, float) and abs(value) < 1e4
        else round(value)
        if isinstance(value, float)
        else value
    )


def machine() -> dict:
    "The machine, without anything that identifies its owner"
    info = Path('/proc/cpuinfo').read_text() if Path('/proc/cpuinfo').exists() else ''
    name, flags = (
        re.search(r'^model name\s*:\s*(.*)$', info, re.M),
        re.search(r'^(?:flags|Features)\s*:(.*)$', info, re.M),
    )
    shown_flags = ('avx2', 'avx512f', 'avx512_bf16', 'avx512_vnni', 'amx_tile', 'amx_bf16', 'asimd', 'bf16', 'sve')

    def installed_version(package):
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
        flags=[f for f in shown_flags if flags and f in flags[1].split()],
        memory_gb=round(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9, 1),
        system=platform.system(),
        threads=os.environ.get('OMP_NUM_THREADS', 'one per core'),
        python=platform.python_version(),
        commit=commit,
        packages={
            p: installed_version(p)
            for p in ('fungi_fastai', 'fastai', 'torch', 'torchvision', 'timm', 'pillow', 'numpy', 'pandas')
        }
        | dict(line.split('==') for line in (HERE / 'huggingface.txt').read_text().split()),
    )


def refresh_page():
    "Run the notebook that shows the results, so that it holds the new tables"
    notebook = ROOT / 'nbs' / 'explanations' / 'benchmarks.ipynb'
    code = (
        'import sys, os; from fastcore.nbio import read_nb, write_nb; from execnb.shell import CaptureShell\n'
        'nb, file = read_nb(sys.argv[1]), sys.argv[1]; os.chdir(os.path.dirname(file))\n'
        'CaptureShell().run_all(nb, exc_stop=True); write_nb(nb, file)\n'
        'from nbdev.clean import nbdev_clean; nbdev_clean(file)'
    )
    process = subprocess.run([sys.executable, '-c', code, str(notebook)], capture_output=True, text=True, cwd=ROOT)
    log(
        f'{notebook.name} shows the new numbers'
        if not process.returncode
        else f'{notebook.name} could not be run:\n{process.stderr[-800:]}'
    )


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('parts', nargs='*', metavar='PART', help=f'of {", ".join(PARTS)} (default: all)')
    parser.add_argument('--quick', action='store_true', help='tiny images and networks, no results')
    parser.add_argument('--repeat', type=int, help='rounds (default: 3; 1 with --quick)')
    parser.add_argument('--only', default='', metavar='CASE', help='one case, such as resnet50_224; shown, not written')
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f'there is no part {", ".join(unknown)}; there are {", ".join(PARTS)}')
    repeat = options.repeat or (1 if options.quick else 3)
    bench, key, failures = Bench(options.quick), code_key(), {}
    known = {} if options.only else saved_measurements(bench, key)
    if known:
        log(f'resuming: {len(known)} measurements of an interrupted call are used')
    from tables import table

    try:
        for part in options.parts or PARTS:
            cases, failed = run_part(bench, part, repeat, options.only, known, key)
            failures |= failed
            why = {k: v for k, v in bench.skipped.items() if k == part or k == 'hf' and part == 'epoch'}
            for name, reason in why.items():
                log(f'{part}: {name} is skipped, because {reason}')
            if not cases:
                continue
            rounds = [result['rounds'] for case in cases.values() for result in case['contenders'].values()]
            minutes = round(sum(row['process_seconds'] for result in rounds for row in result) / 60, 1)
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
            log(f'{part} took {minutes} min\n\n{table(result)}\n')
            if options.quick or options.only:
                continue
            RESULTS.mkdir(exist_ok=True)
            temporary = RESULTS / f'.{part}.part'
            temporary.write_text(json.dumps(result, indent=1, ensure_ascii=False) + '\n', encoding='utf8')
            temporary.replace(RESULTS / f'{part}.json')
        if not options.only:
            bench.measured.unlink(missing_ok=True)
    finally:
        shutil.rmtree(bench.folder if options.quick else bench.work, ignore_errors=True)
    if not (options.quick or options.only):
        refresh_page()
    for name, reason in failures.items():
        log(f'FAILED {name}: {reason}')
    return int(bool(failures))


if __name__ == '__main__':
    sys.exit(main())
