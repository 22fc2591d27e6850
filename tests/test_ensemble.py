"Several runs in one bundle"

import numpy as np
import pytest
from conftest import tiny

from fungi_fastai.core.errors import UserError


@pytest.fixture(scope='module')
def other_run(home, small_run, photos):
    "A run with the split of `small_run` and another network"
    from fungi_fastai import train_flowers

    changes = {**tiny, 'arch': 'convmixer_24_1', 'hidden': 8}
    return train_flowers(photos, out=home / 'run of another network', progress=False, **changes)


def test_a_bundle_predicts_the_calibrated_mean(fungi, small_run, other_run, photos, tmp_path):
    from fungi_fastai.deploy.predictor import Predictor
    from fungi_fastai.evaluation.calibration import apply_temperature

    options = ('--examples', 8, '--references', 2, '--false-alarm-rate', 0)
    fungi('export', small_run.folder, other_run.folder, '--out', tmp_path / 'bundle', *options)
    files = sorted(photos.rglob('*.jpg'))[:8]
    columns = [f'p_{name}' for name in small_run.classes]
    mean = np.mean([run.predict(files)[columns].to_numpy() for run in (small_run, other_run)], 0)
    predictor = Predictor.load(tmp_path / 'bundle')
    expected = apply_temperature(mean, predictor.bundle.temperature)
    for backend in (predictor, Predictor.load(tmp_path / 'bundle', 'torch')):
        assert np.abs(backend.classify(files)[0] - expected).max() < 0.01
    about = predictor.bundle
    assert about.parity['from_evaluation'] < 0.01
    assert [one['accuracy'] for one in about.metrics['members']] == [
        run.metrics['accuracy'] for run in (small_run, other_run)
    ]
    card = (tmp_path / 'bundle/README.md').read_text('utf8')
    assert 'an ensemble' in card and card.count(' --out RUN') == 2 and 'fungi export RUN1 RUN2' in card
    heat = predictor.explain(predictor.read(files[0])[None])[0]
    assert np.ptp(heat) > 0  # Grad-CAM of the first network's last maps


def test_runs_that_do_not_belong_together(fungi, small_run, other_run, tmp_path):
    from fungi_fastai.deploy.ensemble import Ensemble
    from fungi_fastai.runs.run import Run

    def refused(change):
        changed = Run(other_run.folder)
        change(changed)
        with pytest.raises(UserError) as caught:
            Ensemble([small_run, changed])
        return str(caught.value)

    def set_recipe(**changes):
        return lambda run: setattr(run, 'recipe', run.recipe.but(**changes))

    assert 'size=64' in refused(set_recipe(size=64)) and 'resize=pad' in refused(set_recipe(resize='pad'))
    assert 'average-folds' in refused(lambda run: run.metrics.pop('calibration'))
    assert 'moss' in refused(lambda run: setattr(run, 'classes', ['moss', *run.classes[1:]]))
    assert 'other images' in refused(lambda run: setattr(run, 'predictions', run.predictions.iloc[1:]))
    fungi('export', small_run.folder, other_run.folder, code=2)
    assert 'nothing' in fungi('export', small_run.folder, tmp_path / 'nothing', '--out', tmp_path / 'b', code=2).err
    assert not (tmp_path / 'b').exists()
