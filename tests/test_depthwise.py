"Faster gradients of depthwise convolutions: the same as PyTorch's, and only where those are slow"

from contextlib import nullcontext

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from fungi_fastai.models import depthwise
from fungi_fastai.models.convmixer import convmixer
from fungi_fastai.models.depthwise import FastDepthwise, _DepthwiseConv, faster_gradients

channels = 6


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def images(height, width, dtype=torch.float64, n_channels=channels):
    return torch.randn(2, n_channels, height, width, dtype=dtype).contiguous(memory_format=torch.channels_last)


def outputs_and_gradients(conv, *tensors):
    tensors = [tensor.clone().requires_grad_() for tensor in tensors]
    output = conv(*tensors)
    output.backward(torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output))
    return [output.detach(), *(tensor.grad for tensor in tensors)]


def is_faster(output):
    return type(output.grad_fn).__name__ == '_DepthwiseConvBackward'


@pytest.mark.parametrize('stride', [(1, 1), (2, 2), (3, 1)])
@pytest.mark.parametrize('kernel', [(3, 3), (5, 5), (7, 7), (4, 4), (1, 5), (5, 1), (9, 6)])
@pytest.mark.parametrize('size', [(4, 4), (11, 8), (5, 17), (2, 1)])
def test_gradients_are_those_of_pytorch(size, kernel, stride):
    x, bias = images(*size), torch.randn(channels, dtype=torch.float64)
    weight = torch.randn(channels, 1, *kernel, dtype=torch.float64)
    for padding in ((0, 0), (kernel[0] // 2, kernel[1] // 2), (kernel[0] - 1, kernel[1] - 1), (9, 9)):
        if any(side + 2 * edge < length for side, edge, length in zip(size, padding, kernel, strict=True)):
            continue  # the kernel does not fit
        expected = outputs_and_gradients(
            lambda *a, p=padding: F.conv2d(*a, stride=stride, padding=p, groups=channels), x, weight, bias
        )
        found = outputs_and_gradients(lambda *a, p=padding: _DepthwiseConv.apply(*a, stride, p), x, weight, bias)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize('padding', [0, 2, (2, 1), 'same', 'valid'])
@pytest.mark.parametrize('dtype, tolerance', [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_the_mode_takes_over_wide_kernels(padding, dtype, tolerance):
    x, weight = images(12, 12, torch.float32), torch.randn(channels, 1, 5, 5)

    def conv(x, weight):
        with torch.autocast('cpu', dtype, enabled=dtype == torch.bfloat16):
            return F.conv2d(x, weight, padding=padding, groups=channels)

    expected = outputs_and_gradients(conv, x, weight)
    with FastDepthwise():
        output = conv(x, weight.clone().requires_grad_())
        found = outputs_and_gradients(conv, x, weight)
    assert is_faster(output) and output.dtype == dtype
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype and float((one - other).norm()) <= tolerance * float(other.norm())


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_everything_else_runs_as_always():
    x, wide = images(12, 12, torch.float32).requires_grad_(), torch.randn(channels, 1, 5, 5, requires_grad=True)
    cases = dict(
        narrow=(x, torch.randn(channels, 1, 3, 3, requires_grad=True), dict(groups=channels)),
        strided=(x, torch.randn(channels, 1, 3, 3, requires_grad=True), dict(groups=channels, stride=2)),
        dilated=(x, wide, dict(groups=channels, dilation=2, padding='same')),
        dense=(x, torch.randn(4, channels, 5, 5, requires_grad=True), {}),
        multiplied=(x, torch.randn(2 * channels, 1, 5, 5, requires_grad=True), dict(groups=channels)),
        frozen=(x, wide.detach(), dict(groups=channels)),
        even=(x, torch.randn(channels, 1, 4, 4, requires_grad=True), dict(groups=channels, padding='same')),
        double=(x.double(), wide.double(), dict(groups=channels)),
        one=(images(9, 9, torch.float32, 1), torch.randn(1, 1, 5, 5, requires_grad=True), {}),
        unbatched=(x[0], wide, dict(groups=channels)),
    )
    with FastDepthwise():
        for name, (images_, weight, options) in cases.items():
            output = F.conv2d(images_, weight, **options)
            assert not is_faster(output) and torch.equal(output, F.conv2d(images_, weight, **options)), name
        with torch.no_grad():
            assert F.conv2d(x, wide, groups=channels).grad_fn is None
        assert is_faster(F.conv2d(input=x, weight=wide, groups=channels))
        with torch.autocast('cpu', torch.bfloat16):
            assert is_faster(F.conv2d(cases['strided'][0], cases['strided'][1], groups=channels, stride=2))
            assert not is_faster(F.conv2d(x.detach(), cases['strided'][1], groups=channels, stride=2))
        with pytest.raises(RuntimeError, match='expected input'):
            F.conv2d(images(9, 9, torch.float32, 5), wide, groups=channels)


def test_where_it_is_used(monkeypatch):
    monkeypatch.setattr('platform.machine', lambda: 'x86_64')
    assert isinstance(faster_gradients(torch.device('cpu')), FastDepthwise)
    assert isinstance(faster_gradients(torch.device('meta')), nullcontext)
    with torch.no_grad():
        assert isinstance(faster_gradients(torch.device('cpu')), nullcontext)
    monkeypatch.setattr('platform.machine', lambda: 'aarch64')
    assert isinstance(faster_gradients(torch.device('cpu')), nullcontext)


@pytest.mark.parametrize('name', ['mobilenetv3_small_050', 'tf_efficientnet_lite0', 'convnext_atto', 'convmixer'])
def test_networks_learn_the_same(name, monkeypatch):
    "The weights after steps of training, with and without: only rounding differs"

    def trained(context):
        torch.manual_seed(1)
        model = convmixer(3, dim=16, depth=2) if name == 'convmixer' else timm.create_model(name, num_classes=3)
        model = model.to(memory_format=torch.channels_last)
        x, y = images(64, 64, torch.float32, 3), torch.tensor([0, 2])
        model(x)  # in training mode, so that BatchNorms have statistics
        optimizer = torch.optim.SGD(model.eval().parameters(), 1e-3)
        for _ in range(2):
            with context():
                loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return [p.detach() for p in model.parameters()]

    faster, weight_grad = [], depthwise._weight_grad
    monkeypatch.setattr(depthwise, '_weight_grad', lambda *a: faster.append(a) or weight_grad(*a))
    plain, none_yet = trained(nullcontext), len(faster) == 0
    fast = trained(FastDepthwise)
    assert none_yet and faster
    for a, b in zip(plain, fast, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
