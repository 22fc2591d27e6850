"The page of `fungi review` in Chromium, by keyboard; and decisions of Label Studio and FiftyOne"

import shutil
import threading

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
    shutil.copy(next(folder.rglob('*.jpg')), folder / 'loose.jpg')
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
    loose = paths.index(next(path for path in paths if path.endswith('loose.jpg')))
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


def test_label_studio(images, tmp_path):
    items, file = images.items, tmp_path / 'tasks.json'
    write_label_studio(items, file, [(items.path[0], 'roses', 'why'), (items.path[1], '', 'why')])
    tasks = read_json(file)
    assert [list(task) for task in tasks] == [['data', 'predictions'], ['data']]
    choice = dict(type='choices', from_name='label', to_name='image', value=dict(choices=['roses']))
    box = dict(type='choices', from_name='exclude', to_name='image', value=dict(choices=['yes']))
    made = dict(id=1, completed_by=dict(email='ada@x.org'), created_at='2026-11-02T10:00:00.123Z', was_cancelled=False)
    tasks[0]['annotations'] = [made | dict(result=[choice])]
    tasks[1]['annotations'] = [made | dict(result=[box]), made | dict(result=[choice], was_cancelled=True)]
    upload = f'/data/upload/3/0a1b2c3d-{items.name[2].rpartition("/")[2]}'
    tasks += [
        dict(id=9, data=dict(image='/data/upload/3/0a1b2c3d-none.jpg'), annotations=[made | dict(result=[choice])])
    ]
    write_json(file, tasks)
    text = import_decisions(items, images.file, file)
    assert '2 decisions' in text and '1 of them to leave' in text and 'none.jpg' in text and upload
    rows = (tmp_path / 'set' / 'corrections.csv').read_text().splitlines()
    assert ',roses,,,ada@x.org,2026-11-02T10:00:00,' in rows[1] and ',,yes,' in rows[2]
    tasks[0]['annotations'].append(made | dict(result=[choice | dict(value=dict(choices=['tulips']))]))
    write_json(file, tasks)
    with pytest.raises(UserError, match='annotations that differ'):
        import_decisions(items, images.file, file)
    row = dict(image=items.path[3], id=4, label='bellis', annotator=1, annotation_id=5, created_at='', updated_at='')
    write_json(file, [row | dict(image=items.path[2], label='roses'), row])
    with pytest.raises(UserError, match="'bellis', which is no class"):
        import_decisions(items, images.file, file)
    assert (tmp_path / 'set' / 'corrections.csv').read_text().splitlines() == rows  # all or none


def test_fiftyone(images, tmp_path):
    folder = write_fiftyone(images.items, tmp_path / 'dataset')
    content = read_json(folder / 'samples.json')
    labelled = [sample for sample in content['samples'] if 'ground_truth' in sample]
    labelled[0]['ground_truth'] |= dict(_id={'$oid': '0' * 24}, label='roses', confidence=None)
    labelled[1]['tags'] = ['exclude']
    write_json(folder / 'samples.json', content)
    assert '2 decisions' in import_decisions(images.items, images.file, folder)
    name = images.items.name[5].rpartition('.')[0]
    write_json(tmp_path / 'labels.json', dict(classes=['daisy', 'roses'], labels={name: 1}))
    assert '1 decision ' in import_decisions(images.items, images.file, tmp_path / 'labels.json')
    with pytest.raises(UserError, match='exists already'):
        write_fiftyone(images.items, folder)
    write_json(tmp_path / 'labels.json', dict(a=1))
    with pytest.raises(UserError, match='no export that is read here'):
        import_decisions(images.items, images.file, tmp_path / 'labels.json')


def test_mistakes(fungi, photos, tmp_path):
    assert '--corrections FILE.csv' in fungi('review', 'sample', code=2).err
    assert 'Give one of' in fungi('review', photos, '--fiftyone', 'a', '--decisions', 'b', code=2).err
    assert 'There is no' in fungi('review', photos, '--decisions', 'none.json', code=2).err
    (tmp_path / 'text.json').write_text('{')
    assert 'is no JSON' in fungi('review', photos, '--decisions', tmp_path / 'text.json', code=2).err
    assert not (photos / 'corrections.csv').exists()
