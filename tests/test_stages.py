"Training the last stages on stored activations: the network is whole at the end, and an interruption changes nothing"

import numpy as np
import pytest
import torch
from conftest import TickingClock, flags, tiny
from fastai.callback.core import Callback
from safetensors.torch import save_file

from fungi_fastai.core.errors import UserError
from fungi_fastai.training.recipe import Recipe

last = tiny | dict(arch='convmixer_8_4', pretrained=True, trainable='last', activation_views=3, epochs=3)


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    "A file of weights for the backbone of `last`"
    from fungi_fastai.models.networks import make_backbone

    torch.manual_seed(0)
    backbone, _ = make_backbone('convmixer_8_4', pretrained=False)
    file = tmp_path_factory.mktemp('weights') / 'convmixer_8_4.safetensors'
    save_file(backbone.state_dict(), file)
    return file


@pytest.fixture(scope='module')
def run(ready, photos, weights, tmp_path_factory):
    from fungi_fastai import train_flowers

    out = tmp_path_factory.mktemp('last') / 'run'
    return train_flowers(photos, out=out, progress=False, weights=str(weights), **last)


def test_only_the_last_stages_change_and_the_network_is_whole(run, weights):
    from fungi_fastai.training.checkpoints import read_saved_weights

    before, after = (read_saved_weights(file)[0] for file in (weights, run.folder / 'model.safetensors'))
    changed = [name for name, tensor in before.items() if not torch.equal(tensor, after[f'0.{name}'])]
    assert changed and len(changed) < len(before)
    assert set(changed).isdisjoint([name for name in before if name.startswith(('0.', '1.'))])
    assert run.history.phase.tolist() == ['probe', *['last stages'] * 3]
    assert '3 versions of each training image' in run.metrics['stages_note']
    assert run.metrics['stages_note'] in run.report().read_text()


def test_the_learner_of_the_run_trains_the_same_layers(run):
    learn = run.learner
    trains = [parameter.requires_grad for parameter in learn.model.parameters()]
    assert not trains[0] and trains[-1] and trains == sorted(trains)
    held_out = run.items[run.items.split == 'test']
    again = run.predict(held_out['path'])
    saved = run.predictions[run.predictions.split == 'test']
    assert np.allclose(again.confidence, saved.confidence, atol=1e-4)


@pytest.mark.parametrize('deleted', (False, True))
def test_an_interrupted_run_resumes_bitwise(run, photos, weights, tmp_path, deleted):
    from fungi_fastai import train_flowers
    from fungi_fastai.core.settings import settings
    from fungi_fastai.training.checkpoints import read_saved_weights

    class Interrupt(Callback):
        order = 1000

        def after_epoch(self):
            if len(self.history.rows) == 3:
                raise KeyboardInterrupt

    call = dict(out=tmp_path / 'run', progress=False, weights=str(weights), **last)
    with pytest.raises(KeyboardInterrupt):
        train_flowers(photos, cbs=Interrupt(), **call)
    files = list((settings().cache_dir / 'activations').glob('*.npy'))
    assert len(files) >= 4
    for file in files if deleted else ():
        file.unlink()
    resumed = train_flowers(photos, **call)
    a, b = (read_saved_weights(one.folder / 'model.safetensors')[0] for one in (run, resumed))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_without_room_or_a_cut_the_images_are_used(run, photos, weights, tmp_path, monkeypatch):
    from fungi_fastai import train_flowers
    from fungi_fastai.training import stages

    call = dict(progress=False, weights=str(weights), **last | dict(epochs=1, seed=3))
    with monkeypatch.context() as patch:
        patch.setattr(stages, '_make_room', lambda *_: False)
        full = train_flowers(photos, out=tmp_path / 'full', **call)
    assert 'from the images, because the disk has no room' in full.metrics['stages_note']
    monkeypatch.setattr(stages, '_is_exact', lambda *_: False)
    uncut = train_flowers(photos, out=tmp_path / 'uncut', **call)
    assert 'cannot be cut' in uncut.metrics['stages_note']
    assert full.history.phase.iat[-1] == uncut.history.phase.iat[-1] == 'last stages'


def test_several_networks_are_each_cut_at_their_own_place(photos, ready):
    from fungi_fastai.training.fit import make_learner
    from fungi_fastai.training.stages import freeze, on_activations

    learn = make_learner(Recipe(source=str(photos), **tiny | dict(arch='convmixer_8_4+convmixer_16_2')), progress=False)
    freeze(learn, 'last')
    before = {name: tensor.clone() for name, tensor in learn.model.state_dict().items()}
    with learn.no_bar(), learn.no_logging():
        expected = learn.validate()[0]
        with on_activations(learn, views=2):
            assert learn.dls.train.one_batch()[0].shape[2:] == (1, 1)
            assert learn.validate()[0] == pytest.approx(expected, abs=1e-3)
            learn.fit(1, 1e-2)
    changed = {name for name, tensor in learn.model.state_dict().items() if not torch.equal(tensor, before[name])}
    for number, frozen in ((0, ('0.', '1.')), (1, ('0.',))):
        own = [name for name in before if name.startswith(f'0.backbones.{number}.')]
        assert changed.intersection(own) and not changed.issuperset(own)
        assert not [name for name in changed if name.startswith(tuple(f'0.backbones.{number}.{one}' for one in frozen))]


def test_last_stages_by_the_clock(photos, ready, weights, tmp_path, monkeypatch):
    "The schedule is completed; when half of the time is over, no further version of the images is stored"
    from fungi_fastai.training import budget
    from fungi_fastai.training.fit import fit, make_learner

    clock = TickingClock(0.1)
    monkeypatch.setattr(budget, 'clock', clock)
    recipe = Recipe(
        name='flowers', source=str(photos), weights=str(weights), **last | dict(seed=5, activation_views=50)
    )
    learn = make_learner(recipe, progress=False)
    plan = budget.Plan('convmixer_8_4', str(weights), True, 0.01, 32, 3, 1.0, 1.0, 0.0, '', trainable='last')
    rows = fit(learn, tmp_path, time_budget=budget.TimeBudget(clock.now, 7.0, plan))
    assert 5.5 < clock.seconds <= 7.5, clock.seconds
    assert rows[-1]['phase'] == 'last stages' and rows[-1]['lr'] < 1e-3 * max(row.get('lr', 0) for row in rows)
    assert 2 < int(learn.run_state.stages_note.split(' versions')[0].split()[-1]) < 50


def test_the_oldest_files_of_other_networks_make_room(tmp_path, monkeypatch):
    import os
    from types import SimpleNamespace

    from fungi_fastai.training import stages

    for age, name in enumerate(('key-0.npy', 'old-0.npy', 'new-0.npy')):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (age, age))

    def usage(folder):
        return SimpleNamespace(free=500 - sum(file.stat().st_size for file in folder.iterdir()))

    monkeypatch.setattr(stages.shutil, 'disk_usage', usage)
    assert stages._make_room(tmp_path, 'key', 140)
    assert sorted(file.name for file in tmp_path.iterdir()) == ['key-0.npy', 'new-0.npy']
    assert not stages._make_room(tmp_path, 'key', 300)


@pytest.mark.parametrize('changes', (dict(mixup=0.2), dict(start_size=16), dict(activation_views=0)))
def test_what_needs_images_gets_images(photos, ready, weights, tmp_path, changes):
    from fungi_fastai.training.features import FeatureLoaders
    from fungi_fastai.training.fit import fit, make_learner

    class Look(Callback):
        def before_batch(self):
            shapes.append((self.x.shape[1:], isinstance(self.dls, FeatureLoaders)))

    shapes, recipe = [], Recipe(name='flowers', source=str(photos), weights=str(weights), **last | changes)
    fit(make_learner(recipe.but(epochs=1, refit_head=False), progress=False), tmp_path, cbs=[Look()])
    trained = [shape for shape, on_features in shapes if not on_features]
    assert trained and all(shape[0] == 3 for shape in trained)


@pytest.mark.parametrize('trainable', ('last', 'head'))
def test_random_layers_do_not_stay_frozen(fungi, photos, tmp_path, trainable):
    with pytest.raises(UserError, match='random weights'):
        Recipe(pretrained=False, trainable=trainable)
    settings = flags(**tiny | dict(trainable=trainable))
    assert (
        'random weights'
        in fungi('train', 'flowers', '--source', photos, '--out', tmp_path / 'r', *settings, code=2).err
    )
