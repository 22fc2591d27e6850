"A run becomes a bundle, or nothing: parity, files, refusals, faults, timm and the hub"

import base64
import errno
import json
import os
import pickle
import shutil
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import wait_for

from fungi_fastai.core.errors import TrainingError, UserError
from fungi_fastai.data.images import canvas_size, open_image, read_pixels, square
from fungi_fastai.deploy.bundle import Bundle
from fungi_fastai.deploy.executables import executable_code
from fungi_fastai.deploy.hub import push_to_hub

quick = dict(examples=0, references=2, images=8, progress=False)


@pytest.fixture(scope='module')
def ship(ready):
    import fungi_fastai.deploy.export as module

    return module


@pytest.fixture
def copy(small_bundle, tmp_path):
    return shutil.copytree(small_bundle, tmp_path / 'copy')


def everything(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_what_is_written(small_run, small_bundle):
    bundle = Bundle.load(small_bundle)
    assert (
        list(bundle.classes) == small_run.classes == (small_bundle / 'classes.txt').read_text('utf8').split('\n')[:-1]
    )
    assert (bundle.size, bundle.resize, bundle.canvas) == (32, 'crop', canvas_size(32)) and bundle.network[
        'arch'
    ] == 'convmixer_16_1'
    known = small_run.metrics
    assert (
        bundle.temperature == known['calibration']['temperature']
        and bundle.decisions['threshold'] == known['abstention']['threshold']
    )
    assert bundle.conformal.coverage == 0.9 and bundle.threshold.why
    assert (
        bundle.metrics['accuracy'] == known['accuracy']
        and bundle.metrics['intervals']
        and bundle.metrics['n_test'] == known['n_test']
    )
    assert bundle.data['split'] == {k: int(v) for k, v in small_run.items.split.value_counts().items() if k}
    assert bundle.parity['same_top1'] == 1 and bundle.parity['max_difference'] <= bundle.parity['tolerance'] == 1e-4
    assert bundle.parity['from_evaluation'] < 0.01
    bundle.verify()
    modes = {p.stat().st_mode & 0o777 for p in small_bundle.iterdir()}
    assert modes == {small_bundle.stat().st_mode & 0o666}  # who may enter may read: a server runs as somebody else
    assert json.loads((small_bundle / 'bundle.json').read_text('utf8'))['schema'] == 2


def test_nothing_in_it_can_run_code_or_names_this_machine(small_bundle, photos):
    for file in small_bundle.iterdir():
        assert not executable_code(file), file
        for secret in (str(photos.parent), os.path.dirname(__file__)):
            assert secret.encode() not in file.read_bytes(), file


def test_the_graph_gives_the_predictions_of_torch_for_photos_of_any_size(small_run, small_bundle, ship):
    import torch

    from fungi_fastai.deploy.engines import OnnxEngine
    from fungi_fastai.deploy.onnx import DeployedNetwork

    bundle, runner = Bundle.load(small_bundle), OnnxEngine(small_bundle / 'model.onnx')
    shipped = DeployedNetwork(
        bundle.torch_network(), bundle.preprocessing['mean'], bundle.preprocessing['std'], bundle.temperature
    )
    photos = [np.asarray(open_image(path)) for path in small_run.items.path[:6]]
    squares = np.stack([square(read_pixels(path, canvas_size(32)), 32) for path in small_run.items.path[:6]])
    with torch.no_grad():
        expected, features = (part.numpy() for part in shipped(torch.from_numpy(squares)))
    assert np.abs(runner(squares)[0] - expected).max() < 1e-5 and np.abs(runner(squares)[1] - features).max() < 1e-3
    for photo, one in zip(photos, expected, strict=True):
        assert np.abs(runner(photo[None])[0] - one).max() < 0.01 and photo.shape[0] != 32
    np.testing.assert_allclose(runner(squares)[0].sum(1), 1, atol=1e-5)


def test_a_graph_with_other_predictions_is_not_exported(small_run, small_bundle, copy, ship, monkeypatch):
    made = ship.network_graph

    def swapped(shipped, size):  # a mistake that happens: blue, green, red
        shipped.scale, shipped.offset = shipped.scale * 3, shipped.offset.flip(1)
        try:
            return made(shipped, size)
        finally:
            shipped.scale, shipped.offset = shipped.scale / 3, shipped.offset.flip(1)

    monkeypatch.setattr(ship, 'network_graph', swapped)
    before = everything(copy)
    for out in (copy, copy.with_name('new')):
        with pytest.raises(TrainingError, match='does not give the predictions of torch: on 64 images'):
            ship.export(small_run, out, **quick | dict(images=64))
    assert everything(copy) == before and os.listdir(copy.parent) == ['copy']


def test_images_that_changed_since_the_evaluation_are_noticed(small_run, ship, tmp_path):
    other = small_run.predictions.copy()
    columns = [f'p_{c}' for c in small_run.classes]
    other[columns] = other[columns[::-1]].to_numpy() * 0.5 + np.eye(5)[0] * 0.5
    fake = SimpleNamespace(
        **{k: getattr(small_run, k) for k in ('folder', 'recipe', 'items', 'metrics', 'classes', 'decisions')},
        predictions=other,
    )
    with pytest.raises(TrainingError, match="does not give the predictions of the run's evaluation"):
        ship.export(fake, tmp_path / 'out', **quick)
    gone = SimpleNamespace(
        **vars(fake)
        | dict(
            items=small_run.items.assign(path='/nowhere/' + small_run.items.path.str[1:]),
            predictions=small_run.predictions,
        )
    )
    with pytest.raises(UserError, match='None of the 8 images .* can be read any more'):
        ship.export(gone, tmp_path / 'out', **quick)
    assert os.listdir(tmp_path) == []


def test_folders_that_are_refused(small_run, ship, tmp_path, monkeypatch):
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'thesis.txt').write_text('years of work')
    (tmp_path / 'file').write_text('')
    for name in ('mine', 'file'):
        with pytest.raises(UserError, match='is not a bundle. Choose another folder'):
            ship.export(small_run, tmp_path / name, **quick)
    with pytest.raises(UserError, match='There is no run folder'):
        ship.export(tmp_path / 'none', tmp_path / 'out')
    assert (tmp_path / 'mine' / 'thesis.txt').read_text() == 'years of work'
    for place in ('.', '..'):
        (tmp_path / 'file').unlink(missing_ok=True)
        monkeypatch.chdir(tmp_path / 'mine')
        with pytest.raises(UserError, match='is the folder you are in'):
            ship.export(small_run, place, **quick)


def test_other_files_are_not_lost(small_run, copy, ship):
    (copy / 'notes.txt').write_text('years of work')
    with pytest.raises(UserError, match=r'holds notes.txt, which its bundle.json does not name'):
        ship.export(small_run, copy, **quick)
    assert (copy / 'notes.txt').read_text() == 'years of work'


def test_leftovers_are_found_whatever_the_name(small_run, ship, tmp_path):
    (tmp_path / '.a[1].7.part').mkdir()
    (tmp_path / '.a1.7.part').mkdir()  # somebody else's
    out = ship.export(small_run, tmp_path / 'a[1]', **quick)
    assert out == tmp_path / 'a[1]' and sorted(os.listdir(tmp_path)) == ['.a1.7.part', 'a[1]']
    assert all(p.stat().st_mode & 0o044 == 0o044 & out.stat().st_mode for p in out.iterdir()), (
        'a server runs under another name'
    )


def test_a_full_disk_leaves_what_was_there(small_run, copy, ship, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = everything(copy)
    monkeypatch.setattr(ship, 'write_text', full)
    with pytest.raises(TrainingError, match='No space left on device. What was there before is unchanged'):
        ship.export(small_run, copy, **quick)
    assert everything(copy) == before and os.listdir(copy.parent) == ['copy']


@pytest.mark.slow
def test_killed_in_mid_export(process, small_run, copy, ship):
    before = everything(copy)
    one = process('export', small_run.folder, '--out', copy)
    part = copy.with_name(f'.copy.{one.pid}.part')
    wait_for((part / 'model.onnx').exists, one)
    one.kill()
    one.join()
    assert one.exitcode == -signal.SIGKILL, one.log.read_text()
    assert part.exists() and everything(copy) == before
    Bundle.load(copy)
    ship.export(small_run, copy, **quick)  # the next one clears up, and replaces
    assert not [p for p in os.listdir(copy.parent) if p.endswith('.part')]
    assert 'examples.safetensors' not in Bundle.load(copy).files and len(os.listdir(copy)) < len(before)


def test_int8_and_openvino_report_their_accuracy(small_run, small_bundle):
    bundle, card = Bundle.load(small_bundle), (small_bundle / 'README.md').read_text('utf8')
    held_out = small_run.predictions[small_run.predictions.split == 'test']
    for name, file in dict(int8='model.int8.onnx', openvino='model.openvino.xml').items():
        cost = bundle.engines[name]
        assert bundle.file(file).exists() and cost['images'] == len(held_out) and cost['speed'] > 0
        full_accuracy = (held_out.predicted == held_out.label).mean()
        assert cost['accuracy'] == pytest.approx(full_accuracy - cost['accuracy_loss'], abs=1.1 / len(held_out))
        assert f'{name}: accuracy {cost["accuracy"]:.3f} on {cost["images"]} held-out images' in card
        required = 1 if name == 'openvino' else 0.95  # OpenVINO computes in full precision
        assert cost['min_agreement'] == required and f'at least {required:.0%} was required' in card
    assert bundle.engines['openvino']['max_difference'] < 1e-4 and bundle.engines['int8']['max_difference'] < 0.3
    assert 0 <= bundle.engines['int8']['layers_in_float'] <= bundle.engines['int8']['layers'] / 2


def test_an_8_bit_engine_with_other_answers_is_not_exported(fungi, small_run, copy, ship, monkeypatch):
    "Whatever the reason; what was there stays, and the message has the figures and the way out"
    import torch

    from fungi_fastai.deploy.onnx import DeployedNetwork
    from fungi_fastai.deploy.timm_names import load_network

    before = everything(copy)

    def coarse(graph, squares, compared):
        assert len(squares) == (small_run.items.split == 'train').sum()  # all, since there are fewer than 256
        network, _ = load_network(small_run)
        torch.nn.init.zeros_(network[1].linear.weight)  # the same answer for every image
        graph = ship.network_graph(DeployedNetwork(network, *network.stats), 32)
        return SimpleNamespace(graph=graph, layers=1, in_float=0)

    monkeypatch.setattr(ship, 'quantize', coarse)
    options = ('export', small_run.folder, '--out', copy, '--int8', '--examples', 0)
    done = fungi(*options, code=2)
    assert 'names the same class for' in done.err and 'required: 95.0%' in done.err and '--min-agreement' in done.err
    assert everything(copy) == before
    fungi(*options, '--min-agreement', 1.5, code=2)


def test_what_counts_as_agreement():
    from fungi_fastai.deploy.parity import check_agreement, measure_engine

    targets = np.arange(200) % 4
    full = np.eye(4)[targets]

    def rounded(n, wrong):
        probs = full[:n].copy()
        probs[:wrong] = np.roll(probs[:wrong], 1, axis=1)
        return measure_engine(full[:n], probs, targets[:n])

    assert rounded(200, 4)['accuracy_loss'] == pytest.approx(0.02) and rounded(10, 1)['same_top1'] == 0.9
    check_agreement(rounded(200, 4), 0.95, 'int8')
    check_agreement(rounded(10, 1), 0.95, 'int8')  # one image may always differ
    for n, wrong in ((200, 5), (10, 2)):  # more than two points of accuracy; two images of ten
        with pytest.raises(UserError, match='does not give the answers of the full network'):
            check_agreement(rounded(n, wrong), 0.95, 'web')
    wrong = np.roll(full, 2, axis=1)  # a network that is wrong anyway: only the agreement counts
    changed = wrong.copy()
    changed[:11] = full[:11]
    with pytest.raises(UserError, match='94.5% .required: 95.0%'):
        check_agreement(measure_engine(wrong, changed, targets), 0.95, 'int8')
    with pytest.raises(UserError):
        check_agreement(measure_engine(full, full * np.nan, targets), 0.0, 'int8')


def test_the_card(small_run, small_bundle):
    import yaml

    _, head, text = (small_bundle / 'README.md').read_text('utf8').split('---\n', 2)
    about = yaml.safe_load(head)
    assert (
        about['pipeline_tag'] == 'image-classification'
        and about['model-index'][0]['results'][0]['metrics'][0]['value'] == small_run.metrics['accuracy']
    )
    low, high = small_run.metrics['intervals']['accuracy']
    for text_ in (
        f'| accuracy | {small_run.metrics["accuracy"]:.3f} | {low:.3f} to {high:.3f} |',
        '## Data',
        '60 images of 5 classes',
        '## Limits',
        'may name anything else as one of them',
        'No specimens were declared',
        '## Licence',
        'fungi train flowers',
        'fungi export RUN --int8',
    ):
        assert text_ in text, text_
    parity = Bundle.load(small_bundle).parity
    assert 0 <= parity['raw_images'] < 0.2 and f'(here {parity["raw_images"]:.1g})' in text
    assert (
        f'{parity["flipped"]} of them are flips of the others' in text
        if parity['flipped']
        else 'flips of the others' not in text
    )


# --- bundles that are not as they were made


@pytest.mark.parametrize('name', ['model.onnx', 'model.safetensors', 'classes.txt', 'README.md', 'model.openvino.bin'])
def test_a_changed_file_is_noticed(copy, name):
    opened = Bundle.load(copy)
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(UserError, match=f'{name} is not the file that was exported: its checksum'):
        Bundle.load(copy)
    with pytest.raises(UserError, match='its checksum'):
        opened.verify()
    (copy / name).unlink()
    with pytest.raises(UserError, match=f'lacks {name}'):
        Bundle.load(copy)


class Hostile:
    def __reduce__(self):
        return os.system, ('touch /tmp/fungi-was-here',)


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize('name', ['optimizer.bin', 'notes.txt', 'model.onnx', 'deep/model.md'])
def test_a_hostile_pickle_is_refused(copy, name, protocol):
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).write_bytes(pickle.dumps(Hostile(), protocol))
    with pytest.raises(UserError, match='which can run code'):
        Bundle.load(copy)
    (copy / name).write_bytes(pickle.dumps(Hostile(), protocol)[:-1])  # without its end it runs too
    with pytest.raises(UserError, match='which can run code'):
        Bundle.load(copy)
    assert not os.path.exists('/tmp/fungi-was-here')


def test_what_torch_saves_is_refused(copy, ready):
    import torch

    torch.save({'a': torch.zeros(3)}, copy / 'weights.bin')
    with pytest.raises(UserError, match='a zip, which can run code'):
        Bundle.load(copy)


@pytest.mark.parametrize(
    'words',
    [
        'chanterelle\nmorel\nRose\n',
        'i,a\n1,2\n',
        '(a)\nindigo\nx\n',
        'cep\ncos\n.',
        '.',
        '',
        'Vaccinium\nViola\nRubus\nR\n',
    ],
)
def test_words_are_no_pickle(tmp_path, words):
    (tmp_path / 'words').write_text(words)
    assert not executable_code(tmp_path / 'words')


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (dict(schema=3), 'schema 3; this version of fungi_fastai reads schema 2'),
        (dict(schema=None), 'schema None'),
        (dict(classes=['a']), '5 numbers for 1 classes'),
        (dict(temperature=float('nan')), 'temperature is nan'),
        (dict(files={'/etc/passwd': dict(bytes=1, blake2b='')}), 'outside the bundle'),
        (dict(files={}), 'does not name model.safetensors'),
        (dict(preprocessing={}), 'size and canvas'),
        (dict(metrics=[]), 'metrics'),
        (dict(name=7), 'name is not text'),
        (dict(threshold=dict(coverage=1, confidence='high')), 'threshold is not made of numbers'),
        (dict(conformal=[1]), 'conformal is not made of numbers'),
        (dict(threshold=dict(coverage=1)), 'its threshold does not fit this version'),
    ],
)
def test_other_bundles_are_refused(copy, change, words):
    values = json.loads((copy / 'bundle.json').read_text('utf8'))
    (copy / 'bundle.json').write_text(json.dumps(values | change))
    with pytest.raises(UserError, match=words):
        _ = Bundle.load(copy).threshold
    (copy / 'bundle.json').write_text('{')
    with pytest.raises(UserError, match='not valid JSON'):
        Bundle.load(copy)
    (copy / 'bundle.json').unlink()
    with pytest.raises(UserError, match='it has no bundle.json'):
        Bundle.load(copy)


def test_a_run_is_not_a_bundle(small_run):
    with pytest.raises(UserError, match='It is a run; make a bundle of it with: fungi export'):
        Bundle.load(small_run.folder)


# --- timm and the hub


@pytest.fixture
def timm_run(small_run, tmp_path):
    "`small_run` with another network, whose weights are random"

    def make(arch):
        import torch
        from safetensors.torch import save_file

        from fungi_fastai.models.networks import make_network

        torch.manual_seed(0)
        network = make_network(arch, 5, size=32)
        torch.nn.init.normal_(network[1].linear.weight, std=0.2)
        (tmp_path / 'run').mkdir()
        save_file(network.state_dict(), tmp_path / 'run' / 'model.safetensors')
        kept = {
            k: getattr(small_run, k)
            for k in ('items', 'metrics', 'classes', 'decisions', 'initial_weights', 'evaluation', 'validation_answers')
        }
        return SimpleNamespace(
            folder=tmp_path / 'run',
            commands=['fungi train flowers'],
            recipe=small_run.recipe.but(arch=arch),
            predictions=small_run.predictions.assign(path=''),
            **kept,
        )

    return make


@pytest.mark.parametrize('arch', ['test_resnet', 'test_vit'])
def test_timm_loads_it_by_its_own_names(timm_run, ship, tmp_path, arch):
    import timm
    import torch
    from safetensors.numpy import load_file

    folder = ship.export(timm_run(arch), tmp_path / 'bundle', **quick)
    bundle, known = Bundle.load(folder), load_file(folder / 'references.safetensors')
    config = json.loads((folder / 'config.json').read_text('utf8'))
    assert config['architecture'] == arch and config['label_names'] == list(bundle.classes)
    assert not any(k.startswith('0.') for k in load_file(folder / 'model.safetensors'))
    network = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    x = torch.from_numpy(known['pixels']).permute(0, 3, 1, 2) / 255 - torch.tensor(
        config['pretrained_cfg']['mean']
    ).view(3, 1, 1)
    x = x / torch.tensor(config['pretrained_cfg']['std']).view(3, 1, 1)
    with torch.no_grad():
        for model in (network, bundle.torch_network()):
            np.testing.assert_allclose(
                (model(x) / bundle.temperature).softmax(1).numpy(), known['probabilities'], atol=1e-4
            )
    assert list(timm.data.resolve_model_data_config(network)['input_size']) == [3, 32, 32]


class Hub(BaseHTTPRequestHandler):
    "As much of the Hugging Face Hub as an upload needs; small files and large go the same way"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
        response = dict(error='no') if self.server.code != 200 else {}
        if self.server.code != 200:
            pass
        elif self.path == '/api/repos/create':
            response = dict(url=f'{self.server.address}/me/flowers', id='me/flowers')
        elif '/preupload/' in self.path:
            response = dict(
                files=[dict(f, uploadMode='regular', shouldIgnore=False) for f in json.loads(body)['files']]
            )
        elif '/commit/' in self.path:
            for line in map(json.loads, body.splitlines()):
                if line['key'] == 'file':
                    self.server.files[line['value']['path']] = base64.b64decode(line['value']['content'])
            response = dict(
                commitUrl=f'{self.server.address}/me/flowers/commit/1', commitOid='1', hookOutput='', success=True
            )
        self.server.tokens.add(self.headers.get('Authorization'))
        content = json.dumps(response).encode()
        self.send_response(self.server.code)
        self.send_header('Content-Type', 'application/json')
        self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self):  # nothing is there yet
        self.send_response(404)
        self.send_header('X-Error-Code', 'RepoNotFound')
        self.send_header('Content-Length', '0')
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    server.code, server.files, server.tokens, server.address = 200, {}, set(), f'http://127.0.0.1:{server.server_port}'
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in ('HF_TOKEN', 'HUGGING_FACE_HUB_TOKEN', 'HF_HUB_OFFLINE'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr('huggingface_hub.get_token', lambda: None)
    monkeypatch.setenv('HF_ENDPOINT', server.address)
    yield server
    server.shutdown()
    server.server_close()


def test_pushed_to_a_hub(hub, small_bundle):
    with pytest.raises(UserError, match='needs a token with the right to write'):
        push_to_hub(small_bundle, 'me/flowers')
    assert not hub.tokens
    assert push_to_hub(small_bundle, 'me/flowers', token='hf_secret') == f'{hub.address}/me/flowers'
    assert hub.files == everything(small_bundle) and hub.tokens == {'Bearer hf_secret'}


@pytest.mark.parametrize(
    ('code', 'words', 'kind'),
    [
        (401, 'does not know this token', UserError),
        (403, 'may not write to me/flowers', UserError),
        (422, 'refused me/flowers', TrainingError),
    ],
)
def test_refused_by_a_hub(hub, small_bundle, code, words, kind):
    hub.code = code
    with pytest.raises(kind, match=words):
        push_to_hub(small_bundle, 'me/flowers', token='hf_secret')


def test_no_hub_to_be_reached(hub, small_bundle, copy, monkeypatch):
    with pytest.raises(UserError, match='not a valid name of a repository'):
        push_to_hub(small_bundle, 'me//flowers!', token='hf_secret')
    monkeypatch.setenv('HF_ENDPOINT', 'http://127.0.0.1:9')
    with pytest.raises(UserError, match='cannot be reached.*is complete; push it again'):
        push_to_hub(small_bundle, 'me/flowers', token='hf_secret')
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    with pytest.raises(UserError, match='HF_HUB_OFFLINE is set'):
        push_to_hub(small_bundle, 'me/flowers', token='hf_secret')
    (copy / 'model.onnx').write_bytes(b'')
    with pytest.raises(UserError, match='is not the file that was exported'):
        push_to_hub(copy, 'me/flowers', token='hf_secret')
