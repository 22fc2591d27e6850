"Heads for few images, the defaults of fine-tuning by kind of backbone, and the probe that guards a training"

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression, Ridge

from fungi_fastai.core.errors import UserError
from fungi_fastai.models.heads import fit_head, head_folds, nearest_neighbours, select_head
from fungi_fastai.models.kinds import backbone_kind, position_note
from fungi_fastai.runs.train import train
from fungi_fastai.training.fine_tuning import fine_tuning
from fungi_fastai.training.fit import learning_rates
from fungi_fastai.training.guard import Change
from fungi_fastai.training.recipe import Recipe


def clusters(classes, images, features=32, noise=1.0, seed=0):
    "Features in clusters, and their class indices"
    rng = np.random.default_rng(seed)
    targets = np.arange(classes).repeat(images)
    centres = rng.normal(size=(classes, features))
    return (centres[targets] + noise * rng.normal(size=(len(targets), features)) + 3).astype(np.float32), targets


def directions(features):
    centred = features - features.mean(0)
    return centred / np.linalg.norm(centred, axis=1, keepdims=True)


# --- heads


@pytest.mark.parametrize('images', [3, 40], ids=['fewer images than features', 'more'])
def test_ridge_is_that_of_scikit_learn(images):
    features, targets = clusters(4, images)
    head = fit_head(features, targets, 'ridge', strength=2.0)
    reference = Ridge(alpha=0.5).fit(directions(features), np.eye(4)[targets])
    length = np.linalg.norm(features - features.mean(0), axis=1).mean()
    assert head.weight * length == pytest.approx(reference.coef_, abs=1e-4)
    assert head.bias + head.weight @ features.mean(0) == pytest.approx(reference.intercept_, abs=1e-4)


@pytest.mark.parametrize('classes', [2, 3])
def test_logistic_regression_is_that_of_scikit_learn(classes):
    features, targets = clusters(classes, 12, noise=3)
    head = fit_head(features, targets, 'logistic', strength=10.0)
    length = np.linalg.norm(features - features.mean(0), axis=1).mean()
    x = (features - features.mean(0)) / length
    reference = LogisticRegression(C=10.0, tol=1e-6, max_iter=1000).fit(directions(features), targets)
    assert head.predict(features) == pytest.approx(reference.predict_proba(x), abs=0.02)


def test_one_image_of_each_class_is_enough():
    features, targets = clusters(5, 1)
    selected = select_head(features, targets)
    assert selected.head.predict(features).argmax(1).tolist() == [0, 1, 2, 3, 4]
    assert selected.scores.empty and selected.unmeasured.tolist() == [0, 1, 2, 3, 4]
    assert nearest_neighbours(features, targets, features, k=3).argmax(1).tolist() == [0, 1, 2, 3, 4]


def test_no_specimen_is_in_two_folds_and_a_single_one_is_never_held_out():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 28, 200)
    targets = np.where(groups == 27, 11, groups // 3)  # three specimens a class, and a class with one
    folds = pd.DataFrame(dict(fold=head_folds(targets, groups), group=groups, target=targets))
    assert folds.groupby('group').fold.nunique().max() == 1
    assert (folds[folds.target == 11].fold == -1).all() and (folds[folds.target != 11].fold >= 0).all()
    assert folds[folds.target != 11].groupby('target').fold.nunique().min() >= 2


def test_a_class_without_an_image_is_never_predicted():
    features, targets = clusters(3, 6)
    for kind in ('mean', 'ridge', 'logistic'):
        probs = fit_head(features, targets, kind, n_classes=5).predict(features)
        assert probs.shape == (18, 5) and probs[:, 3:].max() < 1e-3, kind


def test_a_specimen_with_two_classes_and_constant_features_do_no_harm():
    features, targets = clusters(2, 4)
    features[:, 0] = 7.0
    groups = np.array([0, 0, 1, 1, 1, 2, 2, 3])  # specimen 1 shows both classes
    selected = select_head(features, targets, groups)
    assert np.isfinite(selected.head.weight).all() and np.isfinite(selected.scores.loss).all()
    constant = select_head(np.ones_like(features), targets)
    assert constant.head.predict(np.ones_like(features)) == pytest.approx(0.5, abs=0.01)


def test_an_unknown_kind_is_an_error():
    with pytest.raises(UserError, match="'svm'; expected mean, ridge, logistic"):
        fit_head(*clusters(2, 2), kind='svm')


# --- fine-tuning by kind of backbone


def test_each_kind_of_backbone_has_its_learning_rates():
    rates = {
        arch: learning_rates(Recipe(arch=arch), True, 4)
        for arch in ('resnet18', 'convnext_atto', 'deit_tiny_patch16_224')
    }
    assert rates['resnet18'] == pytest.approx([5e-5, 1e-4, 2e-4, 2e-3])
    assert rates['deit_tiny_patch16_224'] == pytest.approx([1.125e-5, 1.5e-5, 2e-5, 2e-3])
    assert rates['convnext_atto'][-2] == pytest.approx(4e-5)
    own = Recipe(arch='deit_tiny_patch16_224', backbone_lr=0.5, layer_decay=1.0, drop_path=0.0)
    assert learning_rates(own, True, 4) == pytest.approx([1e-3, 1e-3, 1e-3, 2e-3]) and fine_tuning(own).drop_path == 0


def test_kinds_of_further_networks():
    kinds = {arch: backbone_kind(arch).name for arch in ('swin_tiny_patch4_window7_224', 'poolformer_s12', 'vgg11_bn')}
    assert list(kinds.values()) == ['transformer', 'CNN without BatchNorm', 'CNN with BatchNorm']
    assert backbone_kind('torchvision:swin_t').name == 'transformer'
    assert 'from 14×14 to 8×8' in position_note('vit_tiny_patch16_224', 128)
    assert '2 pixels at the right' in position_note('vit_small_patch14_dinov2', 100)


# --- the guard


def test_the_paired_difference_counts_specimens():
    rng = np.random.default_rng(0)
    groups = np.arange(200) // 10
    before = (rng.random(20) < 0.8).astype(float)[groups]
    after = before.copy()
    after[groups == 0] = 1 - before[0]
    change = Change.of(before, after, groups)
    by_specimen = (after - before).reshape(20, 10).mean(1)
    assert change.mean == pytest.approx(by_specimen.mean())
    assert change.standard_error == pytest.approx(by_specimen.std(ddof=1) / 20**0.5)
    assert not Change.of(before, before, groups).is_worse


def test_a_destroyed_network_is_replaced_by_its_probe(tmp_path, small_run):
    "The weights of a trained network stand in for pretrained ones"
    recipe = small_run.recipe.but(
        weights=str(small_run.folder / 'model.safetensors'), epochs=2, frozen_epochs=0, lr=5.0, backbone_lr=1.0
    )
    items = small_run.items
    others = items.index[items.split == 'train'][::2]  # 7 validation images show too little
    items = items.assign(split=items.split.where(~items.index.isin(others), 'valid'))
    run = train(recipe, tmp_path / 'run', progress=False, items=items)
    history = run.history
    assert history.phase[0] == 'probe' and history.kept.tolist() == [True, False, False]
    assert run.metrics['probe_kept'] and 'not kept' in run.metrics['probe_kept_note']
    assert run.metrics['probe_kept_note'] in run.folder.joinpath('report.html').read_text()
    valid = run.predictions[run.predictions.split == 'valid']
    assert (valid.predicted == valid.label).mean() == pytest.approx(history.accuracy[0])
    assert json.loads((run.folder / 'report.json').read_text())['probe_kept']


def test_features_that_were_trained_on_choose_their_head_by_other_images():
    "A trained backbone separates its training images, so their cross-validation would trust any head"
    rng = np.random.default_rng(0)
    targets, others = rng.integers(0, 4, 200), rng.integers(0, 4, 200)
    signal = np.eye(4)[:, [0, 1, 2, 3] * 3]
    features = (signal[targets] + rng.normal(size=(200, 12)) * 0.1).astype(np.float32)  # memorised
    fresh = (signal[others] + rng.normal(size=(200, 12)) * 1.5).astype(np.float32)

    def loss(head):
        return -np.log(head.predict(fresh)[np.arange(200), others] + 1e-12).mean()

    usual = select_head(features, targets)
    chosen = select_head(features, targets, held_out=(fresh[:100], others[:100]))
    assert chosen.strength <= usual.strength and loss(chosen.head) < 0.7 * loss(usual.head)
