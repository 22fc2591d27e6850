"Class activation maps, prototypes, worst predictions, nearest images, and the shortcut check"

import base64
import io
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from fungi_fastai.core.errors import MissingFileError, UserError

with warnings.catch_warnings():  # fastai's own import warns with today's torch and pandas
    warnings.simplefilter('ignore')
    import fungi_fastai.evaluation.explain  # noqa: F401
    from fungi_fastai.models.convmixer import linear_head
    from fungi_fastai.models.networks import make_backbone
    from fungi_fastai.training.fit import make_learner
from fungi_fastai.data.policies import policies
from fungi_fastai.evaluation import saliency
from fungi_fastai.evaluation.explain import as_seen, feature_index, grad_cam, hide, nearest, prototypes, shortcut_check
from fungi_fastai.evaluation.gallery import gallery, thumbnail, top_losses
from fungi_fastai.evaluation.neighbors import FeatureIndex
from fungi_fastai.evaluation.saliency import class_maps, overlay
from fungi_fastai.training.recipe import Recipe

red, blue = (200, 50, 50), (50, 50, 200)
network = dict(
    arch='convmixer_16_1_k3_p4',
    pretrained=False,
    size=48,
    bs=16,
    augment=policies['none'],
    precision='fp32',
    device='cpu',
    cache=False,
    seed=1,
)


def built(arch, size=64, maps=False):
    "A network of backbone and head whose head knows something"
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of making it
        backbone, _ = make_backbone(arch, pretrained=False, maps=maps, size=size)
    model = nn.Sequential(backbone, linear_head(backbone.features, 3, pool=backbone.maps))
    nn.init.normal_(model[1].linear.weight)
    return model


def drawn(folder, draw, count=96, copies=1):
    "An items table of drawn images of two classes, with a split"
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(count):
        label = 'ab'[i % 2]
        file = folder / f'{i:03}.png'
        pixels, at = draw(rng, label)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file)
        unit = i // 2 // copies * 2 + i % 2
        rows.append(
            dict(
                path=str(file),
                name=file.name,
                label=label,
                group=f'{unit:03}',
                cluster='',
                problem='',
                split='train' if i < count * 0.6 else 'valid' if i < count * 0.75 else 'test',
                at=at,
            )
        )
    return pd.DataFrame(rows)


def trained(items, epochs=8, **changes):
    learn = make_learner(Recipe(**{**network, **changes}), items, progress=False)
    with learn.no_bar(), learn.no_logging():
        learn.fit(epochs, 2e-2)
    return learn


def noise(rng):
    return rng.normal(128, 12, (48, 48, 3))


def draw_square(rng, label):
    "A red or a blue square at any place, and a grey one for nothing"
    pixels = noise(rng)
    top, left = rng.integers(0, 24), rng.choice([0, 24]) + rng.integers(0, 9)
    other = 44 - left - 12
    pixels[top : top + 12, max(0, other) : max(0, other) + 12] = 90
    pixels[top : top + 14, left : left + 14] = red if label == 'a' else blue
    return pixels, (int(top), int(left))


def draw_border(rng, label):
    "The frame tells the class; what is in the middle doesn't"
    pixels = (
        np.zeros((48, 48, 3))
        + np.array((90, 140, 60) if label == 'a' else (150, 110, 60))
        + rng.normal(0, 12, (48, 48, 3))
    )
    pixels[8:40, 8:40] = rng.normal(128, 40, 3)
    return pixels, (0, 0)


def draw_middle(rng, label):
    "The middle tells the class; the frame doesn't"
    pixels = np.zeros((48, 48, 3)) + rng.normal(128, 40, 3) + rng.normal(0, 12, (48, 48, 3))
    pixels[10:38, 10:38] = red if label == 'a' else blue
    return pixels, (0, 0)


@pytest.fixture(scope='module')
def squares(tmp_path_factory):
    return drawn(tmp_path_factory.mktemp('squares'), draw_square)


@pytest.fixture(scope='module')
def learn(squares, home):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        return trained(squares)


# --- class maps

places = {
    'resnet18': 'layer4',
    'torchvision:resnet18': 'layer4',
    'mobilenetv2_035': 'bn2',
    'efficientnet_b0': 'bn2',
    'convnext_atto': 'norm_pre',
    'torchvision:squeezenet1_1': 'features',
    'torchvision:densenet121': 'features',
    'convmixer_16_2': '',
    'vit_tiny_patch16_224': 'blocks.11.norm1',
    'deit_tiny_distilled_patch16_224': 'blocks.11.norm1',
    'swin_tiny_patch4_window7_224': 'norm',
}


@pytest.mark.parametrize('arch', places)
def test_maps_of_many_networks(arch):
    size = 112 if 'window7' in arch else 63 if 'convmixer' in arch else 64
    model, x = built(arch, size), torch.randn(2, 3, size, size)
    model.train()
    model[0].requires_grad_(False)
    model.to(memory_format=torch.channels_last)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes, requires_grad = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    strides = [p.stride() for p in model.parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        cams = class_maps(model, x)
        one = class_maps(model, x, [2, 0])
    assert (
        cams.shape == (2, size, size)
        and cams.dtype == np.float32
        and cams.min() >= 0
        and set(cams.max((1, 2))) <= {0, 1}
    )
    assert cams.std((1, 2)).max() > 0.05
    assert not np.array_equal(one, cams) and np.array_equal(class_maps(model, x, [2, 0]), one)
    assert [m.training for m in model.modules()] == modes and [
        p.requires_grad for p in model.parameters()
    ] == requires_grad
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    assert [p.stride() for p in model.parameters()] == strides and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    model.eval()
    with saliency.preserve_state(model):
        layer = saliency._find_layer(model, x[:1], 0)
    assert next(n for n, m in model.named_modules() if m is layer.layer) == '.'.join(
        filter(None, ['0', places[arch] and 'model', places[arch]])
    )


@pytest.mark.parametrize('arch', ['resnet18', 'swin_tiny_patch4_window7_224'])
def test_a_backbone_of_maps_gives_the_same(arch):
    x = torch.randn(1, 3, 112, 112)
    model, mapped = built(arch, 112), built(arch, 112, maps=True)
    mapped.load_state_dict(model.state_dict())
    assert np.allclose(class_maps(model, x), class_maps(mapped, x), atol=1e-4)


def test_grad_cam_by_its_definition():
    "Beside the formula, for tokens: mean gradient of each channel, times its activation, negative parts cut off"
    model = built('vit_tiny_patch16_224').eval()
    x = torch.randn(1, 3, 64, 64)
    kept = []
    hook = model[0].model.blocks[-1].norm1.register_forward_hook(lambda _m, _i, out: kept.append(out))
    score = model(x)[0, 1]
    hook.remove()
    (gradient,) = torch.autograd.grad(score, kept[0])
    expected = (gradient[0, 1:].mean(0) * kept[0][0, 1:]).sum(1).relu().view(1, 1, 4, 4)
    expected = nn.functional.interpolate(expected, (64, 64), mode='bilinear')[0, 0].detach().numpy()
    assert np.allclose(class_maps(model, x, 1)[0], expected / expected.max(), atol=1e-4)


@pytest.mark.parametrize(
    'arch, first',
    {
        'resnet18': 0,
        'mobilenetv2_035': 0,
        'convnext_atto': 15.5,
        'tf_mobilenetv3_small_minimal_100': 31,
        'torchvision:densenet121': 14,
        'swin_tiny_patch4_window7_224': 15.5,
        'pvt_v2_b0': 0,
    }.items(),
)
def test_where_cells_lie(arch, first):
    "By hand, from the strides and paddings of each"
    model, x = built(arch, 224).eval(), torch.zeros(1, 3, 224, 224)
    with saliency.preserve_state(model):
        layer = saliency._find_layer(model, x, 0)
    assert layer.grids == (saliency._Grid(first, 32), saliency._Grid(first, 32))


@pytest.mark.parametrize('arch', ['resnet18', 'tf_mobilenetv3_small_minimal_100', 'convmixer_16_2'])
@pytest.mark.parametrize('at', [(63, 95), (127, 63)])
def test_a_spot_is_seen_where_it_is(arch, at):
    "Measured: in a network that only averages, the answer to a spot is highest where the spot is"
    size = 189 if 'convmixer' in arch else 192
    model = built(arch, size).double().eval()
    with torch.no_grad():
        for m in model[0].modules():
            if isinstance(m, nn.Conv2d):
                m.weight.fill_(1 / m.weight[0].numel())
                if m.bias is not None:
                    m.bias.zero_()
    x = torch.zeros(1, 3, size, size, dtype=torch.double)
    x[:, :, at[0] - 5 : at[0] + 5, at[1] - 5 : at[1] + 5] = 1
    with saliency.preserve_state(model):
        layer = saliency._find_layer(model, torch.rand_like(x), 0)
    kept = []
    hook = layer.layer.register_forward_hook(lambda _m, _i, out: kept.append(layer.layout.split(out).sum(1).abs()))
    with torch.no_grad():
        model(x)
        model(torch.zeros_like(x))
    hook.remove()
    spot = saliency._upsample((kept[0] - kept[1]).abs(), (size, size), layer.grids)[0]
    peak = (spot == spot.max()).nonzero().double().mean(0)
    assert (peak - torch.tensor(at)).abs().max() <= layer.grids[0].distance / 3, (
        peak,
        at,
    )  # a stretched map of a ResNet is half a cell off


def test_images_that_are_not_square():
    assert class_maps(built('resnet18'), torch.randn(1, 3, 64, 100)).shape == (1, 64, 100)


def test_a_layer_called_twice():
    "The last call counts, where the first gives a map of another size"

    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.act, self.last = (
                nn.Conv2d(3, 8, 3, 2, 1),
                nn.Conv2d(8, 8, 3, 2, 1),
                nn.ReLU(inplace=True),
                nn.Linear(8, 2),
            )

        def forward(self, x):
            return self.last(self.act(self.second(self.act(self.first(x)))).mean((2, 3)))

    torch.manual_seed(0)
    model, x = Shared().eval(), torch.randn(2, 3, 32, 32)
    with saliency.preserve_state(model):
        layer = saliency._find_layer(model, x[:1], 0)
    assert layer.layer is model.act and layer.call == 2
    assert class_maps(model, x).max() == 1


def test_networks_without_maps():
    with pytest.raises(UserError, match='no class activation map'):
        class_maps(
            nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(1, 3, 8, 8)
        )
    with pytest.raises(UserError, match='3 targets for 2 images'):
        class_maps(built('convmixer_16_1'), torch.randn(2, 3, 63, 63), [0, 1, 2])


def test_the_map_lies_on_what_decides(learn, squares):
    test_items = squares[squares.split == 'test']
    cams = grad_cam(learn, test_items)
    assert cams.shape == (len(test_items), 48, 48) and cams.dtype == np.float32
    fractions = []
    for cam, (top, left) in zip(cams, test_items['at'], strict=True):
        inside = np.zeros_like(cam, bool)
        inside[max(0, top - 4) : top + 18, max(0, left - 4) : left + 18] = True  # a patch's width around it
        fractions.append(cam[inside].sum() / cam.sum())
    assert np.median(fractions) > 0.6 and min(fractions) > 0.3, fractions  # of 21 % of the area, or less at an edge


def test_the_map_changes_with_the_head(learn, squares):
    "Adebayo et al. 2018: what looks the same for random weights explains nothing"
    test_items, head = squares[squares.split == 'test'], learn.model[1].linear
    known, kept = grad_cam(learn, test_items, test_items.label.tolist()), head.weight.detach().clone()
    maps = []
    for seed in range(3):
        torch.manual_seed(seed)
        with torch.no_grad():
            head.weight.normal_(std=float(kept.std()))
        maps.append(grad_cam(learn, test_items, test_items.label.tolist()))
    with torch.no_grad():
        head.weight.copy_(kept)
    alike = [(known * m).sum() / np.sqrt((known**2).sum() * (m**2).sum() + 1e-9) for m in maps]
    assert np.mean(alike) < 0.8, alike
    assert np.allclose(grad_cam(learn, test_items, test_items.label.tolist()), known)


def test_it_takes_tables_paths_images_and_tensors(learn, squares):
    some = squares.head(3)
    cams = grad_cam(learn, some)
    assert np.array_equal(grad_cam(learn, some.path.tolist()), cams)
    assert np.array_equal(grad_cam(learn, [Image.open(p) for p in some.path]), cams)
    x = next(iter(learn.dls.test_dl(some)))[0]
    assert np.array_equal(grad_cam(learn, x), cams)
    assert np.array_equal(grad_cam(learn, some, ['a', 'b', 'a']), grad_cam(learn, some, [0, 1, 0]))
    assert len(grad_cam(learn, [])) == 0
    assert np.abs(as_seen(learn, some)[0].astype(int) - np.asarray(Image.open(some.path.iat[0]))).max() <= 1
    with pytest.raises(UserError, match='no class'):
        grad_cam(learn, some, 'c')
    with pytest.raises(UserError, match='no class number'):
        grad_cam(learn, some, 2)
    with pytest.raises(MissingFileError):
        grad_cam(learn, ['nowhere.png'])


def test_reduced_precision_and_folding_make_no_difference(squares, place):
    learn = make_learner(Recipe(**{**network, 'arch': 'mobilenetv2_035', 'precision': 'bf16'}), squares, progress=False)
    nn.init.normal_(learn.model[1].linear.weight)
    x = next(iter(learn.dls.test_dl(squares.head(2))))[0]
    plain = class_maps(learn.model.eval(), x, 0)
    with learn.precision.forward_context(x):
        assert learn.precision._folding.is_on
        assert np.allclose(grad_cam(learn, x, 0), plain, atol=1e-6)
        assert learn.precision._folding.is_on
    assert not learn.precision._folding.is_on and not any('forward' in vars(m) for m in learn.model.modules())
    learn.validate()


def test_a_learner_of_plain_fastai(squares, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        from fastai.vision.all import ImageDataLoaders, Resize, vision_learner
    dls = ImageDataLoaders.from_df(
        squares, path='/', fn_col='path', label_col='label', item_tfms=Resize(64), bs=8, num_workers=0, device='cpu'
    )
    made = vision_learner(dls, 'resnet18', pretrained=False, normalize=True)
    with made.no_bar():
        cams = grad_cam(made, squares.path.head(3).tolist(), 'b')
    assert cams.shape == (3, 64, 64)


def test_items_of_a_plain_learner_stay_what_they_are(squares):
    "Its own transforms may need a Path, which text is not"
    from fastai.vision.all import CategoryBlock, DataBlock, ImageBlock, Resize, vision_learner

    paths = [Path(path) for path in squares.path]
    labels = dict(zip(paths, squares.label, strict=True))
    block = DataBlock(
        (ImageBlock, CategoryBlock), get_x=lambda path: path.parent / path.name, get_y=labels.get, item_tfms=Resize(64)
    )
    dls = block.dataloaders(paths, bs=8, num_workers=0, device='cpu')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        made = vision_learner(dls, 'resnet18', pretrained=False, normalize=True)
    assert as_seen(made, paths[:3]).shape == (3, 64, 64, 3)


# --- what is shown


def test_overlay_shows_the_square_of_the_image():
    image = Image.new('RGB', (120, 80), (120, 130, 140))
    cam = np.zeros((32, 32), np.float32)
    cam[:8, :8] = 1
    shown = np.asarray(overlay(image, cam, size=64)).astype(int)
    assert shown.shape == (64, 64, 3) and shown[5, 5].sum() > shown[50, 50].sum() + 60
    assert overlay(image, cam).size == (32, 32) and overlay(np.asarray(image), np.zeros((8, 12))).size == (12, 8)


def test_the_overlays_lightness_rises():
    "So that it is read with any colour vision, and in grey"
    from fungi_fastai.core.figures import colours

    strip = np.asarray(
        overlay(np.full((8, 64, 3), 128, np.uint8), np.tile(np.linspace(0, 1, 64, dtype=np.float32), (8, 1)))
    ).astype(float)
    grey = strip[4] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(grey) > -1).all() and grey[-1] - grey[0] > 60
    assert bytes.fromhex(colours['warn'][1:]) == bytes(saliency._colour_ramp[2].astype(np.uint8))


def test_thumbnails_are_small_and_say_nothing(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (400, 300, 3), np.uint8)
    exif = Image.Exif()
    exif[0x010F], exif[0x8298] = 'Camera of Ms Owner', 'Ms Owner'
    Image.fromarray(pixels).save(tmp_path / 'photo.jpg', exif=exif, comment=b'my garden', quality=95)
    for cam in (None, np.zeros((32, 32))):
        jpeg = thumbnail(tmp_path / 'photo.jpg', cam=cam)
        assert len(jpeg) <= 15_000 and b'Owner' not in jpeg and b'garden' not in jpeg
        with Image.open(io.BytesIO(jpeg)) as image:
            assert not image.getexif() and image.width == image.height and 'comment' not in image.info
    with Image.open(tmp_path / 'photo.jpg') as image:
        assert b'garden' not in thumbnail(image)
    with pytest.raises(UserError, match='2,000'):
        thumbnail(pixels, max_bytes=100)


def test_gallery(tmp_path):
    Image.new('RGB', (30, 20), 'red').save(tmp_path / 'a.png')
    (tmp_path / 'b.jpg').write_text('no image')
    items = pd.DataFrame(dict(path=[str(tmp_path / 'a.png'), str(tmp_path / 'b.jpg'), str(tmp_path / 'c.jpg')]))
    page = gallery(items, ['<i>a</i>\nis b', 'broken "one"', 'gone'], [np.zeros((8, 8)), None, None])
    assert (
        page.count('<figure') == 3
        and page.count('<img') == 2
        and '<i>' not in page
        and 'b.jpg is a text' in page
        and 'There is no file' in page
    )
    for part in page.split('base64,')[1:]:
        assert len(base64.b64decode(part.split('"')[0])) <= 15_000
    assert 'http' not in page and gallery([]).count('<figure') == 0
    with pytest.raises(UserError, match='1 captions'):
        gallery(items, ['one'])


def test_top_losses(small_run):
    found = top_losses(small_run, k=4)
    held = small_run.predictions[small_run.predictions.split == 'test']
    own = np.array([row[f'p_{row["label"]}'] for _, row in held.iterrows()])
    assert found.kind.tolist() == ['worst'] * 4 + ['best'] * 4 and found['rank'].tolist() == [1, 2, 3, 4] * 2
    assert np.allclose(found.own[:4], np.sort(own)[:4]) and np.allclose(found.own[4:], np.sort(own)[::-1][:4])
    assert np.allclose(found.loss, -np.log(found.own)) and set(found.path) <= set(held.path)
    assert len(top_losses(held, k=1000)) == len(held) and not top_losses(held, k=1000).path.duplicated().any()
    assert len(top_losses(held.head(1))) == 1
    with pytest.raises(UserError, match='does not know'):
        top_losses(held.assign(label='toadstool'))
    with pytest.raises(UserError, match='No image'):
        top_losses(held.assign(label=None))
    with pytest.raises(UserError, match='p_<class>'):
        top_losses(held[['label', 'split']])


def test_fastais_own_top_losses_still_work(small_run):
    from fastai.interpret import ClassificationInterpretation

    learn = small_run.learner
    grad_cam(learn, small_run.items.head(2))
    with learn.no_bar():
        losses, places = ClassificationInterpretation.from_learner(learn).top_losses(3)
    assert len(losses) == len(places) == 3 and losses[0] >= losses[1]


# --- typical and nearest images


def test_prototypes_are_the_medoids_of_specimens(learn, squares):
    rng = np.random.default_rng(0)
    seen = rng.normal(size=(len(squares), 6)).astype(np.float32)
    items = squares.assign(group=[f'{i // 6}{label}' for i, label in enumerate(squares.label)])
    found = prototypes(learn, items, 2, seen)
    assert found.label.tolist() == ['a', 'a', 'b', 'b'] and found['rank'].tolist() == [1, 2, 1, 2]
    used = items[items.split == 'train']
    for label, rows in found.groupby('label'):
        own = np.flatnonzero((items.split == 'train') & (items.label == label))
        unit = seen[own] / np.linalg.norm(seen[own], axis=1, keepdims=True)
        assert (
            rows.path.iat[0] == items.path.iat[own[(1 - unit @ unit.T).mean(1).argmin()]]
        )  # the smallest mean distance to the others
        groups = used.set_index('path').group[rows.path]
        assert groups.nunique() == 2 and (rows.distance.diff().dropna() >= 0).all()
    assert len(prototypes(learn, squares[['path', 'label']].head(4), 1)) == 2
    with pytest.raises(UserError, match='no labelled'):
        prototypes(learn, squares.assign(label=None))


def test_nearest_against_brute_force(learn, squares):
    index, queries = feature_index(learn), squares[squares.split == 'test'].head(5)
    assert (
        index.features.dtype == np.float16
        and len(index) == (squares.split == 'train').sum()
        and index.about['arch'] == network['arch']
    )
    found = nearest(index, queries, k=4, learn=learn)
    from fungi_fastai.training.features import backbone_features

    a, b = (backbone_features(learn, t).astype(float) for t in (queries, squares[squares.split == 'train']))
    distance = 1 - (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T
    assert np.allclose(found.distance.to_numpy().reshape(5, 4), np.sort(distance, 1)[:, :4], atol=2e-3)
    assert found.equals(nearest(learn, queries.path.tolist(), k=4)) and found.equals(nearest(index, a, k=4))
    assert len(nearest(index, a[0], k=10_000)) == len(index)
    with pytest.raises(UserError, match='pass learn='):
        nearest(index, queries)
    with pytest.raises(UserError, match='k is 0'):
        index.nearest(a, 0)


def test_index_over_many_blocks_and_with_ties():
    seen = np.eye(4, dtype=np.float32)[np.arange(20_000) % 4]
    index = FeatureIndex.of(seen, range(20_000), np.arange(20_000) % 4)
    found = index.nearest(seen[1:3] * 7, k=3)
    assert found.label.tolist() == ['1'] * 3 + ['2'] * 3 and np.allclose(found.distance, 0)
    assert index.features.nbytes == 20_000 * 4 * 2


def test_index_is_kept_as_safetensors(tmp_path):
    index = FeatureIndex.of(
        np.random.default_rng(0).normal(size=(7, 3)), ['ä b.jpg'] * 7, ['Boletus edulis'] * 7, arch='resnet18', size=64
    )
    again = FeatureIndex.load(index.save(tmp_path / 'deep' / 'index.safetensors'))
    assert (
        np.array_equal(again.features, index.features)
        and again.names == index.names
        and again.about == dict(arch='resnet18', size='64')
    )
    from safetensors.numpy import save_file

    save_file(dict(features=index.features), tmp_path / 'other.safetensors')
    with pytest.raises(UserError, match='no complete index'):
        FeatureIndex.load(tmp_path / 'other.safetensors')
    with pytest.raises(UserError, match='not numbers'):
        FeatureIndex.of(np.full((1, 2), np.nan), ['a'], ['a'])
    with pytest.raises(UserError, match='expected one for each row'):
        FeatureIndex(np.zeros((2, 2)), ['a'], ['a'])


def test_importing_maps_galleries_and_index_is_light():
    import json
    import subprocess
    import sys

    modules = 'from fungi_fastai.evaluation import gallery, neighbors'
    code = f'import sys, json; {modules}; print(json.dumps(sorted(sys.modules)))'
    loaded = json.loads(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout)
    assert not {'torch', 'fastai', 'captum', 'matplotlib', 'fungi_fastai.training'} & set(loaded)


# --- the shortcut check


def test_a_planted_shortcut_is_detected(tmp_path, place):
    items = drawn(tmp_path / 'border', draw_border)
    learn = trained(items)
    found = shortcut_check(learn, items[items.split == 'test'])
    accuracy = found.set_index('view').accuracy
    assert found.attrs['shortcut'] == 'yes' and 'background' in found.attrs['sentence'], found.attrs
    assert accuracy['whole image'] > 0.9 and accuracy['centre hidden'] > 0.9 and accuracy['border hidden'] < 0.75
    assert accuracy['always the most common class'] == found.attrs['chance'] == 0.5


def test_where_none_is_planted_none_is_found(tmp_path, place):
    items = drawn(tmp_path / 'middle', draw_middle)
    learn = trained(items)
    modes = [m.training for m in learn.model.modules()]
    found = shortcut_check(learn, items[items.split == 'test'])
    accuracy = found.set_index('view').accuracy
    assert found.attrs['shortcut'] == 'no' and 'middle' in found.attrs['sentence'], found.attrs
    assert accuracy['whole image'] > 0.9 and accuracy['border hidden'] > 0.9 and accuracy['centre hidden'] < 0.75
    assert [m.training for m in learn.model.modules()] == modes
    assert shortcut_check(learn, items[items.split == 'test']).equals(found)


@pytest.mark.parametrize(
    'scores, spread, shortcut',
    [
        ((0.9, 0.8, 0.3), 0.02, 'yes'),
        ((0.9, 0.8, 0.8), 0.02, 'partly'),
        ((0.9, 0.3, 0.8), 0.02, 'no'),
        ((0.9, 0.3, 0.3), 0.02, 'unclear'),
        ((0.3, 0.3, 0.3), 0.1, 'unclear'),
        ((0.9, 0.5, 0.9), 0.02, 'no'),
        ((0.9, 0.8, 0.75), 0.1, 'partly'),
    ],
)
def test_conclusions(scores, spread, shortcut):
    from fungi_fastai.evaluation import explain

    table = pd.DataFrame(
        [
            dict(view=v, accuracy=s, low=s - spread, high=s + spread, images=100)
            for v, s in zip('wcb', scores, strict=True)
        ]
    )
    differences = np.random.default_rng(0).normal(scores[1] - scores[2], spread, 1000)
    found = explain._interpret(table, differences, chance=0.25)
    assert found['shortcut'] == shortcut and f'{scores[1]:.0%}' in found['sentence'] and '25%' in found['sentence']


def test_intervals_are_of_specimens(learn, squares):
    "Twelve photos of each of a few specimens say less than as many specimens"
    from fungi_fastai.evaluation import explain

    rng = np.random.default_rng(0)
    correct = np.repeat(rng.random(20) < 0.6, 12)
    width = []
    for groups in (np.arange(240), np.repeat(np.arange(20), 12)):
        low, high = explain._resample(groups, dict(whole=correct), 2000, 0)['whole'].interval
        assert low < correct.mean() < high
        width.append(high - low)
    assert width[1] == pytest.approx(width[0] * 12**0.5, rel=0.2)
    assert explain._resample(np.arange(10), dict(whole=np.ones(10)), 100, 0)['whole'].interval == pytest.approx(
        (0.025**0.1, 1)
    )


def test_photos_of_one_specimen_count_as_one(learn, squares):
    test_items = squares[squares.split == 'test']
    alone, together = (
        shortcut_check(learn, test_items.assign(group=group)).set_index('view')
        for group in ('', [f'{i % 4}' for i in range(len(test_items))])
    )
    assert (alone.accuracy == together.accuracy).all()
    assert together.low['whole image'] < alone.low['whole image'] <= alone.accuracy['whole image']
    bare = shortcut_check(learn, test_items[['path', 'label']])  # a table without specimens
    assert (bare.low.to_numpy() == alone.low.to_numpy()).all()


def test_hiding(learn, squares):
    x = torch.rand(2, 3, 48, 64)
    for region, fraction in (('centre', 0.5), ('border', 0.5), ('centre', 0.2), ('border', 0.8)):
        hidden = hide(x, region, fraction)
        assert float((hidden == 0).float().mean()) == pytest.approx(fraction, abs=0.03)
        assert (hidden[:, :, 0, 0] == 0).all() == (region == 'border') and (hidden[:, :, 24, 32] == 0).all() == (
            region == 'centre'
        )
    blurred = hide(x, 'border', fill='blur')
    assert not (blurred == 0).any() and torch.equal(blurred[:, :, 24, 32], x[:, :, 24, 32])
    for wrong, match in (
        (dict(region='middle'), 'centre'),
        (dict(region='centre', fraction=1), 'fraction'),
        (dict(region='centre', fill='pink'), 'fill'),
    ):
        with pytest.raises(UserError, match=match):
            hide(x, **wrong)
    for items, match in ((squares.assign(label='c'), 'does not know'), (squares.head(0), 'no labelled')):
        with pytest.raises(UserError, match=match):
            shortcut_check(learn, items)
    with pytest.raises(UserError, match='mean'):
        shortcut_check(learn, squares, fill='pink')
