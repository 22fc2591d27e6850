"""How time, memory and files grow with the number of classes: the steps of a run after its network, three images each.

    python benchmarks/classes.py                     2,500, 5,000 and 10,000 classes
    python benchmarks/classes.py 1000 2000           other numbers
    python benchmarks/classes.py 1000 --profile      where the time of one number goes

Features are made: a random direction for each class, plus noise. The network of the bundle is not trained."""

import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from fungi_fastai.core.files import write_json, write_table
from fungi_fastai.data.splits import split
from fungi_fastai.evaluation.assess import assess_predictions, saved_metrics
from fungi_fastai.evaluation.metrics import Evaluation, predictions_table
from fungi_fastai.evaluation.saved_predictions import write_predictions
from fungi_fastai.evaluation.top_probabilities import compact, concatenated, row_blocks
from fungi_fastai.models.heads import fit_head
from fungi_fastai.models.networks import make_network
from fungi_fastai.runs.run import Run
from fungi_fastai.training.checkpoints import save_weights
from fungi_fastai.training.recipe import Recipe

sizes = (2500, 5000, 10_000)
images_per_class, n_features = 3, 128
seconds, memory = {}, {}


@contextmanager
def step(name):
    "Measure a step"
    start = time.process_time()
    yield
    seconds[name] = round(time.process_time() - start, 2)
    memory[name] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print(f'{name}: {seconds[name]} s, {memory[name]} MB', file=sys.stderr, flush=True)


def make_items(folder, n):
    "A table of images that share one small file"
    file = folder / 'image.jpg'
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3))
    Image.fromarray(noise.astype(np.uint8)).save(file)
    label = [f'class {i:05}' for i in range(n) for _ in range(images_per_class)]
    names = [f'{i:06}.jpg' for i in range(len(label))]
    columns = dict(path=str(file), name=names, label=label, group='', cluster='', given='', sha=names)
    facts = dict(width=64, height=64, format='jpeg', variance=900.0, brightness=127.0, problem='')
    return pd.DataFrame(columns | facts)


def make_features(items):
    "(images, features): a random direction for each class, plus noise"
    rng = np.random.default_rng(0)
    codes = items.label.factorize()[0]
    centres = rng.normal(size=(codes.max() + 1, n_features)).astype(np.float32)
    return centres[codes] + 1.6 * rng.normal(size=(len(items), n_features)).astype(np.float32)


def measure(folder, n):
    "All steps for `n` classes"
    memory['start'] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    items = make_items(folder, n)
    features, classes = make_features(items), sorted(items.label.unique())
    with step('split'):
        items['split'] = split(items)
    with step('head and predictions'):
        training = (items.split == 'train').to_numpy()
        targets = items.label.factorize()[0]
        head = fit_head(features[training], targets[training], 'ridge', temperature=0.1)
        held_out = items[~training]
        blocks = row_blocks(len(held_out), n)
        probs = [compact(head.predict(features[~training][b]), targets[~training][b]) for b in blocks]
        predictions = predictions_table(held_out, concatenated(probs), classes)
        predictions = write_predictions(folder / 'predictions.parquet', predictions)
    recipe = Recipe(name='made', source='made', arch='convmixer_16_1', pretrained=False, size=64, head_init='random')
    network = make_network(recipe.arch, n)
    save_weights(network, folder / 'model.safetensors', dict(classes=json.dumps(classes), arch=recipe.arch))
    write_json(folder / 'recipe.json', json.loads(recipe.to_json()))
    write_json(folder / 'environment.json', {})
    write_table(folder / 'items.parquet', items)
    history = pd.DataFrame([dict(epoch=0, phase='probe', valid_loss=1.0, accuracy=0.5, macro_f1=0.5, seconds=1.0)])
    write_table(folder / 'history.csv', history)
    with step('metrics'):
        evaluation = Evaluation.of(predictions[predictions.split == 'test'], classes)
        facts = dict(evaluated_on='test', seconds=1.0, epochs=0, n_train=int(training.sum()))
        metrics = saved_metrics(evaluation) | facts | assess_predictions(predictions, classes)
        write_json(folder / 'metrics.json', metrics)
    del predictions, evaluation
    run = Run(folder)
    with step('report'):
        run.report()
    with step('bundle'):
        run.export(images=16, references=2, examples=32)
    files = ('predictions.parquet', 'metrics.json', 'report.json', 'report.html', 'bundle/bundle.json')
    megabytes = {name: round((folder / name).stat().st_size / 1e6, 2) for name in files}
    bundle = sum(file.stat().st_size for file in (folder / 'bundle').iterdir())
    megabytes['bundle'] = round(bundle / 1e6, 2)
    return dict(classes=n, accuracy=metrics['accuracy'], seconds=seconds, memory=memory, megabytes=megabytes)


def main(arguments):
    if '--one' in arguments:
        folder = Path(tempfile.mkdtemp())
        try:
            print(json.dumps(measure(folder, int(arguments[-1]))))
        finally:
            shutil.rmtree(folder)
        return
    chosen = [int(word) for word in arguments if word.isdigit()] or sizes
    for n in chosen:
        profile = ['-m', 'cProfile', '-s', 'cumulative'] if '--profile' in arguments else []
        subprocess.run([sys.executable, *profile, __file__, '--one', str(n)], check=True)


if __name__ == '__main__':
    main(sys.argv[1:])
