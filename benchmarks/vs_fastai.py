"""A run beside plain fastai on the same pictures: same split, weights, size and number of epochs.

    python benchmarks/vs_fastai.py runs/m

Plain fastai is what its tutorials teach: `DataBlock`, `vision_learner`, `fine_tune`, with the defaults of each (plain.py), on the run's
training and validation parts. Both are scored on the run's test part, which neither has seen."""
import json
import sys
import time

from fastai.vision.all import set_seed
from plain import plain_learner, plain_loaders

from fungi_fastai.evaluation.metrics import Evaluation, predictions_table
from fungi_fastai.experiments.runs import Run


def plain_fastai(run: Run) -> dict:
    "Accuracy, macro-F1 and seconds of `fine_tune` with the run's pictures, weights, size and epochs"
    recipe, items = run.recipe, run.items
    set_seed(recipe.seed)
    began = time.perf_counter()
    dls = plain_loaders(items, recipe.size, recipe.bs)
    learn = plain_learner(dls, recipe.arch, recipe.weights)
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(max(1, recipe.epochs-1))   # which trains the head for one epoch more
    seconds = time.perf_counter()-began
    held = items[items.split == 'test']
    with learn.no_bar(), learn.no_logging(): probs, _ = learn.get_preds(dl=dls.test_dl(held))
    found = Evaluation.of(predictions_table(held, probs.numpy(), list(dls.vocab))).metrics()
    return dict(accuracy=found['accuracy'], macro_f1=found['macro_f1'], seconds=round(seconds, 1))


if __name__ == '__main__':
    run = Run.load(sys.argv[1])
    ours = {k: run.metrics[k] for k in ('accuracy', 'macro_f1', 'seconds')}
    plain = plain_fastai(run)
    print(json.dumps(dict(n_test=run.metrics['n_test'], epochs=run.recipe.epochs, ours=ours, plain_fastai=plain,
                          times_faster=round(plain['seconds']/ours['seconds'], 2)), indent=2))
