"""Markdown tables of the results of run.py: `python benchmarks/tables.py` prints them all"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / 'results'

# targets on two cores: figure, part, case, ratio, sign, number
GOALS = [
    ('Training epoch, ResNet-50 at 224 px: plain fastai ÷ ours', 'epoch', 'resnet50_224', 'fastai ÷ ours', '≥', 5),
    (
        'Training epoch, mobilenetv2_100 at 192 px: plain fastai ÷ ours',
        'epoch',
        'mobilenetv2_100_192',
        'fastai ÷ ours',
        '≥',
        3,
    ),
    ('ResNet-50 at 224 px: ours ÷ the limit', 'epoch', 'resnet50_224', 'ours ÷ limit', '≤', 1.10),
    ('mobilenetv2_100 at 192 px: ours ÷ the limit', 'epoch', 'mobilenetv2_100_192', 'ours ÷ limit', '≤', 1.10),
    ('convmixer_256_8 at 128 px: ours ÷ the limit', 'small', 'convmixer_256_8_128', 'ours ÷ limit', '≤', 1.10),
    ('resnet18 at 128 px: ours ÷ the limit', 'small', 'resnet18_128', 'ours ÷ limit', '≤', 1.10),
    (
        'Predicting 2,000 JPEGs, mobilenetv2_100: `get_preds` ÷ ours',
        'prediction',
        'mobilenetv2_100_192',
        'fastai ÷ ours',
        '≥',
        2.5,
    ),
    (
        "Time to `fine_tune(5)`'s best validation accuracy, mushrooms: fastai ÷ ours",
        'accuracy',
        'mushrooms',
        'fastai ÷ ours',
        '≥',
        8,
    ),
    ('Scan and duplicates, time per file: 100,000 files ÷ 1,000 files', 'growth', '100000', 'scan', '≤', 1.3),
    ('Peak memory training ResNet-50: ours ÷ plain fastai', 'epoch', 'resnet50_224', 'memory: ours ÷ fastai', '≤', 1.2),
    (
        'Peak memory training mobilenetv2_100: ours ÷ plain fastai',
        'epoch',
        'mobilenetv2_100_192',
        'memory: ours ÷ fastai',
        '≤',
        1.2,
    ),
    ('Peak memory, mushrooms: ours ÷ plain fastai', 'accuracy', 'mushrooms', 'memory: ours ÷ fastai', '≤', 1.2),
]
STAGES = dict(
    read='list the files',
    look='open and hash',
    duplicates='find duplicates',
    split='split',
    cache='decode into the cache',
    epoch='load an epoch',
)


def read(part: str, folder: Path = RESULTS) -> dict | None:
    "The results of a part, or None"
    file = Path(folder) / f'{part}.json'
    return json.loads(file.read_text(encoding='utf8')) if file.exists() else None


def number(value, digits=3) -> str:
    "A number with three digits"
    if value is None:
        return '–'
    if abs(value) >= 100:
        return f'{value:,.0f}'
    return f'{value:.{max(0, digits - len(str(int(abs(value)))))}f}' if abs(value) >= 1 else f'{value:.{digits}g}'


def grid(head: list[str], rows: Iterator[list[str]]) -> str:
    lines = [head, ['---', *['---:'] * (len(head) - 1)], *rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def ratio(case_results: dict, name: str) -> str:
    "A ratio of medians, with the lowest and highest of single rounds"
    one = case_results['ratios'].get(name)
    if one is None:
        return '–'
    value, least, most = (number(one[k]) for k in ('value', 'least', 'most'))
    return value if least == most else f'{value} ({least}–{most})'


def missing(part):
    return f'Not measured yet: `python benchmarks/run.py {part}`.'


def table(result: dict) -> str:
    "One part as one or several Markdown tables"
    shown = dict(
        start=_start,
        loader=_rates,
        epoch=_epochs,
        small=_epochs,
        prediction=_rates,
        accuracy=_accuracy,
        growth=_growth,
    )
    return shown[result['part']](result['cases'])


def _contenders(case):
    return case['contenders'].items()


def _start(cases):
    rows = (
        [case_results['label'], f'{number(case_results["median"]["seconds"])} s']
        for case in cases.values()
        for _, case_results in _contenders(case)
    )
    return grid(['', 'seconds'], rows)


def _rates(cases):
    texts = []
    for case in cases.values():
        fastest = max((f['median']['rate'] for w, f in _contenders(case) if w.startswith('fastai')), default=None)
        beside = fastest or case['contenders'].get('limit', {}).get('median', {}).get('rate')
        rows = [
            [
                f['label'],
                number(f['median']['rate']),
                f'{number(f["median"]["seconds"])} s',
                number(f['median']['rate'] / beside) if beside else '–',
                f'{number(f["median"]["peak_mb"])} MB',
            ]
            for _, f in _contenders(case)
        ]
        texts.append(
            grid(
                [case['title'], 'images/s', 'time', '÷ plain fastai' if fastest else '÷ ready batches', 'peak memory'],
                rows,
            )
        )
    return '\n\n'.join(texts)


def _epochs(cases):
    texts = []
    for case in cases.values():
        mine = case['contenders'].get('ours', {}).get('median', {})

        def row(label, seconds, rate, peak, mine=mine):
            return [
                label,
                number(rate),
                f'{number(seconds)} s',
                f'{number(seconds / mine["seconds"])} ×' if mine else '–',
                f'{number(peak)} MB',
            ]

        rows = []
        for who, case_results in _contenders(case):
            m = case_results['median']
            if who == 'ours':
                rows.append(
                    row(
                        'ours, first epoch (includes building the cache)',
                        m['first_seconds'],
                        m['first_rate'],
                        m['peak_mb'],
                    )
                )
            rows.append(
                row(
                    '**ours, each later epoch**' if who == 'ours' else case_results['label'],
                    m['seconds'],
                    m['rate'],
                    m['peak_mb'],
                )
            )
        title = f'{case["title"]}, {case["images"]} images'
        texts.append(grid([title, 'images/s', 'time per epoch', 'relative to ours', 'peak memory'], rows))
        texts.append(_ratios(case))
    return '\n\n'.join(texts)


def _accuracy(cases):
    texts = []
    for case in cases.values():
        rows = []
        for turn, (plain, mine) in enumerate(
            zip(*(case['contenders'][w]['rounds'] for w in ('fastai', 'ours')), strict=False), 1
        ):
            reached = mine['goal_seconds']
            rows.append(
                [
                    f'seed {turn}',
                    f'{plain["goal"]:.3f}',
                    f'{number(plain["goal_seconds"])} s',
                    f'{number(reached)} s' if reached else 'not reached',
                    f'{number(plain["goal_seconds"] / reached)} ×' if reached else '–',
                    f'{mine["best"]:.3f} in {number(mine["total_seconds"])} s',
                ]
            )
        texts.append(
            grid([case['title'], 'accuracy', 'plain fastai', 'ours', 'ratio', 'best of ours, whole run'], rows)
        )
        texts.append(_ratios(case))
    return '\n\n'.join(texts)


def _ratios(case):
    return (
        'Ratios of the medians, with the lowest and highest of single rounds: '
        + '; '.join(f'{name} **{ratio(case, name)}**' for name in case['ratios'])
        + '.'
    )


def _growth(cases):
    sizes = sorted(cases, key=int)
    figures = {size: cases[size]['contenders']['ours']['median'] for size in sizes}
    head = ['milliseconds per image', *(f'{int(size):,} files' for size in sizes), 'most files ÷ fewest']
    stages = {**STAGES, 'scan': '**open, hash and find duplicates**'}

    def row(label, figure, unit=''):
        values = [figures[size][figure] for size in sizes]
        return [label, *(number(value) + unit for value in values), number(values[-1] / values[0])]

    return grid(
        head, [*(row(label, f'{stage}_ms') for stage, label in stages.items()), row('peak memory', 'peak_mb', ' MB')]
    )


def goals(folder: Path = RESULTS) -> str:
    "The targets and the results"
    rows = []
    for what, part, case, name, sign, target in GOALS:
        result = read(part, folder)
        case_results = result and result['cases'].get(case)
        if case_results and part == 'growth':
            small = result['cases'].get('1000')
            value = (
                small
                and case_results['contenders']['ours']['median'][f'{name}_ms']
                / small['contenders']['ours']['median'][f'{name}_ms']
            )
            measured = number(value)
        else:
            value = case_results and case_results['ratios'].get(name, {}).get('value')
            measured = ratio(case_results, name) if case_results else '–'
        reached = '' if not value else 'yes' if (value >= target if sign == '≥' else value <= target) else '**no**'
        rows.append([what, f'{sign} {target}', measured, reached])
    return grid(['figure', 'target', 'measured', 'reached'], rows)


def show(part: str, folder: Path = RESULTS) -> str:
    "A part's tables, with date and command of the measurement"
    result = read(part, folder)
    if result is None:
        return missing(part)
    notes = [
        f'Not measured: {name}, because {reason}.' for name, reason in (result['skipped'] | result['failed']).items()
    ]
    rounds = f'{result["rounds"]} round{"s" if result["rounds"] > 1 else ""}'
    measured = f'Measured {result["date"]}, {rounds}, `{result["command"].strip()}`.'
    return '\n\n'.join([table(result), *notes, measured])


def gpu(folder: Path = RESULTS) -> str:
    "The results of benchmarks/gpu.py as Markdown, or that there are none"
    result = read('gpu', folder)
    if not result:
        return 'Not measured yet: no GPU was available. `make bench-gpu` writes `benchmarks/results/gpu.json`.'
    parts = result['parts']
    rows = (
        [arch, *(number(rates[name]['rate']) if 'rate' in rates.get(name, {}) else '–' for name in ('ours', 'limit'))]
        + [str(rates['ours_of_limit'] or '–'), str(rates['ours_of_fastai'] or '–')]
        + [number(memory) + ' MB' if (memory := rates.get('ours', {}).get('peak_gpu_mb')) else '–']
        for arch, rates in parts.get('epoch', {}).items()
    )
    header = ['network', 'ours, images/s', 'one ready batch, images/s', 'ours ÷ ready batch', 'ours ÷ plain fastai']
    header += ['peak GPU memory']
    others = {name: value for name, value in parts.items() if name != 'epoch'}
    details = f'```json\n{json.dumps(others, indent=1, ensure_ascii=False)}\n```'
    return '\n\n'.join([f'{result["gpu"]}, {result["date"]}, `make bench-gpu`.', grid(header, rows), details])


def machines(folder: Path = RESULTS) -> str:
    "The machines on which the parts were measured"
    seen = {}
    for part in ('start', 'loader', 'epoch', 'small', 'prediction', 'accuracy', 'growth'):
        if result := read(part, folder):
            m = result['machine']
            packages = ', '.join(
                f'{name} {number}' for name, number in m['packages'].items() if number and name != 'fungi_fastai'
            )
            description = (
                f'{m["cores"]} cores ({m["cpu"]}; {" ".join(m["flags"])}), {m["memory_gb"]} GB of memory, '
                f'{m["system"]}, threads: {m["threads"]}; '
                f'Python {m["python"]}, {packages}; this library at {m["commit"]}'
            )
            seen.setdefault(description, []).append(part)
    return (
        '\n\n'.join(f'{", ".join(parts)}: {description}.' for description, parts in seen.items())
        or 'Nothing is measured yet; run `make bench`.'
    )


if __name__ == '__main__':
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    print(
        '\n\n'.join(
            [
                machines(folder),
                goals(folder),
                *(
                    f'## {part}\n\n{show(part, folder)}'
                    for part in ('loader', 'epoch', 'small', 'prediction', 'accuracy', 'start', 'growth')
                ),
            ]
        )
    )
