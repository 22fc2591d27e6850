"The choice of a network: what is tried, when it stops, and what a training takes from it"

import json

import numpy as np
import pandas as pd
import pytest
from conftest import flags

small = dict(size=32, bs=8, epochs=0)


@pytest.fixture
def items():
    "A table of 2,000 images: two photos of each specimen of two classes"
    numbers = np.arange(2000)
    table = pd.DataFrame(dict(name=[f'{i}.jpg' for i in numbers], group=[f's{i // 2}' for i in numbers], cluster=''))
    return table.assign(label=np.where(numbers % 4 < 2, 'a', 'b'), split='train')


@pytest.fixture
def choose(ready, items, monkeypatch):
    "Chooses among networks, each with the accuracy of its probe, by a clock that only probes advance"
    from fungi_fastai.models.backbones import PretrainedBackbone
    from fungi_fastai.training import selection
    from fungi_fastai.training.budget import Speed
    from fungi_fastai.training.recipe import Recipe

    seconds = [0.0]

    def run(accuracies, budget=600.0, slowdown=1.0, together=0.0, published=None, size=160, lost=0.0, measured=None):
        """accuracies: by a network's cost in billions of multiply-adds; slowdown: of the probes; together: of a pair;
        size: of the recipe; lost: accuracy of a probe at half the image size; measured: gets the networks whose speed
        is measured"""
        rows = [
            PretrainedBackbone(
                f'costs_{macs}', '', '', 224, macs, 8, 1.0, (published or {}).get(macs), weights='here.pth'
            )
            for macs in accuracies
        ]

        def probe_network(recipe, sample):
            macs = [float(one.removeprefix('costs_')) for one in recipe.arch.split('+')]
            seconds[0] += slowdown * len(sample) * (0.0031 + 0.51e-3 * macs[0])
            accuracy = accuracies[macs[0]] if len(macs) == 1 else together
            accuracy -= lost * np.log2(160 / recipe.size)
            return np.arange(len(sample)) < accuracy * len(sample)

        def measure_speed(learn):
            macs = float(learn.arch.removeprefix('costs_'))
            if measured is not None:
                measured.append(learn.arch)
            return Speed(read=1e-4, inference=1e-3 * macs, train_step=3e-3 * macs, report=5.0, size=224)

        replacements = dict(
            available_backbones=lambda weights: rows,
            clock=lambda: seconds[0],
            is_fixed_size=lambda arch: False,
            make_learner=lambda recipe, *_, **__: recipe,
            measure_speed=measure_speed,
            probe_network=probe_network,
        )
        for name, function in replacements.items():
            monkeypatch.setattr(selection, name, function)
        monkeypatch.setattr('fungi_fastai.training.frozen.count_stages', lambda arch: 1)
        monkeypatch.setattr('fungi_fastai.training.budget.is_fixed_size', lambda arch: False)
        return selection.make_plan(Recipe(arch='auto', budget=budget, size=size), items, budget)

    return run


def test_the_best_probe_wins_and_the_table_says_why(choose):
    plan = choose({0.1: 0.6, 0.2: 0.9, 0.4: 0.7})
    tried = ['costs_0.1', 'costs_0.2', 'costs_0.4']
    assert plan.arch == 'costs_0.2' and [one['arch'] for one in plan.networks][:3] == tried
    line = next(line for line in plan.reason.splitlines()[1:] if line.strip().startswith('costs_0.2'))
    row = plan.networks[1]
    assert row['low'] <= row['accuracy'] <= row['high'] and f'{row["accuracy"]:.3f}' in line and 'MB' in plan.reason
    errors = (1 - row['accuracy']) * np.exp(-0.6 * plan.gain / 0.3)  # the size of the probe is that of the run
    assert row['expected'] == pytest.approx(1 - errors, abs=0.005) and plan.gain > 0.02


def test_the_two_best_networks_are_tried_together(choose):
    plan = choose({0.1: 0.6, 0.2: 0.8, 0.4: 0.7}, budget=3600.0, together=0.9)
    assert plan.arch == 'costs_0.2+costs_0.4' and plan.weights == 'here.pth+here.pth'
    assert plan.networks[-1]['megabytes'] == 2 and plan.speed.train_step == pytest.approx(3e-3 * 0.6)
    hardly_better = choose({0.1: 0.6, 0.2: 0.8, 0.4: 0.7}, budget=3600.0, together=0.805)
    assert hardly_better.arch == 'costs_0.2' and len(hardly_better.networks) == 4, 'a pair takes the time of both'


def test_a_pair_that_is_too_slow_to_win_is_not_tried(choose):
    assert len(choose({0.2: 0.8, 30.0: 0.75}, budget=60.0).networks) <= 2


def test_a_network_that_is_slow_to_train_needs_time_to_win(choose):
    "Twenty times the cost leaves hardly an epoch in half a minute"
    assert choose({0.5: 0.8, 10.0: 0.82}, budget=30.0).arch == 'costs_0.5'
    assert choose({0.5: 0.8, 10.0: 0.82}, budget=3600.0).arch == 'costs_10.0'


def test_a_slower_network_must_be_better_by_a_point(choose):
    published = {0.2: 0.75, 0.4: 0.75}
    hardly, clearly = (choose({0.2: 0.8, 0.4: other}, 3600.0, published=published) for other in (0.81, 0.86))
    assert (hardly.arch, clearly.arch) == ('costs_0.2', 'costs_0.4')
    expected = {one['arch']: one['expected'] for one in hardly.networks}
    assert expected['costs_0.4'] > expected['costs_0.2']
    points = 100 * (expected['costs_0.4'] - expected['costs_0.2'])
    assert 'costs_0.4 has the highest' in hardly.reason
    assert f'costs_0.2 is {points:.1f} points below it' in hardly.reason


def test_probes_at_the_image_sizes_of_the_plans_show_what_small_images_cost(choose):
    "A larger network that trains on small images is chosen only where these lose nothing"
    from fungi_fastai.training.recipe import Recipe

    nothing, much = (choose({1.0: 0.7, 6.0: 0.75}, 100.0, size=Recipe.size, lost=lost) for lost in (0.0, 0.15))
    sizes = {one['arch']: one['size'] for one in nothing.networks}
    assert sizes['costs_6.0'] < sizes['costs_1.0'] <= 160
    assert (nothing.arch, much.arch) == ('costs_6.0', 'costs_1.0')


def test_a_probe_that_takes_too_long_is_not_made(choose):
    plan = choose({0.1: 0.6, 0.2: 0.7, 0.4: 0.9}, budget=60.0, slowdown=10.0)
    assert 'Not tried: costs_0.2, costs_0.4, because it takes about' in plan.reason and '10%' in plan.reason
    assert 'The probe of costs_0.1 had nothing to be compared with' in plan.reason and not plan.networks


def test_one_probe_alone_does_not_choose_its_network(choose):
    published = {0.1: 0.75, 0.11: 0.8}
    plan = choose({0.1: 0.6, 0.11: 0.9}, budget=60.0, slowdown=20.0, published=published)
    assert 'had nothing to be compared with' in plan.reason
    assert plan.arch == 'costs_0.11', 'the published score says that it is the better one'


def test_of_two_networks_of_similar_speed_the_published_score_decides(choose):
    "The plan of the slower one is a little worse, but that is less certain than the score"
    plan = choose({34.0: 0.7, 38.0: 0.7}, budget=25.0, published={34.0: 0.748, 38.0: 0.75})
    assert plan.arch == 'costs_38.0' and not plan.networks


def test_a_network_that_is_slow_to_measure_is_estimated(choose):
    "The speed of further networks is measured only if that takes at most 5 % of the time"
    published = {0.1: 0.6, 0.2: 0.75, 0.4: 0.76}
    measured = {budget: [] for budget in (30.0, 3600.0)}
    for budget, networks in measured.items():
        choose({0.1: 0.6, 0.2: 0.7, 0.4: 0.9}, budget=budget, published=published, measured=networks)
    assert len(measured[30.0]) == 1 and measured[3600.0][-1] == 'costs_0.4'


def test_without_time_for_two_probes_the_published_score_decides(choose):
    "The fastest network is rarely the best one, and a slow one gets no training in the time"
    published = {0.1: 0.6, 0.2: 0.75, 0.4: 0.76, 300.0: 0.83}
    plan = choose(dict.fromkeys(published, 0.5), budget=5.0, published=published)
    assert plan.arch in ('costs_0.2', 'costs_0.4') and not plan.networks
    assert 'published score' in plan.reason and 'no time to compare' in plan.reason


def test_a_network_that_is_too_slow_for_a_sample_is_left_out(choose):
    plan = choose({0.1: 0.6, 0.2: 0.7, 900.0: 0.9}, budget=60.0)
    assert plan.arch == 'costs_0.2' and 'Not tried: costs_900.0' in plan.reason


def test_a_network_that_cannot_win_is_not_tried(choose):
    "Published scores and few epochs speak against it; about weights of your own, nothing is known"
    published = {0.1: 0.75, 0.2: 0.76, 8.0: 0.77}
    accuracies = {0.1: 0.7, 0.2: 0.72, 8.0: 0.9}
    plan = choose(accuracies, budget=45.0, slowdown=0.01, published=published)
    assert [one['arch'] for one in plan.networks][:2] == ['costs_0.1', 'costs_0.2']
    assert 'Not tried: costs_8.0, because that is expected to gain at most 0.0' in plan.reason
    del published[8.0]
    assert 'costs_8.0' in [one['arch'] for one in choose(accuracies, 45.0, 0.01, published=published).networks]


def test_nothing_is_probed_if_no_comparison_is_worth_its_time(choose):
    "The published scores differ much, and the better network is the faster one to train"
    plan = choose({0.1: 0.5, 20.0: 0.9}, published={0.1: 0.9, 20.0: 0.901}, budget=40.0)
    assert plan.arch == 'costs_0.1' and not plan.networks and 'by published scores and speed' in plan.reason
    assert 'Not tried: costs_20.0' in plan.reason and 'that are saved give' in plan.reason


def test_at_most_four_networks(choose):
    plan = choose({0.1 * 2**i: 0.5 for i in range(7)}, budget=1e5)
    single = [one['arch'] for one in plan.networks if '+' not in one['arch']]
    assert single[::3] == ['costs_0.1', 'costs_6.4'] and len(single) == 4


@pytest.mark.parametrize('lonely, reason', [(False, 'only pretrained network'), (True, 'fewer than two classes')])
def test_nothing_to_compare(choose, items, monkeypatch, lonely, reason):
    networks = {0.1: 0.5, 0.2: 0.6} if lonely else {0.1: 0.5}
    if lonely:
        monkeypatch.setattr('fungi_fastai.training.selection.selection_sample', lambda *_, **__: None)
    plan = choose(networks)
    assert reason in plan.reason and not plan.networks


def test_the_test_set_and_single_specimens_take_no_part(ready, items):
    from fungi_fastai.training.selection import selection_sample

    tested = items.assign(split=np.where(items.group.isin(['s0', 's1']), 'test', 'valid'))
    single = pd.DataFrame([dict(name='x.jpg', group='x', cluster='', label='lonely', split='train')])
    sample = selection_sample(pd.concat([tested, single], ignore_index=True))
    assert not set(sample.group) & {'s0', 's1', 'x'} and sample.groupby('group').fold.nunique().max() == 1
    assert sample.groupby('fold').label.nunique().min() == 2


def test_many_classes_and_few_images_a_class(ready):
    from fungi_fastai.training.selection import selection_sample

    rows = pd.DataFrame(dict(name=[f'{i}.jpg' for i in range(9000)], group='', cluster='', split='train'))
    rows = rows.assign(label=[f'class {i % 3000}' for i in range(9000)])
    sample = selection_sample(rows)
    assert sample.label.nunique() == 30 and len(sample) == 90 and sample.groupby('label').fold.nunique().min() == 3


def test_a_training_reads_the_features_of_an_earlier_probe(ready, photos, own_home, tmp_path, monkeypatch):
    "After a probe of the same network, a training computes no features of training and validation images"
    import timm
    from safetensors.torch import save_file

    from fungi_fastai.studies.probe import probe
    from fungi_fastai.training import features
    from fungi_fastai.training.fit import fit, make_learner
    from fungi_fastai.training.recipe import Recipe

    weights = tmp_path / 'mobilenetv3_small_050.safetensors'
    # a cache of its own: another run of the tests may have stored the features of the same weights
    (own_home / 'settings.ini').write_text('[DEFAULT]\ncache_dir = cache\n')
    save_file(timm.create_model('mobilenetv3_small_050', num_classes=0).state_dict(), weights)
    recipe = Recipe(source=str(photos), arch='mobilenetv3_small_050', weights=str(weights), **small)
    recipe = recipe.but(augment='none', feature_stages=1)  # as a training that changes the backbone reads them
    opened, loader_features = [], features._loader_features

    def count(learn, loader, *rest):
        opened.append(loader.n)
        return loader_features(learn, loader, *rest)

    monkeypatch.setattr(features, '_loader_features', count)
    probe(recipe, k=2, progress=False)
    assert sum(opened) == 60
    opened.clear()
    scores = [fit(make_learner(recipe, progress=False), tmp_path / 'a')[0]['valid_loss']]
    frozen = recipe.but(head_init='random', epochs=1, frozen_epochs=1, feature_views=1, refit_head=False)
    fit(make_learner(frozen, progress=False), tmp_path / 'frozen')
    assert not opened, 'all features come from the store'
    changed = make_learner(frozen, progress=False)
    next(changed.model[0].parameters()).data.mul_(2)
    features.cached_features(changed)
    assert sum(opened) > 40, 'the store holds those of the initial weights'
    opened.clear()
    scores.append(fit(make_learner(recipe.but(cache=False), progress=False), tmp_path / 'b')[0]['valid_loss'])
    assert sum(opened) > 40 and scores[0] == pytest.approx(scores[1], rel=0.02)


def test_several_networks_on_the_same_folds(fungi, photos, tmp_path):
    archs = 'convmixer_8_1,convmixer_16_1,convmixer_8_1+convmixer_16_1'
    call = ('probe', photos, '--folds', '2', '--arch', archs, '--no-pretrained', '--size', '32')
    output = fungi(*call, '--out', tmp_path / 'predictions.csv').out
    assert all(name in output for name in archs.split(','))
    table = pd.read_csv(tmp_path / 'predictions.csv')
    assert table.groupby('name').fold.nunique().max() == 1 and table.arch.value_counts().eq(60).all()
    result = json.loads(fungi(*call, '--json').out)
    rows = {row['arch']: row for row in result['networks']}
    for arch, own in table.groupby('arch'):
        assert rows[arch]['accuracy'] == pytest.approx((own.label == own.predicted).mean())
        assert rows[arch]['low'] < rows[arch]['accuracy'] < rows[arch]['high']
    assert rows['convmixer_8_1+convmixer_16_1']['features'] == 24


@pytest.mark.parametrize(
    'arguments, word',
    [
        (['--arch', 'convmixer_8_1,'], 'commas'),
        (['--arch', 'convmixer_8_1,convmixer_8_1'], 'different names'),
        (['--arch', 'convmixer_8_1,resnet5O'], 'resnet50'),
        (['--arch', 'resnet18,resnet34', '--weights', 'one.safetensors'], 'not a folder'),
        (['--arch', 'resnet18+', '--size', '32'], '+ between them'),
    ],
)
def test_lists_of_networks_that_are_refused(fungi, photos, arguments, word):
    assert word in fungi('probe', photos, *arguments, '--json', code=2).err


@pytest.mark.slow
def test_two_networks_from_training_to_prediction(fungi, photos, tmp_path):
    "Train, export with the comparison of torch and ONNX, predict"
    pytest.importorskip('onnx', reason='onnx is not installed')
    from fungi_fastai import Run

    network = flags(arch='convmixer_8_1+convmixer_16_1', pretrained=False, **small | dict(epochs=1))
    fungi('train', 'flowers', '--source', photos, *network, '--out', tmp_path / 'run')
    bundle = Run.load(tmp_path / 'run').export(tmp_path / 'bundle', progress=False, images=4, examples=0)
    network = json.loads((bundle / 'bundle.json').read_text())['network']
    assert network['arch'] == 'convmixer_8_1+convmixer_16_1' and network['features'] == 24
    files = sorted(photos.rglob('*.jpg'))[:2]
    table = fungi('predict', bundle, *files).out
    assert len(table.strip().splitlines()) == 3
