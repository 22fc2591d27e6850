"The published experiments: each can be planned at both sizes, and one of each kind runs"

from dataclasses import replace

import pandas as pd
import pytest
from conftest import tiny

from fungi_fastai.core.errors import UserError
from fungi_fastai.samples.datasets import make_sample
from fungi_fastai.studies.catalogue import plan_experiment, published_experiments, weights_for
from fungi_fastai.studies.published import run_experiment

pytestmark = pytest.mark.usefixtures('place', 'ready')
quick = {k: v for k, v in tiny.items() if k not in ('lr', 'size')}  # `size` says full or small here


@pytest.fixture(scope='module')
def slides(tmp_path_factory):
    return make_sample('defungi', tmp_path_factory.mktemp('slides') / 'set', specimens=6, photos=1, size=48, workers=1)


@pytest.mark.parametrize('size', ['full', 'small'])
@pytest.mark.parametrize('name', published_experiments)
def test_every_experiment_can_be_planned(name, size):
    recipe, rows = plan_experiment(name, size)
    assert bool(rows) == (published_experiments[name].kind == 'variants') and recipe.name in (
        'mushrooms',
        'defungi',
        'flowers',
        'seedlings',
    )
    assert len({one.to_json() for _, one in rows}) == len(rows)  # all variants differ
    assert recipe.epochs <= (10 if size == 'small' else 40)
    if size == 'full':
        assert plan_experiment(name, 'small')[0] != recipe


def test_a_data_frame_is_read_by_the_given_column():
    table = pd.DataFrame(dict(specimen_shot=['a/1.jpg', 'b/2.jpg'], label=['a', 'b']))
    recipe, _ = plan_experiment('convmixer-split', 'small', table, column='specimen_shot')
    assert recipe.column == 'specimen_shot' and recipe == recipe.but(source=table, column='specimen_shot')


def test_the_ladder_changes_one_thing_at_a_time():
    for size in ('full', 'small'):
        rows = [one for _, one in plan_experiment('flowers-ladder', size)[1]]
        assert not rows[0].pretrained and rows[0].augment.strength == 0 and rows[-1].head_init == 'probe'
        assert [set(b.differences(a)) for a, b in zip(rows, rows[1:], strict=False)] == [
            {'augment'},
            {'pretrained'},
            {'arch'},
            {'schedule', 'lr', 'backbone_lr'},
            {'wd', 'label_smoothing', 'mixup', 'freeze_batchnorm'},
            {'head_init'},
        ]


def test_variants_resume(fungi, slides, tmp_path, monkeypatch):
    "Interrupted after the first of two trainings; the same call resumes with the second"
    import fungi_fastai.studies.folds as folds

    train, calls = folds.train, []

    def train_once(*args, **kwargs):
        if calls:
            raise KeyboardInterrupt
        calls.append(args[1])
        return train(*args, **kwargs)

    monkeypatch.setattr(folds, 'train', train_once)
    changes = dict(source=slides, progress=False, **{k: v for k, v in quick.items() if k != 'arch'})
    with pytest.raises(KeyboardInterrupt):
        run_experiment('convmixer-depth', tmp_path / 'out', 'small', **changes)
    first = (tmp_path / 'out/01-seed-1/metrics.json').read_bytes()
    monkeypatch.setattr(folds, 'train', train)
    result = run_experiment('convmixer-depth', tmp_path / 'out', 'small', **changes)
    assert (tmp_path / 'out/01-seed-1/metrics.json').read_bytes() == first
    table = pd.read_csv(tmp_path / 'out/table.csv')
    assert (
        table.variant.tolist() == ['arch=convmixer_64_8', 'arch=convmixer_64_16'] and table.accuracy.between(0, 1).all()
    )
    summary = (tmp_path / 'out/summary.md').read_text('utf8')
    assert (
        '0.78' in summary
        and 'convmixer_64_16' in result.conclusion
        and '01-seed' not in result.conclusion
        and (tmp_path / 'out/figure.svg').exists()
    )
    with pytest.raises(UserError, match='another experiment'):
        run_experiment('convmixer-grid', tmp_path / 'out', 'small', **changes)


def test_the_score_on_training_images(photos, tmp_path, monkeypatch):
    experiment = published_experiments['seedlings-augmentation']
    two = replace(experiment, variants=experiment.variants[::4])
    monkeypatch.setitem(published_experiments, 'seedlings-augmentation', two)
    result = run_experiment('seedlings-augmentation', tmp_path / 'out', 'small', photos, progress=False, **quick)
    assert len(result.table) == 2 and result.summary.train_accuracy.between(0, 1).all() and 'gap' in result.conclusion


@pytest.mark.slow
def test_folds_of_both_kinds(slides, tmp_path):
    result = run_experiment('defungi-folds', tmp_path / 'out', 'small', slides, progress=False, **quick)
    assert (
        result.table.leaked.tolist()[0] == 0
        and result.table.leaked.tolist()[1] > 0
        and 'NAIVE' in result.table.variant[1]
    )


@pytest.mark.parametrize('name', ['defungi-curve-20', 'convmixer-split'])
def test_curves(slides, tmp_path, name):
    result = run_experiment(name, tmp_path / 'out', 'small', slides, progress=False, **quick | dict(fraction=1.0))
    assert len(result.table) and result.conclusion and (tmp_path / 'out/summary.md').exists()


def test_mistakes(fungi, slides, tmp_path):
    assert 'mushrooms-grid' in fungi('experiment', 'mushroom-grid', '--out', tmp_path / 'o', code=2).err
    assert 'mushrooms-grid' in fungi('experiment', 'list').out
    (tmp_path / 'weights').mkdir()
    (tmp_path / 'weights/resnet18.x.safetensors').write_bytes(b'')
    error = fungi(
        'experiment',
        'mushrooms-grid',
        '--size',
        'small',
        '--source',
        slides,
        '--weights',
        tmp_path / 'weights',
        '--out',
        tmp_path / 'o',
        code=2,
    ).err
    assert 'mobilenetv2_035' in error and 'resnet18.x' in error and not (tmp_path / 'o').exists()
    assert (
        weights_for('resnet18', str(tmp_path / 'weights')).endswith('resnet18.x.safetensors')
        and weights_for('resnet18', 'hf-hub:a/b') == 'hf-hub:a/b'
    )
