"""All names for a notebook: `from fungi_fastai.all import *` gives those of `fastai.vision.all` and of this library"""

# ruff: noqa: F403, F821
from fastai.vision.all import *
from fungi_fastai import *

# fastcore's `run`, which fastai passes on, would replace the `run` that a notebook has trained before this import
del run
