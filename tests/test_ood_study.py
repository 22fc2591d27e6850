"OOD study: no model sees the held-out classes, and the same call gives the same scores"

import json

import numpy as np
import pandas as pd
import pytest
from conftest import tiny

from fungi_fastai.core.errors import UserError
from fungi_fastai.training.recipe import Recipe

pytestmark = pytest.mark.usefixtures('place', 'ready')


@pytest.fixture(scope='module')
def study_and_recipe(photos, home, ready, tmp_path_factory):
    from fungi_fastai.studies.ood import ood_study

    recipe = Recipe(name='flowers', source=str(photos), group=r'([^/]+)_[^_]+$', **tiny)
    return ood_study(recipe, 2, tmp_path_factory.mktemp('ood study') / 'run', progress=False), recipe


def test_held_out_classes_are_in_no_set(study_and_recipe):
    study, recipe = study_and_recipe
    run = study.run
    assert len(study.held_out) == 2 and len(run.classes) == 3 and not set(run.classes) & set(study.held_out)
    assert (
        set(run.items.split[run.items.label.isin(study.held_out)]) == {''}
        and not run.predictions.label.isin(study.held_out).any()
    )
    known = study.images[study.images.known]
    assert known['name'].tolist() == run.items['name'][run.items.split == 'test'].tolist()
    assert (~study.images.known).sum() == run.items.label.isin(study.held_out).sum()
    assert study.images.predicted.isin(run.classes).all() and study.images.groupby('split_group').size().max() == 2
    saved = run.predictions[run.predictions.split == 'test']
    assert known.confidence.to_numpy() == pytest.approx(saved.confidence.to_numpy(), abs=1e-4)
    assert known.max_softmax.to_numpy() == pytest.approx(1 - known.confidence.to_numpy(), abs=1e-6)


def test_the_energy_is_of_the_logits(study_and_recipe):
    "The energy of probabilities is 0, so it must be that of the logits"
    study, _ = study_and_recipe
    assert (
        study.images.energy.abs().max() > 1e-3
        and np.isfinite(study.images[['energy', 'neighbours', 'mahalanobis']].to_numpy()).all()
    )


def test_written_files(study_and_recipe):
    study, _ = study_and_recipe
    saved = json.loads((study.run.folder / 'ood.json').read_text('utf8'))
    assert saved['held_out'] == study.held_out and [r['score'] for r in saved['scores']] == [
        'max_softmax',
        'energy',
        'neighbours',
        'mahalanobis',
    ]
    assert sum(sum(c.values()) for c in saved['predicted_as'].values()) == (~study.images.known).sum()
    assert len(pd.read_csv(study.run.folder / 'ood.csv')) == len(study.images)
    assert ((study.table.auroc_low <= study.table.auroc) & (study.table.auroc <= study.table.auroc_high)).all()


def test_the_same_call_continues_and_another_is_refused(study_and_recipe):
    from fungi_fastai.studies.ood import ood_study

    study, recipe = study_and_recipe
    again = ood_study(recipe, study.held_out, study.run.folder, progress=False)
    pd.testing.assert_frame_equal(again.images, study.images, atol=1e-4)
    with pytest.raises(UserError, match='should be held out'):
        ood_study(recipe, study.run.classes[:1], study.run.folder, progress=False)


@pytest.mark.parametrize(
    'held_out, message',
    [(4, 'leave at least two'), (0, 'at least one'), (['unicorn'], "no class 'unicorn'"), ([], 'at least one')],
)
def test_mistakes(study_and_recipe, held_out, message):
    from fungi_fastai.studies.ood import choose_held_out

    with pytest.raises(UserError, match=message):
        choose_held_out(study_and_recipe[0].run.items.assign(split='train'), held_out, 0)


def test_the_figure(study_and_recipe):
    assert len(study_and_recipe[0].figure().axes) == 4
