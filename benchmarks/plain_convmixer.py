"A ConvMixer from timm, for the contenders other than ours"

import re


def convmixer(arch: str, classes: int):
    "timm's ConvMixer for a name such as convmixer_256_8, for which timm has no entry; None for other names"
    if not (numbers := re.fullmatch(r'convmixer_(\d+)_(\d+)', arch)):
        return None
    from timm.models.convmixer import ConvMixer

    return ConvMixer(dim=int(numbers[1]), depth=int(numbers[2]), kernel_size=9, patch_size=7, num_classes=classes)
