"""Where the time of an epoch goes, and the speed of prediction. gpu.py starts it."""

import time
from contextlib import closing

from child import parse_arguments, report, synchronized_time

contender, parameters = parse_arguments()


def rate(function, images: int) -> float:
    "Images a second of a function that is called once"
    start = synchronized_time()
    function()
    return round(images / (synchronized_time() - start), 1)


def our_learner():
    from ours import our_items, our_recipe
    from steps import one_step

    from fungi_fastai.training.fit import make_learner

    learn = make_learner(our_recipe(parameters), our_items(parameters['table']), progress=False)
    one_step(learn)
    return learn


# --- reading -----------------------------------------------------------------------------------------------------
def reading_rates(learn) -> dict:
    "JPEGs decoded by threads, batches from the cache, and the same copied to the device and augmented"
    from fungi_fastai.core.threads import map_in_threads
    from fungi_fastai.data.images import canvas_size, read_pixels

    loader, size = learn.dls.train, canvas_size(learn.run_state.recipe.size)
    paths = list(learn.dls.train.items['path'])
    n = len(loader) * loader.bs

    def decode():
        for _ in map_in_threads(lambda path: read_pixels(path, size), paths):
            pass

    def batches():
        for _ in loader.create_batches(loader.sample()):
            pass

    def augmented():
        for _ in loader:
            pass

    rates = dict(decode=rate(decode, len(paths)), cache=rate(batches, n), augmented=rate(augmented, n))
    return rates | dict(decode_on_gpu=gpu_decoding_rate(paths))


def gpu_decoding_rate(paths) -> float | str:
    "JPEGs decoded by nvJPEG; the reason where that does not work"
    import torch
    from torchvision.io import decode_jpeg, read_file

    if not torch.cuda.is_available():
        return 'no GPU'
    files = [read_file(path) for path in paths]
    try:
        decode_jpeg(files[:2], device='cuda')
        return rate(
            lambda: [decode_jpeg(files[i : i + 64], device='cuda') for i in range(0, len(files), 64)], len(files)
        )
    except (RuntimeError, TypeError) as error:
        return str(error).splitlines()[0]


# --- the step ----------------------------------------------------------------------------------------------------
def step_rates(learn) -> dict:
    "Training steps on one ready batch: as in training, in the other memory layout, compiled, and with CUDA graphs"
    from steps import step_rate

    from fungi_fastai.training.precision import compile_problem

    rates = dict(step=step_rate(learn), step_contiguous=step_rate(learn, channels_last=False))
    problem = compile_problem(str(learn.dls.device or 'cpu').split(':')[0])
    rates['step_compiled'] = problem or step_rate(learn, compile_mode='default')
    rates['step_cuda_graphs'] = problem or step_rate(learn, compile_mode='reduce-overhead')
    return rates


def kernel_times(learn) -> dict:
    "The operations that take most time in an epoch, in milliseconds, and the fraction of time that the device is busy"
    import torch
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    on_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    start = synchronized_time()
    with learn.no_bar(), learn.no_logging(), profiler(activities=activities) as profile:
        learn.fit(1)
        seconds = synchronized_time() - start

    def own_time(row):
        return (row.self_device_time_total if on_gpu else row.self_cpu_time_total) / 1e3

    rows = sorted(profile.key_averages(), key=own_time, reverse=True)
    return dict(
        busy=round(sum(map(own_time, rows)) / 1e3 / seconds, 3),
        milliseconds={row.key[:80]: round(own_time(row), 1) for row in rows[:12]},
    )


def profile():
    learn = our_learner()
    report(rates=reading_rates(learn) | step_rates(learn), kernels=kernel_times(learn), precision=learn.precision.mode)


# --- prediction --------------------------------------------------------------------------------------------------
def prediction():
    "Images a second from JPEG files to answers, by each engine of a bundle"
    import pandas as pd
    import torch

    from fungi_fastai.deploy.engines import has_cuda_provider
    from fungi_fastai.deploy.predictor import Predictor

    paths = list(pd.read_csv(parameters['table']).path)
    choices = dict(onnx=dict(backend='onnx'), torch=dict(backend='torch'))
    if torch.cuda.is_available():
        choices |= {'torch on the GPU': dict(backend='torch', device='cuda')}
    if torch.cuda.is_available() and has_cuda_provider():
        choices |= {'onnx on the GPU': dict(backend='onnx', device='cuda')}
    rates = {}
    for name, options in choices.items():
        with closing(Predictor.load(parameters['bundle'], **options)) as predictor:
            predictor.predict(paths[:8])
            start = time.perf_counter()
            predictor.predict(paths)
            rates[name] = round(len(paths) / (time.perf_counter() - start), 1)
    report(rates=rates)


dict(profile=profile, prediction=prediction)[contender]()
