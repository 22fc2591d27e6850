"The benchmarks run, and their tables show the results. No test asserts a speed"

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

root = Path(__file__).parents[1]


@pytest.fixture
def tables():
    spec = importlib.util.spec_from_file_location('benchmark_tables', root / 'benchmarks' / 'tables.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def result(**cases):
    machine = dict(
        cores=2,
        cpu='a CPU',
        flags=['avx2'],
        memory_gb=8.0,
        system='Linux',
        threads='one per core',
        python='3',
        commit='abc',
        packages=dict(torch='2'),
    )
    return dict(
        part='epoch',
        date='2026-01-01',
        command='python benchmarks/run.py',
        rounds=3,
        minutes=1,
        machine=machine,
        skipped=dict(hf='uv is not installed'),
        failed={},
        cases=cases,
    )


def contender(label, seconds, **more):
    return dict(label=label, median=dict(seconds=seconds, rate=160 / seconds, peak_mb=1000.0) | more, rounds=[])


def test_targets_beside_results(tables, tmp_path):
    ratios = {
        'fastai ÷ ours': dict(value=6.2, least=6.0, most=6.5),
        'ours ÷ limit': dict(value=1.31, least=1.3, most=1.4),
    }
    contenders = dict(
        fastai=contender('plain fastai', 62.0),
        ours=contender('ours', 10.0, first_seconds=12.0, first_rate=13.0),
        limit=contender('the limit', 7.6),
    )
    case = dict(title='resnet50 at 224 px', images=160, ratios=ratios, contenders=contenders)
    (tmp_path / 'epoch.json').write_text(json.dumps(result(resnet50_224=case)))
    rows = tables.goals(tmp_path).splitlines()
    assert next(r for r in rows if 'plain fastai ÷ ours' in r).endswith('| ≥ 5 | 6.20 (6.00–6.50) | yes |')
    assert next(r for r in rows if 'ours ÷ the limit' in r).endswith('| ≤ 1.1 | 1.31 (1.30–1.40) | **no** |')
    assert next(r for r in rows if 'Predicting' in r).endswith('| – |  |')
    shown = tables.show('epoch', tmp_path)
    assert '| plain fastai | 2.58 | 62.0 s | 6.20 × | 1,000 MB |' in shown
    assert 'hf, because uv is not installed' in shown
    assert 'Not measured yet' in tables.show('growth', tmp_path)
    assert '2 cores (a CPU; avx2)' in tables.machines(tmp_path)


def test_results_contain_no_paths():
    for file in (root / 'benchmarks' / 'results').glob('*.json'):
        text = file.read_text(encoding='utf8')
        assert str(Path.home()) not in text and '"/' not in text, file
        assert {'cores', 'flags', 'packages', 'commit'} <= set(json.loads(text)['machine']), file


@pytest.mark.slow
def test_a_quick_run_writes_no_results(tmp_path):
    before = sorted((root / 'benchmarks' / 'results').glob('*'))
    process = subprocess.run(
        [sys.executable, root / 'benchmarks' / 'run.py', 'growth', '--quick'],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert '| open and hash |' in process.stdout and '60 files' in process.stdout
    assert sorted((root / 'benchmarks' / 'results').glob('*')) == before and not list(tmp_path.iterdir())


def test_an_unknown_part_is_refused():
    process = subprocess.run([sys.executable, root / 'benchmarks' / 'run.py', 'speed'], capture_output=True, text=True)
    assert process.returncode == 2 and 'there is no part speed' in process.stderr and 'Traceback' not in process.stderr


def test_the_table_of_a_gpu(tables, tmp_path):
    assert 'make bench-gpu' in tables.gpu(tmp_path)
    rows = dict(
        resnet50=dict(
            limit=dict(rate=2500.0), ours=dict(rate=2400.0, peak_gpu_mb=7300.0), ours_of_limit=0.96, ours_of_fastai=3.5
        ),
        vit=dict(limit=dict(failed='the time was over'), ours_of_limit=None, ours_of_fastai=None),
    )
    parts = dict(epoch=rows, resume=dict(killed=True, same_weights=True))
    (tmp_path / 'gpu.json').write_text(json.dumps(dict(gpu='A card', date='2026-01-01', parts=parts)))
    table = tables.gpu(tmp_path)
    assert 'A card, 2026-01-01' in table and '"same_weights": true' in table
    assert '| resnet50 | 2,400 | 2,500 | 0.96 | 3.5 | 7,300 MB |' in table and '| vit | – | – | – | – | – |' in table
