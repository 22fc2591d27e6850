"""Which settings of fine-tuning are worth it? One factor at a time, on folds of the training part, specimens apart.

    python benchmarks/study.py ../shared OUT mushrooms 224 4 base bn ema      # a set, side in pixels, epochs, and settings (default: all)
    python benchmarks/study.py ../shared OUT                                  # the table of what is in OUT

The test part of the recipe's split with seed 0 is left alone. Three folds, each with a seed of its own. After a fit, five networks are judged
on the fold: the probe it began from, the weights as trained, those half-way between the two, the mean of both answers, and the trained body with
its head solved once more (on mirror images too: `finish`). Predictions are kept, so that settings are compared on the same pictures."""
import json
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from budget import arch, archives, weights

parts = dict(seedlings=.25, defungi=.15)   # of the training part, so that a fold takes minutes
settings = dict(
    base={}, random=dict(start='random'), bn=dict(freeze_batchnorm=False), body5=dict(body_lr=.5), body5bn=dict(body_lr=.5, freeze_batchnorm=False),
    body1=dict(body_lr=1., lr=1e-3), lr5e4=dict(lr=5e-4), lr5e3=dict(lr=5e-3), decay=dict(layer_decay=.7), ema=dict(ema=.98), none=dict(augment='none'),
    light=dict(augment='light'), smooth=dict(label_smoothing=.1), mixup=dict(mixup=.2), cutmix=dict(cutmix=1.), wd=dict(wd=.1), bs16=dict(bs=16),
    dropout=dict(dropout=.3), sgd=dict(optimizer='sgd', lr=.02), cosine=dict(schedule='cosine', warmup=.1), weighted=dict(balance='weighted'),
    concat=dict(head='fastai'), grow=dict(start_size=96))


def judge(learn, held, recipe, kept):
    "Answers of the five networks, by name"
    from fungi_fastai.experiments.runs import predict
    from fungi_fastai.training.frozen import forget_features, probe_head
    found = dict(trained=predict(learn, held))
    if not recipe.epochs: return dict(probe=found['trained'])
    ended = {k: v.detach().clone() for k, v in learn.model.state_dict().items()}
    if kept:
        learn.model.load_state_dict({k: (v+kept[k])/2 if v.is_floating_point() else v for k, v in ended.items()})
        found['half-way'] = predict(learn, held)
        learn.model.load_state_dict(kept)
        found['probe'] = predict(learn, held)
        found['both'] = (found['probe']+found['trained'])/2
        learn.model.load_state_dict(ended)
    if recipe.head == 'linear':
        for name, mirrored in {'solved again': False, 'and mirrored': True}.items():
            forget_features(learn)
            probe_head(learn, mirrored=mirrored)
            found[name] = predict(learn, held)
    return found


def study(shared: Path, out: Path, name: str, size: int, epochs: int, wanted: list[str]):
    "Train and judge what is not in OUT yet"
    from fungi_fastai.data.splits import folds
    from fungi_fastai.evaluation.metrics import predictions_table
    from fungi_fastai.experiments.folds import divide
    from fungi_fastai.recipes import recipes
    from fungi_fastai.training import fit as fitting
    from fungi_fastai.training.fit import fit, make_learner, prepare_items
    kept, solve = {}, fitting.probe_head

    def noted(learn, **options):
        solve(learn, **options)
        kept.update({k: v.detach().clone() for k, v in learn.model.state_dict().items()})
    fitting.probe_head = noted
    base = recipes[name].but(source=shared/'data'/archives[name], arch=arch, weights=str(shared/'weights'/weights), size=size,
                             epochs=epochs, fraction=parts.get(name, 1.), finish='trained')
    items = prepare_items(base.but(valid=.15, test=.15, seed=0, fraction=1.), False)
    items = items.assign(split=items.split.replace('test', ''))
    used = items[items.split.ne('')]
    number = folds(used, 3, 0).reindex(items.index, fill_value=-1)
    for setting in wanted or settings:
        for fold in range(3):
            file = out/f'{name} {size} {epochs} {setting} {fold+1}.parquet'
            if file.exists(): continue
            kept.clear()
            recipe = base.but(**settings[setting], seed=fold+1)
            cut = divide(items, recipe, number == fold)
            began = time.process_time()
            learn = make_learner(recipe, cut, progress=False)
            with tempfile.TemporaryDirectory() as folder: fit(learn, folder)
            seconds = time.process_time()-began
            held = cut[cut.split == 'test']
            if name in parts: held = held.sample(min(len(held), 500), random_state=0)
            answers = judge(learn, held, recipe, dict(kept))
            classes = list(learn.dls.vocab)
            tables = [predictions_table(held, probs, classes).assign(network=network, seconds=seconds) for network, probs in answers.items()]
            pd.concat(tables).to_parquet(file)
            print(file.name, {network: round(float((t.predicted == t.label).mean()), 3) for network, t in zip(answers, tables, strict=True)}, flush=True)


def table(out: Path) -> pd.DataFrame:
    "A row a set, side, number of epochs, setting and network: accuracy, macro-F1 and log loss over the folds, seconds of one core a fold"
    from fungi_fastai.evaluation.metrics import Evaluation
    rows = []
    for key in sorted({file.stem.rpartition(' ')[0] for file in out.glob('*.parquet')}):
        found = [pd.read_parquet(file) for file in sorted(out.glob(f'{key} ?.parquet'))]
        name, size, epochs, setting = key.split(' ', 3)
        for network in found[0].network.unique():
            judged = [Evaluation.of(one[one.network == network]).metrics() for one in found]
            sizes = [one['n_test'] for one in judged]
            rows.append(dict(set=name, size=int(size), epochs=int(epochs), setting=setting, network=network, folds=len(found), pictures=sum(sizes),
                             **{score: float(np.average([one[score] for one in judged], weights=sizes)) for score in ('accuracy', 'macro_f1', 'log_loss')},
                             seconds=float(np.mean([one.seconds.iat[0] for one in found]))))
    return pd.DataFrame(rows)


if __name__ == '__main__':
    warnings.simplefilter('ignore')
    shared, out, *rest = sys.argv[1:]
    Path(out).mkdir(parents=True, exist_ok=True)
    if rest: study(Path(shared).resolve(), Path(out), rest[0], int(rest[1]), int(rest[2]), rest[3:])
    else:
        from run import machine
        print(json.dumps(dict(machine=machine(), rows=table(Path(out)).round(4).to_dict('records')), indent=1))
