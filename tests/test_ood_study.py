"Open set: what is held out is seen by nothing, and the same call finds the same"

import json

import numpy as np
import pandas as pd
import pytest
from conftest import tiny

from fungi_fastai.core.errors import UserError
from fungi_fastai.training.recipe import Recipe

pytestmark = pytest.mark.usefixtures('place', 'ready')


@pytest.fixture(scope='module')
def found(photos, home, ready, tmp_path_factory):
    from fungi_fastai.studies.ood import open_set

    recipe = Recipe(name='flowers', source=str(photos), group=r'([^/]+)_[^_]+$', **tiny)
    return open_set(recipe, 2, tmp_path_factory.mktemp('open set') / 'run', progress=False), recipe


def test_what_is_held_out_is_seen_by_nothing(found):
    found, recipe = found
    run = found.run
    assert len(found.held_out) == 2 and len(run.classes) == 3 and not set(run.classes) & set(found.held_out)
    assert (
        set(run.items.split[run.items.label.isin(found.held_out)]) == {''}
        and not run.predictions.label.isin(found.held_out).any()
    )
    known = found.images[found.images.known]
    assert known['name'].tolist() == run.items['name'][run.items.split == 'test'].tolist()
    assert (~found.images.known).sum() == run.items.label.isin(found.held_out).sum()
    assert found.images.predicted.isin(run.classes).all() and found.images.groupby('split_group').size().max() == 2
    saved = run.predictions[run.predictions.split == 'test']
    assert known.confidence.to_numpy() == pytest.approx(saved.confidence.to_numpy(), abs=1e-4)
    assert known.max_softmax.to_numpy() == pytest.approx(1 - known.confidence.to_numpy(), abs=1e-6)


def test_the_energy_is_of_the_logits(found):
    "Probabilities follow from logits, so the energy must not be that of probabilities, which is 0"
    found, _ = found
    assert (
        found.images.energy.abs().max() > 1e-3
        and np.isfinite(found.images[['energy', 'neighbours', 'mahalanobis']].to_numpy()).all()
    )


def test_what_is_kept(found):
    found, _ = found
    told = json.loads((found.run.folder / 'openset.json').read_text('utf8'))
    assert told['held_out'] == found.held_out and [r['score'] for r in told['scores']] == [
        'max_softmax',
        'energy',
        'neighbours',
        'mahalanobis',
    ]
    assert sum(sum(c.values()) for c in told['called'].values()) == (~found.images.known).sum()
    assert len(pd.read_csv(found.run.folder / 'openset.csv')) == len(found.images)
    assert ((found.table.auroc_low <= found.table.auroc) & (found.table.auroc <= found.table.auroc_high)).all()


def test_the_same_call_continues_and_another_is_refused(found):
    from fungi_fastai.studies.ood import open_set

    found, recipe = found
    again = open_set(recipe, found.held_out, found.run.folder, progress=False)
    pd.testing.assert_frame_equal(again.images, found.images, atol=1e-4)
    with pytest.raises(UserError, match='should be held out'):
        open_set(recipe, found.run.classes[:1], found.run.folder, progress=False)


@pytest.mark.parametrize(
    'held_out, said',
    [(4, 'two have to be left'), (0, 'one at least'), (['unicorn'], "no class 'unicorn'"), ([], 'one at least')],
)
def test_what_cannot_be_held_out(found, held_out, said):
    from fungi_fastai.studies.ood import choose_held_out

    with pytest.raises(UserError, match=said):
        choose_held_out(found[0].run.items.assign(split='train'), held_out, 0)


def test_the_figure(found):
    from fungi_fastai.studies.ood import plot_open_set

    assert len(plot_open_set(found[0]).axes) == 4
