"Test-time augmentation and several photos: views, pooling, and the gain"

import numpy as np
import pandas as pd
import pytest

from fungi_fastai.core.errors import UserError

pytestmark = pytest.mark.usefixtures('place', 'ready')


def predictions(label, probs, group):
    classes = np.array(list('abc'))
    table = pd.DataFrame(
        dict(
            name=[f'{i}.jpg' for i in range(len(label))],
            label=label,
            group=group,
            predicted=classes[np.argmax(probs, 1)],
        )
    )
    return table.join(pd.DataFrame(np.asarray(probs, float), columns=['p_a', 'p_b', 'p_c']))


def test_views_are_those_that_the_policy_allows():
    from fungi_fastai.evaluation.tta import View, make_views

    assert make_views('flips', 'none') == [View()] and make_views('flips', 'field') == [View(), View(flip=True)]
    every = make_views('flips', 'above')
    assert len(set(every)) == 8 and every[0] == View() and all(v.scale == 1 for v in every)
    more = make_views(6, 'field', seed=1)
    assert more == make_views(6, 'field', seed=1) != make_views(6, 'field', seed=2) and len(more) == 6
    assert all(0.89 < v.scale < 1 for v in more[2:]) and make_views(1, 'above') == [View()]
    for wrong in (0, 'many'):
        with pytest.raises(UserError, match='at least 1'):
            make_views(wrong)


def test_the_eight_views_are_the_eight_symmetries_of_a_square():
    import torch

    from fungi_fastai.evaluation.tta import View, make_views

    x = torch.rand(2, 3, 5, 5)
    seen = {tuple(view(x).flatten().tolist()) for view in make_views('flips', 'above')}
    assert len(seen) == 8 and View()(x) is x
    assert torch.equal(View(flip=True)(x), x.flip(-1)) and torch.equal(View(turns=2)(x), x.flip(-1, -2))
    ramp = torch.linspace(0, 1, 40).expand(1, 1, 40, 40)
    assert (
        View(scale=0.5, across=1.0)(ramp).min() > 0.49
        and View(scale=0.5, across=0.0)(ramp).max() < 0.51
        and View(scale=0.5)(ramp).shape == ramp.shape
    )


def test_one_view_is_the_prediction_of_the_run(small_run):
    from fungi_fastai.evaluation.tta import predict_tta, predict_views

    items = small_run.items.head(11)
    plain = small_run.probabilities(items)
    assert predict_tta(small_run, items, 1) == pytest.approx(plain, abs=1e-6)
    views = predict_views(small_run, items, 'flips')
    assert (
        views.shape == (2, 11, 5) and views[0] == pytest.approx(plain, abs=1e-6) and not np.allclose(views[0], views[1])
    )
    assert predict_tta(small_run.learner, items) == pytest.approx(views.mean(0)) and predict_tta(
        small_run, items, 5
    ).sum(1) == pytest.approx(1)
    assert np.array_equal(predict_tta(small_run, items, 5), predict_tta(small_run, items, 5))
    assert predict_tta(small_run, items.head(3), 5) == pytest.approx(predict_tta(small_run, items, 5)[:3], abs=1e-5)
    assert predict_tta(small_run, items.head(0)).shape == (0, 5)


def test_a_flipped_image_has_the_same_prediction(small_run, tmp_path):
    from PIL import Image, ImageOps

    from fungi_fastai.evaluation.tta import predict_tta

    with Image.open(small_run.items['path'][0]) as image:
        image, flipped = image.convert('RGB'), ImageOps.mirror(image.convert('RGB'))
    image.save(tmp_path / 'a.png')
    flipped.save(tmp_path / 'b.png')
    both = predict_tta(small_run, pd.DataFrame(dict(path=[str(tmp_path / 'a.png'), str(tmp_path / 'b.png')])))
    assert both[0] == pytest.approx(both[1], abs=1e-3)


def test_unreadable_images(small_run, tmp_path):
    from fungi_fastai.data.images import ImageError
    from fungi_fastai.evaluation.tta import predict_tta

    (tmp_path / 'bad.jpg').write_text('no image')
    items, failed = pd.DataFrame(dict(path=[small_run.items['path'][0], str(tmp_path / 'bad.jpg')])), []
    found = predict_tta(small_run, items, on_error=lambda index, error: failed.append(index))
    assert failed == [1] and np.isnan(found[1]).all() and np.isfinite(found[0]).all()
    with pytest.raises(ImageError):
        predict_tta(small_run, items)


def test_pooling_by_hand():
    from fungi_fastai.evaluation.metrics import Evaluation
    from fungi_fastai.evaluation.tta import pool, pool_groups

    table = predictions(
        list('aabc'), [[0.9, 0.1, 0], [0.3, 0.7, 0], [0.2, 0.6, 0.2], [0, 0.5, 0.5]], ['x', 'x', '', '']
    )
    pooled = pool_groups(table)
    assert (
        pooled.group.tolist()[0] == 'x' and pooled.images.tolist() == [2, 1, 1] and pooled.label.tolist() == list('abc')
    )
    assert pooled[['p_a', 'p_b', 'p_c']].to_numpy()[0] == pytest.approx(
        [0.6, 0.4, 0]
    ) and pooled.predicted.tolist() == ['a', 'b', 'b']
    geometric = pool_groups(table, how='geometric')[['p_a', 'p_b', 'p_c']].to_numpy()
    assert geometric[0, 0] / geometric[0, 1] == pytest.approx((0.27 / 0.07) ** 0.5) and geometric.sum(
        1
    ) == pytest.approx(1)
    assert Evaluation.of(pooled).metrics()['accuracy'] == pytest.approx(2 / 3)
    assert len(pool_groups(table.drop(columns='label'))) == 3
    for call in (lambda: pool_groups(table, how='median'), lambda: pool(np.ones((1, 1, 3)), 'median')):
        with pytest.raises(UserError, match="'median'"):
            call()
    with pytest.raises(UserError, match="no column 'specimen'"):
        pool_groups(table, 'specimen')


def many(n=80, photos=3, seed=0):
    rng = np.random.default_rng(seed)
    label = np.repeat(rng.integers(0, 3, n), photos)
    logits = rng.normal(0, 1.2, (n * photos, 3))
    logits[np.arange(n * photos), label] += 1
    return predictions(
        np.array(list('abc'))[label],
        np.exp(logits) / np.exp(logits).sum(1, keepdims=True),
        np.repeat(np.arange(n), photos).astype(str),
    )


def test_the_gain_of_more_photos():
    from fungi_fastai.evaluation.tta import pool_groups, pooling_gain

    table = many()
    gain, pooled = pooling_gain(table), pool_groups(table)
    assert gain.before == pytest.approx((table.label == table.predicted).mean()) and gain.after == pytest.approx(
        (pooled.label == pooled.predicted).mean()
    )
    assert (
        gain.gain == pytest.approx(gain.after - gain.before)
        and 0 < gain.gain_interval[0] < gain.gain < gain.gain_interval[1]
        and gain.n == 80
    )
    assert [point.images for point in gain.curve] == [1, 2, 3] and gain.curve[0].accuracy < gain.curve[
        2
    ].accuracy == pytest.approx(gain.after)
    assert 'gains' in gain.verdict and gain.figure() is not None
    alone = pd.concat([table, table.head(6).assign(group='', name='z')])
    assert pooling_gain(alone).before == gain.before
    with pytest.raises(UserError, match='several'):
        pooling_gain(table.assign(group=''))


def test_the_gain_of_views_is_paired_by_image():
    from fungi_fastai.evaluation.tta import views_gain

    table = many()
    better = table.assign(
        p_a=np.where(table.label == 'a', 1.0, 0),
        p_b=np.where(table.label == 'b', 1.0, 0),
        p_c=np.where(table.label == 'c', 1.0, 0),
    )
    gain = views_gain(table, better.sample(frac=1, random_state=0))
    assert gain.after == 1 and gain.n == 80 and gain.before == pytest.approx((table.label == table.predicted).mean())
    none = views_gain(table, table)
    assert none.gain == 0 and none.gain_interval == (0, 0) and 'not statistically significant' in none.verdict
    with pytest.raises(UserError, match='3 images'):
        views_gain(table, table.iloc[3:])
