"""Training steps with and without faster gradients of depthwise convolutions, in float32 and bfloat16, on one core:

python benchmarks/depthwise.py tf_efficientnet_lite0 mobilenetv2_100 --size 128
"""

import argparse
import time
from contextlib import nullcontext
from itertools import product
from statistics import median

import torch
from torch.nn.functional import cross_entropy

from fungi_fastai.models.depthwise import FastDepthwise
from fungi_fastai.models.folding import Folding
from fungi_fastai.models.networks import layer_groups, make_network
from fungi_fastai.training.precision import keep_freed_memory

settings = list(product((torch.float32, torch.bfloat16), (nullcontext, FastDepthwise)))


def images_per_second(arch, size, batch_size, steps, last):
    "The images a second of each step for each setting, in turn, with frozen BatchNorm statistics as in fine-tuning"
    model = make_network(arch, 10).to(memory_format=torch.channels_last).eval()
    if last:  # as for training the last stages: the lower half of the blocks has no gradients
        for parameter in layer_groups(model, 3)[0]:
            parameter.requires_grad_(False)
    x = torch.randn(batch_size, 3, size, size).contiguous(memory_format=torch.channels_last)
    y = torch.randint(0, 10, (batch_size,))
    folding, found = Folding(model, x[:2]), {setting: [] for setting in settings}
    for _ in range(steps):
        for dtype, gradients in settings:
            start = time.perf_counter()
            with folding(), gradients(), torch.autocast('cpu', dtype, enabled=dtype != torch.float32):
                loss = cross_entropy(model(x).float(), y)
            loss.backward()
            model.zero_grad()
            found[dtype, gradients].append(batch_size / (time.perf_counter() - start))
    return {setting: speeds[3:] for setting, speeds in found.items()}


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('archs', nargs='+')
    parser.add_argument('--size', type=int, default=128, help='image size, pixels')
    parser.add_argument('--batch-size', type=int, default=16)
    parser.add_argument('--steps', type=int, default=13, help='the first three are not counted')
    parser.add_argument('--last', action='store_true', help='only the upper half of the blocks has gradients')
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    print('images a second, and the median ratio to float32 with plain gradients')
    for arch in args.archs:
        speeds = images_per_second(arch, args.size, args.batch_size, args.steps, args.last)
        reference = speeds[settings[0]]
        for (dtype, gradients), found in speeds.items():
            ratio = median(new / old for new, old in zip(found, reference, strict=True))
            kind = 'faster gradients' if gradients is FastDepthwise else 'plain gradients'
            print(
                f'{arch:24} {args.size} px  {str(dtype)[6:]:9} {kind:17} {median(found):7.1f}  {ratio:.2f}', flush=True
            )
