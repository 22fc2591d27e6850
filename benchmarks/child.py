"""What all measuring processes share.

run.py starts each as `python FILE CONTENDER PARAMETERS_AS_JSON`, in a folder with its own settings, and it prints
one line of JSON at the end. Imports nothing of fastai or fungi_fastai: see epoch_timm.py."""

import json
import os
import re
import resource
import sys
import time
import warnings
from pathlib import Path

warnings.filterwarnings('ignore')  # fastai's import and Trainer warn; run.py shows the whole output of a failure


def parse_arguments() -> tuple[str, dict]:
    "The contender that this process measures, and its parameters"
    return sys.argv[1], json.loads(sys.argv[2])


def peak_mb() -> float:
    "The peak memory of this process, in MB"
    status = Path('/proc/self/status')  # getrusage also counts the memory of the parent process
    if status.exists() and (match := re.search(r'VmHWM:\s*(\d+) kB', status.read_text())):
        return int(match[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == 'darwin' else 1e3)


def report(**results):
    "Print the results as JSON and end the process"
    torch = sys.modules.get('torch')
    if torch is not None and torch.cuda.is_available():
        results['peak_gpu_mb'] = torch.cuda.max_memory_allocated() / 1e6
    print('\n' + json.dumps(results | dict(peak_mb=peak_mb())), flush=True)
    sys.stderr.flush()
    os._exit(0)  # does not wait for threads and worker processes


def synchronized_time() -> float:
    "A clock in seconds, read after the accelerator has finished its work"
    torch = sys.modules.get('torch')
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
