"The six optimizers: resumed bit by bit, equal to other implementations, no weight decay on biases and norms"

import copy
import warnings

import pytest
import timm
import torch
from timm.optim import Lion
from torch import nn

with warnings.catch_warnings():  # fastai's own import warns with today's torch and pandas
    warnings.simplefilter('ignore')
    import fastai.callback.progress  # noqa: F401  (gives a Learner its `no_bar`)
    from fastai.callback.core import Callback
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    from fastai.learner import Learner
    from fastai.losses import CrossEntropyLossFlat

    from fungi_fastai.training.callbacks import History
    from fungi_fastai.training.checkpoints import KeepBest, SaveState, read_state, restore_state
    from fungi_fastai.training.optimizers import NoDecay, make_optimizer, no_decay
    from fungi_fastai.training.precision import Precision
    from fungi_fastai.training.schedules import make_scheduler
from fungi_fastai.core.errors import UserError
from fungi_fastai.training.recipe import Recipe, choices

each = pytest.mark.parametrize('name', choices['optimizer'])


def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.LayerNorm(16),
        nn.Linear(16, 3),
    )


def groups(model):
    return [list(model[:3].parameters()), list(model[3:6].parameters()), list(model[6:].parameters())]


def make(name, **options):
    torch.manual_seed(0)
    y = torch.arange(40) % 3
    rows = list(zip(torch.randn(40, 3, 10, 10) + y[:, None, None, None], y, strict=True))
    dls = DataLoaders(DataLoader(rows[:30], bs=10, shuffle=True), DataLoader(rows[30:], bs=10), device='cpu')
    dls.train.rng.seed(1)
    return Learner(
        dls,
        network(),
        CrossEntropyLossFlat(),
        make_optimizer(name),
        splitter=groups,
        wd=0.1,
        cbs=[Precision('fp32'), History(), NoDecay()],
        **options,
    )


def fit(learn, folder, epochs=4, **options):
    folder.mkdir(exist_ok=True)
    cbs = [KeepBest(folder / 'best'), SaveState(folder / 'state'), make_scheduler(Recipe(), [1e-3, 3e-3, 1e-2], epochs)]
    with learn.no_bar(), learn.no_logging():
        learn.fit(epochs, cbs=cbs, **options)
    return learn


@each
def test_a_resumed_fit_is_the_same_bit_by_bit(name, tmp_path):
    class Killed(Exception):
        pass

    through = fit(make(name), tmp_path / 'through')
    cut = make(name)

    class Die(Callback):
        def before_train(self):
            if self.epoch == 2:
                raise Killed('between two epochs')

    cut.add_cb(Die())
    with pytest.raises(Killed):
        fit(cut, tmp_path / 'cut')
    resumed = make(name)
    state, tensors = read_state(tmp_path / 'cut' / 'state')
    restore_state(resumed, state, tensors)
    fit(resumed, tmp_path / 'cut', start_epoch=state['epoch'])
    assert state['epoch'] == 2
    for p, q in zip(through.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(p, q)
    assert not torch.equal(through.model[0].weight, cut.model[0].weight)


@each
def test_biases_and_norms_do_not_decay(name):
    learn = make(name)
    before = copy.deepcopy(learn.model)
    learn.loss_func = lambda pred, y: (pred * 0).sum()
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, [1e-2, 2e-2, 4e-2], wd=0.5)
    with torch.no_grad():
        for group, start, lr in zip(groups(learn.model), groups(before), (1e-2, 2e-2, 4e-2), strict=True):
            for p, q in zip(group, start, strict=True):
                if p.ndim == 1:
                    assert torch.equal(p, q)
                else:
                    assert torch.allclose(p, q * (1 - lr * 0.5) ** 3, rtol=1e-5)


@each
def test_wd_bn_bias_decays_everything(name):
    learn = make(name, wd_bn_bias=True)
    learn.loss_func = lambda pred, y: (pred * 0).sum()
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-2, wd=0.5)
    assert (learn.model[4].weight < 1).all()


@each
def test_frozen_groups_and_learning_rate_0_change_nothing(name):
    learn = make(name)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-2)
    learn.train_bn = False
    for p in learn.opt.state.values():
        p.pop('force_train', None)
    learn.freeze_to(1)
    frozen = copy.deepcopy(learn.model)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, [1e-2, 0.0, 1e-2])
    first, second, head = (
        [torch.equal(p, q) for p, q in zip(*both, strict=True)]
        for both in zip(groups(learn.model), groups(frozen), strict=True)
    )
    assert all(first) and all(second) and not any(head)


def compare(ours, theirs, steps=30):
    "The largest difference between two optimizers' weights, and how far the weights moved"
    torch.manual_seed(0)
    a = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4))
    b, start = copy.deepcopy(a), copy.deepcopy(a)
    pairs = [(a, ours(list(a.parameters()))), (b, theirs(b.parameters()))]
    for _ in range(steps):
        x, y = torch.randn(10, 12), torch.randint(4, (10,))
        for model, opt in pairs:
            nn.functional.cross_entropy(model(x), y).backward()
            opt.step()
            opt.zero_grad()
    difference = lambda p, q: max(
        float((x - y).detach().abs().max()) for x, y in zip(p.parameters(), q.parameters(), strict=True)
    )
    return difference(a, b), difference(a, start)


@pytest.mark.parametrize(
    'name, theirs, tolerance',
    [
        ('adam', lambda p: torch.optim.AdamW(p, 1e-2, (0.9, 0.99), 1e-5, 0.1), 1e-6),
        ('rmsprop', lambda p: torch.optim.RMSprop(p, 1e-2, alpha=0.99, eps=1e-8), 1e-6),
        ('sgd', lambda p: torch.optim.SGD(p, 1e-2, momentum=0.9), 1e-6),
        ('radam', lambda p: torch.optim.RAdam(p, 1e-2, (0.9, 0.99), 1e-9, 0.1, decoupled_weight_decay=True), 1e-6),
        ('lion', lambda p: Lion(p, 1e-2, (0.9, 0.99), 0.1), 1e-6),
        ('lion', lambda p: Lion(p, 1e-2, (0.9, 0.99), 0.1, foreach=True), 1e-6),
    ],
)
def test_equal_to_other_implementations(name, theirs, tolerance):
    wd = 0.0 if name in ('rmsprop', 'sgd') else 0.1  # torch's add the decay to the gradient
    eps = dict(eps=1e-9) if name == 'radam' else {}  # torch adds it elsewhere in the formula, so keep it negligible
    difference, moved = compare(lambda p: make_optimizer(name)(p, lr=1e-2, wd=wd, **eps), theirs)
    assert difference <= tolerance < 0.01 < moved


def test_lamb_steps_in_proportion_to_the_weights():
    "You et al. 2019: trust ratio, from the formulas (bounded by 10, as in fastai)"
    torch.manual_seed(0)
    weight = torch.randn(6, 5, dtype=torch.double)
    p = nn.Parameter(weight.clone())
    opt = make_optimizer('lamb')([p], lr=1e-2, wd=0.1)
    m = v = 0
    for t in range(1, 6):
        g = torch.randn(6, 5, dtype=torch.double)
        p.grad = g.clone()
        opt.step()
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        weight = weight * (1 - 1e-2 * 0.1)
        update = (m / (1 - 0.9**t)) / ((v / (1 - 0.99**t)).sqrt() + 1e-5)
        weight = weight - 1e-2 * min(10, weight.norm() / update.norm()) * update
        assert torch.allclose(p.detach(), weight, atol=1e-12)


def test_parameters_without_weight_decay():
    for arch, expected in (
        ('vit_tiny_patch16_224', {'cls_token', 'pos_embed'}),
        ('convnext_atto', {'stages.0.blocks.0.gamma'}),
        ('resnet50_gn', {'bn1.weight', 'layer1.0.bn1.bias'}),
    ):
        model = timm.create_model(arch)
        excluded = {id(p) for p in no_decay(nn.Sequential(model, nn.Linear(3, 2)))}
        names = {name for name, p in model.named_parameters() if id(p) in excluded}
        assert expected <= names
        assert not [name for name in names if name.endswith('weight') and model.get_parameter(name).ndim > 1]
        assert all(id(p) in excluded for name, p in model.named_parameters() if name.endswith('bias'))


@pytest.mark.parametrize('name', ['adamw', '', 'Adam'])
def test_unknown_names(name):
    with pytest.raises(UserError, match='expected adam, sgd'):
        make_optimizer(name)
