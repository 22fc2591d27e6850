"""Predicting JPEGs that were never seen before: `learn.get_preds` of plain fastai, and ours.   run.py starts it"""

from child import asked, format_duration, report

who, given = asked()
import pandas as pd  # noqa: E402

table, wanted = pd.read_csv(given['table']), pd.read_csv(given['wanted'])
for (
    path
) in wanted.path:  # the system's page cache cannot be emptied by a program, so all files are in it, for every contender
    with open(path, 'rb') as file:
        file.read()

if who.startswith('fastai'):
    from plain import plain_learner, plain_loaders

    learn = plain_learner(plain_loaders(table, given['size'], workers=given['workers']), given['arch'])

    def predict(rows):
        with learn.no_bar():
            return learn.get_preds(dl=learn.dls.test_dl(rows))[0]
else:
    from ours import our_items, our_recipe

    from fungi_fastai.runs import run as runs
    from fungi_fastai.training.fit import make_learner

    learn = make_learner(our_recipe(given, cache=False), our_items(given['table']), progress=False)

    def predict(rows):
        return runs.predict(learn, rows)


predict(wanted[: learn.dls.valid.bs])  # does not count
began = format_duration()
probabilities = predict(wanted)
seconds = format_duration() - began
assert len(probabilities) == len(wanted)
report(seconds=seconds, rate=len(wanted) / seconds, images=len(wanted))
