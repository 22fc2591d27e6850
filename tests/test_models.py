"Networks, weights and learners: the cases that the notebooks in nbs/models do not show"

import json
import os
import pickle
import time
import urllib.error
import warnings
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

with warnings.catch_warnings():  # fastai's own import warns with today's torch and pandas
    warnings.simplefilter('ignore')
    import fastai.callback.progress  # noqa: F401  (gives a Learner its `no_bar`)
    from fastai.data.transforms import Normalize
    from fastai.learner import load_learner
    from fastai.vision.data import ImageDataLoaders

    from fungi_fastai.models import learners, networks, weights
    from fungi_fastai.models.architectures import find_arch
    from fungi_fastai.models.convmixer import convert_timm_weights, convmixer
    from fungi_fastai.models.learners import convmixer_learner, learner
    from fungi_fastai.models.networks import (
        backbone_and_head,
        features,
        layer_groups,
        make_backbone,
        make_network,
        set_linear_head,
    )
    from fungi_fastai.models.summary import summary
    from fungi_fastai.models.weights import load_weights, read_state_dict
from fungi_fastai.core.errors import MissingFileError, UserError
from fungi_fastai.models.normalization import weight_normalization

shared = Path(os.environ.get('FUNGI_DATA', Path(__file__).parents[2] / 'shared' / 'data')).parent / 'weights'
real_weights = pytest.mark.skipif(
    not shared.is_dir(), reason=f'{shared} (pretrained weights for development) is not there'
)


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp('images'), np.random.default_rng(0)
    for label, colour in dict(blue=(50, 60, 200), green=(60, 160, 70), red=(200, 60, 40)).items():
        (folder / label).mkdir()
        for i in range(8):
            noisy = np.array(colour) + rng.integers(-40, 40, (32, 32, 3))
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / label / f'{i}.png')
    return folder


@pytest.fixture
def dls(images):
    return ImageDataLoaders.from_folder(images, valid_pct=0.25, seed=1, bs=6, num_workers=0, device='cpu')


def small(dls, **kwargs):
    return learner(dls, 'mobilenetv2_035', **kwargs)


def state():
    return timm.create_model('mobilenetv2_035', num_classes=10).state_dict()


def train(learn, lr=1e-2):
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, lr)
    return {k for k, v in learn.model.state_dict().items() if not v.equal(before[k])}


# --- architectures

archs = dict(
    resnet10t=64,
    mobilenetv3_small_050=64,
    test_efficientnet=64,
    convnext_atto=64,
    vit_tiny_patch16_224=64,
    swin_tiny_patch4_window7_224=64,
    mixer_s32_224=64,
    test_nfnet=64,
    convmixer_32_2_k5_p4=64,
    **{'torchvision:resnet18': 64, 'torchvision:mobilenet_v3_small': 64, 'squeezenet1_1': 64, 'shufflenet_v2_x0_5': 64},
)


@pytest.mark.parametrize('arch', archs)
def test_a_backbone_returns_the_announced_features(arch):
    x = torch.randn(2, 3, archs[arch], archs[arch])
    for maps in (False, True):
        if maps and arch == 'shufflenet_v2_x0_5':
            with pytest.raises(UserError, match="use head='linear'"):
                make_backbone(arch, False, maps=True)
            continue
        backbone, _ = make_backbone(arch, pretrained=False, maps=maps, size=archs[arch])
        with torch.no_grad():
            y = backbone.eval()(x)
        assert y.shape[:2] == (2, backbone.features) and y.ndim == (4 if backbone.maps else 2)
        assert maps or not backbone.maps or 'convmixer' in arch
        groups = layer_groups(nn.Sequential(backbone, nn.Linear(backbone.features, 2)), 4)
        assert len(groups) == 4
        expected = [id(p) for p in [*backbone.parameters(), *groups[-1]]]
        assert sorted(id(p) for group in groups for p in group) == sorted(expected)


@pytest.mark.parametrize('arch', ['mobilenetv3_small_050', 'convnext_atto', 'vit_tiny_patch16_224'])
def test_the_features_are_the_input_of_the_classifier(arch):
    size = dict(img_size=64) if 'vit' in arch else {}
    network = timm.create_model(arch, num_classes=5, **size).eval()
    backbone, report = make_backbone(arch, weights=network.state_dict(), size=64)
    assert not report.missing and not report.unexpected and report.left_out
    with torch.no_grad():
        x = torch.randn(2, 3, 64, 64)
        assert torch.allclose(network.get_classifier()(backbone.eval()(x)), network(x), atol=1e-5)


def test_googlenet_normalises_its_images_itself():
    backbone, _ = make_backbone('torchvision:googlenet', pretrained=False)
    assert backbone.model.transform_input and backbone.model.aux1 is None


def test_an_image_size_that_a_transformer_rejects():
    with pytest.raises(UserError, match='vit_tiny_patch16_224 cannot take images of 8 pixels.*its own size, 224'):
        make_backbone('vit_tiny_patch16_224', False, size=8)


@pytest.mark.parametrize(
    'arch, hint',
    [
        ('ResNet-50', 'Did you mean resnet50'),
        ('efficientnet-b0', 'efficientnet_b0'),
        ('resnet18.nope', 'resnet18.a1_in1k'),
        ('torchvision:convnext_nano', 'convnext_'),
        ('zzz', 'No architecture is called'),
    ],
)
def test_unknown_architectures(arch, hint):
    with pytest.raises(UserError, match=hint):
        find_arch(arch)


# --- learners


def test_a_vision_transformer_is_built_for_the_loaders_image_size(dls):
    learn = learner(dls, 'test_vit', pretrained=False)
    assert learn.model[0].model.patch_embed.img_size == (32, 32)
    assert train(learn)


def test_a_frozen_backbone_does_not_change_and_an_unfrozen_one_keeps_statistics(dls):
    learn = small(dls, weights=state())
    assert train(learn) == {'1.linear.weight', '1.linear.bias'}
    learn.freeze_to(-2)
    changed = train(learn)
    assert any(k.startswith('0.model.conv_head') for k in changed) and '0.model.conv_stem.weight' not in changed
    learn.unfreeze()
    changed = train(learn)
    assert '0.model.conv_stem.weight' in changed and '0.model.bn1.weight' in changed
    assert not [k for k in changed if 'running' in k or 'tracked' in k]


def test_batchnorm_trains_if_requested(dls):
    learn = small(dls, weights=state(), freeze_batchnorm=False)
    assert train(learn) == {'1.linear.weight', '1.linear.bias'}
    learn.unfreeze()
    assert '0.model.bn1.running_mean' in train(learn)
    assert '0.model.bn1.running_mean' in train(small(dls, pretrained=False))  # random weights require it
    learn = small(dls, weights=state(), freeze_batchnorm=False, train_bn=True)  # fastai's default
    changed = train(learn)
    assert '0.model.bn1.weight' in changed and '0.model.conv_stem.weight' not in changed


def test_heads(dls):
    names = lambda **k: [n for n, _ in backbone_and_head(small(dls, pretrained=False, **k))[1].named_children()]
    assert names() == ['linear']
    assert names(dropout=0.3, hidden=16) == ['hidden', 'activation', 'dropout', 'linear']
    head = small(dls, pretrained=False, head='fastai', hidden=16).model[1]
    assert head[-1].weight.shape == (3, 16) and type(head[0]).__name__ == 'AdaptiveConcatPool2d'
    assert train(learner(dls, 'convmixer_16_2_k3_p8', pretrained=False, head='fastai', hidden=8))
    assert train(learner(dls, 'test_vit', pretrained=False, head='fastai', hidden=8, normalize=False))
    with pytest.raises(UserError, match="head is 'huge'"):
        small(dls, pretrained=False, head='huge')


@pytest.mark.parametrize(
    'arch, head', [('mobilenetv2_035', 'linear'), ('mobilenetv2_035', 'fastai'), ('convmixer_16_2_k3_p8', 'fastai')]
)
def test_a_learners_network_is_rebuilt_without_fastai(dls, arch, head):
    learn = learner(dls, arch, pretrained=False, head=head, hidden=8)
    network = make_network(arch, 3, head, 8)
    network.load_state_dict(learn.model.state_dict())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert network.eval()(x).equal(learn.model.eval()(x))
    assert network.stats == learn.stats


def test_images_are_normalised_once(dls):
    for _ in range(2):
        learn = small(dls, pretrained=False)
    for dl in dls.loaders:
        assert sum(isinstance(t, Normalize) for t in dl.after_batch.fs) == 1
    x, _ = next(iter(dls.valid))
    raw = x * torch.tensor(learn.stats[1]).view(3, 1, 1) + torch.tensor(learn.stats[0]).view(3, 1, 1)
    assert 0 <= raw.min() and raw.max() <= 1 and x.min() < 0
    with pytest.warns(UserWarning, match='made for .0.5, 0.5, 0.5.'):
        learner(dls, 'vit_tiny_patch16_224', pretrained=False)
    learner(dls, 'vit_tiny_patch16_224', pretrained=False, normalize=False)


def test_exports_and_loads_as_any_fastai_learner(dls, tmp_path):
    learn = small(dls, pretrained=False)
    learn.export(tmp_path / 'learner.pkl')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # fastai warns that load_learner unpickles
        loaded = load_learner(tmp_path / 'learner.pkl')
    x = dls.valid.one_batch()[0]
    with torch.no_grad():
        assert loaded.model.eval()(x).equal(learn.model.eval()(x))
    assert loaded.arch == 'mobilenetv2_035'


def test_set_linear_head_equals_scikit_learns_classifier(dls):
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    model = small(dls, pretrained=False).model.eval()
    x = torch.cat([x for x, _ in dls.valid])
    with torch.no_grad():
        table = features(model, x).double().numpy()
    scaler = StandardScaler().fit(table)
    probe = LogisticRegression(max_iter=2000).fit(scaler.transform(table), np.arange(len(table)) % 3)
    set_linear_head(model, probe.coef_, probe.intercept_, scaler.mean_, scaler.scale_)
    with torch.no_grad():
        probabilities = model(x).softmax(1).numpy()
    assert np.abs(probabilities - probe.predict_proba(scaler.transform(table))).max() < 1e-3
    with pytest.raises(UserError, match=r'takes weights \(3, 1280\)'):
        set_linear_head(model, np.zeros((4, 1280)), np.zeros(4))
    with pytest.raises(UserError, match='without hidden layer'):
        set_linear_head(small(dls, pretrained=False, hidden=8), probe.coef_, probe.intercept_)


def test_convmixer_equals_timms():
    for kwargs in (
        dict(dim=12, depth=3, kernel_size=5, patch_size=4),
        dict(dim=8, depth=2, kernel_size=3, patch_size=2),
    ):
        theirs = timm.models.convmixer.ConvMixer(num_classes=6, act_layer=nn.ReLU, **kwargs).eval()
        for layer in theirs.modules():
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.uniform_(layer.running_mean), nn.init.uniform_(layer.running_var, 0.5, 2)
        ours = convmixer(6, activation=nn.ReLU, **kwargs).eval()
        ours.load_state_dict(convert_timm_weights(theirs.state_dict()))
        with torch.no_grad():
            x = torch.randn(2, 3, 32, 32)
            assert torch.allclose(ours(x), theirs(x), atol=1e-6)


def test_convmixer_learner(dls):
    learn = convmixer_learner(dls, dim=16, depth=2, kernel_size=3, patch_size=4, dropout=0.1)
    assert learn.arch == 'convmixer_16_2_k3_p4'
    assert '0.0.0.weight' in train(learn)
    with pytest.raises(UserError, match='no pretrained weights'):
        learner(dls, 'convmixer_16_2')


def test_summary():
    model = timm.create_model('test_vit', num_classes=3)
    model.train()
    model.blocks.eval()
    table = summary(model)
    assert table.attrs['parameters'] == table.parameters.sum() == sum(p.numel() for p in model.parameters())
    assert table.attrs['size'] == model.patch_embed.img_size
    assert {'cls_token', 'pos_embed', 'head'} <= set(table.name)
    assert table.set_index('name').output['head'] == (3,)
    assert model.training and not model.blocks[0].training and not model.blocks[0]._forward_hooks
    with pytest.raises(UserError, match='two parts'):
        backbone_and_head(model)


def test_a_learners_summary_has_its_image_size(photos, dls):
    from fungi_fastai.training.fit import make_learner
    from fungi_fastai.training.recipes import FLOWERS

    recipe = FLOWERS.but(source=photos, arch='convmixer_16_1', pretrained=False, size=48, bs=8, device='cpu')
    learn = make_learner(recipe, progress=False)
    assert summary(learn).attrs['size'] == 48 and summary(learn, size=64).attrs['size'] == 64
    plain = learner(dls, 'convmixer_16_2', pretrained=False)
    assert summary(plain).attrs['size'] == tuple(dls.valid.one_batch()[0].shape[-2:]) != (224, 224)


# --- weights


@real_weights
@pytest.mark.parametrize(
    'file, arch, matched, left_out',
    [
        ('mobilenetv2_035.keras_in1k_notop.safetensors', 'mobilenetv2_035', 260, 0),
        ('mobilenetv2_100.coral_ptq_in1k.safetensors', 'mobilenetv2_100', 260, 2),
        ('squeezenet1_1.caffe_in1k_features_only.safetensors', 'squeezenet1_1', 50, 0),
    ],
)
def test_pretrained_files(dls, file, arch, matched, left_out):
    learn = learner(dls, arch, weights=shared / file)
    counts = learn.weight_report.counts
    assert counts == dict(matched=matched, missing=0, unexpected=0, wrong_shape=0, left_out=left_out, head=0)
    loaded = read_state_dict(shared / file)
    for key, value in learn.model[0].model.state_dict().items():
        if not key.endswith('num_batches_tracked'):
            assert value.equal(loaded[key])
    assert train(learn) == {'1.linear.weight', '1.linear.bias'}


@real_weights
@pytest.mark.parametrize(
    'file, arch, message',
    [
        ('mobilenetv2_035.keras_in1k_notop', 'mobilenetv2_100', '4 of 260 tensors matched; 256 of another shape'),
        ('mobilenetv2_100.coral_ptq_in1k', 'mobilenetv2_035', '4 of 260 tensors matched; 256 of another shape'),
        ('mobilenetv2_035.keras_in1k_notop', 'resnet10t', 'missing'),
        ('squeezenet1_1.caffe_in1k_features_only', 'mobilenetv2_035', '0 of 260'),
        ('squeezenet1_1.caffe_in1k_features_only', 'squeezenet1_0', 'another shape'),
    ],
)
def test_a_file_for_another_network_is_refused(file, arch, message):
    with pytest.raises(UserError, match=message):
        make_backbone(arch, weights=shared / f'{file}.safetensors')


@pytest.mark.parametrize('prefix', ['module.', 'model.', 'backbone.', '0.model.', 'module.0.model.', 'student.net.'])
def test_prefixes(dls, prefix, tmp_path):
    path = tmp_path / 'weights.safetensors'
    save_file({prefix + k: v for k, v in state().items()}, path)
    for model in (timm.create_model('mobilenetv2_035', num_classes=0), small(dls, pretrained=False)):
        counts = load_weights(model, path).counts
        assert (counts['matched'], counts['missing'], counts['unexpected'], counts['left_out']) == (260, 0, 0, 2)


def test_a_learners_own_file_is_loaded_into_backbone_and_head(dls, tmp_path):
    saved = small(dls, pretrained=False)
    saved.path = tmp_path
    path = saved.save('plain')  # fastai's .pth: the model and the optimizer
    learn = small(dls, pretrained=False)
    assert load_weights(learn, path).counts == dict(
        matched=262, missing=0, unexpected=0, wrong_shape=0, left_out=0, head=0
    )
    assert learn.model[1].linear.weight.equal(saved.model[1].linear.weight)
    other = small(dls, pretrained=False, n_out=7)
    assert load_weights(other, path).counts == dict(
        matched=260, missing=0, unexpected=0, wrong_shape=0, left_out=2, head=2
    )


def test_a_shallower_and_a_deeper_network_are_refused():
    short, long = (timm.create_model(arch, num_classes=0) for arch in ('resnet18', 'resnet34'))
    with pytest.raises(UserError, match='missing'):
        load_weights(long, short.state_dict())
    with pytest.raises(UserError, match='not in the network'):
        load_weights(short, long.state_dict())


def test_position_embeddings_are_resized():
    large = timm.create_model('test_vit', num_classes=0)
    backbone, report = make_backbone('test_vit', weights=large.state_dict(), size=64)
    assert report.counts['matched'] == len(large.state_dict()) and not report.wrong_shape
    assert backbone.model.blocks[0].attn.qkv.weight.equal(large.blocks[0].attn.qkv.weight)


def test_a_malicious_pickle_never_runs(tmp_path):
    evidence = tmp_path / 'it_ran'

    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(evidence),)

    for name, write in dict(
        new=lambda p: torch.save({'state_dict': Malicious()}, p),
        old=lambda p: p.write_bytes(pickle.dumps(Malicious())),
        whole=lambda p: torch.save(nn.Linear(2, 2), p),
    ).items():
        path = tmp_path / f'{name}.pth'
        write(path)
        with pytest.raises(UserError, match='could run any code'):
            load_weights(nn.Linear(2, 2), path)
    assert not evidence.exists()


def test_files_that_hold_no_weights(tmp_path):
    model = nn.Linear(2, 2)
    for name in ('text.pth', 'text.safetensors', 'empty.pth', 'empty.safetensors'):
        path = tmp_path / name
        path.write_text('' if 'empty' in name else 'these are not weights')
        with pytest.raises(UserError, match=name.replace('.', r'\.')):
            load_weights(model, path)
    torch.save({'epoch': 3}, tmp_path / 'none.pth')
    with pytest.raises(UserError, match='holds no tensors by name'):
        load_weights(model, tmp_path / 'none.pth')
    with pytest.raises(MissingFileError, match='There is no file of weights'):
        load_weights(model, tmp_path / 'gone.safetensors')
    save_file({'weight': torch.full((2, 2), float('nan')), 'bias': torch.zeros(2)}, tmp_path / 'nan.safetensors')
    with pytest.raises(UserError, match='not finite'):
        load_weights(model, tmp_path / 'nan.safetensors')


@pytest.fixture
def offline(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path))
    monkeypatch.setattr(constants, 'ENDPOINT', 'http://127.0.0.1:9')  # the discard port: nothing answers
    for name in ('http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY'):
        monkeypatch.delenv(name, raising=False)


def test_without_internet_the_error_is_fast_and_clear(dls, offline, monkeypatch):
    start = time.perf_counter()
    with pytest.raises(UserError, match='weights=FILE.*pretrained=False'):
        learner(dls, 'resnet10t')
    with pytest.raises(UserError, match='weights=FILE'):
        load_weights(nn.Linear(2, 2), 'hf-hub:nobody/nothing')
    with pytest.raises(UserError, match='weights=FILE'):
        load_weights(nn.Linear(2, 2), 'resnet18.a1_in1k')
    assert time.perf_counter() - start < 10
    import torchvision.models._api as api

    def no_network(*_, **__):
        raise urllib.error.URLError('no network')

    monkeypatch.setattr(api, 'load_state_dict_from_url', no_network)
    with pytest.raises(UserError, match='no network.*weights=FILE'):
        learner(dls, 'squeezenet1_1')


def test_an_architecture_without_pretrained_weights():
    name = next(n for n in timm.list_models('resnet*') if not timm.is_model_pretrained(n))
    with pytest.raises(UserError, match='no pretrained weights'):
        make_backbone(name)


def test_all_public_names_exist():
    for module in (learners, networks, weights):
        assert all(hasattr(module, name) for name in module.__all__)


# --- several backbones together, and the catalogue


def test_a_concatenation_keeps_each_network_and_its_normalisation(tmp_path):
    archs = ('mobilenetv3_small_050', 'test_efficientnet')
    for arch, mean in zip(archs, (0.25, 0.75), strict=True):
        normalization = dict(normalization=json.dumps(dict(mean=[mean] * 3, std=[0.5] * 3)))
        save_file(timm.create_model(arch).state_dict(), tmp_path / f'{arch}.made_here.safetensors', normalization)
    both, report = make_backbone('+'.join(archs), weights=tmp_path, size=64)
    assert not report.missing and len(report.matched) > 100 and report.network == '+'.join(archs)
    x, expected = torch.rand(2, 3, 64, 64), []
    for arch, mean in zip(archs, (0.25, 0.75), strict=True):
        alone, _ = make_backbone(arch, weights=tmp_path / f'{arch}.made_here.safetensors')
        expected.append(alone.eval()((x - mean) / 0.5))
    assert torch.allclose(both.eval()(x), torch.cat(expected, 1), atol=1e-5)
    again, _ = make_backbone('+'.join(archs), pretrained=False)
    again.load_state_dict(both.state_dict())  # as a run or a bundle is loaded: the normalisation is part of it
    assert torch.equal(again.eval()(x), both(x))
    groups = layer_groups(nn.Sequential(both, nn.Linear(both.features, 2)), 4)
    assert sum(map(len, groups[:-1])) == len(list(both.parameters()))
    first = {id(p) for p in groups[0]}
    assert all(id(next(one.parameters())) in first for one in both.backbones), 'the first layers of both networks'


def test_a_concatenated_transformer_gets_images_of_its_own_size():
    both, _ = make_backbone('vit_tiny_patch16_224+resnet10t', pretrained=False, size=72)
    assert both.sizes == [64, None]
    assert both.eval()(torch.rand(1, 3, 72, 72)).shape == (1, both.features)


@pytest.mark.parametrize(
    'arch, weights, message',
    [
        ('resnet10t+', None, 'with \\+ between them'),
        ('resnet10t+resnet10t', None, 'different names'),
        ('resnet10t+resnet1O', None, 'No architecture'),
        ('resnet10t+resnet18', 'a.pth+b.pth+c.pth', '2 networks'),
    ],
)
def test_a_concatenation_that_is_refused(arch, weights, message):
    with pytest.raises(UserError, match=message):
        make_backbone(arch, pretrained=False, weights=weights)


def test_the_catalogue_agrees_with_timm():
    from fungi_fastai.models.backbones import backbones
    from fungi_fastai.models.packaged import initial_weights

    for one in backbones:
        if one.weights or one.arch in ('squeezenet1_1', 'mobilenetv2_035'):
            continue  # not timm's weights
        config, known = timm.get_pretrained_cfg(one.arch), initial_weights(one.arch)
        assert (one.size, one.licence, one.trained_on) == (config.input_size[-1], known.licence, known.trained_on)
        assert known.source.startswith('the') and (one.newt or one.top1 or 'nano' in one.arch)


@pytest.mark.slow
@pytest.mark.parametrize('arch', ['convnext_tiny.in12k', 'vit_small_patch14_reg4_dinov2.lvd142m', 'resnet50'])
def test_the_costs_of_the_catalogue(arch):
    from fungi_fastai.models.backbones import backbones, count_cost

    row = next(one for one in backbones if one.arch == arch)
    cost = count_cost(arch)
    assert (cost['macs'], cost['features']) == (row.macs, row.features)
    assert cost['megabytes'] == pytest.approx(row.megabytes, rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['vit_small_patch14_reg4_dinov2.lvd142m', 'vit_small_patch16_dinov3.lvd1689m'])
def test_a_real_name_in_the_layout_of_the_hub(name, tmp_path):
    from fungi_fastai.models.backbones import available_backbones

    folder = tmp_path / f'models--timm--{name}' / 'snapshots' / '1f0c'
    folder.mkdir(parents=True)
    state = timm.create_model(name, num_classes=0).state_dict()
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, folder / 'model.safetensors')
    (one,) = [one for one in available_backbones(str(tmp_path)) if one.arch == name]
    assert one.weights == str(folder / 'model.safetensors') and one.newt
    backbone, report = make_backbone(one.arch, weights=one.weights, size=112)
    assert not report.missing and not report.wrong_shape
    assert backbone.eval()(torch.rand(1, 3, 112, 112)).shape == (1, one.features)


# --- normalisation


@pytest.fixture
def weights_folder(tmp_path):
    "weights_folder('config.json', {…}, folder='a') → a folder with weights and a configuration"

    def make(name='', content='', folder='hub'):
        path = tmp_path / folder
        path.mkdir(parents=True)
        save_file(dict(weight=torch.zeros(3)), path / 'model.safetensors')
        if name:
            (path / name).write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return make


half = dict(mean=[0.5] * 3, std=[0.5] * 3)


@pytest.mark.parametrize(
    'name, content, folder, mean',
    [
        ('config.json', dict(architecture='tf_efficientnet_b0', pretrained_cfg=half), 'hub', 0.5),
        (
            'config.json',
            dict(architecture='tf_efficientnet_b0.ap_in1k') | half,
            'hub',
            0.5,
        ),  # older timm
        ('preprocessor_config.json', dict(image_mean=[0.25] * 3, image_std=[1] * 3), 'hub', 0.25),  # of transformers
        ('preprocessor_config.json', dict(do_normalize=False) | half, 'hub', 0.0),
        ('open_clip_config.json', dict(model_cfg=dict(embed_dim=8), preprocess_cfg=half), 'hub', 0.5),
        ('', '', 'models--timm--tf_efficientnet_b0.ap_in1k/snapshots/1f0c', 0.5),  # the cache of the hub
        ('', '', 'tf_efficientnet_b0.aa_in1k', 0.485),
        ('config.json', dict(architecture='resnet18', pretrained_cfg=half), 'hub', None),
        ('config.json', dict(architecture='tf_efficientnet_b0', num_classes=4), 'hub', None),
        ('config.json', [1, 2], 'tf_efficientnet_b0.my_own_tag', None),
    ],
)
def test_weights_state_their_normalisation(weights_folder, name, content, folder, mean):
    stated = weight_normalization(weights_folder(name, content, folder), 'tf_efficientnet_b0')
    assert stated is None if mean is None else stated.mean[0] == mean and stated.source


@pytest.mark.parametrize(
    'content, message',
    [
        ('{', 'no readable JSON'),
        (dict(mean=[123.7, 116.3, 103.5], std=[58.4, 57.1, 57.4]), r'mean \[123.7, .* fractions of 255'),
        (dict(mean=[0.5, 0.5], std=[0.5] * 3), 'expected three numbers'),
        (dict(mean=[0.5] * 3, std=[0.0] * 3), r'states std \[0.0'),
        (dict(mean='imagenet', std=[0.5] * 3), "mean 'imagenet'"),
        ('{"mean": [NaN, 0, 0], "std": [1, 1, 1]}', r'mean \[nan'),
    ],
)
def test_a_normalisation_that_is_refused(weights_folder, content, message):
    with pytest.raises(UserError, match=message):
        weight_normalization(weights_folder('config.json', content), 'resnet18')


def test_a_run_keeps_the_normalisation_of_its_weights(dls, tmp_path, fungi, images):
    "Training, prediction, bundle and a training from the run's own file use the same"
    from fungi_fastai import Run
    from fungi_fastai.deploy.timm_names import load_network
    from fungi_fastai.run_folder import RunFolder

    backbone, _ = make_backbone('convmixer_16_1', pretrained=False)
    save_file(backbone.state_dict(), tmp_path / 'model.safetensors')
    (tmp_path / 'config.json').write_text(json.dumps(dict(mean=[0.2, 0.3, 0.4], std=[0.6, 0.7, 0.8])))
    common = ['train', 'flowers', '--source', images, '--arch', 'convmixer_16_1', '--size', 32, '--epochs', 0]
    first = fungi(*common, '--weights', tmp_path, '--out', tmp_path / 'run')
    assert 'normalised by mean (0.2, 0.3, 0.4)' in first.err
    (tmp_path / 'config.json').unlink()
    stats = ((0.2, 0.3, 0.4), (0.6, 0.7, 0.8))
    assert Run.load(tmp_path / 'run').learner.stats == stats
    assert weight_normalization(tmp_path / 'run', 'convmixer_16_1').stats == stats
    assert load_network(RunFolder.load(tmp_path / 'run'))[0].stats == stats  # of a bundle
