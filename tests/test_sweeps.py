"Sweeps: each trial is trained once, whatever processes share them or die; the search, its stages and its results"

import json
import time
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import children

from fungi_fastai.core.errors import TrainingError, UserError

pytestmark = pytest.mark.usefixtures('place', 'ready')


@pytest.fixture
def recipe(photos):
    from fungi_fastai.training.recipe import Recipe

    return Recipe(
        name='flowers',
        source=str(photos),
        arch='convmixer_8_1',
        pretrained=False,
        size=32,
        epochs=1,
        bs=16,
        lr=1e-2,
        device='cpu',
        precision='fp32',
        refit_head=False,
    )


def sweep(*arguments, **options):
    from fungi_fastai.studies.sweeps import sweep

    return sweep(*arguments, **dict(progress=False) | options)


def visible_files(folder):
    return {f.name for f in Path(folder).iterdir() if not f.name.startswith('.')}


@pytest.fixture
def pretend(monkeypatch):
    "Trials whose score is computed, not trained: pretend(lambda recipe, epoch: score) → the recipes that were trained"
    from fungi_fastai.studies import sweeps, trials, workers

    trained = []

    def start(score, epochs=1):
        class Run:
            def __init__(self, recipe):
                self.history = pd.DataFrame(dict(epoch=[1], accuracy=score(recipe, 1)))

        def train(recipe, folder, progress, items, cbs, report):
            trained.append(recipe)
            value, report = score(recipe, 1), cbs[0]
            report.learn = type('Learn', (), dict(history=type('History', (), dict(rows=[]))))
            folder.mkdir(parents=True, exist_ok=True)
            for epoch in range(1, epochs + 1):
                value = score(recipe, epoch)
                report.learn.history.rows.append(
                    dict(epoch=epoch, accuracy=value, macro_f1=value, valid_loss=1 - value, seconds=1.0)
                )
                pd.DataFrame(report.learn.history.rows).to_csv(folder / 'history.csv', index=False)
                report.epoch_done()
            run = Run(recipe)
            run.value, run.history = value, pd.read_csv(folder / 'history.csv')
            return run

        monkeypatch.setattr(trials, 'train', train)
        monkeypatch.setattr(sweeps, 'prepare_items', lambda *_: None)
        valid_scores = lambda run: dict(
            accuracy=run.value, macro_f1=run.value, valid_loss=1 - run.value, epochs=len(run.history), seconds=1.0
        )
        test_scores = lambda run: dict(test_accuracy=run.value / 2, test_macro_f1=run.value / 2)
        monkeypatch.setattr(trials, '_valid_scores', valid_scores)
        monkeypatch.setattr(trials, '_test_scores', test_scores)
        monkeypatch.setattr(workers, 'poll', 0.02)
        return trained

    return start


# --- trained


@pytest.mark.slow
def test_a_grid_of_real_trainings(recipe, tmp_path):
    from fungi_fastai import Run
    from fungi_fastai.studies.sweep_results import Sweep

    result = sweep(recipe, {'lr': [1e-3, 1e-1], 'augment.strength': '0..1 step 1'}, tmp_path / 'sweep')
    table = result.table
    assert (
        table.state.tolist() == ['done'] * 4
        and table.number.tolist() == [0, 1, 2, 3]
        and table.epochs.tolist() == [1] * 4
    )
    assert table[['lr', 'augment.strength']].values.tolist() == [[1e-3, 0], [1e-3, 1], [1e-1, 0], [1e-1, 1]]
    assert [run.folder for run in result.runs] == [result.folder / name for name in result.done.folder]
    assert (
        result.runs[0].metrics['valid']['accuracy']
        == table.accuracy.max()
        == result.runs[0].metrics['valid'][result.metric]
    )
    for row in table.itertuples():
        run = Run.load(tmp_path / 'sweep' / row.folder)
        assert run.metrics['valid']['accuracy'] == row.accuracy and run.recipe.lr == row.lr
    assert table.test_accuracy.notna().sum() == 1  # of the best alone
    best = table.loc[table.test_accuracy.notna()].iloc[0]
    assert (
        best.accuracy == table.accuracy.max()
        and best.test_accuracy == Run(tmp_path / 'sweep' / best.folder).metrics['accuracy']
    )
    assert result.best.lr == best.lr and result.best == Run(tmp_path / 'sweep' / best.folder).recipe
    assert {
        'sweep.csv',
        'sweep.json',
        'sweep.db',
        'summary.txt',
        'best.json',
        'trials',
        'heat_map.svg',
        'parallel.svg',
    } <= visible_files(tmp_path / 'sweep')
    assert 'test set' in str(result) and 'accuracy' in (tmp_path / 'sweep/summary.txt').read_text()
    loaded = Sweep.load(tmp_path / 'sweep')
    assert loaded.best == result.best and str(loaded) == str(result) and loaded.space == result.space
    pd.testing.assert_frame_equal(
        loaded.table[['number', 'lr', 'augment.strength', 'accuracy']],
        table[['number', 'lr', 'augment.strength', 'accuracy']],
    )
    # the same call takes everything as it is; another one is refused
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / 'sweep/trials').rglob('*')}
    again = sweep(recipe, {'lr': [1e-3, 1e-1], 'augment.strength': '0..1 step 1'}, tmp_path / 'sweep')
    assert (
        again.best == result.best
        and {f: f.stat().st_mtime_ns for f in (tmp_path / 'sweep/trials').rglob('*')} == before
    )
    with pytest.raises(UserError, match=r'space\.lr is .*0\.01.* now'):
        sweep(recipe, {'lr': [1e-3, 1e-2], 'augment.strength': '0..1 step 1'}, tmp_path / 'sweep')
    with pytest.raises(UserError, match=r'recipe\.epochs is 2 now and 1 there'):
        sweep(recipe.but(epochs=2), dict(lr=[1e-3, 1e-1]), tmp_path / 'sweep')


def test_a_failed_trial_is_stored_and_the_others_continue(recipe, tmp_path, capsys):
    result = sweep(recipe, dict(lr=[1e-2, 1e38]), tmp_path / 'sweep', progress=True)
    assert result.table.state.tolist() == ['done', 'failed'] and 'no longer a number' in result.table.reason[1]
    assert 'no longer a number' in str(result) and result.best.lr == 1e-2
    log = capsys.readouterr().err
    assert 'trial 1 of 2 · lr=0.01 · accuracy' in log and 'trial 2 of 2 · lr=1e+38 · failed' in log and '\r' not in log
    with pytest.raises(TrainingError, match='None of 1 trial'):
        sweep(recipe, dict(lr=[1e38]), tmp_path / 'hopeless')


def test_a_pruned_trial_ends_early_and_is_never_evaluated(recipe, tmp_path, monkeypatch):
    import optuna

    monkeypatch.setattr(
        optuna.pruners.MedianPruner,
        'prune',
        lambda self, study, trial: trial.params['lr'] == '0.1' and trial.last_step == 2,
    )
    result = sweep(recipe.but(epochs=3), dict(lr=[1e-2, 1e-1]), tmp_path / 'sweep', prune='median')
    assert result.table.state.tolist() == ['done', 'pruned'] and result.table.epochs.tolist() == [3, 2]
    assert result.table.accuracy.notna().all() and np.isnan(result.table.test_accuracy[1])
    assert visible_files(tmp_path / 'sweep/trials/lr=0.1') == {
        'recipe.json',
        'items.parquet',
        'environment.json',
        'history.csv',
    }


def test_two_stages_of_real_trainings(recipe, tmp_path):
    result = sweep(recipe, dict(lr=[1e-3, 1e-2, 1e-1]), tmp_path / 'sweep', stages=(0.5, 1.0))
    assert result.table.fraction.tolist() == [0.5] * 3 + [1.0] and len(result.table) == 4
    first = result.table[result.table.fraction == 0.5].sort_values('accuracy', ascending=False, kind='stable')
    assert result.table.lr[3] == first.lr.iloc[0] == result.best.lr and result.best.fraction == 1
    from fungi_fastai import Run

    sizes = [Run(tmp_path / 'sweep' / f).metrics['n_train'] for f in result.table.folder]
    assert (
        sizes[0] < sizes[3]
        and len({Run(tmp_path / 'sweep' / f).metrics['valid']['n_test'] for f in result.table.folder}) == 1
    )


# --- many processes


def _sweep(recipe, space, out, **options):
    from fungi_fastai.studies import sweeps, workers

    workers.poll = 0.1
    sweeps.sweep(recipe, space, out, **options)


@pytest.fixture
def process(started):
    "A sweep in another process"
    return partial(started, _sweep)


def lines(log):
    return [line for line in log.read_text().splitlines() if line.startswith('trial ')] if log.exists() else []


@pytest.mark.slow
def test_two_processes_share_a_grid_and_one_is_killed(process, recipe, tmp_path):
    space, out = dict(bs=[8, 16], lr=[1e-4, 1e-3, 1e-2]), tmp_path / 'sweep'
    recipe = recipe.but(epochs=6)
    one, other = process(recipe, space, out), process(recipe, space, out)
    end, running = time.monotonic() + 300, set()
    while not (
        lines(one.log) and lines(other.log) and len(running) == 2
    ):  # both have finished a trial and are training another
        assert one.is_alive() and other.is_alive() and time.monotonic() < end, (
            one.log.read_text() + other.log.read_text()
        )
        time.sleep(0.002)
        running = {f.parent for f in (out / 'trials').glob('*/history.csv')} - {
            f.parent for f in (out / 'trials').glob('*/metrics.json')
        }
    one.kill()
    one.join()  # SIGKILL
    assert any((folder / 'checkpoint').exists() and not (folder / 'metrics.json').exists() for folder in running)
    other.join(300)
    assert other.exitcode == 0, other.log.read_text()
    names = [line.split(' · ')[1] for log in (one.log, other.log) for line in lines(log)]
    assert len(set(names)) == len(visible_files(out / 'trials')) == 6 and max(Counter(names).values()) == 1, (
        names
    )  # each exactly once
    table = pd.read_csv(out / 'sweep.csv')
    assert (
        table.state.tolist() == ['done'] * 6
        and table.epochs.tolist() == [6] * 6
        and len(table[['bs', 'lr']].drop_duplicates()) == 6
    )
    alone = sweep(recipe, dict(bs=[8], lr=[1e-4, 1e-3, 1e-2]), tmp_path / 'alone')
    assert alone.table.accuracy.tolist() == table.accuracy[:3].tolist()  # the killed trial has lost nothing


@pytest.mark.slow
def test_a_killed_sweep_resumes_from_the_checkpoint_of_its_trial(process, recipe, tmp_path, monkeypatch):
    import optuna

    # on one machine no worker waits for heartbeats
    monkeypatch.setattr(optuna.storages, 'fail_stale_trials', lambda study: None)
    out, recipe = tmp_path / 'sweep', recipe.but(epochs=16)
    one = process(recipe, dict(lr=[1e-3, 1e-2]), out)
    state = out / 'trials/lr=0.001/checkpoint/state.safetensors'
    end = time.monotonic() + 300
    while not state.exists():
        assert one.is_alive() and time.monotonic() < end, one.log.read_text()
        time.sleep(0.005)
    one.kill()
    one.join()
    history = pd.read_csv(out / 'trials/lr=0.001/history.csv')
    assert 0 < len(history) < 16
    result = sweep(recipe, dict(lr=[1e-3, 1e-2]), out)
    assert result.table.state.tolist() == ['done'] * 2 and result.table.epochs.tolist() == [16] * 2
    after = pd.read_csv(out / 'trials/lr=0.001/history.csv')
    before_kill = len(history) - 1
    pd.testing.assert_frame_equal(
        after[history.columns].head(before_kill), history.head(before_kill)
    )  # same seconds: not trained again


def _take(folder, names, start, results):
    from fungi_fastai.studies.sweeps import _open_storage
    from fungi_fastai.studies.workers import Worker

    worker = Worker(folder, _open_storage(folder, None))
    study = worker.study('queue', 'maximize', None)
    start.wait()
    worker.fill(study, [dict(lr=name) for name in names])
    while (trial := worker.take(study)) is not None:
        results.put(trial.suggest_categorical('lr', names))
        trial.set_user_attr('scores', {})
        study.tell(trial, 1.0)
    worker.close()


@pytest.mark.slow
def test_each_of_a_queue_is_taken_once(tmp_path):
    "Optuna does not guarantee this in SQLite: two processes may read that a trial is waiting before either takes it"
    names, start, results = [str(i) for i in range(16)], children.Barrier(5), children.Queue()
    processes = [children.Process(target=_take, args=(tmp_path, names, start, results)) for _ in range(4)]
    for one in processes:
        one.start()
    start.wait()
    taken = [results.get(timeout=300) for _ in names]
    for one in processes:
        one.join()
    assert sorted(taken) == sorted(names) and results.empty() and not any(one.exitcode for one in processes)


def test_a_worker_elsewhere_without_a_heartbeat_is_replaced(recipe, tmp_path, pretend, monkeypatch):
    from fungi_fastai.studies import trials, workers

    pretend(lambda recipe, epoch: recipe.lr)
    monkeypatch.setattr(workers, 'grace', 1)
    sweep(recipe, dict(lr=[0.1]), tmp_path / 'sweep', trials=1)
    taken = []

    def interrupted(recipe, folder, **_):
        taken.append(recipe.lr)
        raise KeyboardInterrupt

    monkeypatch.setattr(workers.Worker, '_is_dead', lambda *_: False)  # as for a worker of another machine
    store, train = trials.TrialRunner._store, trials.train
    monkeypatch.setattr(trials.TrialRunner, '_store', lambda *_, **__: None)  # it cannot store anything any more
    monkeypatch.setattr(trials, 'train', interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep(recipe, dict(lr=[0.1, 0.2]), tmp_path / 'second')
    monkeypatch.setattr(trials.TrialRunner, '_store', store)
    monkeypatch.setattr(trials, 'train', train)
    result = sweep(recipe, dict(lr=[0.1, 0.2]), tmp_path / 'second')
    assert taken == [0.1] and result.table.state.tolist() == ['done'] * 2 and result.best.lr == 0.2


# --- the search


def test_an_interrupted_trial_returns_to_the_queue(recipe, tmp_path, pretend):
    calls = []

    def score(recipe, epoch):
        calls.append(recipe.lr)
        if recipe.lr == 0.2 and calls.count(0.2) <= 6:
            raise KeyboardInterrupt
        return recipe.lr

    pretend(score)
    for _ in range(6):  # more often than `max_deaths`
        with pytest.raises(KeyboardInterrupt):
            sweep(recipe, dict(lr=[0.1, 0.2]), tmp_path / 'sweep')
    assert sweep(recipe, dict(lr=[0.1, 0.2]), tmp_path / 'sweep').table.state.tolist() == ['done'] * 2
    assert calls.count(0.2) > 6 and {r for r in calls} == {0.1, 0.2}


@pytest.mark.parametrize('strategy', ['random', 'tpe'])
def test_a_search_draws_from_its_space_and_the_same_values_again(recipe, tmp_path, pretend, strategy):
    trained = pretend(lambda recipe, epoch: 1 / (1 + np.log10(recipe.lr / 1e-3) ** 2) - 0.1 * (recipe.bs != 32))
    space = {
        'lr': '1e-5..1e-1 log',
        'bs': [16, 32, 64],
        'dropout': '0..0.5',
        'augment.strength': '0..2 step 0.5',
        'hidden': '0..100',
    }
    result = sweep(recipe, space, tmp_path / 'one', trials=15, strategy=strategy)
    assert len(trained) == len(result.table) == 15 == result.table.folder.nunique()
    assert (
        result.table.lr.between(1e-5, 1e-1).all()
        and set(result.table.bs) <= {16, 32, 64}
        and set(result.table['augment.strength']) <= {0, 0.5, 1, 1.5, 2}
    )
    assert all(isinstance(h, int) for h in result.table.hidden) and result.table.dropout.between(0, 0.5).all()
    assert set(result.figures()) == {'heat_map', 'parallel', 'importance'}
    assert 'lr' in list(result.importance())[:2] and sum(result.importance().values()) == pytest.approx(1)
    again = sweep(recipe, space, tmp_path / 'two', trials=15, strategy=strategy)
    assert again.table.lr.tolist() == result.table.lr.tolist()
    more = sweep(recipe, space, tmp_path / 'one', trials=17, strategy=strategy)  # more trials are not another sweep
    assert len(more.table) == 17 and more.table.lr[:15].tolist() == result.table.lr.tolist()


def test_tpe_draws_where_scores_were_high(recipe, tmp_path, pretend):
    pretend(lambda recipe, epoch: 1 / (1 + np.log10(recipe.lr / 1e-3) ** 2))
    result = sweep(recipe, dict(lr='1e-5..1e-1 log'), tmp_path / 'sweep', trials=24, strategy='tpe')
    assert result.table.accuracy[12:].mean() > result.table.accuracy[:8].mean() + 0.1 and 3e-4 < result.best.lr < 3e-3


@pytest.mark.parametrize('prune', ['median', 'hyperband'])
def test_pruning_stops_unpromising_trials(recipe, tmp_path, pretend, prune):
    pretend(lambda recipe, epoch: recipe.lr * epoch / 9, epochs=9)
    result = sweep(
        recipe.but(epochs=9),
        dict(lr=[0.9, 0.8, 0.85, 0.95, 0.1, 0.2, 0.15, 0.05, 0.12, 0.11, 0.13, 0.14]),
        tmp_path / 'sweep',
        prune=prune,
    )
    pruned = result.table[result.table.state == 'pruned']
    assert len(pruned) >= 2 and (pruned.epochs < 9).all() and result.best.lr >= 0.9
    if prune == 'median':
        # Hyperband has few trials in each bracket here, so its number varies
        assert (pruned.lr < 0.5).all() and len(pruned) == 8
    assert result.table[result.table.state == 'done'].epochs.eq(9).all()


@pytest.mark.parametrize('strategy', ['grid', 'random', 'tpe'])
def test_the_second_stage_searches_where_the_first_scored_best(recipe, tmp_path, pretend, strategy):
    pretend(lambda recipe, epoch: 1 / (1 + abs(np.log10(recipe.lr / 1e-3))) + 0.001 * recipe.bs * recipe.fraction)
    space = dict(lr=[1e-5, 1e-4, 1e-3, 1e-2] if strategy == 'grid' else '1e-5..1e-1 log', bs=[16, 32, 64])
    result = sweep(
        recipe,
        space,
        tmp_path / 'sweep',
        strategy=strategy,
        stages=(0.2, 1.0),
        trials=None if strategy == 'grid' else 12,
    )
    first, second = (result.table[result.table.fraction == f] for f in (0.2, 1.0))
    assert len(first) == 12 and len(second) == 4 and result.best.fraction == 1
    top = first.sort_values('accuracy', ascending=False).head(4)
    assert second.lr.astype(float).between(top.lr.min(), top.lr.max()).all() and set(second.bs) <= set(top.bs)
    assert (
        second.lr.iloc[0] == top.lr.iloc[0]
        and second.test_accuracy.notna().sum() == 1
        and first.test_accuracy.isna().all()
    )
    assert (
        len(
            sweep(
                recipe,
                space,
                tmp_path / 'sweep',
                strategy=strategy,
                stages=(0.2, 1.0),
                trials=None if strategy == 'grid' else 12,
            ).table
        )
        == 16
    )
    assert {'heat_map-0.2.svg', 'parallel-1.svg'} <= visible_files(tmp_path / 'sweep')


def test_a_loss_is_minimised(recipe, tmp_path, pretend):
    pretend(lambda recipe, epoch: recipe.lr)
    result = sweep(recipe.but(monitor='valid_loss'), dict(lr=[0.1, 0.3, 0.2]), tmp_path / 'sweep')
    assert result.metric == 'valid_loss' and result.best.lr == 0.3 and result.done.lr.tolist() == [0.3, 0.2, 0.1]


# --- mistakes


@pytest.mark.parametrize(
    'space, options, message',
    [
        (dict(batch=[8]), {}, "no field 'batch'"),
        (dict(bs=[8, 1]), {}, 'bs is 1'),
        (dict(bs=['8']), {}, "bs is '8'"),
        (dict(arch=['resnet5o']), {}, 'resnet50'),
        (dict(lr='1e-4..1e-2 log'), {}, 'A grid needs'),
        (dict(lr=[0.1]), dict(strategy='best'), 'grid, random or tpe'),
        (dict(lr=[0.1]), dict(prune='some'), 'hyperband'),
        (dict(lr=[0.1]), dict(metric='loss'), 'macro_f1'),
        (dict(lr=[0.1]), dict(trials=0), '1 or more'),
        (dict(lr=[0.1]), dict(stages=(1.0, 0.2)), 'rising'),
        (dict(fraction=[0.5]), dict(stages=(0.2, 1.0)), 'fraction'),
        (dict(loss=['seesaw'], mixup=[0.4]), {}, 'seesaw'),
        (dict(lr=[0.1]), dict(storage='nowhere'), 'sqlite:////'),
        (dict(lr=[0.1]), dict(storage='postgresql://me:secret@localhost:1/x'), 'postgresql://me:…@'),
    ],
)
def test_a_mistake_raises_before_anything_is_written(recipe, tmp_path, space, options, message):
    with pytest.raises(UserError, match=message):
        sweep(recipe, space, tmp_path / 'sweep', **options)
    assert not (tmp_path / 'sweep').exists() or not visible_files(tmp_path / 'sweep')


def test_wrong_folders_and_sources_are_refused(recipe, tmp_path):
    (tmp_path / 'thesis').mkdir()
    (tmp_path / 'thesis/chapter.txt').write_text('years of work')
    with pytest.raises(UserError, match='holds no sweep'):
        sweep(recipe, dict(lr=[0.1]), tmp_path / 'thesis')
    with pytest.raises(UserError, match='photoz'):
        sweep(recipe.but(source=tmp_path / 'photoz'), dict(lr=[0.1]), tmp_path / 'sweep')
    assert not (tmp_path / 'sweep').exists() and visible_files(tmp_path / 'thesis') == {'chapter.txt'}
    from fungi_fastai.studies.sweep_results import Sweep

    with pytest.raises(UserError, match='sweep.csv'):
        Sweep.load(tmp_path)


def test_values_that_are_no_file_names(recipe, tmp_path, pretend):
    pretend(lambda recipe, epoch: 0.5)
    result = sweep(
        recipe, dict(group=['^(.*)/x', 'a' * 200], exclude=[('tiny',), ('tiny', 'duplicate')]), tmp_path / 'sweep'
    )
    assert result.table.folder.nunique() == 4 and all(
        (tmp_path / 'sweep' / f).is_dir() and len(f) < 130 for f in result.table.folder
    )
    assert json.loads((tmp_path / 'sweep/best.json').read_text())['exclude'] == ['tiny']


def test_valid_loss_is_one_number(recipe, tmp_path):
    "The history, by which a pruner ends trials, and the table of trials have the plain loss, whatever the smoothing"
    from fungi_fastai.runs.train import train
    from fungi_fastai.studies.trials import _valid_scores

    run = train(recipe.but(label_smoothing=0.4, refit_head=False), tmp_path / 'run', progress=False)
    assert run.history.valid_loss.iloc[-1] == pytest.approx(_valid_scores(run)['valid_loss'], rel=1e-3)
