"From a folder of specimen photos to the best classifier you can honestly claim, in one call"

import warnings

__version__ = '0.1.0'

# fastai triggers these warnings with current versions of torch and pandas when it is imported; a user cannot fix them
warnings.filterwarnings('ignore', '`torch.jit.script` is deprecated', FutureWarning)
warnings.filterwarnings('ignore', "The 'mode.chained_assignment' option is deprecated")

# The module of each public name: the tasks of the guides, most of which are commands too, and what they need. A name is
# imported when it is first used, so that `import fungi_fastai` is fast.
_names = {
    'core.errors': ['UserError', 'MissingFileError', 'TrainingError'],
    'core.settings': ['settings'],
    'samples.datasets': ['make_sample'],
    'data.sources': ['Source'],
    'data.scan': ['check', 'summary_text'],
    'data.problems': ['exclude'],
    'data.explore': ['explore'],
    'data.collect': ['collect'],
    'data.policies': ['Augment'],
    'training.recipe': ['Recipe'],
    'training.recipes': ['MUSHROOMS', 'DEFUNGI', 'FLOWERS', 'SEEDLINGS', 'PHOTOS'],
    'training.fit': ['prepare_items', 'make_learner', 'fit'],
    'training.lr_finder': ['find_lr'],
    'evaluation.gbif': ['gbif_taxonomy'],
    'deploy.predictor': ['Predictor'],
    'deploy.export': ['export'],
    'deploy.web': ['write_web_app'],
    'deploy.server': ['serve'],
    'deploy.drift': ['drift'],
    'deploy.submission': ['submission'],
    'runs.run': ['Run'],
    'runs.train': [
        'train',
        'trainer',
        'train_mushrooms',
        'train_defungi',
        'train_flowers',
        'train_seedlings',
        'train_photos',
    ],
    'runs.batch_prediction': ['predict_to'],
    'runs.compare': ['compare'],
    'runs.watch': ['watch'],
    'runs.next_photos': ['next_photos'],
    'runs.update': ['update'],
    'studies.probe': ['probe'],
    'studies.network_probes': ['probe_networks'],
    'studies.folds': ['cross_validate'],
    'studies.curves': ['learning_curve'],
    'studies.sweeps': ['sweep'],
    'studies.labels': ['label_issues'],
    'studies.leakage': ['leakage_report'],
    'studies.ood': ['ood_study'],
    'studies.published': ['run_experiment'],
}
_modules = {name: module for module, names in _names.items() for name in names}
__all__ = ['__version__', *_modules]


def __getattr__(name):
    if name not in _modules:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from importlib import import_module

    value = getattr(import_module(f'{__name__}.{_modules[name]}'), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})
