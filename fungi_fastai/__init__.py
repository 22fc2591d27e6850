"From a folder of specimen photos to the best classifier you can honestly claim, in one call"
import warnings

__version__ = '0.1.0'

# what importing fastai says of its own use of today's torch and pandas; a reader of ours can do nothing about it
warnings.filterwarnings('ignore', '`torch.jit.script` is deprecated', FutureWarning)
warnings.filterwarnings('ignore', "The 'mode.chained_assignment' option is deprecated")

# where each public name lives; a name is imported when first asked for, so that `import fungi_fastai` stays light
_homes = {
    "core.errors": ["UserError", "MissingFileError", "TrainingError"],
    "core.settings": ["settings"],
    "data.sources": ["Source"],
    "training.recipe": ["Recipe"],
    "training.fit": ["prepare_items", "make_learner", "find_lr"],
    "runs.run": ["Run", "train", "trainer"],
    "studies.folds": ["cross_validate"],
    "studies.curves": ["learning_curve"],
    "runs.compare": ["compare"],
    "studies.sweeps": ["sweep"],
    "studies.published": ["run_experiment"],
    "deploy.predictor": ["Predictor"],
    "training.recipes": ["MUSHROOMS", "DEFUNGI", "FLOWERS", "SEEDLINGS",
                "train_mushrooms", "train_defungi", "train_flowers", "train_seedlings"],
}
_home = {name: module for module, names in _homes.items() for name in names}
__all__ = ["__version__", *_home]


def __getattr__(name):
    if name not in _home: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module
    value = getattr(import_module(f"{__name__}.{_home[name]}"), name)
    globals()[name] = value
    return value


def __dir__(): return sorted({*globals(), *__all__})
