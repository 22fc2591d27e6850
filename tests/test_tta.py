"Test-time augmentation: the views, and their mean"

import numpy as np
import pandas as pd
import pytest

from fungi_fastai.core.errors import UserError

pytestmark = pytest.mark.usefixtures('place', 'ready')


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
