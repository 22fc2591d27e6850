"""What every measuring process shares. Each is started as `python FILE CONTENDER PARAMETERS_AS_JSON` by run.py, in a folder with
settings of its own, and prints one line of JSON at the end. Nothing of fastai or fungi_fastai is imported here: see epoch_timm.py."""

import json
import os
import re
import resource
import sys
import time
import warnings
from pathlib import Path

warnings.filterwarnings('ignore')  # fastai's import and Trainer warn; a failure is shown with all that was said


def asked() -> tuple[str, dict]:
    "Which contender this process is, and its parameters"
    return sys.argv[1], json.loads(sys.argv[2])


def peak_mb() -> float:
    "The most memory this process ever had, in MB"
    status = Path('/proc/self/status')  # getrusage also counts what the parent had before this program began
    if status.exists() and (found := re.search(r'VmHWM:\s*(\d+) kB', status.read_text())):
        return int(found[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == 'darwin' else 1e3)


def report(**found):
    "Print what was measured"
    torch = sys.modules.get('torch')
    if torch is not None and torch.cuda.is_available():
        found['peak_gpu_mb'] = torch.cuda.max_memory_allocated() / 1e6
    print('\n' + json.dumps(found | dict(peak_mb=peak_mb())), flush=True)
    sys.stderr.flush()
    os._exit(0)  # threads and worker processes that still wait have nothing to say


def format_duration() -> float:
    "Seconds, once the accelerator has done what it was told"
    torch = sys.modules.get('torch')
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
