"The page of `fungi review` in Chromium, by keyboard; and decisions of Label Studio and FiftyOne"

import csv
import shutil
import threading
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pandas as pd
import pytest
from chromium import Chromium, find

from fungi_fastai.core.errors import UserError
from fungi_fastai.core.files import read_json, write_json
from fungi_fastai.data.exchange import import_decisions, write_fiftyone, write_label_studio
from fungi_fastai.data.sources import Source
from fungi_fastai.studies.review import Entry, Queues, Review, read_for_review

pytestmark = pytest.mark.usefixtures('own_home')
keys = dict(Enter=13, Tab=9, Escape=27)


@pytest.fixture
def images(photos, tmp_path):
    "A folder of 60 flowers, one without a label, as `fungi review` reads it"
    folder = shutil.copytree(photos, tmp_path / 'set')
    shutil.copy(next(folder.rglob('*.jpg')), folder / 'loose (1).jpg')
    return read_for_review(Source.of(folder), progress=False)


@pytest.fixture
def serve():
    "serve(review) → the address of its page, in this process"
    import uvicorn

    from fungi_fastai.deploy.server import reserve_port
    from fungi_fastai.studies.review_server import make_review_app

    servers = []

    def start(review):
        with reserve_port('127.0.0.1', 0) as reserved:
            reserved = reserved.dup()
        app = make_review_app(review)
        server = uvicorn.Server(uvicorn.Config(app, log_level='error', log_config=None))
        thread = threading.Thread(target=server.run, kwargs=dict(sockets=[reserved]), daemon=True)
        thread.start()
        servers.append((server, thread))
        return f'http://127.0.0.1:{reserved.getsockname()[1]}/{app.state.key}/'

    yield start
    for server, thread in servers:
        server.should_exit = True
        thread.join(10)


def press(browser, *names):
    for name in names:
        text = '\r' if name == 'Enter' else name if len(name) == 1 else ''
        for kind in ('keyDown', 'keyUp'):
            code = keys.get(name, ord(name[0].upper()))
            typed = text if kind == 'keyDown' else ''
            browser.call('Input.dispatchKeyEvent', type=kind, key=name, text=typed, windowsVirtualKeyCode=code)
        browser.wait('!busy')


@pytest.mark.skipif(find() is None, reason='no chromium or google-chrome on this machine')
def test_by_keyboard(images, serve):
    paths, labels = images.items.path.tolist(), images.items.label.tolist()
    loose = paths.index(next(path for path in paths if path.endswith('loose (1).jpg')))
    others = tuple((label, 0.5) for label in ('roses', 'tulips'))
    flowers = [i for i in range(len(paths)) if labels[i] == 'daisy'][:5]
    entries = [Entry('labels', paths[i], 'Looks like a rose.', 'roses', others) for i in flowers]
    entries += [
        Entry('quality', paths[flowers[0] + 20], 'Blurred.'),
        Entry('proposals', paths[loose], '', 'tulips', others),
    ]
    review = Review(images, Queues(entries, {'roses': paths[-2:]}), who='Ada')
    with Chromium() as browser:
        browser.open(serve(review))
        browser.wait("document.getElementById('photo').naturalWidth")
        press(browser, 'Enter', 'k', 'x', 'u', '2')  # the third is left out, and then labelled instead
        press(browser, 'c', *'Iris', 'Enter')
        browser.wait("document.getElementById('problem').textContent.includes('no class Iris yet')")
        press(browser, 'Enter', 's', *'find 7', 'Enter', 'x')
        browser.wait("queue === 'labels' && state.done.filter(one => one).length === 5")
        press(browser, 'Tab', 'k', 'Tab', 'Enter')
        browser.wait("document.getElementById('count').textContent === 'Everything is decided.'")
        assert not browser.errors()
    table = review.decisions.read().set_index('path')
    made = [(table.label[paths[i]], table.exclude[paths[i]]) for i in flowers]
    assert made == [('roses', ''), ('daisy', ''), ('tulips', ''), ('new:Iris', ''), ('', 'yes')]
    assert table.specimen[paths[flowers[4]]] == 'find 7' and table.label[paths[loose]] == 'tulips'
    assert set(table.who) == {'Ada'} and len(table) == 7
    counts = Source.of(images.file.parent).read().attrs['corrections']
    assert [counts[key] for key in ('relabelled', 'labelled', 'confirmed', 'excluded')] == [3, 1, 2, 1]
    assert not Review(read_for_review(Source.of(images.file.parent), progress=False), Queues(entries, {})).entries


def test_two_labels_of_one_image_agree_by_one_decision(images):
    paths = images.items.path[:2].tolist()
    entries = [Entry('duplicates', one, '', '', (), (other,)) for one, other in (paths, paths[::-1])]
    images.items.loc[1, 'label'] = 'roses'
    review = Review(images, Queues(entries, {}))
    assert review.state()['done'] == [False, False]
    review.decide(0, label='roses')
    assert review.state()['done'] == [True, True]
    (images.file).write_text(images.file.read_text() + 'nothing.jpg,daisy,,,Ben,,,\n')  # somebody else edits the file
    review.undo()
    assert 'Ben' in images.file.read_text() and review.state()['done'] == [False, False]


def choice(label, name='label'):
    return dict(type='choices', from_name=name, to_name='image', value=dict(choices=[label]))


def annotation(*results, by=1, when='2026-11-02T10:00:00.123456Z', skipped=False):
    return dict(id=5, completed_by=by, updated_at=when, was_cancelled=skipped, result=list(results))


@pytest.fixture
def tasks(images, tmp_path):
    "Tasks of Label Studio for four images, without annotations"
    names, file = images.items.path[:4], tmp_path / 'tasks.json'
    write_label_studio(images.items, file, [(path, 'roses', 'Why: a.jpg') for path in names])
    return [task | dict(id=number, annotations=[]) for number, task in enumerate(read_json(file), 1)]


def imported(images, file):
    "What is read of an export, and the rows that it gives"
    images.file.unlink(missing_ok=True)
    text = import_decisions(images.items, images.file, file)
    return text, pd.read_csv(images.file, dtype=str).fillna('') if images.file.exists() else None


def test_label_studio(images, tasks, tmp_path):
    assert {tuple(task) for task in tasks} == {('data', 'predictions', 'id', 'annotations')}
    address = parse_qs(urlsplit(tasks[0]['data']['image']).query)['d'][0]
    assert tmp_path / address == Path(images.items.path[0])  # below the parent of the folder of the images
    tasks[0]['annotations'] = [annotation(choice('tulips'), by=2), annotation(choice('tulips'), by=2)]
    tasks[1]['annotations'] = [annotation(choice('roses'), choice('yes', 'exclude'), by=dict(email='ada@x.org'))]
    tasks[2]['annotations'] = [annotation(choice('roses'), skipped=True), annotation()]
    foreign = dict(image='/data/upload/3/0a1b2c3d-none.jpg')
    file = tmp_path / 'export.json'
    write_json(file, [*tasks, tasks[3] | dict(data=foreign, annotations=[annotation(choice('roses'))])])
    text, rows = imported(images, file)
    assert '2 decisions, 1 of them to leave' in text and 'none.jpg' in text
    assert rows.image.tolist() == images.items.name[:2].tolist() and rows.label.tolist() == ['tulips', '']
    assert rows.exclude.tolist() == ['', 'yes'] and rows.who.tolist() == ['annotator 2', 'ada@x.org']
    when = datetime(2026, 11, 2, 10, tzinfo=UTC).astimezone().replace(tzinfo=None)
    assert set(rows.when) == {when.isoformat()}
    tasks[3]['data'] = tasks[0]['data']  # the same image in another task
    tasks[3]['annotations'] = [annotation(choice('daisy'))]
    write_json(file, tasks)
    with pytest.raises(UserError, match=r'differ about 1 image: .*\(tulips, daisy\)'):
        imported(images, file)
    assert not images.file.exists()


@pytest.mark.parametrize('separator', ['', ',', '\t'])
def test_rows_of_label_studio(images, tasks, tmp_path, separator):
    "JSON-MIN, CSV and TSV have a row for each annotation, and for each task without one"
    labels = dict(enumerate(['tulips', '', ''])) | {3: 'tulips'}
    rows = [
        task['data'] | dict(id=task['id'], annotator=1, annotation_id=None if number == 1 else number + 7)
        for number, task in enumerate(tasks)
    ]
    rows = [row | dict(label=labels[number], exclude='yes' * (number == 2)) for number, row in enumerate(rows)]
    rows[3] |= dict(name='', image='/data/upload/1/0a1b2c3d-loose_1.jpg')  # Label Studio renames what is uploaded
    file = tmp_path / f'export.{"csv" if separator else "json"}'
    if separator:
        pd.DataFrame(rows).to_csv(file, index=False, sep=separator, quoting=csv.QUOTE_NONNUMERIC)
    else:
        write_json(file, rows)
    text, found = imported(images, file)
    assert '3 decisions' in text and found.label.tolist() == ['tulips', '', 'tulips']
    assert found.image[2] == 'loose (1).jpg' and set(found.who) == {'annotator 1'}
    write_json(file.with_suffix('.json'), [rows[0] | dict(label='bellis')])
    with pytest.raises(UserError, match="'bellis', which is no class"):
        imported(images, file.with_suffix('.json'))


def test_fiftyone(images, tmp_path):
    folder = write_fiftyone(images.items, tmp_path / 'dataset')
    content = read_json(folder / 'samples.json')
    labelled = [sample for sample in content['samples'] if 'ground_truth' in sample]
    labelled[0]['ground_truth'] |= dict(_id={'$oid': '0' * 24}, label='roses', confidence=None)
    labelled[1]['tags'] = ['exclude']
    labelled[2]['ground_truth'] = None
    labelled[3] |= dict(filepath=labelled[3]['filepath'].replace('/', '\\'), name='')
    labelled[3]['ground_truth']['label'] = 'roses'
    write_json(folder / 'samples.json', content)
    text, rows = imported(images, folder)
    assert '3 decisions' in text and labelled[2]['name'] in text and rows.label.tolist() == ['roses', '', 'roses']
    with pytest.raises(UserError, match='exists already'):
        write_fiftyone(images.items, folder)
    table = tmp_path / 'labels.csv'
    lines = [[row['filepath'], 'roses', 'a,exclude' * (k == 1)] for k, row in enumerate(labelled[:2])]
    pd.DataFrame(lines, columns=['filepath', 'ground_truth.label', 'tags']).to_csv(table, index=False)
    assert imported(images, table)[1].drop(columns='when').equals(rows[:2].drop(columns='when'))


def test_names_of_fiftyone(images, tmp_path):
    "Without rel_dir, FiftyOne leaves out the folders, and numbers images of one name"
    names = ['a/1.jpg', 'b/1.jpg', 'c/1-2.jpg', 'c/7.jpg']
    items = images.items[:4].assign(name=names, path=[f'/x/{name}' for name in names], label=list('abcc'))
    assert len(set(items.path)) == 4
    file = tmp_path / 'labels.json'
    write_json(file, dict(classes=['a', 'b', 'c'], labels={'1': 2, '1-2': 0, '7': 0}))
    text = import_decisions(items, images.file, file)
    assert '1 decision,' in text and '2 rows about' in text and 'c/7.jpg,a,' in images.file.read_text()
    write_json(file, dict(classes=['a', 'b', 'c'], labels={'a/1': 1, 'b/1': 1, 'c/1-2': 0}))
    assert '2 decisions' in import_decisions(items, images.file, file)
    write_json(file, dict(classes=None, labels={'1': 'a', '2': 'b'}))
    with pytest.raises(UserError, match="none of them is in this source.*rel_dir='/x'"):
        import_decisions(items, images.file, file)


def test_no_export(images, tmp_path):
    file = tmp_path / 'export.json'
    for content, words in (
        (dict(a=1), 'no export that is read here'),
        ([1, 2], 'no export that is read here'),
        (dict(samples=[dict(tags=[])]), 'no export that is read here'),
        ([dict(data=dict(image='a.jpg'), annotations='x')], 'no export that is read here'),
        (dict(samples=[dict(filepath='/a.jpg', gt=dict(_cls='Classifications'))]), 'no field with one class'),
        (dict(classes=['a'], labels=dict(x=1)), 'there is no class of that number'),
        (dict(classes=['a'], labels=dict(x=['a', 'b'])), r'several labels \(a, b\)'),
    ):
        write_json(file, content)
        with pytest.raises(UserError, match=words):
            import_decisions(images.items, images.file, file)
    assert not images.file.exists()


def test_mistakes(fungi, photos, tmp_path):
    assert '--corrections FILE.csv' in fungi('review', 'sample', code=2).err
    assert 'Give one of' in fungi('review', photos, '--fiftyone', 'a', '--decisions', 'b', code=2).err
    assert 'There is no' in fungi('review', photos, '--decisions', 'none.json', code=2).err
    (tmp_path / 'text.json').write_text('{')
    assert 'is no JSON' in fungi('review', photos, '--decisions', tmp_path / 'text.json', code=2).err
    assert not (photos / 'corrections.csv').exists()
