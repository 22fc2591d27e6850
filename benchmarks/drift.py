"""How often `fungi drift` calls a drift where there is none, and where the photos or the classes have changed.

    python benchmarks/drift.py RUN BUNDLE

False alarms: the specimens of the validation and the test set are divided at random, 1000 times, and the two halves are
compared. Drifts: 60 test photos, as they are and changed, are compared with the validation images, 200 times."""

import sys

import numpy as np
from PIL import ImageFilter

from fungi_fastai.data.images import open_image
from fungi_fastai.deploy.predictor import Predictor
from fungi_fastai.evaluation.calibration import apply_temperature
from fungi_fastai.evaluation.metrics import Evaluation
from fungi_fastai.evaluation.shift import AnswerSample, compare_answers
from fungi_fastai.run_folder import RunFolder

changes = {
    'as they are': lambda image: image,
    '40 % of the brightness': lambda image: image.point(lambda value: 0.4 * value),
    'grey': lambda image: image.convert('L').convert('RGB'),
    'blurred': lambda image: image.filter(ImageFilter.GaussianBlur(min(image.size) / 80)),
}


def drifted(reference, answers):
    return any(one.drifted for one in compare_answers(reference, answers))


def false_alarms(run, rng, repeats=1000):
    "The fraction of random halves of validation and test set that differ"
    labelled = run.predictions[run.predictions.split.isin(['valid', 'test']) & run.predictions.label.notna()]
    evaluation = Evaluation.of(labelled, run.classes)
    probs = apply_temperature(evaluation.probs, run.decisions.temperature)
    confidence, predicted, groups = probs.max(1), probs.argmax(1), np.unique(evaluation.groups, return_inverse=True)[1]
    alarms = 0
    for _ in range(repeats):
        is_first = rng.permutation(groups.max() + 1)[groups] % 2 == 0
        halves = [
            AnswerSample.of(confidence[rows], predicted[rows], len(run.classes), len(np.unique(groups[rows])))
            for rows in (is_first, ~is_first)
        ]
        alarms += drifted(*halves)
    return alarms / repeats


def main(run, bundle):
    run, predictor, rng = RunFolder.load(run), Predictor.load(bundle), np.random.default_rng(0)
    print(f'false alarms: {false_alarms(run, rng):.1%}')
    reference = predictor.bundle.validation_answers
    tested = run.items[run.items.split == 'test']
    for name, change in changes.items():
        pixels = np.stack([predictor.read(change(open_image(path).convert('RGB'))) for path in tested.path])
        probs, novelty = predictor.run_with_novelty(pixels)
        print(f'{name}: {np.mean([one_log(reference, probs, novelty, rng) for _ in range(200)]):.1%}')
        if name == 'as they are':
            own = rng.permutation(tested.label.unique())[:2]
            of_two = tested.label.isin(own).to_numpy()
            found = [one_log(reference, probs[of_two], novelty[of_two], rng, True) for _ in range(200)]
            print(f'two classes only ({", ".join(own)}): {np.mean(found):.1%}')


def one_log(reference, probs, novelty, rng, replace=False, size=60):
    "Whether a drift is found in a log of some photos"
    rows = rng.choice(len(probs), size, replace=replace)
    probs, novelty = probs[rows], novelty[rows]
    return drifted(reference, AnswerSample.of(probs.max(1), probs.argmax(1), probs.shape[1], size, novelty))


if __name__ == '__main__':
    main(*sys.argv[1:])
