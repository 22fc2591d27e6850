"""Which options of fine-tuning help? One factor at a time, on four data sets, grouped by specimen, with three seeds.

    python benchmarks/study.py ../shared OUT mushrooms base ema mixup    train what OUT lacks (default: every setting)
    python benchmarks/study.py ../shared OUT                             compare the runs in OUT with `base`, as JSON
    python benchmarks/study.py ../shared OUT flowers@mobilenetv2_035     with another network
    python benchmarks/study.py ../shared OUT seedlings 'resnet18 0.002'  (from scratch: named by arch and learning rate)

The test images of a recipe with seed 0 are not used; each seed tests on another third of the others. Each training
is a run of `fungi train`, each comparison one of `fungi compare`: paired by image, resampled by specimen and seed."""

import json
import sys
import warnings
from pathlib import Path

from budget import arch, archives, write_scored

seeds = (1, 2, 3)
options = dict(
    mushrooms=dict(size=224, epochs=4),
    flowers=dict(size=160, epochs=4),  # about a minute of one core each
    seedlings=dict(size=160, epochs=4, fraction=0.3),
    defungi=dict(size=128, epochs=4, fraction=0.2),
)
settings = dict(
    base={},
    probe=dict(epochs=0),
    random=dict(head_init='random'),
    trained=dict(refit_head=False),
    concat=dict(head='fastai'),
    batchnorm=dict(freeze_batchnorm=False),
    decay=dict(layer_decay=0.7),
    body02=dict(backbone_lr=0.02),
    body50=dict(backbone_lr=0.5),
    lr5e4=dict(lr=5e-4),
    lr5e3=dict(lr=5e-3),
    ema=dict(ema=0.98),
    none=dict(augment='none'),
    light=dict(augment='light'),
    smooth=dict(label_smoothing=0.1),
    mixup=dict(mixup=0.2),
    cutmix=dict(cutmix=1.0),
    wd=dict(wd=0.1),
    bs16=dict(bs=16),
    dropout=dict(dropout=0.3),
    sgd=dict(optimizer='sgd', lr=0.02),
    lamb=dict(optimizer='lamb'),
    cosine=dict(schedule='cosine', warmup=0.1),
    growing=dict(start_size=128),
    tta={},  # the runs of `base`, with test-time augmentation by flips
    loss=dict(balance='loss'),
    weighted=dict(balance='weighted'),
    long=dict(epochs=20),
    folds=dict(average_folds=5),
    whole=dict(epochs=0, fraction=1.0),
    even=dict(epochs=0, fraction=1.0, balance='loss'),
)  # the last two are probes on all images
from_scratch = [('convmixer_64_4', 1e-2), ('convmixer_128_8', 2e-3), ('convmixer_128_8', 1e-2), ('resnet18', 2e-3)]
settings['five minutes'] = dict(
    fraction=1.0, size=224, budget=300.0
)  # pretrained; the settings below are five minutes from scratch
settings |= {
    f'{arch} {lr:g}': settings['five minutes'] | dict(arch=arch, weights='', pretrained=False, lr=lr, size=128)
    for arch, lr in from_scratch
}


def runs(shared: Path, out: Path, name: str, wanted: list[str]):
    "Train and score the runs that are missing"
    from fungi_fastai.evaluation.tta import predict_tta
    from fungi_fastai.models.packaged import find_weights_file
    from fungi_fastai.runs.run import Run
    from fungi_fastai.runs.train import train
    from fungi_fastai.training.fit import prepare_items
    from fungi_fastai.training.recipes import recipes

    folder_name = name
    name, _, network = name.partition('@')
    network = network or arch
    defaults = recipes[name].but(source=shared / 'data' / archives[name], valid=0.15, test=0.15, seed=0)
    items = prepare_items(defaults, False)
    training_images = items[items.split.isin(['train', 'valid'])][['path', 'label', 'group']]
    base = defaults.but(
        source=training_images,
        test=1 / 3,
        arch=network,
        weights=str(find_weights_file(shared / 'weights', network)),
        **options[name],
    )
    for seed in seeds:
        for setting in wanted or settings:
            folder = out / folder_name / f'{setting}-{seed}'
            if (folder / 'metrics.json').exists():
                continue
            if setting == 'tta':
                run = Run.load(folder.with_name(f'base-{seed}'))
                test_items = run.items[run.items.split == 'test']
                flipped = run.recipe.but(name=f'{name}, flips')
                write_scored(
                    folder,
                    flipped,
                    run.folder,
                    test_items,
                    predict_tta(run, test_items),
                    run.classes,
                    seconds=run.metrics['seconds'],
                )
                metrics = Run.load(folder).metrics
            else:
                metrics = train(base.but(**settings[setting], seed=seed), folder, progress=False).metrics
            print(
                folder_name,
                folder.name,
                *(round(metrics[score], 3) for score in ('accuracy', 'macro_f1', 'log_loss', 'seconds')),
                flush=True,
            )


def table(out: Path) -> list[dict]:
    "A row a data set and setting: scores, seconds, and the differences from `base` with 95 % intervals"
    from fungi_fastai.runs.compare import compare
    from fungi_fastai.runs.run import Run

    rows = []
    for folder in sorted(p for p in out.iterdir() if p.is_dir()):
        for setting in settings:
            folders = [folder / f'{setting}-{seed}' for seed in seeds]
            folders = [one for one in folders if (one / 'metrics.json').exists()]
            if not folders:
                continue
            metrics = [Run.load(one).metrics for one in folders]
            mean = {
                score: round(sum(one[score] for one in metrics) / len(metrics), 4)
                for score in ('accuracy', 'macro_f1', 'log_loss', 'seconds')
            }
            row = (
                dict(set=folder.name, setting=setting, seeds=len(folders), images=sum(one['n_test'] for one in metrics))
                | mean
            )
            base = [one.with_name(one.name.replace(setting, 'base')) for one in folders]
            if setting != 'base' and all((one / 'metrics.json').exists() for one in base):
                compared = compare(base + folders).differences
                for one in compared.itertuples():
                    row |= {
                        f'{one.score}_{k}': round(float(getattr(one, k)), 4)
                        for k in ('difference', 'low', 'high', 'p_permutation')
                    }
            rows.append(row)
    return rows


if __name__ == '__main__':
    warnings.simplefilter('ignore')
    shared, out, *rest = sys.argv[1:]
    if rest:
        runs(Path(shared).resolve(), Path(out), rest[0], rest[1:])
    else:
        from run import machine

        print(json.dumps(dict(machine=machine(), rows=table(Path(out))), indent=1))
