"The head of a frozen network gets the features of several stages: networks, recipes, plans, runs, bundles, heat maps"

import json

import numpy as np
import pytest
import torch
from conftest import tiny

from fungi_fastai.core.errors import UserError
from fungi_fastai.models.networks import make_backbone, make_network
from fungi_fastai.training.frozen import planned_stages, probe_stages, with_stages
from fungi_fastai.training.recipe import Recipe

archs = 'test_resnet', 'test_efficientnet', 'test_convnext', 'test_vit', 'test_resnet+test_efficientnet'


@pytest.mark.parametrize('arch', archs)
def test_the_stages_stand_beside_the_last_layer(arch):
    (plain, _), (several, _) = (make_backbone(arch, False, size=160, stages=stages) for stages in (1, 3))
    several.load_state_dict(plain.state_dict())  # the same tensors under the same names
    x = torch.rand(2, 3, 160, 160)
    with torch.no_grad():
        last, stages = plain.eval()(x), several.eval()(x)
    assert stages.shape == (2, several.features) and several.features > plain.features
    if '+' not in arch:
        first = stages[:, : plain.features]
        assert np.allclose(np.corrcoef(first, last)[[0, 1], [2, 3]], 1, atol=1e-4), 'the last layer, normalised'
        assert torch.allclose(stages.square().sum(1), torch.full((2,), 3.0), atol=5e-2), 'each stage counts the same'


@pytest.mark.parametrize(
    'arch, head, stages, reason',
    (
        ('squeezenet1_1', 'linear', 3, '1 of its stages'),
        ('test_vit+convmixer_8_1', 'linear', 2, '1 of its stages'),
        ('test_resnet', 'linear', 40, 'at most'),
        ('test_resnet', 'fastai', 2, 'expected head='),
    ),
)
def test_what_a_network_does_not_offer_is_refused(arch, head, stages, reason):
    with pytest.raises(UserError, match=reason):
        make_network(arch, 3, head, size=160, stages=stages)


def test_only_the_probe_of_a_frozen_network_gets_several_stages():
    frozen = Recipe(arch='test_resnet', trainable='head')
    assert with_stages(frozen).feature_stages == 3 == with_stages(frozen.but(trainable='all', epochs=0)).feature_stages
    assert with_stages(frozen.but(trainable='all', frozen_epochs=5)).feature_stages == 3
    for changes in (dict(trainable='all'), dict(head_init='random'), dict(hidden=8), dict(arch='squeezenet1_1')):
        assert with_stages(frozen.but(**changes)) == frozen.but(**changes)
    assert with_stages(frozen.but(feature_stages=1)).feature_stages == 1, 'what was requested stays'
    assert planned_stages(frozen.but(feature_stages=2), frozen=False) == 2 == probe_stages(frozen.but(feature_stages=2))
    assert Recipe.from_json(json.dumps({'trainable': 'head'})).feature_stages == 0, 'a run of an earlier version'


def test_a_plan_without_epochs_gets_several_stages():
    from test_budget import a_machine, some_items

    from fungi_fastai.training.budget import best_plan

    def planned(seconds, **changes):
        return best_plan(Recipe(arch='test_resnet', **changes), some_items(800), a_machine(), seconds)

    probe, trained = planned(30), planned(600)
    assert (probe.epochs, probe.feature_stages) == (0, 3) and trained.epochs and trained.feature_stages == 1
    assert planned(600, trainable='head').feature_stages == 3 and planned(600, feature_stages=2).feature_stages == 2
    last_layer = planned(30, feature_stages=1)
    assert last_layer.feature_stages == 1 and probe.score > last_layer.score


@pytest.fixture(scope='module')
def frozen_run(home, ready, photos, tmp_path_factory):
    "A run whose backbone stays frozen, and what trains it again"
    from safetensors.torch import save_file

    from fungi_fastai import train_flowers

    folder = tmp_path_factory.mktemp('frozen')
    torch.manual_seed(0)
    save_file(make_backbone('test_resnet', False)[0].model.state_dict(), folder / 'test_resnet.safetensors')
    changes = {**tiny, 'arch': 'test_resnet', 'weights': str(folder / 'test_resnet.safetensors'), 'epochs': 0}

    def again():
        return train_flowers(photos, out=folder / 'run', progress=False, **changes)

    return again(), again


def test_a_run_keeps_its_stages(frozen_run):
    from fungi_fastai.deploy.timm_names import load_network, timm_equivalent
    from fungi_fastai.runs.run import Run

    run, again = frozen_run
    assert run.recipe.feature_stages == 3 and run.requested_recipe.feature_stages == 0
    assert 'feature-stages' not in (run.folder / 'report.html').read_text(), 'the command leaves it open again'
    assert again().folder == run.folder, 'the same call returns the finished run'
    tested = run.predictions[run.predictions.split == 'test']
    predicted = Run.load(run.folder).predict(tested.path.tolist())
    assert (predicted.predicted.to_numpy() == tested.predicted.to_numpy()).all()
    network, about = load_network(run)
    assert about['feature_stages'] == 3 and timm_equivalent(network, about, run.recipe.size) is None


def test_a_heat_map_is_of_the_layer_that_all_stages_go_through(frozen_run):
    from fungi_fastai.evaluation.saliency import _find_layer, preserve_state

    network = frozen_run[0].learner.model
    with preserve_state(network), torch.enable_grad():
        target = _find_layer(network, torch.rand(1, 3, 64, 64), None)
    names = {module: name for name, module in network.named_modules()}
    assert names[target.layer].startswith('0.model.layer2'), 'the first of the pooled maps'


def test_the_features_on_disk_are_those_of_the_stages():
    from fungi_fastai.training.feature_store import feature_key

    recipe = Recipe(arch='test_resnet')
    last = feature_key(recipe)
    assert last == feature_key(recipe.but(feature_stages=1)) != feature_key(recipe.but(feature_stages=3))
