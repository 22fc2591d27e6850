"Precision, folding and the optimizer: the fast versions are also correct"

import copy
import warnings

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file
from torch import nn

with warnings.catch_warnings():  # fastai's own import warns with today's torch and pandas
    warnings.simplefilter('ignore')
    import fastai.callback.progress  # noqa: F401  (gives a Learner its `no_bar`)
    from fastai.optimizer import Adam
    from fastai.vision.data import ImageDataLoaders

    from fungi_fastai.models.folding import Folding, foldable_pairs
    from fungi_fastai.models.learners import learner
    from fungi_fastai.samples.datasets import make_sample
    from fungi_fastai.training import precision
    from fungi_fastai.training.checkpoints import read_state, restore_state, save_weights
    from fungi_fastai.training.optimizers import FusedAdam
    from fungi_fastai.training.precision import Precision, arithmetic_intensity, pick_precision
from fungi_fastai.core.errors import UserError

cpu = torch.device('cpu')


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope='module')
def flowers(tmp_path_factory):
    return make_sample(
        'flowers', tmp_path_factory.mktemp('flowers') / 'set', specimens=12, photos=2, size=32, workers=1
    )


@pytest.fixture
def dls(flowers):
    return ImageDataLoaders.from_folder(
        next(p for p in [flowers, *flowers.iterdir()] if sum(c.is_dir() for c in p.iterdir()) > 2),
        valid_pct=0.3,
        seed=1,
        bs=12,
        num_workers=0,
        device='cpu',
    )


def network_with_statistics(arch, size=64):
    "A network whose BatchNorms differ from their initialisation, in float64 where rounding cannot hide a mistake"
    model = (
        torchvision.models.get_model(arch[3:], num_classes=3)
        if arch.startswith('tv:')
        else timm.create_model(arch, num_classes=3)
    )
    model, x = model.double(), torch.randn(4, 3, size, size).double()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.2, 0.2)
        model.train()(x)
    return model.eval(), x


def plain(model):
    return not any('forward' in vars(m) for m in model.modules())


def distance(a, b):
    return max(float((p - q).detach().abs().max()) for p, q in zip(a.parameters(), b.parameters(), strict=True))


# folding


@pytest.mark.parametrize(
    'arch, pairs', [('tv:resnet18', 20), ('resnet50', 53), ('mobilenetv2_035', 52), ('efficientnet_b0', 49)]
)
def test_a_folded_network_has_the_same_outputs_and_gradients(arch, pairs):
    model, x = network_with_statistics(arch)
    folding = Folding(model, x)
    assert len(folding.pairs) == pairs

    def gradients():
        model.zero_grad()
        y = model(x)
        y.square().sum().backward()
        return [y.detach(), *(p.grad.clone() for p in model.parameters())]

    expected = gradients()
    with folding():
        conv, bn = folding.pairs[0]
        assert bn(x) is x if type(bn) is nn.BatchNorm2d else True  # it really is folded
        folded = gradients()
    assert all(float((a - b).norm()) <= 1e-9 * float(a.norm()) + 1e-12 for a, b in zip(expected, folded, strict=True))
    assert plain(model)


def test_networks_with_nothing_to_fold_are_unchanged():
    for model, size in (
        (timm.create_model('convnext_atto', num_classes=3), 64),
        (timm.create_model('vit_tiny_patch16_224', num_classes=3, img_size=32), 32),
    ):
        folding = Folding(model, torch.randn(2, 3, size, size))
        assert not folding
        with folding():
            assert plain(model)


def test_a_batchnorm_that_trains_is_not_folded():
    model, x = network_with_statistics('tv:resnet18')
    other = copy.deepcopy(model)
    with Folding(model, x)():
        output = model.train()(x)
    assert torch.equal(output, other.train()(x))
    assert torch.equal(model.bn1.running_mean, other.bn1.running_mean)


class Shared(nn.Module):
    "One convolution for two BatchNorms"

    def __init__(self):
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.two(self.conv(self.one(self.conv(x))))


class Twice(Shared):
    "A convolution's output that is used twice, once in code outside any module"

    def forward(self, x):
        y = self.conv(x)
        return self.one(y) + y


class InPlace(Shared):
    def forward(self, x):
        return self.one(self.conv(x).relu_())


class Branches(Shared):
    def forward(self, x):
        y = self.conv(x)
        return self.one(y) + self.two(y)


@pytest.mark.parametrize('kind', [Shared, Twice, InPlace, Branches])
def test_networks_that_cannot_be_folded_are_unchanged(kind):
    assert not Folding(kind(), torch.randn(2, 3, 8, 8))


def test_a_network_that_rejects_the_images_is_unchanged():
    assert not Folding(timm.create_model('resnet18', num_classes=3), torch.randn(2, 5, 64, 64))


def test_folding_leaves_no_trace(tmp_path):
    model, x = network_with_statistics('mobilenetv2_035')
    before, names = {k: v.clone() for k, v in model.state_dict().items()}, [n for n, _ in model.named_modules()]
    folding = Folding(model, x)
    assert plain(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with folding():
        assert list(model.state_dict()) == list(before) and [n for n, _ in model.named_modules()] == names
        save_weights(model, tmp_path / 'w.safetensors')
        clone = copy.deepcopy(model)
        with torch.no_grad():
            model.conv_stem.weight.zero_()
        assert not torch.equal(clone(x), model(x))  # the copy has its own weights
    assert all(torch.equal(v, before[k]) for k, v in load_file(tmp_path / 'w.safetensors').items())
    assert plain(model)


# precision


def test_auto_precision_depends_on_cpu_and_network(monkeypatch):
    busy, light = timm.create_model('resnet18', num_classes=3), timm.create_model('mobilenetv2_035', num_classes=3)
    assert arithmetic_intensity(busy) > 300 > 40 > arithmetic_intensity(light)
    assert arithmetic_intensity(light, torch.zeros(1, 3, 128, 128)) == pytest.approx(
        arithmetic_intensity(light), rel=0.3
    )
    for flags, model, expected, word in (
        ({'amx_bf16', 'avx512_bf16'}, busy, 'bf16', 'AMX'),
        ({'avx512_bf16'}, busy, 'bf16', 'AVX-512'),
        ({'avx512_bf16'}, light, 'fp32', 'slower'),
        ({'bf16'}, None, 'bf16', 'Arm'),
        ({'avx2'}, busy, 'fp32', 'no bfloat16'),
        (set(), light, 'fp32', 'no bfloat16'),
    ):
        monkeypatch.setattr(precision, '_cpu_flags', lambda flags=flags: flags)
        mode, reason = pick_precision('auto', cpu, model)
        assert mode == expected and word in reason
    assert pick_precision('bf16', cpu, light) == ('bf16', 'requested')


def test_a_fixed_size_network_is_counted_at_its_own_image_size():
    assert arithmetic_intensity(timm.create_model('vit_tiny_patch16_224', num_classes=3)) > 100
    assert arithmetic_intensity(nn.Sequential(nn.Flatten(), nn.Linear(7, 3))) is None  # accepts no size that is tried


def test_precision_of_other_devices(monkeypatch):
    for capability, expected in ((9, 'bf16'), (8, 'bf16'), (7, 'fp16'), (6, 'fp32')):
        monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda _, capability=capability: (capability, 0))
        assert pick_precision('auto', torch.device('cuda'))[0] == expected
    mps = torch.device('mps')
    assert pick_precision('auto', mps)[0] == 'fp32'
    with pytest.raises(UserError, match='fp16.*cuda only'):
        pick_precision('fp16', mps)
    for new in (True, False):
        monkeypatch.setattr(torch.backends.mps, 'is_macos_or_newer', lambda *_, new=new: new)
        if new:
            assert pick_precision('bf16', mps)[0] == 'bf16'
        else:
            with pytest.raises(UserError, match='macOS 14'):
                pick_precision('bf16', mps)


# the callback


def quiet_fit(learn, epochs=1, lr=4e-3):
    with learn.no_bar(), learn.no_logging():
        learn.fit(epochs, lr)
    return learn


def make(dls, arch='mobilenetv2_035', opt_func=FusedAdam, seed=0, **kwargs):
    torch.manual_seed(seed)
    return learner(dls, arch, pretrained=False, size=48, opt_func=opt_func, cbs=Precision(**kwargs))


def total_loss(learn):
    "Over the validation and the training images: the 36 validation images alone give a noisy loss"
    with learn.no_bar(), learn.no_logging():
        return sum(learn.validate(dl=dl.new(shuffle=False, drop_last=False))[0] * dl.n for dl in learn.dls) / 120


@pytest.mark.slow
def test_training_is_as_good_in_each_precision(dls):
    "From the same weights, with frozen statistics, as a pretrained network is trained: only rounding differs"
    dls.train.rng.seed(1)
    start = quiet_fit(
        make(dls, 'resnet10t', precision='fp32'), 4, 1e-5
    ).model.state_dict()  # statistics that fit the data, nothing learned
    gains = {}
    for way in (
        dict(precision='fp32', fold=False),
        dict(precision='fp32', fold=True),
        dict(precision='bf16', fold=False),
        dict(precision='bf16', fold=True),
    ):
        learn = make(dls, 'resnet10t', **way)
        learn.model.load_state_dict(start)
        learn.freeze_batch_norm.always = True
        torch.manual_seed(1)
        dls.train.rng.seed(1)
        before = total_loss(learn)
        quiet_fit(learn, 2, 2e-3)
        gains[tuple(way.values())] = before - total_loss(learn)
        assert bool(learn.precision._folding) == way['fold'] and plain(learn.model)
    reference = gains['fp32', False]
    assert reference > 0.2, 'nothing was learned: the comparison says nothing'
    assert gains['fp32', True] == pytest.approx(reference, rel=0.05)
    for way in (('bf16', False), ('bf16', True)):
        assert gains[way] > 0.75 * reference


def test_passes_outside_the_loop_give_the_same_predictions(dls):
    learn = make(dls, precision='bf16')
    with learn.no_bar():
        probabilities, _ = learn.get_preds()
    learn.model.eval()
    outputs = []
    for x, _ in dls.valid:
        with torch.no_grad(), learn.precision.forward_context(x):
            assert torch.is_autocast_enabled('cpu') and not plain(learn.model)
            outputs.append(learn.model(x.contiguous(memory_format=torch.channels_last)).float().softmax(1))
    assert torch.equal(torch.cat(outputs).as_subclass(torch.Tensor), probabilities.as_subclass(torch.Tensor))
    assert plain(learn.model) and not torch.is_autocast_enabled('cpu')


def test_the_model_is_plain_after_an_error_in_a_pass(dls):
    learn, folded = make(dls, precision='bf16'), []
    with learn.no_bar(), learn.no_logging():
        learn.validate()

    def fail(*_):
        folded.append(not plain(learn.model))
        return 1 / 0

    learn.model[1].register_forward_hook(fail)
    with pytest.raises(ZeroDivisionError):
        quiet_fit(learn)
    assert folded == [True]
    assert plain(learn.model) and not torch.is_autocast_enabled('cpu') and not learn.model._forward_hooks


def test_without_a_compiler_the_network_runs_uncompiled(dls, monkeypatch):
    monkeypatch.setattr(precision, 'compile_problem', lambda _: 'g++ not found')
    learn = make(dls, precision='fp32', compile=True)
    with pytest.warns(UserWarning, match=r'runs uncompiled.*g\+\+ not found.*python3-dev'):
        quiet_fit(learn)
    assert learn.recorder.values and learn.model._compiled_call_impl is None


def test_a_compiled_network_learns_and_is_restored(dls, monkeypatch):
    compiled = []

    def compile(model):
        model._compiled_call_impl = lambda *args: compiled.append(model.training) or model._call_impl(*args)

    monkeypatch.setattr(nn.Module, 'compile', compile)  # the real one takes minutes
    monkeypatch.setattr(precision, 'compile_problem', lambda _: '')
    learn = make(dls, precision='fp32', compile=True)
    names = list(learn.model.state_dict())
    quiet_fit(learn)
    assert compiled == [True] * len(dls.train)
    assert list(learn.model.state_dict()) == names and learn.model._compiled_call_impl is None


# the optimizer


def groups(model):
    return [list(model[:3].parameters()), list(model[3:6].parameters()), list(model[6:].parameters())]


def optimized(opt_func, model=None, state=None, steps=10, between=lambda opt, i: None):
    if model is None:
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 3),
        )
    opt = opt_func(groups(model), lr=1e-2, wd=0.1)
    opt.set_hyper('lr', [1e-3, 3e-3, 1e-2])
    for p, _, one, _ in opt.all_params():
        if p.ndim == 1:
            one['do_wd'] = False
    if state:
        opt.load_state_dict(copy.deepcopy(state))
    generator = torch.Generator().manual_seed(1)
    for i in range(steps):
        between(opt, i)
        nn.functional.cross_entropy(
            model(torch.rand(12, 3, 12, 12, generator=generator)), torch.arange(12) % 3
        ).backward()
        opt.step()
        opt.zero_grad()
    return model, opt


def test_fused_adam_is_fastais_adam():
    (ours, _), (theirs, _), (start, _) = optimized(FusedAdam), optimized(Adam), optimized(Adam, steps=0)
    assert distance(ours, theirs) < 1e-6 < 1e-3 < distance(ours, start)
    ours, opt = optimized(FusedAdam, steps=4)
    theirs, adam = optimized(Adam, steps=4)
    ours, _ = optimized(FusedAdam, copy.deepcopy(theirs), adam.state_dict(), 3)  # it continues from Adam's state, too
    theirs, _ = optimized(Adam, theirs, adam.state_dict(), 3)
    assert distance(ours, theirs) < 1e-6


def test_frozen_groups_do_not_change():
    def freeze(opt, i):
        if i == 3:
            opt.freeze_to(2)
        if i == 6:
            opt.unfreeze()

    snapshots = []

    def record(opt, i):
        freeze(opt, i)
        snapshots.append(opt.param_lists[0][0].detach().clone())

    optimized(FusedAdam, between=record)
    assert torch.equal(snapshots[3], snapshots[6]) and not torch.equal(snapshots[6], snapshots[7])

    def batchnorm_trains(opt, i):  # fastai's rule for frozen backbones
        if i == 0:
            for p in opt.param_lists[0][1:]:
                opt.state[p]['force_train'] = True
            opt.freeze_to(2)

    model = optimized(FusedAdam, between=batchnorm_trains)[0]
    assert torch.equal(model[0].weight, snapshots[0]) and float((model[1].weight - 1).detach().abs().max()) > 1e-3
    assert distance(model, optimized(Adam, between=batchnorm_trains)[0]) < 1e-6


def test_a_saved_state_fits_any_memory_layout():
    "The fused operation ignores strides: a state in another memory layout would silently give wrong steps"
    model, opt = optimized(FusedAdam, steps=3)
    other = copy.deepcopy(model)
    expected, _ = optimized(FusedAdam, model, opt.state_dict(), 3)
    resumed, _ = optimized(FusedAdam, other.to(memory_format=torch.channels_last), opt.state_dict(), 3)
    assert distance(expected, resumed) < 1e-5


def test_a_resumed_fit_is_the_same_bit_by_bit(dls, tmp_path):
    from fungi_fastai.training.callbacks import History
    from fungi_fastai.training.checkpoints import KeepBest, SaveState

    def start(name):
        (tmp_path / name).mkdir()
        learn = make(dls, precision='fp32')
        callbacks = [
            History(),
            KeepBest(tmp_path / name / 'best.safetensors'),
            SaveState(tmp_path / name / 'state.safetensors'),
        ]
        return learn.add_cbs(callbacks)

    through = start('through')
    dls.train.rng.seed(3)
    with through.no_bar(), through.no_logging():
        through.fit(1, 1e-3)
    state, tensors = read_state(tmp_path / 'through' / 'state.safetensors')
    assert tensors['opt.0.step'] == len(dls.train)
    with through.no_bar(), through.no_logging():
        through.fit(1, 1e-3)
    again = start('again')
    restore_state(again, state, tensors)
    with again.no_bar(), again.no_logging():
        again.fit(1, 1e-3)
    assert distance(through.model, again.model) == 0


def test_where_torch_has_no_fused_step(monkeypatch):
    from fungi_fastai.training import optimizers

    expected, _ = optimized(FusedAdam)
    monkeypatch.setattr(optimizers, '_implementation', lambda _: dict(foreach=True))
    assert distance(optimized(FusedAdam)[0], expected) < 1e-6


def test_pairs_are_modules_of_the_network_itself():
    model = timm.create_model('resnet18', num_classes=3)
    assert foldable_pairs(model, torch.randn(2, 3, 64, 64))[0] == (model.conv1, model.bn1)


def test_free_memory_is_released_above_1_5_times_the_first_epoch(monkeypatch):
    import fungi_fastai.training.precision as module

    memory, released, callback = [0, 190, 170, 120, 160, 140, 100], [], Precision('fp32')
    callback.memory_limit = None
    monkeypatch.setattr(module, 'process_memory', lambda: memory[-1])
    monkeypatch.setattr(module, 'release_freed_memory', lambda: released.append(memory[-1]))
    while memory:
        callback.after_epoch()
        memory.pop()
    assert released == [160, 190]  # 1.5 times the first epoch, and 1.5 times the epoch after the last release
