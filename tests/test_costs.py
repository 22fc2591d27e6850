"Costs: the cheapest answer has the lowest cost, totals are right, invalid files are rejected, nothing reads as advice"

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fungi_fastai.core.errors import MissingFileError, UserError
from fungi_fastai.evaluation import costs as module
from fungi_fastai.evaluation.class_attributes import (
    attribute_confusion,
    attribute_costs,
    fungiclef_costs,
    fungiclef_scores,
    plot_attribute_confusion,
    read_attributes,
)
from fungi_fastai.evaluation.conformal import conformal
from fungi_fastai.evaluation.costs import (
    Costs,
    advice_in,
    cheapest,
    cost_table,
    equal_costs,
    expected_costs,
    read_costs,
    safety_note,
    total_cost,
)
from fungi_fastai.evaluation.selective import decide, threshold_for

few = settings(max_examples=40, deadline=None, derandomize=True)
names = ['Amanita phalloides', 'Agaricus campestris', 'Lepiota brunneoincarnata', 'Macrolepiota procera', 'Mycena sp.']
labels = ['poisonous', 'edible', 'poisonous', 'edible', 'unknown']


def sample(n=200, seed=0, classes=5):
    random = np.random.default_rng(seed)
    probs = random.dirichlet(np.full(classes, 0.3), n)
    return probs, (probs.cumsum(1) < random.random((n, 1))).sum(1).clip(0, classes - 1)


# --- the cheapest answer


@few
@given(st.integers(1, 6), st.integers(0, 1000), st.booleans(), st.floats(0, 1))
def test_no_answer_costs_less_than_the_cheapest(classes, seed, abstain, ood):
    random = np.random.default_rng(seed)
    costs = Costs(random.uniform(0, 10, (classes + 1, classes + 1)), [f'c{i}' for i in range(classes)])
    probs = random.dirichlet(np.ones(classes), 20)
    answers = cheapest(probs, costs, ood, abstain)
    for p, answer in zip(probs, answers, strict=True):
        paid = [
            sum(q * costs.matrix[t, a] for t, q in enumerate([*p * (1 - ood), ood])) for a in range(classes + abstain)
        ]
        assert paid[answer] == pytest.approx(min(paid))
    assert answers.min() >= (-1 if abstain else 0)


@few
@given(st.integers(2, 8), st.integers(0, 1000), st.floats(0.05, 0.9))
def test_with_equal_costs_it_is_chows_rule(classes, seed, abstain):
    probs = np.random.default_rng(seed).dirichlet(np.full(classes, 0.5), 30)
    probs = probs[abs(probs.max(1) - (1 - abstain)) > 1e-6]
    if not len(probs):
        return
    answers = cheapest(probs, equal_costs([f'c{i}' for i in range(classes)], abstain=abstain))
    assert (answers == np.where(probs.max(1) > 1 - abstain, probs.argmax(1), -1)).all()


def test_of_equal_costs_the_most_probable_class_is_taken():
    costs = Costs(np.zeros((4, 4)), list('abc'))
    assert cheapest(np.array([[0.2, 0.5, 0.3]]), costs).tolist() == [1]


def test_the_danger_decides():
    costs = fungiclef_costs(names, labels)
    probs = np.array(
        [[0.02, 0.96, 0.01, 0.01, 0.0], [0, 0.999, 0, 0.001, 0], [0.9, 0.1, 0, 0, 0], [0, 0.985, 0, 0, 0.015]]
    )
    assert cheapest(probs, costs).tolist() == [
        -1,
        1,
        -1,
        -1,
    ]  # .1*(1+1) is more than .1; the fourth may be of unknown kind
    assert cheapest(probs, costs, abstain=False).tolist() == [0, 1, 0, 4]
    assert cheapest(probs, costs, ood_probability=0.2).tolist() == [-1] * 4
    by_hand = [
        0.96 * 2 + 0.01 + 0.01 * 2,
        0.02 * 101 + 0.01 * 101 + 0.01,
        0.02 + 0.96 * 2 + 0.01 * 2,
        0.02 * 101 + 0.96 + 0.01 * 101,
        0.02 * 101 + 0.96 + 0.01 * 101 + 0.01,
        0.1,
    ]
    assert expected_costs(probs[:1], costs)[0] == pytest.approx(by_hand)


def test_a_tables_cells():
    table = fungiclef_costs(names, labels).table()
    cell = lambda truth, answer: table.loc[truth, answer]
    assert (
        cell('Amanita phalloides', 'Agaricus campestris') == 101
        and cell('Agaricus campestris', 'Amanita phalloides') == 2
    )
    assert (
        cell('Amanita phalloides', 'Lepiota brunneoincarnata') == 1
        and cell('Agaricus campestris', 'Macrolepiota procera') == 1
    )
    assert (
        cell('out-of-distribution', 'Agaricus campestris') == 10
        and cell('Agaricus campestris', 'not sure') == 0.1
        and cell('out-of-distribution', 'not sure') == 0
    )
    # unknown is the worse of both: as truth and as answer
    assert cell('Mycena sp.', 'Agaricus campestris') == 101 and cell('Amanita phalloides', 'Mycena sp.') == 101
    assert cell('Agaricus campestris', 'Mycena sp.') == 1
    assert (np.diag(table.iloc[:5, :5]) == 0).all()


@pytest.mark.parametrize(
    'call, message',
    [
        (lambda: Costs(np.zeros((2, 2)), list('ab')), '3 × 3'),
        (lambda: Costs(np.full((2, 2), np.nan), ['a']), 'not numbers'),
        (lambda: Costs(np.zeros((2, 2)), ['a'], ['x', 'y']), '2 attributes'),
        (lambda: cheapest(sample()[0], equal_costs(list('ab'))), '5 classes, and costs of 2'),
        (lambda: cheapest(sample()[0], equal_costs(names), 1.2), 'between 0 and 1'),
        (lambda: fungiclef_costs(['a'], ['tasty']), "attribute 'tasty'"),
        (lambda: attribute_costs(['a'], ['x'], {('x', 'z'): 3}), "No class has the attribute 'z'"),
        (lambda: total_cost([0], [9], equal_costs(names)), 'answers have to be'),
        (lambda: total_cost([0, 1], [0], equal_costs(names)), 'targets'),
        (lambda: attribute_confusion([0], [0], equal_costs(names)), 'without attributes'),
    ],
)
def test_invalid_costs(call, message):
    with pytest.raises(UserError, match=message):
        call()


# --- the total cost


def test_the_total_is_the_sum_of_its_cells():
    costs = fungiclef_costs(names, labels)
    random = np.random.default_rng(0)
    targets, answers = random.integers(-1, 5, 300), random.integers(-1, 5, 300)
    by_hand = [
        costs.table().loc[[*names, 'out-of-distribution'][t], [*names, 'not sure'][a]]
        for t, a in zip(targets, answers, strict=True)
    ]
    cost = total_cost(targets, answers, costs)
    assert (
        cost['total'] == pytest.approx(sum(by_hand))
        and cost['mean'] == pytest.approx(np.mean(by_hand))
        and cost['answered'] == (answers >= 0).sum()
    )
    assert (
        cost['max_cost'] == 101
        and cost['max_cost_images'] == by_hand.count(101)
        and cost['max_cost_images'] / 300 < cost['max_cost_fraction_high'] < 1
    )
    assert cost['low'] < cost['mean'] < cost['high']
    assert cost['high'] - cost['low'] == pytest.approx(2 * 1.96 * np.std(by_hand) / np.sqrt(300), rel=0.1)
    assert all(isinstance(v, (int, float)) and not isinstance(v, np.generic) for v in cost.values())


def test_the_interval_is_of_whole_specimens():
    costs, (probs, targets) = equal_costs(names), sample(60)
    probs, targets, groups = np.repeat(probs, 10, 0), np.repeat(targets, 10), np.repeat(np.arange(60), 10)
    alone, grouped = (total_cost(targets, probs.argmax(1), costs, g) for g in (None, groups))
    assert alone['mean'] == grouped['mean'] and (grouped['high'] - grouped['low']) / (
        alone['high'] - alone['low']
    ) == pytest.approx(np.sqrt(10), rel=0.15)
    assert grouped['max_cost_fraction_high'] > alone['max_cost_fraction_high']
    single = total_cost([0], [1], costs)
    assert single['low'] == single['high'] == 1 and single['max_cost_fraction_high'] == 1


def test_strategies_side_by_side():
    (probs, targets), costs = sample(500), fungiclef_costs(names, labels)
    table = cost_table(
        targets,
        {'most probable': probs.argmax(1), 'cheapest': cheapest(probs, costs), 'silence': np.full(500, -1)},
        costs,
    )
    assert table['mean'].idxmax() == 'most probable' and table['mean']['cheapest'] <= table['mean']['silence'] + 0.02
    assert table.answered.tolist()[::2] == [500, 0] and np.isnan(table.accuracy['silence'])


def reference_scores(targets, answers, poisonous):
    "The challenge's tracks in plain words, image by image"
    error = unknown = confusion = 0.0
    for t, a in zip(targets, answers, strict=True):
        error += t != a
        if t != a:
            unknown += 10 if t == -1 else 0.1 if a == -1 else 1
        if t in poisonous and a not in poisonous:
            confusion += 100
        if t not in poisonous and a in poisonous:
            confusion += 1
    n = len(targets)
    return dict(
        classification_error=error / n,
        poisonous_cost=confusion / n,
        user_cost=(error + confusion) / n,
        unknown_cost=unknown / n,
    )


@few
@given(st.integers(1, 60), st.integers(0, 1000))
def test_fungiclefs_tracks(n, seed):
    random = np.random.default_rng(seed)
    targets, answers = random.integers(-1, 5, n), random.integers(-1, 5, n)
    assert fungiclef_scores(targets, answers, labels) == pytest.approx(reference_scores(targets, answers, {0, 2}))


# --- by attribute


def test_the_dangerous_cells_are_marked():
    costs = fungiclef_costs(names, labels)
    random = np.random.default_rng(0)
    targets, answers = random.integers(-1, 5, 400), random.integers(-1, 5, 400)
    table = attribute_confusion(targets, answers, costs)
    assert table.images.sum() == 400 and len(table) == 4 * 4
    assert {(r.truth, r.answer) for r in table[table.dangerous].itertuples()} == {
        (t, a) for t in ('poisonous', 'unknown') for a in ('edible', 'unknown') if (t, a) != ('unknown', 'unknown')
    }
    assert (table.images * table.mean_cost).sum() == pytest.approx(total_cost(targets, answers, costs)['total'])
    for _, part in table.groupby('truth'):
        assert part.fraction.sum() == pytest.approx(1)
    known = targets >= 0
    assert 'out-of-distribution' not in set(attribute_confusion(targets[known], answers[known], costs).truth)
    axis = plot_attribute_confusion(table).axes[0]
    framed = [p for p in axis.patches if not p.get_fill()]
    assert (
        len(framed) == table.dangerous.sum()
        and sum(t.get_weight() == 'bold' for t in axis.texts) == table.dangerous.sum()
    )


# --- files


def write(folder, text, name='a.csv', **options):
    (folder / name).write_text(text, encoding=options.get('encoding', 'utf-8'))
    return folder / name


def test_attributes_are_read(tmp_path):
    rows = '\n'.join(f'{n},{a}' for n, a in zip(names, labels, strict=True))
    assert read_attributes(write(tmp_path, f'class,edibility\n{rows}\nBoletus edulis,edible\n'), names) == labels
    assert (
        read_attributes(
            write(tmp_path, f' class , edibility \n{rows.replace(",", " , ")}\n', encoding='utf-8-sig'), names
        )
        == labels
    )
    assert read_attributes(write(tmp_path, 'class,a,b\nx,1,2\n'), ['x'], 'b', ()) == ['2']


@pytest.mark.parametrize(
    'text, message',
    [
        ('class,edibility\na,edible\n', "no row for the class 'b'"),
        ('class,edibility\na,edible\nb,edible\na,poisonous\n', "the class 'a' more than once"),
        (
            'class,edibility\na,edible\nb,Edible?\n',
            "gives 'b' the attribute 'Edible.'; expected one of edible, poisonous, unknown",
        ),
        ('class,edibility\na,edible\nb,\n', "attribute ''"),
        ('species,edibility\na,edible\n', 'columns species, edibility; expected class'),
        ('class\na\nb\n', 'expected class and an attribute'),
        ('class,x,y\na,1,2\nb,1,2\n', 'several columns'),
        ('class,x\n', 'no row'),
        ('', 'cannot be read as CSV'),
        ('class,x\na,edible,3,4\nb,edible\n1,2,3,4,5,6\n', 'cannot be read|several|columns'),
    ],
)
def test_invalid_attributes(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read_attributes(write(tmp_path, text), ['a', 'b'])
    with pytest.raises(MissingFileError, match='no file'):
        read_attributes(tmp_path / 'gone.csv', ['a'])


def test_a_table_of_costs_is_read(tmp_path):
    whole = read_costs(
        write(tmp_path, 'truth,b,a,not sure\na,5,0,.2\nb,0,7,.3\nout-of-distribution,9,8,0\n'), ['a', 'b']
    )
    assert whole.matrix.tolist() == [[0, 5, 0.2], [7, 0, 0.3], [8, 9, 0]]
    part = read_costs(write(tmp_path, 'truth,a,b\na,0,5\nb,7,0\n'), ['a', 'b'])
    assert part.matrix.tolist() == [[0, 5, 7], [7, 0, 7], [7, 7, 0]]  # a missing cost is the highest one
    for text, message in {
        'truth,a\na,0\nb,1\n': "no column for the class 'b'",
        'truth,a,b\na,0,1\n': "no row for the class 'b'",
        'truth,a,b\na,0,x\nb,1,0\n': "'b' for 'a' is 'x'; expected a number",
        'truth,a,b\na,0,1\na,0,1\nb,1,0\n': 'more than once',
    }.items():
        with pytest.raises(UserError, match=message):
            read_costs(write(tmp_path, text), ['a', 'b'])


# --- no advice


@pytest.mark.parametrize(
    'text',
    [
        'This mushroom is edible.',
        'edible',
        'Edible!',
        'probably edible',
        'It is safe to eat.',
        'You can eat it',
        'may be eaten',
        'is not poisonous',
        'seems harmless',
        'Answer: edible: yes',
        'likely non-toxic',
        'can be safely consumed',
    ],
)
def test_advice_is_known_when_seen(text):
    assert advice_in(text)


@pytest.mark.parametrize(
    'text',
    [
        safety_note,
        'attribute edible in attributes.csv',
        'poisonous called edible 100',
        'truth poisonous, answer edible',
        'Species A. The confidence is 0.97.',
        'do not eat',
    ],
)
def test_labels_are_no_advice(text):
    assert not advice_in(text)


def test_no_answer_reads_as_advice(tmp_path):
    "Whatever the costs and attributes: answers speak of classes, and the words of the user's table stay in tables"
    (probs, targets), costs = sample(600), fungiclef_costs(names, labels)
    texts = []
    for threshold in (
        None,
        threshold_for(probs, targets, accuracy=0.8),
        threshold_for(probs[:9], targets[:9], accuracy=0.99),
    ):
        for sets in (None, conformal(probs, targets, 0.9, 'aps')):
            texts += [f'{d.label}\n{d.why}\n{d.set}' for d in decide(probs, names, 1.0, threshold, sets)]
    assert not any(advice_in(text) or 'edible' in text.lower() or 'poison' in text.lower() for text in texts)
    answers = cheapest(probs, costs)
    account = pd.Series(total_cost(targets, answers, costs))
    for table in (
        costs.table(),
        cost_table(targets, {'cheapest': answers}, costs),
        attribute_confusion(targets, answers, costs),
        account,
    ):
        assert not advice_in(table.to_string()) and not advice_in(table.to_csv())
    figure = plot_attribute_confusion(attribute_confusion(targets, answers, costs))
    assert "user's table" in figure.axes[0].get_xlabel()
    for text in ('class,x\na,edible\na,edible\n', 'class,x\nb,edible\n', 'class,x\na,safe to eat\n'):
        with pytest.raises(UserError) as error:
            read_attributes(write(tmp_path, text), ['a'])
        assert not advice_in(str(error.value).replace("'safe to eat'", ''))


def test_the_safety_note():
    assert all(word in safety_note for word in ('not determinations', 'Do not eat', 'were not checked', 'expert'))
    assert module.__doc__ and not advice_in(module.__doc__)
