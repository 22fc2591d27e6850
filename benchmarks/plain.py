"Plain fastai as its tutorials teach it, with defaults: `DataBlock`, `Resize(460)`, `aug_transforms`, `vision_learner`"

from fastai.data.all import CategoryBlock, ColReader, DataBlock, DataLoaders, Normalize
from fastai.vision.all import (
    CrossEntropyLossFlat,
    ImageBlock,
    Learner,
    Resize,
    aug_transforms,
    imagenet_stats,
    vision_learner,
)
from plain_convmixer import convmixer


def plain_loaders(table, size: int, bs: int = 64, workers: int = 0) -> DataLoaders:
    "Loaders of a table with the columns path, label and split"
    table = table[table.split.isin(['train', 'valid'])].reset_index(drop=True)
    splits = [list(table.index[table.split == name]) for name in ('train', 'valid')]
    block = DataBlock(
        (ImageBlock, CategoryBlock),
        get_x=ColReader('path'),
        get_y=ColReader('label'),
        splitter=lambda _: splits,
        item_tfms=Resize(460),
        batch_tfms=[*aug_transforms(size=size), Normalize.from_stats(*imagenet_stats)],
    )
    return block.dataloaders(table, bs=bs, num_workers=workers)


def plain_learner(dls, arch: str, weights: str = '', **options) -> Learner:
    "A `vision_learner`; with weights, its backbone is frozen, as `fine_tune` expects"
    if network := convmixer(arch, len(dls.vocab)):
        return Learner(dls, network, CrossEntropyLossFlat(), **options)
    learn = vision_learner(dls, arch, pretrained=False, normalize=False, **options)
    if weights:
        from fungi_fastai.models.weights import load_weights

        load_weights(learn.model[0].model, weights, name=arch)
        learn.freeze()
    return learn
