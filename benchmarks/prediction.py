"""Predicting new JPEGs: `learn.get_preds` of plain fastai, and ours. run.py starts it."""

from child import parse_arguments, report, synchronized_time

contender, parameters = parse_arguments()
import pandas as pd  # noqa: E402

table, wanted = pd.read_csv(parameters['table']), pd.read_csv(parameters['wanted'])
for path in wanted.path:  # read once, so that every contender finds all files in the system's page cache
    with open(path, 'rb') as file:
        file.read()

if contender.startswith('fastai'):
    from plain import plain_learner, plain_loaders

    learn = plain_learner(plain_loaders(table, parameters['size'], workers=parameters['workers']), parameters['arch'])

    def predict(rows):
        with learn.no_bar():
            return learn.get_preds(dl=learn.dls.test_dl(rows))[0]
else:
    from ours import our_items, our_recipe

    from fungi_fastai.runs.run import predict as predict_items
    from fungi_fastai.training.fit import make_learner

    learn = make_learner(our_recipe(parameters, cache=False), our_items(parameters['table']), progress=False)

    def predict(rows):
        return predict_items(learn, rows)


predict(wanted[: learn.dls.valid.bs])  # not measured
start = synchronized_time()
probabilities = predict(wanted)
seconds = synchronized_time() - start
assert len(probabilities) == len(wanted)
report(seconds=seconds, rate=len(wanted) / seconds, images=len(wanted))
