"The pages that people mail to each other: what the first screen says, what is claimed, and that nothing is cut off"

import re
from pathlib import Path

import chromium
import numpy as np
import pandas as pd
import pytest

from fungi_fastai.core.pages import page, table
from fungi_fastai.data.splits import has_specimens
from fungi_fastai.evaluation.assess import calibrate, guarantee, headline, verdict
from fungi_fastai.evaluation.gallery import prediction_strip
from fungi_fastai.evaluation.intervals import interval_text
from fungi_fastai.evaluation.metrics import Evaluation, predictions_table


@pytest.fixture(scope='module')
def report(small_run):
    return (small_run.folder / 'report.html').read_text('utf8')


def test_the_first_screen_has_verdict_predictions_and_three_scores(report, small_run):
    first = report[: report.index('<h2')]
    assert headline(small_run.metrics) in first and first.count('<figure>') == 6
    wrong = round((1 - small_run.metrics['accuracy']) * small_run.metrics['n_test'])
    assert first.count('true label:') >= min(2, wrong) and 'drawn at random' in first
    assert first.count('95\N{NO-BREAK SPACE}% interval') == 3 and first.count('<b>') == 3


def test_a_budget_that_left_images_unused_is_a_warning():
    from types import SimpleNamespace

    from fungi_fastai import MUSHROOMS, Run

    items = pd.DataFrame(dict(split=['train', 'test', 'train']))
    run = SimpleNamespace(items=items, requested_recipe=MUSHROOMS, recipe=MUSHROOMS.but(fraction=0.05, budget='2m'))
    (warning,) = Run._unused_images(run)
    assert '5% of the training images: 2 were used' in warning and 'budget of 2 min' in warning
    run.recipe = MUSHROOMS
    assert Run._unused_images(run) == []


def test_the_contents_lead_to_every_section_and_end_with_the_training_curves(report):
    links = re.findall(r'<a href="#([^"]+)">([^<]+)</a>', report)
    assert [report.count(f' id="{slug}"') for slug, _ in links] == [1] * len(links)
    names = [name for _, name in links]
    assert names[0] == 'Summary' and names[-1] == 'Training curves'
    assert names.index('Per-class metrics') < names.index('Confusion matrix') < names.index('Data and split')
    assert report.count('<span class="bar') >= 3 * 5  # precision, recall and F1 of five classes


@pytest.mark.browser
@pytest.mark.parametrize('screen', [dict(width=390, height=844, phone=True), dict(width=1280, height=800)])
def test_nothing_is_cut_off(small_run, screen, monkeypatch):
    if not chromium.find():
        pytest.skip('there is no Chromium')
    with chromium.Chromium() as browser:
        browser.size(**screen, dark=True)
        browser.open((small_run.folder / 'report.html').as_uri())
        assert browser.run('document.documentElement.scrollWidth') == screen['width'] and not browser.errors()
        # what is wider than its place scrolls inside it
        wide = """[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1
            && !e.closest('.scroll, .chart, .strip, pre, details')).map(e => e.outerHTML.slice(0, 80))"""
        assert browser.run(wide) == []
        assert browser.run('getComputedStyle(document.body).backgroundColor') == 'rgb(22, 26, 24)'
        white = "getComputedStyle(e).backgroundColor == 'rgb(255, 255, 255)'"
        assert browser.run(f"[...document.querySelectorAll('main *')].filter(e => {white}).length") == 0
        # on a phone, what is secondary is folded; the table of contents unfolds it
        is_phone, unfolded = 'phone' in screen, "document.querySelectorAll('details.section[open]').length"
        n_sections = browser.run("document.querySelectorAll('details.section').length")
        assert n_sections >= 4 and browser.run(unfolded) == (0 if is_phone else n_sections)
        assert not is_phone or browser.run('document.documentElement.scrollHeight') < 6000
        browser.run('document.querySelector(\'nav a[href="#calibration"]\').click()')
        assert browser.run("document.getElementById('calibration').closest('details').open")
        if not is_phone:  # the screenshot of the README: docs/images.py
            monkeypatch.syspath_prepend(Path(__file__).parents[1] / 'docs')
            from images import report_image

            taken = report_image(browser, small_run.folder / 'report.html')
            assert taken.width == 1400 and 500 < taken.height < 1000


@pytest.mark.parametrize(
    ('low', 'high', 'text'),
    [
        (0.0, 1.0, 'too few images'),
        (0.01, 0.9, 'too few images'),
        (0.2, 0.9, '0.20–0.90'),
        (None, None, 'too few images'),
    ]
    + [(np.nan, 1.0, 'too few images'), (1.0, 1.0, '1.00–1.00')],
)
def test_an_interval_that_says_nothing_says_so(low, high, text):
    assert interval_text(low, high) == text


def test_no_specimens_are_claimed_where_none_are_known():
    names = [f'{i}.jpg' for i in range(8)]
    items = pd.DataFrame(
        dict(name=names, label=['a', 'b'] * 4, cluster='', split=['train', 'valid', 'test', 'test'] * 2)
    )
    for groups, known in ([''] * 8, False), (names, False), (['x', ''] * 4, True), ([None] * 8, False):
        described = items.assign(group=groups)
        assert has_specimens(described) == known
        assert ('declared specimens' in guarantee(described.fillna({'group': ''}))) == known
    assert not has_specimens(items)


def predictions(confidence, correct, split):
    "Images of two classes, of which a fraction is correct at one confidence"
    n = 100
    label = np.arange(n) % 2
    hit = np.arange(n) < correct * n
    probs = np.full((n, 2), 1 - confidence)
    probs[np.arange(n), np.where(hit, label, 1 - label)] = confidence
    names = [f'{split}-{i}' for i in range(n)]
    items = pd.DataFrame(dict(path=names, name=names, label=np.array(['a', 'b'])[label], split=split))
    return Evaluation.of(predictions_table(items, probs, ['a', 'b']))


def test_the_test_set_measures_a_calibration_and_decides_nothing():
    valid = predictions(0.8, 0.6, 'valid')  # overconfident: the temperature rises
    helped = calibrate(valid, predictions(0.8, 0.6, 'test'))
    assert helped['temperature'] > 1 and helped['after']['log_loss'] < helped['before']['log_loss']
    harmed = calibrate(valid, predictions(0.8, 0.95, 'test'))
    assert harmed['temperature'] == helped['temperature'] and harmed['after']['brier'] > harmed['before']['brier']
    assert 'raises the log loss' in harmed['note'] and 'so the temperature is kept' in harmed['note']


def test_the_verdict_of_a_run_without_a_test_set_does_not_speak_of_one():
    scores = dict(accuracy=0.5, macro_f1=0.5, n_test=10, per_class=dict(a=dict(f1=0.5, images=10)))
    assert 'test images, none of which was seen' in verdict(scores | dict(evaluated_on='test'))
    assert 'seen in training, 5 were' in verdict(scores | dict(evaluated_on='test', leaked=0.0))
    leaked = scores | dict(evaluated_on='test', leaked=0.5)
    assert 'training (for 5 of them, another photo of the specimen or a near-duplicate was: the' in verdict(leaked)
    assert 'correctly; for 5 of them, another photo of the specimen or a near-duplicate was' in headline(leaked)
    assert 'There is no test set' in verdict(scores | dict(evaluated_on='valid'))
    assert headline(scores | dict(evaluated_on='test')).startswith('5 of 10 test images')
    assert headline(scores | dict(evaluated_on='test')).endswith('The F1 of every class is 0.50.')
    assert 'there is no test set: the scores are optimistic' in headline(scores | dict(evaluated_on='valid'))


@pytest.mark.parametrize(('right', 'wrong'), [(8, 0), (0, 8), (7, 1), (1, 7), (2, 1)])
def test_the_strip_shows_right_and_wrong_predictions(photos, right, wrong):
    paths = [str(path) for path in sorted(photos.rglob('*.jpg'))[: right + wrong]]
    hit = np.arange(len(paths)) < right
    table = pd.DataFrame(
        dict(path=paths, label='a<b', **{'p_a<b': np.where(hit, 0.9, 0.2), 'p_c': np.where(hit, 0.1, 0.8)})
    )
    strip = prediction_strip(table)
    assert strip.count('<img') == min(6, right + wrong) and 'a<b' not in strip
    assert bool(strip.count('class="wrong"')) == bool(wrong) and bool(strip.count('class="right"')) == bool(right)
    assert strip == prediction_strip(table)


def test_scores_of_training_images_are_marked_in_the_table(fungi, small_run, photos):
    lines = fungi('evaluate', small_run.folder, '--source', photos).out.splitlines()
    assert all('too optimistic' in line for line in lines if 'accuracy' in line or 'f1' in line)
    assert any('seen in training' in line for line in lines)
    assert 'optimistic' not in fungi('evaluate', small_run.folder).out


def test_pages_escape_what_is_not_marked_as_html():
    frame = pd.DataFrame({'a<b': ['<script>', 'x'], 'bar': ['<i>1</i>', '2'], 'score': [0.5, np.nan]})
    text = table(frame.assign(errors=['<1%', '12%'], mixed=['1%', 'x']), markup=('bar',))
    assert '<th class="number">errors<' in text and '<th class="name">mixed<' in text
    spaced = page('x', '<p style="width: 9 %">95 %</p>')  # percentages do not break, attributes stay
    assert '"width: 9 %">95\N{NO-BREAK SPACE}%</p>' in spaced
    assert '&lt;script&gt;' in text and 'a&lt;b' in text and '<i>1</i>' in text and '>–<' in text
    twice = page('t', '<h1>Run</h1><h2>A & B</h2><h2>A & B</h2><h2>Ä</h2>')
    ids = re.findall(r'<h\d id="([^"]+)"', twice)
    assert len(set(ids)) == len(ids) == 4
