"The predictor on a bundle that was exported from a real run, with every engine"

import io
import json
import os
import pickle
import select
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fungi_fastai.core.errors import MissingFileError, TrainingError, UserError
from fungi_fastai.data.images import ImageError
from fungi_fastai.deploy.bundle import Bundle
from fungi_fastai.deploy.predictor import Predictor

backends = ['onnx', 'torch', 'int8', 'openvino']


@pytest.fixture(scope='module')
def load(small_bundle):
    "A predictor for each backend, opened once"
    opened = {}

    def load(backend='onnx'):
        if backend == 'openvino':
            pytest.importorskip('openvino', reason='OpenVINO is not installed')
        if backend not in opened:
            opened[backend] = Predictor.load(small_bundle, backend, threads=2)
        return opened[backend]

    yield load
    for predictor in opened.values():
        predictor.close()


@pytest.fixture(scope='module')
def files(photos):
    return sorted(Path(photos).rglob('*.jpg'))


@pytest.fixture(scope='module')
def pixels(load, files):
    return np.stack([load().read(file) for file in files[:24]])


@pytest.fixture
def copy(small_bundle, tmp_path):
    return shutil.copytree(small_bundle, tmp_path / 'copy')


@pytest.mark.parametrize('backend', backends)
def test_an_image_has_the_same_probabilities_alone_in_any_batch_and_in_8_threads(load, pixels, backend):
    predictor = load(backend)
    together = predictor.run(pixels)
    assert together.shape == (24, 5) and together.dtype == np.float32 and np.abs(together.sum(1) - 1).max() < 1e-5
    for n in (1, 5):
        batches = [predictor.run(pixels[i : i + n]) for i in range(0, len(pixels), n)]
        assert np.concatenate(batches).tobytes() == together.tobytes()
    assert predictor.run(pixels[::-1])[::-1].tobytes() == together.tobytes()

    def run_shuffled(seed):
        order = np.random.default_rng(seed).permutation(len(pixels))
        probs, features = predictor.run_with_features(pixels[order])
        return probs[np.argsort(order)].tobytes(), features[np.argsort(order)].tobytes()

    with ThreadPoolExecutor(8) as pool:
        results = set(pool.map(run_shuffled, range(24)))
    assert len(results) == 1 and results.pop()[0] == together.tobytes()


def test_the_engines_agree_with_each_other_and_with_the_run(load, small_run, files, pixels):
    from fungi_fastai.evaluation.calibration import apply_temperature

    torch = load('torch')
    exact, exact_features = torch.run_with_features(pixels)
    for backend, tolerance in dict(onnx=1e-5, openvino=1e-4, int8=0.3).items():
        if backend == 'openvino' and not (load('onnx').bundle.folder / 'model.openvino.xml').exists():
            continue
        probs, features = load(backend).run_with_features(pixels)
        assert np.abs(probs - exact).max() < tolerance, backend
        assert features.shape == exact_features.shape == (24, 16)
        if backend != 'int8':
            assert np.allclose(features, exact_features, atol=1e-3)
    run_probs, _ = small_run.classify([str(file) for file in files[:24]])
    assert (
        np.abs(apply_temperature(run_probs, torch.bundle.temperature) - exact).max() < 2e-3
    )  # the run uses the machine's precision


@pytest.mark.parametrize('backend', ['onnx', 'torch', 'openvino'])
def test_references(load, backend):
    assert load(backend).check() < 1e-4


def test_all_kinds_of_input(load, files, photos):
    predictor, file = load(), files[3]
    image = Image.open(file)
    inputs = [
        file,
        str(file),
        file.read_bytes(),
        bytearray(file.read_bytes()),
        io.BytesIO(file.read_bytes()),
        Image.open(file),
        np.asarray(image),
    ]
    predictions = predictor.predict(inputs)
    assert len({p.probabilities.tobytes() for p in predictions}) == 1
    assert [p.source for p in predictions] == [str(file), str(file), *(f'image {i}' for i in range(3, 8))]
    assert predictor.predict(file).probabilities.tobytes() == predictions[0].probabilities.tobytes()
    assert len(predictor.predict([file])) == 1 and predictor.predict(file)[0].source == str(file)
    assert [p.source for p in predictor.predict(photos)] == [str(file) for file in files]
    assert predictor.predict([]) == []
    grey, alpha = np.asarray(image.convert('L')), np.asarray(image.convert('RGBA'))

    def same(*images):
        return len({p.probabilities.tobytes() for p in predictor.predict(list(images))}) == 1

    assert same(grey, grey[..., None], image.convert('L').convert('RGB')) and same(alpha, image)


def test_a_list_in_the_list_is_a_specimen(load, files, photos):
    predictor = load()
    first, second = predictor.predict([files[:3], [files[7]]])
    assert [one.source for one in first.images] == [str(file) for file in files[:3]]
    logs = np.log(np.maximum([one.probabilities for one in first.images], 1e-12)).mean(0)
    logs /= predictor.bundle.pooling.temperature(3)
    assert np.allclose(first.probabilities, np.exp(logs) / np.exp(logs).sum(), atol=1e-5)
    assert first.label == predictor.classes[first.probabilities.argmax()] and 'pooled from 3 photos' in first.why
    assert np.allclose(second.probabilities, predictor.predict(files[7]).probabilities, atol=1e-6)
    mixed = predictor.predict([files[0], (files[1].read_bytes(), Image.open(files[2])), str(files[3].parent)])
    assert [len(one.images) for one in mixed] == [0, 2] + [0] * (len(mixed) - 2) and mixed[
        1
    ].source == 'image 2, image 3'
    assert len(predictor.predict([[photos]])[0].images) == len(files)  # a folder of photos of one specimen
    with pytest.raises(UserError, match='Specimen 2 has no image'):
        predictor.predict([files[0], []])
    with pytest.raises(ImageError, match='not list'):
        predictor.predict([[[files[0]]]])


def test_ranks_and_pooling_in_a_bundle(copy, files):
    values = json.loads((copy / 'bundle.json').read_text())
    threshold = values['threshold'] | dict(confidence=0.0)
    values['threshold'] = threshold | dict(confidence=1.01)  # no class is certain enough
    values['ranks'] = dict(rank='species', taxa=dict(genus=['A', 'A', 'B', 'B', 'B']), thresholds=dict(genus=threshold))
    (copy / 'bundle.json').write_text(json.dumps(values))
    with closing(Predictor.load(copy)) as predictor:
        one = predictor.predict(files[0])
        probability = max(one.probabilities[:2].sum(), one.probabilities[2:].sum())
        assert one.answer in 'AB' and one.rank == 'genus' and one.label in predictor.classes
        assert one.ranks == (dict(rank='genus', taxon=one.answer, probability=pytest.approx(probability)),)
        assert f'The genus is {one.answer} (' in one.why and 'the species is not certain' in one.why
    for name, value, words in [
        ('ranks', dict(values['ranks'], taxa=dict(genus=['A'])), 'a taxon and a threshold for each of the 5 classes'),
        ('ranks', ['genus'], 'ranks is list, not a table'),
        ('pooling', dict(method='median'), 'its pooling does not fit'),
        ('pooling', dict(method='log', correlation=3), 'The correlation is 3'),
    ]:
        (copy / 'bundle.json').write_text(json.dumps(values | {name: value}))
        with pytest.raises(UserError, match=words):
            Predictor.load(copy).predict([[files[0]]])


def test_a_bundle_keeps_the_answers_about_validation_images(load, small_run):
    answers = load().bundle.validation_answers
    valid = small_run.predictions.query('split == "valid"')
    assert answers.predicted.sum() == len(answers.confidence) == len(valid) and 0 < answers.independent <= len(valid)


def test_the_fields_of_a_prediction(load, files):
    predictor = load()
    for one in predictor.predict(files[:10], top=2):
        order = np.argsort(-one.probabilities)
        assert one.label == predictor.classes[order[0]] and one.confidence == pytest.approx(one.probabilities.max())
        assert (
            one.top() == [(predictor.classes[i], pytest.approx(one.probabilities[i])) for i in order[:2]]
            and len(one.top(99)) == 5
        )
        (decision,) = predictor.decide(one.probabilities[None])
        assert (one.answer, one.why, one.set) == (decision.label, decision.why, decision.set)
        assert (
            one.answer in (one.label, 'not sure') and one.why.endswith('.') and set(one.set) <= set(predictor.classes)
        )
        assert str(one).startswith(f'{one.source}: {one.answer} (')


def test_randomised_sets_are_the_same_alone_and_in_a_batch(load, copy):
    values = json.loads((copy / 'bundle.json').read_text())
    values['conformal'] = dict(score='aps', coverage=0.5, quantile=0.5, randomised=True, seed=3)
    (copy / 'bundle.json').write_text(json.dumps(values))
    predictor = Predictor.load(copy, threads=1)
    probs = np.random.default_rng(0).dirichlet(np.ones(5), 40).astype(np.float32)
    assert predictor.decide(probs) == [predictor.decide(p[None])[0] for p in probs]


def test_invalid_images(load, tmp_path, files):
    predictor = load()
    content = files[0].read_bytes()
    truncated = content[: len(content) // 2]
    opened = Image.open(io.BytesIO(truncated))
    (tmp_path / 'empty.jpg').touch()
    (tmp_path / 'none').mkdir()
    for image, error, words in [
        (b'', ImageError, 'The file is empty'),
        (b'GIF89a', ImageError, 'The file'),
        (truncated, ImageError, 'The file cannot be read to its end'),
        (opened, ImageError, 'cannot be read to its end'),
        (tmp_path / 'empty.jpg', ImageError, 'empty.jpg is empty'),
        (tmp_path / 'gone.jpg', MissingFileError, 'There is no file .*gone.jpg'),
        (tmp_path / 'none', UserError, 'is empty'),
        (np.full((9, 9, 3), np.nan), ImageError, r'uint8, 0 to 255; this one is \(9, 9, 3\) of float64'),
        (np.zeros((9, 9, 3), np.float32), ImageError, 'float32'),
        (np.zeros((9, 9, 2), np.uint8), ImageError, r'\(9, 9, 2\)'),
        (np.zeros((0, 9, 3), np.uint8), ImageError, r'\(0, 9, 3\)'),
        (7, ImageError, 'not int'),
        (None, ImageError, 'not NoneType'),
    ]:
        with pytest.raises(error, match=words):
            predictor.predict(image)
    size = predictor.bundle.size
    for array in (
        np.zeros((1, size, size, 3)),
        np.zeros((size, size, 3), np.uint8),
        np.zeros((1, 3, size, size), np.uint8),
        np.full((1, size, size, 3), np.nan),
        np.zeros((1, size + 1, size, 3), np.uint8),
    ):
        with pytest.raises(UserError, match=rf'Expected pixels \(n, {size}, {size}, 3\) of uint8'):
            predictor.run(array)
    probs, features = predictor.run_with_features(np.zeros((0, size, size, 3), np.uint8))
    assert probs.shape == (0, 5) and features.shape == (0, 16)


@pytest.mark.parametrize('backend', ['onnx', 'torch'])
def test_classify_continues_after_a_file_that_cannot_be_read(load, files, tmp_path, backend):
    (tmp_path / 'broken.jpg').write_bytes(b'no image')
    paths = [files[0], tmp_path / 'broken.jpg', files[1], tmp_path / 'gone.jpg']
    probs, errors = load(backend).classify([str(path) for path in paths])
    assert [bool(e) for e in errors] == [False, True, False, True] and 'broken.jpg is a text' in errors[1]
    assert not probs[[1, 3]].any()
    assert probs[[0, 2]].tobytes() == np.stack([p.probabilities for p in load(backend).predict(files[:2])]).tobytes()
    assert load(backend).classify([])[0].shape == (0, 5)


def in_fork(function, seconds=60):
    "What a function returns in a forked child"
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(sender, json.dumps(function()).encode())
        finally:
            os._exit(0)
    os.close(sender)
    try:
        assert select.select([receiver], [], [], seconds)[0], 'the child hangs'
        return json.loads(os.read(receiver, 10**6))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(receiver)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='this system does not fork')
@pytest.mark.parametrize('backend', backends)
def test_a_forked_child_predicts(load, files, backend):
    predictor = load(backend)
    expected = predictor.predict(files[5]).probabilities.tolist()  # its threads exist

    def in_child():
        return predictor.predict(files[5]).probabilities.tolist()

    assert in_fork(in_child) == expected
    assert in_fork(lambda: in_fork(in_child)) == expected  # and a child of the child
    with ThreadPoolExecutor(1) as pool:  # while the parent computes
        busy = pool.submit(lambda: [predictor.predict(files[:12]) for _ in range(5)])
        assert in_fork(in_child) == expected
        busy.result()
    assert predictor.predict(files[5]).probabilities.tolist() == expected


def test_a_forked_child_refuses_a_bundle_that_has_changed(copy, files):
    with closing(Predictor.load(copy)) as predictor:
        (copy / 'model.onnx').write_bytes(b'another network')

        def in_child():
            try:
                predictor.predict(files[0])
            except UserError as error:
                return str(error)

        assert 'is not the file that was exported' in in_fork(in_child)


def test_explanations(load, pixels, small_run):
    predictor = load()
    probs, features = predictor.run_with_features(pixels[:3])
    for row in features:
        near = predictor.nearest(row, 4)
        assert [e.distance for e in near] == sorted(e.distance for e in near) and len(near) == 4
        for example in near:
            assert example.label in predictor.classes and Image.open(io.BytesIO(example.thumbnail)).format == 'JPEG'
    row = small_run.items[small_run.items.split == 'train'].iloc[0]
    _, own_features = predictor.run_with_features(predictor.read(small_run.items.path[row.name])[None])
    assert predictor.nearest(own_features[0], 1)[0].distance < 1e-3  # a training image finds itself
    maps = predictor.explain(pixels[:3])
    assert maps.shape == pixels[:3].shape[:3] and maps.min() >= 0 and maps.max() <= 1
    assert np.array_equal(maps, predictor.explain(pixels[:3], list(probs.argmax(1))))
    assert np.array_equal(predictor.explain(pixels[:2], predictor.classes[1]), predictor.explain(pixels[:2], [1, 1]))
    with ThreadPoolExecutor(4) as pool:  # several at the same time, and beside predictions
        explain_jobs = [pool.submit(predictor.explain, pixels[:1]) for _ in range(4)]
        run_jobs = [pool.submit(predictor.run, pixels[:3]) for _ in range(8)]
        for job in explain_jobs:
            assert np.allclose(job.result()[0], maps[0], atol=1e-5)
        for job in run_jobs:
            assert job.result().tobytes() == probs.tobytes()
    for name in ('nothing', 5, -1):
        with pytest.raises(UserError, match='The bundle knows: '):
            predictor.explain(pixels[:1], name)
    with pytest.raises(UserError, match='There are 1 classes for 2 images'):
        predictor.explain(pixels[:2], [0])


# --- loading


def test_wrong_folders(small_run, tmp_path):
    with pytest.raises(UserError, match='fungi export'):
        Predictor.load(small_run.folder)
    with pytest.raises(UserError, match='fungi export'):
        Predictor.load(tmp_path / 'nowhere')
    with pytest.raises(UserError, match='has no bundle.json'):
        Predictor.load(tmp_path)
    with pytest.raises(UserError, match='expected one of auto, onnx'):
        Predictor.load(tmp_path, 'abacus')
    with pytest.raises(UserError, match='threads is 0'):
        Predictor.load(tmp_path, threads=0)


def test_missing_engines(small_bundle, copy, monkeypatch):
    with pytest.raises(UserError, match='install onnxruntime-gpu instead of onnxruntime, or use backend'):
        Predictor.load(small_bundle, 'onnx', device='cuda')
    with pytest.raises(UserError, match="The device 'cuda:7|The device 'nonsense"):
        Predictor.load(small_bundle, 'torch', device='nonsense')
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(UserError, match=r"onnxruntime.*pip install 'fungi_fastai\[onnx\]'.*backend='torch'"):
        Predictor.load(small_bundle, 'onnx')
    monkeypatch.setitem(sys.modules, 'openvino', None)
    with pytest.raises(UserError, match=r"pip install 'fungi_fastai\[openvino\]'"):
        Predictor.load(small_bundle, 'openvino')
    monkeypatch.undo()
    (copy / 'model.onnx').write_bytes(b'not a graph')
    with pytest.raises(UserError, match='model.onnx is not the file that was exported'):
        Predictor.load(copy)
    rewrite(copy)
    with pytest.raises(UserError, match=r'model.onnx cannot be opened .*Export the bundle again'):
        Predictor.load(copy)


def rewrite(folder):
    "Update the checksums of a bundle, as if its files had been exported like this"
    values = json.loads((folder / 'bundle.json').read_text())
    Bundle.write(folder, **{k: v for k, v in values.items() if k not in ('format', 'schema', 'files')})


def test_a_broken_network_is_reported(copy):
    from safetensors.numpy import load_file, save_file

    state = load_file(copy / 'model.safetensors')
    save_file(state | {'1.linear.bias': np.full(5, np.nan, np.float32)}, copy / 'model.safetensors')
    rewrite(copy)
    with pytest.raises(TrainingError, match='NaN or infinite values .torch.'):
        Predictor.load(copy, 'torch').predict(np.zeros((40, 40, 3), np.uint8))
    save_file({k: v for k, v in state.items() if 'bias' not in k}, copy / 'model.safetensors')
    rewrite(copy)
    with pytest.raises(UserError, match='model.safetensors cannot be opened'):
        Predictor.load(copy, 'torch')
    (copy / 'model.safetensors').write_bytes(bytes(100))
    rewrite(copy)
    with pytest.raises(UserError, match='model.safetensors cannot be opened'):
        Predictor.load(copy, 'torch')


def test_a_changed_file_is_detected_when_it_is_read_later(copy, pixels):
    with closing(Predictor.load(copy)) as predictor:
        _, features = predictor.run_with_features(pixels[:1])
        content = (copy / 'examples.safetensors').read_bytes()
        (copy / 'examples.safetensors').write_bytes(content[:-1] + b'x')
        for call in (lambda: predictor.nearest(features[0]), lambda: predictor.explain(pixels[:1], 0)):
            with pytest.raises(UserError, match='examples.safetensors is not the file that was exported'):
                call()
        (copy / 'examples.safetensors').write_bytes(content)
        assert predictor.nearest(features[0])


@pytest.fixture
def onnxruntime_gpu(monkeypatch):
    "The package onnxruntime-gpu, simulated: the list of requested providers; CUDA starts while `starts` is in it"
    import onnxruntime

    class Session(onnxruntime.InferenceSession):
        def __init__(self, source, options, providers):
            requested.append(providers)
            super().__init__(source, options, providers=['CPUExecutionProvider'])

        def get_providers(self):
            return ['CUDAExecutionProvider'] * ('starts' in requested) + super().get_providers()

    requested = ['starts']
    monkeypatch.setattr(
        onnxruntime, 'get_available_providers', lambda: ['CUDAExecutionProvider', 'CPUExecutionProvider']
    )
    monkeypatch.setattr(onnxruntime, 'InferenceSession', Session)
    return requested


def test_onnxruntime_uses_a_gpu_where_it_can(small_bundle, pixels, onnxruntime_gpu):
    with closing(Predictor.load(small_bundle, threads=2)) as predictor:
        assert (predictor.backend, predictor.device, predictor._batch) == ('onnx', 'cuda', 64)
        assert predictor.run(pixels).shape == (len(pixels), len(predictor.classes))
    for device, number in (('cuda', '0'), ('cuda:1', '1')):
        with closing(Predictor.load(small_bundle, device=device)) as predictor:
            assert (predictor.backend, predictor.device) == ('onnx', device)
        assert onnxruntime_gpu[-1][0] == ('CUDAExecutionProvider', dict(device_id=number, use_tf32='0'))
    for options in (dict(device='cpu'), dict(backend='int8')):
        with closing(Predictor.load(small_bundle, **options)) as predictor:
            assert predictor.device == 'cpu' and onnxruntime_gpu[-1] == ['CPUExecutionProvider']
    with pytest.raises(UserError, match='The backend int8 runs on the CPU'):
        Predictor.load(small_bundle, 'int8', device='cuda')
    onnxruntime_gpu.remove('starts')  # as without cuDNN
    with pytest.warns(UserWarning, match='could not start CUDA.* The CPU is used'):
        predictor = Predictor.load(small_bundle)
    assert (predictor.device, predictor._batch) == ('cpu', 1)
    with pytest.raises(UserError, match='could not start CUDA.* use the device cpu instead of cuda'):
        Predictor.load(small_bundle, device='cuda')


def test_a_gpu_gets_batches_and_images_are_read_side_by_side(small_bundle, pixels, files):
    with closing(Predictor.load(small_bundle, 'torch', threads=3)) as predictor:
        one_by_one, engine, calls = predictor.run(pixels), predictor._engine, []

        def counting_engine(pixels, features):
            calls.append(len(pixels))
            return engine(pixels, features)

        predictor._batch, predictor._engine = 16, counting_engine  # as on a GPU
        assert (
            np.allclose(predictor.run(pixels), one_by_one, atol=1e-5)
            and calls == [16, 8]
            and predictor._pool._max_workers == 3
        )
        assert np.allclose(predictor.classify(files[:24])[0], one_by_one, atol=1e-5)


def test_a_hostile_pickle_is_not_opened(copy):
    mark = copy.parent / 'it_ran'

    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(mark),)

    for name in ('model.pth', 'model.safetensors', 'classes.txt'):
        before = (copy / name).read_bytes() if (copy / name).exists() else None
        (copy / name).write_bytes(pickle.dumps(Hostile()))
        for backend in ('onnx', 'torch'):
            with pytest.raises(UserError, match='can run code'):
                Predictor.load(copy, backend)
        (copy / name).unlink() if before is None else (copy / name).write_bytes(before)
    assert not mark.exists()
    assert Predictor.load(copy).classes


# --- in a process of its own

script = """
import time; start = time.perf_counter()
import os, sys
from fungi_fastai.deploy.predictor import Predictor
predictor = Predictor.load(sys.argv[1], 'onnx')
print(predictor.predict(sys.argv[2]))
if not (child := os.fork()):  # a worker of gunicorn --preload ends normally too
    predictor.predict(sys.argv[2])
    sys.exit(7)
print(f'{time.perf_counter()-start:.2f} s, {time.process_time():.2f} s of CPU time')
heavy = {'fastai', 'torch', 'timm', 'captum', 'matplotlib', 'pandas', 'sklearn', 'scipy'}
ours = ('fungi_fastai.training', 'fungi_fastai.data.loaders', 'fungi_fastai.models')
print(sorted({m.split('.')[0] for m in sys.modules} & heavy | {m for m in sys.modules if m.startswith(ours)}))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_the_first_prediction_needs_neither_fastai_nor_torch(small_bundle, files):
    process = subprocess.run(
        [sys.executable, '-c', script, small_bundle, files[0]], capture_output=True, text=True, timeout=120
    )
    assert process.returncode == 0, process.stderr
    prediction, seconds, modules, child = process.stdout.splitlines()
    print(f'first prediction after {seconds}')
    assert files[0].name in prediction and modules == '[]' and child == '7', process.stdout
