"""Which network does `--arch auto` choose, and what would each candidate have reached in the same time?

    python benchmarks/selection.py ../shared OUT --sets mushrooms flowers
    python benchmarks/selection.py ../shared OUT --budget 5m --seeds 1 2 3
    python benchmarks/selection.py ../shared OUT --budget 1m --seeds 1 --cpu-time
    python benchmarks/selection.py ../shared OUT --show                          only the table of what is in OUT

The candidates are the packaged networks and those of SHARED/weights. First each of them, and pairs of them, is probed
on images of a set (`fungi probe`), and `--arch auto` plans a training of the budget: which network, on how many
images, after how many seconds. With `--seeds`, `auto` and then each candidate alone is trained for the budget, and
scored on the test set of the run. `--cpu-time` counts the budget in CPU time of the process, on one core: the results
then do not depend on what else the machine does. OUT/selection.json keeps the results; what is there is not computed
again."""

import argparse
import contextlib
import json
import os
import resource
import tempfile
import time
from pathlib import Path

import pandas as pd
from budget import archives

from fungi_fastai.core.files import write_json
from fungi_fastai.runs.train import train
from fungi_fastai.studies.network_probes import named_networks, probe_networks
from fungi_fastai.training import budget as time_budgets
from fungi_fastai.training import selection
from fungi_fastai.training.fit import prepare_items
from fungi_fastai.training.recipe import Recipe, parse_duration
from fungi_fastai.training.recipes import recipes

pairs = ('mobilenetv2_100+tf_efficientnet_lite0', 'tf_efficientnet_lite0+tf_efficientnet_lite2')


def cpu_seconds():
    "Seconds of CPU that this process has used"
    return resource.getrusage(resource.RUSAGE_SELF).ru_utime


def timed(function, *args, **kwargs):
    "The result of a function, and its seconds: by the clock, and of the CPU"
    start, cpu = time.monotonic(), cpu_seconds()
    result = function(*args, **kwargs)
    return result, dict(seconds=round(time.monotonic() - start, 1), cpu_seconds=round(cpu_seconds() - cpu, 1))


def recipe_of(name: str, shared: Path, budget: float, seed: int = 42) -> Recipe:
    "The recipe of a set, for a budget"
    source = shared / 'data' / archives[name]
    weights = str(shared / 'weights')
    return recipes[name].but(source=source, arch='auto', weights=weights, pretrained=True, budget=budget, seed=seed)


def probes(recipe: Recipe, archs: str, size: int, n_images: int) -> dict:
    "The table of the probes, on at most so many images"
    used = prepare_items(recipe, progress=False).split.ne('').sum()
    recipe = recipe.but(budget=0, size=size, fraction=min(1.0, n_images / used))
    result, times = timed(probe_networks, recipe, archs, weights=recipe.weights)
    return dict(table=result.table.reset_index().to_dict('records'), notes=list(result.probes[0].notes)) | times


def choice(recipe: Recipe) -> dict:
    "What `auto` chooses"
    items = prepare_items(recipe, progress=False)
    plan, times = timed(selection.make_plan, recipe, items, recipe.budget, progress=True)
    return dict(arch=plan.arch, size=plan.size, epochs=plan.epochs, reason=plan.reason, networks=plan.networks) | times


def trained(recipe: Recipe, out: Path) -> dict:
    "The scores of a run on its test set; nothing that an earlier run has computed is on disk"
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path('settings.ini').write_text('[DEFAULT]\ncache_dir = cache\n')
        run = train(recipe, out, progress=False)
    scores = {key: run.metrics[key] for key in ('accuracy', 'macro_f1', 'seconds')}
    return dict(arch=run.recipe.arch, size=run.recipe.size, valid=run.metrics['valid']) | scores


def use_cpu_time():
    "All time budgets and measured speeds count the CPU time of this process, which stays on one core"
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    time_budgets.clock = selection.clock = time.perf_counter = time.process_time


def summarise(results: dict) -> pd.DataFrame:
    "A row a set, budget and candidate: mean accuracy on the test sets of the seeds, and what `auto` chose"
    rows = []
    for key, result in results.items():
        if 'macro_f1' in result:
            name, budget, candidate, seed = key.rsplit('-', 3)
            chosen = result['arch'] if candidate == 'auto' else ''
            scores = {score: result[score] for score in ('accuracy', 'macro_f1')}
            rows.append(dict(set=name, budget=int(budget), candidate=candidate, seed=seed, chosen=chosen) | scores)
    groups = pd.DataFrame(rows).groupby(['set', 'budget', 'candidate'], sort=False)
    columns = dict(seeds=('seed', 'size'), accuracy=('accuracy', 'mean'), macro_f1=('macro_f1', 'mean'))
    return groups.agg(**columns, chosen=('chosen', lambda names: ', '.join(filter(None, names)))).round(3)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('shared', type=Path)
    parser.add_argument('out', type=Path)
    parser.add_argument('--sets', nargs='*', default=list(archives), choices=list(archives))
    parser.add_argument('--budget', type=parse_duration, default=300.0)
    parser.add_argument('--size', type=int, default=160, help='image size of the probes, pixels')
    parser.add_argument('--images', type=int, default=1000, help='images of the probes, at most, in whole specimens')
    parser.add_argument('--seeds', nargs='*', type=int, default=[])
    parser.add_argument('--candidates', nargs='*', help='which are trained: auto, names of networks (default: all)')
    parser.add_argument('--cpu-time', action='store_true', help='count the budget in CPU time of one core')
    parser.add_argument('--show', action='store_true', help='measure nothing')
    options = parser.parse_args()
    shared, out = options.shared.resolve(), options.out.resolve()
    file = out / 'selection.json'
    results = json.loads(file.read_text()) if file.exists() else {}
    if options.show:
        return print(summarise(results).to_string())
    if options.cpu_time:
        use_cpu_time()

    def once(key, function, *args):
        if key not in results:
            results[key] = function(*args)
            write_json(file, results)
            print(key, json.dumps(results[key], indent=1)[:2000], flush=True)

    networks = named_networks('all', str(shared / 'weights'))
    archs = ','.join([*(arch for arch, _ in networks), *pairs])
    for name in options.sets:
        recipe = recipe_of(name, shared, options.budget)
        once(f'{name} probes', probes, recipe, archs, options.size, options.images)
        once(f'{name} auto {options.budget:.0f}', choice, recipe)
        for seed in options.seeds:
            for arch, weights in [('auto', recipe.weights), *networks]:
                if options.candidates and arch not in options.candidates:
                    continue
                one = recipe.but(arch=arch, weights=weights, seed=seed)
                run = out / f'{name}-{options.budget:.0f}-{arch}-{seed}'
                once(run.name, trained, one, run)


if __name__ == '__main__':
    main()
