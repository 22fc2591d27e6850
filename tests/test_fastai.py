"A run's Learner is fastai's: its public methods, its loaders, its interpretation and its callbacks, one by one"

import inspect
import io
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
from conftest import tiny
from PIL import Image

# what fastai and matplotlib warn of inside their own functions is not ours
pytestmark = pytest.mark.filterwarnings('ignore')


@pytest.fixture(scope='module')
def vision(ready):
    "fastai.vision.all"
    import matplotlib

    matplotlib.use('Agg')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        import fastai.vision.all as names
    yield names
    names.plt.close('all')


@pytest.fixture(scope='module')
def learn(vision, small_run):
    "A Learner whose weights no test changes"
    from fungi_fastai import Run

    return Run.load(small_run.folder).learner


@pytest.fixture
def fresh(vision, small_run, tmp_path):
    "A Learner to train, with a folder of its own"
    from fungi_fastai import Run

    learn = Run.load(small_run.folder).learner
    learn.path = tmp_path
    return learn


@pytest.fixture(scope='module')
def files(vision, photos):
    return vision.get_image_files(photos)


@pytest.fixture(scope='module')
def expected(small_run, files):
    return small_run.probabilities(pd.DataFrame({'path': [str(file) for file in files]}))


# --- prediction

kinds = dict(
    path=lambda file: file,
    text=str,
    pillow=Image.open,
    array=lambda file: np.asarray(Image.open(file)),
    bytes=lambda file: file.read_bytes(),
    row=lambda file: pd.Series(dict(path=str(file), name=file.name)),
)


@pytest.mark.parametrize('kind', kinds)
def test_predict_takes_what_fastai_takes(learn, files, expected, kind):
    with learn.no_bar():
        label, index, probs = learn.predict(kinds[kind](files[0]))
    assert probs.numpy() == pytest.approx(expected[0], abs=1e-5)
    assert label == learn.dls.vocab[int(index)] == learn.dls.vocab[expected[0].argmax()]


def test_predict_takes_fastais_image(learn, vision, files, expected):
    with learn.no_bar():
        image, *_, probs = learn.predict(vision.PILImage.create(files[0]), with_input=True)
    assert probs.numpy() == pytest.approx(expected[0], abs=1e-5) and image.shape == (3, 32, 32)


@pytest.mark.parametrize(
    'convert', [list, lambda files: list(map(str, files)), lambda files: list(map(Image.open, files))]
)
def test_loaders_of_files(learn, files, expected, convert):
    with learn.no_bar():
        probs, targets = learn.get_preds(dl=learn.dls.test_dl(convert(files), bs=7))
    assert probs.numpy() == pytest.approx(expected, abs=1e-5) and targets is None


def test_loaders_of_a_table(learn, small_run):
    tested = small_run.items[small_run.items.split == 'test']
    with learn.no_bar(), learn.no_logging():
        loss, accuracy, macro_f1 = learn.validate(dl=learn.dls.test_dl(tested, with_labels=True))
    assert accuracy == pytest.approx(small_run.metrics['accuracy']) and macro_f1 and loss


def test_a_broken_file_is_named(learn, tmp_path):
    (tmp_path / 'notes.jpg').write_text('no image')
    with learn.no_bar(), pytest.raises(Exception, match='notes.jpg'):
        learn.predict(tmp_path / 'notes.jpg')


def test_an_exported_learner_predicts_the_same(learn, vision, files, expected, tmp_path):
    learn.export(tmp_path / 'learner.pkl')
    again = vision.load_learner(tmp_path / 'learner.pkl')
    with again.no_bar():
        assert again.predict(files[0])[2].numpy() == pytest.approx(expected[0], abs=1e-5)
        assert again.get_preds(dl=again.dls.test_dl(files))[0].numpy() == pytest.approx(expected, abs=1e-5)


# --- the other methods of a Learner and of its loaders

calls = dict(
    get_preds=lambda learn: learn.get_preds(ds_idx=0, with_input=True, with_decoded=True, with_loss=True),
    validate=lambda learn: learn.validate(ds_idx=0),
    tta=lambda learn: learn.tta(n=2),
    show_results=lambda learn: learn.show_results(max_n=4),
    summary=lambda learn: learn.summary(),
    ordered_cbs=lambda learn: learn.ordered_cbs('before_fit'),
    show_training_loop=lambda learn: learn.show_training_loop(),
    one_batch=lambda learn: learn.dls.one_batch(),
    show_batch=lambda learn: learn.dls.show_batch(max_n=4),
    show_batch_unique=lambda learn: learn.dls.show_batch(max_n=4, unique=True),
    show_batch_valid=lambda learn: learn.dls.valid.show_batch(max_n=4),
    decode=lambda learn: learn.dls.decode(learn.dls.one_batch()),
    decode_batch=lambda learn: learn.dls.decode_batch(learn.dls.one_batch()),
    new=lambda learn: learn.dls.new(bs=4).one_batch(),
    new_loader=lambda learn: learn.dls.train.new(bs=4, shuffle=False).one_batch(),
    item=lambda learn: learn.dls.train_ds[0],
    device=lambda learn: learn.dls.to('cpu').one_batch(),
    items=lambda learn: learn.dls.valid.items.label,
    vocab=lambda learn: (learn.dls.vocab, learn.dls.c),
)


@pytest.mark.parametrize('call', calls)
def test_methods(learn, call):
    with learn.no_bar(), learn.no_logging():
        calls[call](learn)


trainings = dict(
    fit=lambda learn: learn.fit(1),
    fit_slice=lambda learn: learn.fit(1, slice(1e-5, 1e-3)),
    fit_options=lambda learn: learn.fit(1, 1e-4, wd=0.1, reset_opt=True),
    fit_one_cycle=lambda learn: learn.fit_one_cycle(1),
    fit_one_cycle_slice=lambda learn: learn.fit_one_cycle(1, slice(1e-5, 1e-3)),
    fit_flat_cos=lambda learn: learn.fit_flat_cos(1, 1e-4),
    fit_sgdr=lambda learn: learn.fit_sgdr(1, 1),
    fine_tune=lambda learn: learn.fine_tune(1),
    lr_find=lambda learn: learn.lr_find(num_it=12),
    freeze=lambda learn: (
        learn.freeze(),
        learn.fit(1),
        learn.freeze_to(-2),
        learn.fit(1),
        learn.unfreeze(),
        learn.fit(1),
    ),
    save=lambda learn: (learn.fit(1), learn.save('a'), learn.load('a'), learn.load('a', with_opt=False), learn.fit(1)),
    plots=lambda learn: (learn.fit_one_cycle(1), learn.recorder.plot_loss(), learn.recorder.plot_sched()),
    to_fp32=lambda learn: learn.to_fp32().fit(1),
    add_cb=lambda learn: learn.add_cb(learn.dls and _counter(learn)).fit(1),
)


def _counter(learn):
    from fastai.callback.core import Callback

    class Counter(Callback):
        def after_train(self):
            self.learn.counted = getattr(self.learn, 'counted', 0) + 1

    return Counter()


@pytest.mark.parametrize('training', trainings)
def test_trainings(fresh, training, small_run):
    before = (small_run.folder / 'history.csv').read_bytes()
    with fresh.no_bar(), fresh.no_logging():
        trainings[training](fresh)
        assert np.isfinite(fresh.validate()[0])
    assert getattr(fresh, 'counted', 1) == 1
    assert (small_run.folder / 'history.csv').read_bytes() == before, 'the run itself stays as it was'


interpretations = dict(
    confusion_matrix=lambda found: found.confusion_matrix(),
    plot_confusion_matrix=lambda found: found.plot_confusion_matrix(normalize=True),
    most_confused=lambda found: found.most_confused(1),
    top_losses=lambda found: found.top_losses(3, largest=False, items=True),
    plot_top_losses=lambda found: found.plot_top_losses(4),
    report=lambda found: found.print_classification_report(),
    show_results=lambda found: found.show_results([0, 1]),
)


@pytest.mark.parametrize('what', interpretations)
def test_interpretation(learn, vision, what):
    with learn.no_bar():
        interpretations[what](vision.ClassificationInterpretation.from_learner(learn))


# --- callbacks

callbacks = (
    'ShowGraphCallback CSVLogger SaveModelCallback EarlyStoppingCallback ReduceLROnPlateau TerminateOnNaNCallback '
    'MixUp CutMix GradientAccumulation GradientClip BnFreeze MixedPrecision ChannelsLast ActivationStats '
    'FetchPredsCallback ShortEpochCallback CollectDataCallback TrackerCallback ProgressCallback'
).split()


@pytest.mark.parametrize('name', callbacks)
def test_callbacks(fresh, vision, name):
    with fresh.no_bar(), fresh.no_logging():
        fresh.fit_one_cycle(1, 1e-3, cbs=getattr(vision, name)())
    assert len(fresh.recorder.losses) > 0


def test_a_graph_without_a_progress_bar_is_left_out_with_a_warning(fresh, vision):
    with pytest.warns(UserWarning, match='plot_loss'):
        fresh.fit(1, cbs=vision.ShowGraphCallback())


def test_callbacks_of_a_training(vision, photos, tmp_path, monkeypatch):
    from fungi_fastai import train_flowers

    monkeypatch.chdir(tmp_path)
    epochs = []

    class Count(vision.Callback):
        def after_epoch(self):
            epochs.append(self.epoch)

    train_flowers(photos, out='one', progress=False, cbs=Count(), **tiny)
    assert epochs.count(0) == 1
    run = train_flowers(photos, out='many', progress=False, cbs=[Count, vision.ShowGraphCallback()], **tiny)
    assert epochs.count(0) == 2 and run.metrics['epochs'] == 1


# --- the Learner of a run is what it was in training


@pytest.fixture(scope='module')
def pretrained_run(vision, photos, home, tmp_path_factory):
    "A run of a small network with BatchNorm that starts from a file, as from ImageNet"
    import timm
    import torch
    from safetensors.torch import save_file

    from fungi_fastai import train_flowers

    folder = tmp_path_factory.mktemp('pretrained')
    torch.manual_seed(0)
    save_file(timm.create_model('test_resnet', num_classes=0).state_dict(), folder / 'weights.safetensors')
    recipe = dict(arch='test_resnet', weights=str(folder / 'weights.safetensors'), size=32, bs=8, device='cpu')
    run = train_flowers(photos, out=folder / 'run', progress=False, epochs=2, backbone_lr=0.5, **recipe)
    assert run.initial_weights['source'] == 'the file weights.safetensors'
    (folder / 'weights.safetensors').unlink()  # a trained network does not need it
    return run


def test_one_more_epoch_with_a_tiny_learning_rate_changes_nothing(pretrained_run):
    from fungi_fastai import Run

    learn = Run.load(pretrained_run.folder).learner
    with learn.no_bar(), learn.no_logging():
        before = list(learn.validate())
        statistics = {k: v.clone() for k, v in learn.model.state_dict().items() if 'running' in k}
        learn.fit_one_cycle(1, 1e-6)
        after = list(learn.validate())
    assert after == pytest.approx(before, abs=2e-3)
    assert statistics and all(v.equal(learn.model.state_dict()[k]) for k, v in statistics.items())


def test_a_loaded_learner_has_every_property_of_the_trained_one(pretrained_run, photos, home, tmp_path):
    from fungi_fastai import Run
    from fungi_fastai.training.fit import fit, make_learner

    loaded = Run.load(pretrained_run.folder).learner
    recipe = pretrained_run.recipe.but(weights=_weights_again(tmp_path))
    trained = make_learner(recipe, pretrained_run.items)
    fit(trained, tmp_path)
    for name, of in properties.items():
        assert of(loaded) == of(trained), name


def _weights_again(folder):
    import timm
    from safetensors.torch import save_file

    save_file(timm.create_model('test_resnet', num_classes=0).state_dict(), folder / 'weights.safetensors')
    return str(folder / 'weights.safetensors')


properties = dict(
    parameters_that_train=lambda learn: [p.requires_grad for p in learn.model.parameters()],
    groups=lambda learn: [len(list(group)) for group in learn.splitter(learn.model)],
    learning_rates=lambda learn: learn.lr,
    pretrained=lambda learn: learn.pretrained,
    normalisation=lambda learn: learn.stats,
    precision=lambda learn: learn.precision.mode,
    callbacks=lambda learn: sorted(type(cb).__name__ for cb in learn.cbs),
    frozen_statistics=lambda learn: learn.freeze_batch_norm.always,
    loss=lambda learn: repr(learn.loss_func),
    optimizer=lambda learn: repr(learn.opt_func),
    decay=lambda learn: (learn.wd, learn.wd_bn_bias, learn.train_bn, learn.moms),
    metrics=lambda learn: [metric.name for metric in learn.metrics],
    batches=lambda learn: [(loader.bs, loader.shuffle, loader.drop_last) for loader in learn.dls.loaders],
    augmentation=lambda learn: [[type(t).__name__ for t in loader.after_batch.fs] for loader in learn.dls.loaders],
    resizing=lambda learn: [[repr(t) for t in loader.after_item.fs] for loader in learn.dls.loaders],
)


def test_a_probe_alone_leaves_the_backbone_frozen(photos, tmp_path, monkeypatch):
    from fungi_fastai import Run, train_flowers

    monkeypatch.chdir(tmp_path)
    recipe = dict(arch='test_resnet', weights=_weights_again(tmp_path), size=32, epochs=0, bs=8, device='cpu')
    learn = Run.load(train_flowers(photos, out='run', progress=False, **recipe).folder).learner
    assert not any(p.requires_grad for p in learn.model[0].parameters())
    assert all(p.requires_grad for p in learn.model[1].parameters())


# --- names and signatures


def test_trainers_show_their_parameters(ready):
    from fungi_fastai import DEFUNGI, Recipe, train_defungi, train_photos

    parameters = inspect.signature(train_defungi).parameters
    assert set(Recipe.__dataclass_fields__) <= set(parameters) and 'cbs' in parameters
    assert not any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    assert parameters['arch'].default == DEFUNGI.arch and parameters['source'].default is None
    assert 'epochs' in str(inspect.signature(train_photos)) and train_photos.__name__ == 'train_photos'


def test_star_import_has_fastais_names_and_ours(ready):
    import fungi_fastai

    names = {'run': 'my run'}
    exec('from fungi_fastai.all import *', names)
    assert names['run'] == 'my run', "fastcore's `run` must not replace it"
    for name in ('Learner', 'DataBlock', 'get_image_files', 'Path', 'Interpretation', 'train_photos', 'PHOTOS'):
        assert name in names
    ours = {name: getattr(fungi_fastai, name) for name in fungi_fastai.__all__ if not name.startswith('_')}
    assert all(names[name] is value for name, value in ours.items())


def test_the_package_itself_imports_nothing_heavy():
    code = 'import sys, fungi_fastai; print([m for m in ("torch", "fastai", "pandas", "numpy") if m in sys.modules])'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip() == '[]'


def test_progress_lines_go_where_standard_error_is_now(learn):
    from fungi_fastai.training.callbacks import ProgressLine

    line, replaced = ProgressLine(), sys.stderr
    sys.stderr = io.StringIO()
    try:
        line.write('epoch 1')
        assert sys.stderr.getvalue() == 'epoch 1\n'
    finally:
        sys.stderr = replaced
