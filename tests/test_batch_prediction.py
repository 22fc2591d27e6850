"`fungi predict` with bundles: killed anywhere, out of disk, with a model that changed in between, through Ray"

import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import children

from fungi_fastai.core.errors import UserError
from fungi_fastai.deploy import prediction_files
from fungi_fastai.deploy.streaming import iter_predictions, stream_predictions
from fungi_fastai.runs import batch_prediction as batch
from fungi_fastai.runs.batch_prediction import predict_to

endings = ('csv', 'jsonl', 'parquet')


@pytest.fixture(scope='module')
def bundle(small_bundle):
    return small_bundle


@pytest.fixture(scope='module')
def many(photos, tmp_path_factory):
    "180 images, of which 60 are different, and three files that are none"
    folder = tmp_path_factory.mktemp('many') / 'images'
    files = sorted(photos.rglob('*.jpg'))
    for copy in 'abc':
        (folder / copy).mkdir(parents=True)
        for i, file in enumerate(files):
            os.link(file, folder / copy / f'{i:03}.jpg')
    (folder / 'b/text.jpg').write_text('no image')
    (folder / 'b/empty.png').write_bytes(b'')
    (folder / 'c/cut.jpg').write_bytes(files[0].read_bytes()[:700])
    return folder


@pytest.fixture(scope='module')
def expected(bundle, many, tmp_path_factory):
    "What undisturbed calls make of them: bytes by ending"
    place = tmp_path_factory.mktemp('expected')
    for ending in endings:
        assert predict_to(bundle, many, place / f'p.{ending}', progress=False).failed == 3
    return {ending: (place / f'p.{ending}').read_bytes() for ending in endings}


def left_over(folder):
    return sorted(p.name for p in folder.iterdir() if p.name.startswith('.') or '.partial' in p.name)


def table_of(content, ending):
    if ending == 'csv':
        return pd.read_csv(io.BytesIO(content), keep_default_na=False, na_values={c: [''] for c in ('confidence',)})
    return pd.read_json(io.BytesIO(content), lines=True) if ending == 'jsonl' else pd.read_parquet(io.BytesIO(content))


# --- what is written


def test_the_three_formats_hold_the_predictions_of_the_predictor(bundle, many, expected):
    from fungi_fastai.deploy.predictor import Predictor

    predictor = Predictor.load(bundle)
    tables = {ending: table_of(expected[ending], ending) for ending in endings}
    lines = [json.loads(line) for line in expected['jsonl'].splitlines()]
    columns = [
        'path',
        'name',
        'predicted',
        'confidence',
        'answer',
        'set',
        *(f'p_{c}' for c in predictor.classes),
        'error',
    ]
    assert all(list(table.columns) == columns for table in tables.values()) and list(lines[0]) == columns
    assert all(len(table) == 183 and (table.error != '').sum() == 3 for table in tables.values())
    table = tables['parquet']
    good = table[table.error == '']
    predicted = predictor.predict(good.path.tolist())
    assert [p.label for p in predicted] == good.predicted.tolist() and [
        p.answer for p in predicted
    ] == good.answer.tolist()
    assert [list(p.set) for p in predicted] == good['set'].map(list).tolist()
    assert (np.stack([p.probabilities for p in predicted]) == good.filter(like='p_').to_numpy()).all()
    assert good.confidence.tolist() == [p.confidence for p in predicted]
    for other in ('csv', 'jsonl'):
        assert (
            tables[other].answer.tolist() == table.answer.tolist()
            and tables[other].error.tolist() == table.error.tolist()
        )
        assert (pd.to_numeric(tables[other].confidence).astype(np.float32).to_numpy() == table.confidence.to_numpy())[
            table.error == ''
        ].all()
    assert tables['csv']['set'].tolist() == [' | '.join(s) for s in table['set']] and [row['set'] for row in lines] == [
        list(s) for s in table['set']
    ]
    bad = [row for row in lines if row['error']]
    assert all(
        row['confidence'] is None and row['answer'] == '' and row['set'] == [] and row['predicted'] == '' for row in bad
    )


def test_a_run_predicts_as_its_bundle(place, small_run, bundle, photos, tmp_path):
    some = sorted(photos.rglob('*.jpg'))[::5]
    for name, model in (('run', small_run.folder), ('bundle', bundle)):
        predict_to(model, some, tmp_path / f'{name}.parquet', progress=False)
    one, other = (pd.read_parquet(tmp_path / f'{name}.parquet') for name in ('run', 'bundle'))
    assert list(one.columns) == list(other.columns)
    numbers = one.filter(like='p_').to_numpy()
    assert numbers == pytest.approx(other.filter(like='p_').to_numpy(), abs=0.02)  # bf16 in training's path
    assert (one.confidence.to_numpy() == numbers.max(1)).all() and numbers.sum(1) == pytest.approx(1, abs=1e-4)
    assert small_run.predict(some, abstain=True).answer.tolist() == one.answer.tolist()


def test_specimens(fungi, bundle, photos, tmp_path, capsys):
    from fungi_fastai.deploy.predictor import Predictor

    files = sorted(photos.rglob('*.jpg'))
    fungi('predict', bundle, photos, '--group', '^(.+)_', '--out', tmp_path / 'p.csv')
    table = pd.read_csv(tmp_path / 'p.csv')
    assert (table.specimen == table['name'].str.rpartition('_')[0]).all() and (table.specimen_images == 2).all()
    (pooled,) = Predictor.load(bundle).predict([files[:2]])
    assert (table.specimen_predicted[0], table.specimen_answer[0]) == (pooled.label, pooled.answer)
    assert table.specimen_confidence[:2].to_numpy() == pytest.approx(pooled.confidence, abs=1e-5)
    # a table's column, whatever folders the photos are in; text for people
    rows = [(file, f's{i % 2}' if i < 5 else '') for i, file in enumerate(files[:6])]
    pd.DataFrame(rows, columns=['file', 'find']).to_csv(tmp_path / 't.csv', index=False)
    rows = json.loads(fungi('predict', bundle, tmp_path / 't.csv', '--group', 'find', '--json').out)
    assert [row['specimen_images'] for row in rows] == [3, 2, 3, 2, 3, 1]
    # which column is read is told, and chosen
    pd.DataFrame([files[:2]], columns=['left', 'right']).to_csv(tmp_path / 'two.csv', index=False)
    assert 'images from left; others: right' in fungi('predict', bundle, tmp_path / 'two.csv').err
    chosen = json.loads(fungi('predict', bundle, tmp_path / 'two.csv', '--column', 'right', '--json').out)
    assert [row['path'] for row in chosen] == [str(files[1])]
    assert 'Give the table as well' in fungi('predict', bundle, files[0], '--column', 'right', code=2).err
    predict_to(bundle, photos, group='folder', stdout_format='text', progress=False)
    text = capsys.readouterr().out
    assert (
        'fits none' not in text
        and text.count('The answer is pooled from 12 photos of the specimen.') == 5
        and f'  {files[3]}: ' in text
    )


def test_a_list_of_species(fungi, bundle, photos, tmp_path):
    (tmp_path / 'list.txt').write_text('Tulips\n# not in May\nroses\n')
    fungi('predict', bundle, photos, '--only', tmp_path / 'list.txt', '--out', tmp_path / 'p.csv')
    table = pd.read_csv(tmp_path / 'p.csv')
    assert set(table.predicted) <= {'tulips', 'roses'} and (table.p_daisy == 0).all()
    assert (table.p_tulips + table.p_roses).to_numpy() == pytest.approx(1)
    (tmp_path / 'list.txt').write_text('tulip tree\n')
    assert 'does not know tulip tree' in fungi('predict', bundle, photos, '--only', tmp_path / 'list.txt', code=2).err
    assert 'There is no list' in fungi('predict', bundle, photos, '--only', tmp_path / 'none', code=2).err


def test_the_list_of_a_region(fungi, bundle, photos, tmp_path):
    table = tmp_path / 'checklist.csv'
    table.write_text('Species;Country\nTulips;Austria|Hungary\nroses;austria\nedelweiss;Austria\ndaisy;Italy\n')
    result = fungi('predict', bundle, photos, '--only', table, '--region', 'Austria', '--out', tmp_path / 'p.csv')
    assert '2 of 3 names are known to the model; the others, such as edelweiss, are left out' in result.err
    assert set(pd.read_csv(tmp_path / 'p.csv').predicted) <= {'tulips', 'roses'}
    for options, words in (
        (('--only', table), 'Choose one with --region'),
        (('--only', table, '--region', 'Astria'), "Did you mean 'Austria'?"),
        (('--region', 'Austria'), 'give the table with --only'),
    ):
        assert words in fungi('predict', bundle, photos, *options, code=2).err


def test_specimens_that_cannot_be_read(fungi, bundle, photos, tmp_path):
    pd.DataFrame(dict(file=[next(photos.rglob('*.jpg'))])).to_csv(tmp_path / 't.csv', index=False)
    (tmp_path / 'other').mkdir()
    first = sorted(photos.rglob('*.jpg'))[0]
    shutil.copy(first, tmp_path / 'other')
    for paths, group, words in [
        ([photos], '^(nothing)_', 'fits none of the photos (the first is'),
        ([photos], 'find', 'no column, as there is no table'),
        ([photos], '(', 'is no regular expression'),
        ([tmp_path / 't.csv'], 'find', 'has no column find'),
        ([tmp_path / 't.csv', photos], 'folder', 'is a table. Give one table'),
        ([first, tmp_path / 'other' / first.name], '^(.+)_', 'makes one specimen'),
    ]:
        assert words in fungi('predict', bundle, *paths, '--group', group, '--out', tmp_path / 'p.csv', code=2).err
        assert not (tmp_path / 'p.csv').exists() and left_over(tmp_path) == []


def test_a_model_without_a_threshold_gives_no_answer(many):
    tables = [*iter_predictions(many, lambda paths: (np.full((len(paths), 2), 0.5), [''] * len(paths)), ['a', 'b'])]
    assert tables[0].column_names == ['path', 'name', 'predicted', 'confidence', 'p_a', 'p_b', 'error']


@pytest.mark.parametrize('stdout_format', ['csv', 'json', 'jsonl'])
def test_standard_output(bundle, many, expected, capsys, stdout_format):
    predict_to(bundle, many, stdout_format=stdout_format)
    output = capsys.readouterr().out
    if stdout_format == 'json':
        assert json.loads(output) == [json.loads(line) for line in expected['jsonl'].splitlines()]
    else:
        assert output.encode() == expected[stdout_format]


def test_the_command(fungi, bundle, many, tmp_path):
    result = fungi('predict', bundle, many, '--out', tmp_path / 'p.jsonl', '--json', code=1)
    assert (
        json.loads(result.out) | dict(errors=0)
        == dict(out=str(tmp_path / 'p.jsonl'), images=183, unreadable=3, errors=0)
        and '3 of 183 files' in result.err
    )
    assert len(json.loads(fungi('predict', bundle, many / 'a/000.jpg', '--json').out)) == 1
    assert 'has neither recipe.json nor bundle.json' in fungi('predict', many, many, code=2).err


def test_an_engine_that_works_ahead_makes_the_same_file(bundle, many, expected, tmp_path):
    opened = batch.open_classifier(bundle)

    def ahead(classify, lists):
        lists = [*lists]
        return [classify(paths) for paths in lists]

    for ending in endings:
        stream_predictions(
            many,
            opened.classify,
            opened.classes,
            tmp_path / f'p.{ending}',
            decide=opened.decide,
            map_batches=ahead,
            batch_size=16,
            max_images=16,
            progress=False,
        )
        assert (tmp_path / f'p.{ending}').read_bytes() == expected[ending]


def test_row_groups_do_not_show_where_parts_ended():
    import pyarrow as pa

    for sizes in ([7, 1, 25, 3], [36], [1] * 36):
        parts = pa.concat_tables([pa.table(dict(n=range(36)))]).to_batches()[0]
        cut = [pa.Table.from_batches([parts.slice(sum(sizes[:i]), n)]) for i, n in enumerate(sizes)]
        assert [t['n'].to_pylist() for t in prediction_files._regroup(cut, 10)] == [
            [*range(i, min(i + 10, 36))] for i in range(0, 36, 10)
        ]


# --- faults


def _command(arguments, log, seconds=0.0, limit=None):
    "`fungi predict` in a process of its own, in small steps that take a while"
    from fungi_fastai import cli

    usual = batch.stream_predictions

    def slowly(paths, classify, *args, **options):
        def some(paths):
            time.sleep(seconds)
            return classify(paths)

        return usual(paths, some, *args, **options | dict(batch_size=8, max_images=8))

    batch.stream_predictions = slowly
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    sys.exit(cli.main(['predict', *map(str, arguments)]))


def started(*arguments, **options):
    call = children.Process(target=_command, args=arguments, kwargs=options)
    call.start()
    return call


@pytest.mark.parametrize('ending', endings)
def test_killed_at_any_time(bundle, many, expected, tmp_path, ending):
    "Five times, at random times: no half file, and in the end the bytes of an undisturbed call"
    rng, out, killed, done = random.Random(ending), tmp_path / f'p.{ending}', 0, []
    for _ in range(5):
        call = started([bundle, many, '--out', out], tmp_path / 'log', seconds=0.06)
        time.sleep(rng.uniform(0.05, 0.7))
        os.kill(call.pid, signal.SIGKILL)
        call.join()
        killed += call.exitcode == -signal.SIGKILL
        if out.exists():
            break  # it was done before
        done.append(len(list(tmp_path.glob('*.partial/0*.parquet'))))
    assert killed and done == sorted(done)
    call = started([bundle, many, '--out', out], tmp_path / 'log')
    call.join()
    assert call.exitcode == 1 and '3 of 183 files' in (tmp_path / 'log').read_text('utf8')
    assert out.read_bytes() == expected[ending] and left_over(tmp_path) == []
    print(f'{ending}: parts after each kill {done}')


def test_the_real_command_killed(bundle, many, expected, tmp_path):
    "As a user starts it: killed as soon as the first part is there, and continued"
    big = [many] * 4
    call = [sys.executable, '-m', 'fungi_fastai.cli', 'predict', bundle, *big, '--out', tmp_path / 'p.csv']
    with subprocess.Popen(call, stderr=subprocess.PIPE) as first:
        while first.poll() is None and not list(tmp_path.glob('*.partial/0*')):
            time.sleep(0.002)
        first.kill()
    assert first.returncode == -signal.SIGKILL and not (tmp_path / 'p.csv').exists()
    again = subprocess.run(call, capture_output=True, text=True)
    assert again.returncode == 1 and 'had been classified before' in again.stderr and 'Traceback' not in again.stderr
    head, rows = expected['csv'].split(b'\n', 1)
    assert (tmp_path / 'p.csv').read_bytes() == head + b'\n' + rows * 4 and left_over(tmp_path) == []


@pytest.mark.parametrize('limit', [3_000, 25_000])
def test_disk_full(bundle, many, expected, tmp_path, limit):
    "A limit on the size of files: no part fits; all parts fit and the whole does not"
    call = started([bundle, many, '--out', tmp_path / 'p.csv'], tmp_path / 'log', limit=limit)
    call.join()
    log = (tmp_path / 'log').read_text('utf8')
    assert call.exitcode == 1 and 'arge' in log and 'repeat the same call' in log and 'Traceback' not in log
    assert not (tmp_path / 'p.csv').exists()
    assert len(list(tmp_path.glob('p.csv.partial/0*'))) == (0 if limit == 3_000 else 23)
    call = started([bundle, many, '--out', tmp_path / 'p.csv'], tmp_path / 'log')
    call.join()
    assert call.exitcode == 1 and (tmp_path / 'p.csv').read_bytes() == expected['csv'] and left_over(tmp_path) == []


def test_a_model_that_changed_since_the_file_was_begun(fungi, bundle, many, expected, tmp_path, monkeypatch):
    own, out = shutil.copytree(bundle, tmp_path / 'own'), tmp_path / 'p.csv'
    from fungi_fastai.deploy.predictor import Predictor

    calls, usual = [], Predictor.classify

    def weary(self, paths):
        if calls:
            raise KeyboardInterrupt
        calls.append(paths)
        return usual(self, paths)

    monkeypatch.setattr(Predictor, 'classify', weary)
    fungi('predict', own, many, '--out', out, code=130)
    monkeypatch.undo()
    assert list(tmp_path.glob('p.csv.partial/0*'))
    about, graph = (own / 'bundle.json').read_text('utf8'), (own / 'model.onnx').read_bytes()
    (own / 'model.onnx').write_bytes(graph[:-1] + bytes([graph[-1] ^ 1]))
    assert 'checksum' in fungi('predict', own, many, '--out', out, code=2).err
    (own / 'model.onnx').write_bytes(graph)
    (own / 'bundle.json').write_text(
        about.replace('"temperature": ', '"temperature": 1'), 'utf8'
    )  # a bundle exported again
    assert 'other models' in fungi('predict', own, many, '--out', out, code=2).err
    (own / 'bundle.json').write_text(about, 'utf8')
    assert 'other models' in fungi('predict', own, many, '--out', out, '--backend', 'torch', code=2).err
    assert (
        'had been classified before' in fungi('predict', own, many, '--out', out, code=1).err
        and out.read_bytes() == expected['csv']
    )


# --- Ray


@pytest.mark.slow
def test_ray_finishes_what_the_local_engine_began(bundle, many, expected, tmp_path):
    "A cluster of this machine's, in a process of its own; the file, the messages and the exit code are the same"
    pytest.importorskip('ray', reason="ray is not installed: pip install 'fungi_fastai[scale]'")
    call = started([bundle, many, '--out', tmp_path / 'p.jsonl'], tmp_path / 'log', seconds=0.1)
    while call.is_alive() and len(list(tmp_path.glob('*.partial/0*'))) < 3:
        time.sleep(0.01)
    os.kill(call.pid, signal.SIGKILL)
    call.join()
    done = subprocess.run(
        [
            sys.executable,
            '-m',
            'fungi_fastai.cli',
            'predict',
            bundle,
            many,
            '--out',
            tmp_path / 'p.jsonl',
            '--engine',
            'ray',
            '--workers',
            '1',
        ],
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if not k.startswith('RAY_')},
    )
    assert done.returncode == 1 and not done.stdout, done.stderr
    lines = done.stderr.splitlines()
    assert (
        'had been classified before' in lines[0]
        and '3 of 183 files' in lines[-1]
        and not any('ray' in line.lower() for line in lines)
    ), done.stderr
    assert (tmp_path / 'p.jsonl').read_bytes() == expected['jsonl'] and left_over(tmp_path) == []


def test_a_worker_that_sees_other_files(bundle, many, tmp_path):
    worker = batch._Worker(str(bundle), 'auto', batch.open_classifier(bundle).fingerprint)
    paths = [str(many / 'a/000.jpg'), str(many / 'b/text.jpg'), str(tmp_path / 'gone.jpg')]
    answer = worker(dict(paths='\0'.join(paths)))
    probs, errors = batch._checked(answer, 5)
    assert probs[0].sum() == pytest.approx(1) and [bool(e) for e in errors] == [False, True, True]
    (tmp_path / 'gone.jpg').write_bytes(b'here it is')
    with pytest.raises(UserError, match='does not see .*gone.jpg'):
        batch._checked(answer, 5)
    for other in (batch._Worker(str(bundle), 'auto', 'another'), batch._Worker(str(tmp_path / 'nowhere'), 'auto', '')):
        with pytest.raises(UserError, match='same path'):
            batch._checked(other(dict(paths='x')), 5)


def test_mistakes(fungi, bundle, many, small_run, tmp_path, monkeypatch):
    out = ['--out', tmp_path / 'p.csv']
    assert 'expected 1 or more' in fungi('predict', bundle, many, *out, '--workers', '0', code=2).err
    assert '--engine ray' in fungi('predict', bundle, many, *out, '--address', '10.0.0.1:6379', code=2).err
    assert 'fungi export' in fungi('predict', small_run.folder, many, *out, '--engine', 'ray', code=2).err
    assert 'is for bundles' in fungi('predict', small_run.folder, many, *out, '--backend', 'onnx', code=2).err
    assert '.jsonl' in fungi('predict', bundle, many, '--out', tmp_path / 'p.txt', '--engine', 'ray', code=2).err
    with pytest.raises(UserError, match='Known: local, ray'):
        predict_to(bundle, many, engine='spark')
    monkeypatch.setitem(sys.modules, 'ray', None)
    assert 'fungi_fastai[scale]' in fungi('predict', bundle, many, *out, '--engine', 'ray', code=2).err
    assert left_over(tmp_path) == [] and not Path(tmp_path / 'p.csv').exists()


def test_a_cluster_that_does_not_exist(fungi, bundle, many):
    pytest.importorskip('ray', reason="ray is not installed: pip install 'fungi_fastai[scale]'")
    assert (
        'no Ray cluster at 127.0.0.1:1 '
        in fungi('predict', bundle, many, '--engine', 'ray', '--address', '127.0.0.1:1', code=2).err
    )
