"The command as people type it: its output, its exit code, and the files that it writes"

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import flags, tiny
from PIL import Image, ImageFilter

commands = ('train', 'evaluate', 'predict', 'check', 'explore', 'probe', 'cache', 'report')
command = Path(sys.executable).with_name('fungi')
heavy_modules = ('torch', 'fastai', 'pandas', 'numpy', 'PIL', 'matplotlib', 'timm', 'sklearn', 'kaggle')


def make_image(seed, size=(160, 120)):
    "A photo-like image: coarse and fine structure, different for each seed"
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    fine = Image.fromarray(rng.integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)).resize(size)
    return Image.blend(coarse, fine, 0.15)


def plain(text):
    "Boxed help as running text"
    return re.sub(r'[│╭╮╰╯─\s]+', ' ', text)


# --- the real command, in processes of its own


@pytest.mark.slow
def test_from_training_to_prediction(home, fungi, photos, tmp_path):
    "The README's commands; the training in a process of its own, as a newcomer starts it"
    call = ['train', 'flowers', '--source', photos, '--out', tmp_path / 'run', *flags(**tiny), '--json']
    done = subprocess.run(
        [command, *map(str, call)],
        capture_output=True,
        text=True,
        cwd=home,
        env=os.environ | dict(OMP_NUM_THREADS='2', HF_HUB_OFFLINE='1'),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((tmp_path / 'run/metrics.json').read_text('utf8'))
    assert 'epoch 1' in done.stderr and 'images to train on' in done.stderr
    assert '\r' not in done.stderr and '\x1b' not in done.stderr  # a log, no terminal
    fungi('predict', tmp_path / 'run', photos, '--out', tmp_path / 'predictions.csv')
    assert len(pd.read_csv(tmp_path / 'predictions.csv')) == len(list(photos.rglob('*.jpg')))


@pytest.mark.parametrize(
    'arguments',
    [
        ['--help'],
        ['--version'],
        [],
        ['train', '--help'],
        ['train', 'mushrooms', '--help'],
        ['check', '--helq'],
        ['experiment', 'list'],
    ],
)
def test_help_loads_nothing_heavy(arguments):
    code = (
        f'import sys, json, time; start = time.perf_counter()\n'
        f'from fungi_fastai.cli import main\n'
        f'try: code = main({arguments!r})\n'
        f'except SystemExit as error: code = error.code\n'
        f'heavy = {set(heavy_modules)} & set(sys.modules)\n'
        f"print('\\n' + json.dumps([code, sorted(heavy), time.perf_counter()-start]))"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    code, heavy, seconds = json.loads(done.stdout.splitlines()[-1])
    print(f'fungi {" ".join(arguments)}: {seconds:.2f} s')
    assert code == (2 if '--helq' in arguments else 0) and heavy == []


def test_wrong_paths_are_found_before_pytorch_is_imported(tmp_path):
    calls = """evaluate nowhere · evaluate nowhere --leakage · predict nowhere a.jpg · report nowhere · export nowhere
        labels nowhere · probe nowhere · probe sample --out probe.xyz · train nowhere · train flowers --source nowhere
        folds flowers --source nowhere · curve flowers --source nowhere · serve nowhere · compare nowhere nowhere
        sweep flowers --source nowhere --vary lr=1e-3,1e-2 --out sweep · update nowhere --add photos
        next nowhere photos · check nowhere"""
    calls = [call.split() for line in calls.splitlines() for call in line.split('·')]
    code = (
        'import sys, json\n'
        'from fungi_fastai.cli import main\n'
        'def run(call):\n'
        '    try: return main(call)\n'
        '    except SystemExit as error: return error.code\n'
        f'codes = [run(call) for call in {calls!r}]\n'
        "print('\\n' + json.dumps([codes, sorted({'torch', 'fastai', 'timm'} & set(sys.modules))]))"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=tmp_path)
    codes, heavy = json.loads(done.stdout.splitlines()[-1])
    assert set(codes) == {2} and heavy == [] and 'Traceback' not in done.stderr and not list(tmp_path.iterdir())


def test_the_module_is_the_command():
    from fungi_fastai import __version__

    done = subprocess.run([command, '--version'], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == f'fungi_fastai {__version__}'


# --- help and misspellings


@pytest.mark.parametrize('arguments', [['--help'], []])
def test_help_names_every_command(fungi, arguments):
    out = fungi(*arguments).out
    assert all(name in out for name in commands)


def test_every_field_of_a_recipe_is_an_option_with_its_comment(fungi):
    from dataclasses import fields

    from fastcore.docments import docments

    from fungi_fastai.training.recipe import Recipe

    out = plain(fungi('train', 'mushrooms', '--help').out)
    comments = {}
    for group in Recipe.__bases__:
        comments |= docments(group)
    for field in fields(Recipe):
        assert comments[field.name], field.name
        if field.name == 'augment':
            assert '--augment.flip' in out and '--augment.strength' in out
            continue
        assert f'--{field.name.replace("_", "-")}' in out
        assert ' '.join(comments[field.name].split()) in out, field.name


def test_the_options_of_a_recipe_are_grouped(fungi):
    out = fungi('train', 'mushrooms', '--help').out
    titles = re.findall(r'^\W*([a-z]+) options\b', out, re.M)
    assert titles == ['common', 'data', 'model', 'schedule', 'optimisation', 'machine', 'augment']
    common = out[out.index('common options') : out.index('data options')]
    assert all(f'--{name} ' in common for name in ('source', 'arch', 'size', 'epochs', 'budget', 'bs', 'lr', 'seed'))


@pytest.mark.parametrize(
    'call, meaning',
    [
        (('train', 'flowers'), 'folder of the run'),
        (('evaluate',), 'folder of a finished run'),
        (('predict',), 'images, folders of images'),
        (('check',), 'folder, zip, CSV'),
        (('explore',), 'folder for the page'),
        (('report',), 'folder of a finished run'),
    ],
)
def test_other_options_have_help_texts_too(fungi, call, meaning):
    assert meaning in plain(fungi(*call, '--help').out)


def test_help_shows_each_default_once_and_placeholders(fungi):
    from fungi_fastai.cli import command_name, commands

    for name in map(command_name, commands):
        out = plain(fungi(name, '--help').out)
        assert '{None}' not in out and not re.search(r'\(default: (\)|None|[^)]*\) \(default: )', out), name
    assert 'RUN' in plain(fungi('evaluate', '--help').out) and 'resnet34' in plain(fungi('train', '--help').out)


@pytest.mark.parametrize(
    'call, near',
    [
        (('train', 'flowers', '--epoch', '3'), '--epochs'),
        (('train', 'flowers', '--sorce', 'x'), '--source'),
        (('train', 'flowers', '--wieghts', 'x'), '--weights'),
        (('train', 'mushroms'), 'mushrooms'),
        (('trian',), 'train'),
        (('check', 'x', '--jsno'), '--json'),
        (('train',), 'fungi train my_photos'),
        (('train', 'flowers', '--augment.rotat', '3'), '--augment.rotate'),
    ],
)
def test_misspellings_are_suggested(fungi, call, near):
    done = fungi(*call, code=2)
    assert near in done.err and not done.out


@pytest.mark.parametrize(
    'call',
    [
        ('train', 'flowers', '--epochs', 'many'),
        ('train', 'flowers', '--lr', '1,5'),
        ('check',),
        ('evaluate',),
        ('predict',),
        ('explore', 'sample'),
        ('train',),
    ],
)
def test_values_that_are_missing_or_of_the_wrong_type(fungi, call):
    assert not fungi(*call, code=2).out


# --- check, explore


@pytest.fixture(scope='module')
def nasty(tmp_path_factory):
    "Two good classes, and one of everything that goes wrong"
    folder = tmp_path_factory.mktemp('nasty') / 'Photos & more'
    one, two, lonely = (folder / name for name in ('Röhrling & Co', 'b c', '孤独'))
    for i, species in enumerate((one, two, lonely)):
        species.mkdir(parents=True)
        for n in range(8 if i < 2 else 1):
            make_image(100 * i + n).save(species / f'Foto №{n} & mehr.jpg', quality=92)
    jpeg = (one / 'Foto №0 & mehr.jpg').read_bytes()
    (one / 'cut.jpg').write_bytes(jpeg[: len(jpeg) // 2])
    (one / 'text.jpg').write_text('this is no image')
    (one / 'empty.png').touch()
    (one / 'copy.jpg').write_bytes(jpeg)
    with Image.open(one / 'Foto №1 & mehr.jpg') as image:
        image.resize((80, 60), Image.Resampling.LANCZOS).filter(ImageFilter.SMOOTH).save(one / 'small.jpg')
    make_image(900).save(one / 'really a png.jpg', 'png')
    Image.new('RGB', (1, 1), 'red').save(one / 'pixel.png')
    Image.new('RGB', (160, 120), (90, 120, 60)).save(one / 'blank.jpg')
    for species in (one, two):
        make_image(901).save(species / 'which one.jpg')
    (folder / 'notes.txt').write_text('notes')
    (one / '.hidden.jpg').write_bytes(jpeg)
    (folder / '__MACOSX').mkdir()
    (folder / '__MACOSX' / '._Foto.jpg').write_text('resource fork')
    return folder


def test_check_counts_exactly(fungi, nasty):
    summary = json.loads(fungi('check', nasty, '--json').out)
    assert summary['problems'] == dict(
        unreadable=3,
        extension=1,
        tiny=1,
        duplicate=2,
        near_duplicate=1,
        label_conflict=2,
        low_variance=2,
        small_class=1,
    )
    assert (summary['images'], summary['classes']) == (27, 3)
    assert (
        summary['per_class'] == {'Röhrling & Co': 17, 'b c': 9, '孤独': 1}
        and sum(summary['used_per_class'].values()) == summary['used'] == 20
    )


def test_check_in_words(fungi, nasty):
    result = fungi('check', nasty)
    names = ('cut.jpg', 'text.jpg', 'pixel.png', 'which one.jpg', '孤独', 'never changed')
    assert all(name in result.out for name in names)
    assert '\x1b' not in result.out + result.err


def test_check_of_a_zip_is_check_of_its_folder(fungi, nasty, tmp_path):
    with zipfile.ZipFile(tmp_path / 'Größe & Co.zip', 'w') as z:
        for file in sorted(nasty.rglob('*')):
            z.write(file, file.relative_to(nasty.parent))
    summaries = [
        json.loads(fungi('check', source, '--json').out) | dict(seconds=0)
        for source in (nasty, tmp_path / 'Größe & Co.zip')
    ]
    assert summaries[0] == summaries[1]


def test_explore_writes_a_page(fungi, nasty, tmp_path):
    out = fungi('explore', nasty, '--out', tmp_path / 'page & more').out
    page = (tmp_path / 'page & more' / 'index.html').read_text('utf8')
    assert 'index.html' in out and 'Röhrling &amp; Co' in page and 'src="http' not in page


# --- evaluate


@pytest.fixture
def zipped(photos, tmp_path):
    "Makes a zip of some of the images: names → a file"

    def make(name, images):
        with zipfile.ZipFile(tmp_path / name, 'w') as z:
            for inside, file in images.items():
                z.write(file, inside)
        return tmp_path / name

    return make


def test_evaluate_pools_the_specimens_of_other_images(fungi, small_run, photos):
    call = 'evaluate', small_run.folder, '--source', photos, '--group', '^(?P<group>.+)_'
    result = fungi(*call, '--json')
    test = json.loads(result.out)['specimens']['test']
    assert (test['specimens'], test['images']) == (30, 60)
    assert f'30 with two photos or more: accuracy {test["single_accuracy"]:.4f} with one photo' in fungi(*call).out


def test_evaluate_prints_the_metrics_of_the_run(fungi, small_run):
    out = fungi('evaluate', small_run.folder).out
    low, high = small_run.metrics['intervals']['macro_f1']
    assert f'{small_run.metrics["macro_f1"]:.4f}  ({low:.4f} to {high:.4f})' in out
    assert json.loads(fungi('evaluate', small_run.folder, '--json').out) == small_run.metrics


def test_evaluate_on_another_zip(fungi, small_run, zipped, tmp_path):
    from fungi_fastai.samples.datasets import make_sample

    other = make_sample('flowers', tmp_path / 'other', specimens=2, photos=1, size=64, seed=7, workers=1)
    archive = zipped('OTHER.zip', {f'any name/{f.parent.name}/{f.name}': f for f in sorted(other.rglob('*.jpg'))})
    done = fungi('evaluate', small_run.folder, '--source', archive, '--json', '--out', tmp_path / 'scored.parquet')
    metrics = json.loads(done.out)
    assert metrics['n_test'] == 10 and metrics['n_seen_in_training'] == metrics['n_unreadable'] == 0
    assert {'accuracy', 'macro_precision', 'macro_recall', 'macro_f1', 'n_test'} <= set(metrics)
    scored = pd.read_parquet(tmp_path / 'scored.parquet')
    assert metrics['accuracy'] == pytest.approx((scored.label == scored.predicted).mean())
    assert 'seen in training' not in done.err


def test_evaluate_counts_images_seen_in_training(fungi, small_run, zipped):
    items = small_run.items
    chosen = pd.concat([items[items.split == part].head(n) for part, n in (('train', 3), ('valid', 2), ('test', 4))])
    archive = zipped(
        'seen.zip', {f'{row.label}/renamed {i}.jpg': row.path for i, row in enumerate(chosen.itertuples())}
    )
    done = fungi('evaluate', small_run.folder, '--source', archive, '--json')
    assert json.loads(done.out)['n_seen_in_training'] == 5 and json.loads(done.out)['n_test'] == 9
    assert '5 of these 9 images were seen in training' in done.err


def test_evaluate_recognises_training_images_that_were_saved_again(fungi, small_run, tmp_path):
    "As PNG, smaller, in grey, with a mark in a corner; and images that only look like them are not counted"
    from PIL import Image

    def smaller(image):
        return image.resize((48, 48))

    def marked(image):
        image.paste('white', (0, 0, 10, 4))
        return image

    changes = dict(png=lambda image: image, smaller=smaller, grey=lambda image: image.convert('L'), marked=marked)
    items = small_run.items
    trained, tested = (items[items.split == name].head(4) for name in ('train', 'test'))
    for number, (row, change) in enumerate(zip(trained.itertuples(), changes.values(), strict=True)):
        file = tmp_path / 'again' / row.label / f'{number}.{"png" if number % 2 else "webp"}'
        file.parent.mkdir(parents=True, exist_ok=True)
        change(Image.open(row.path).convert('RGB')).save(file, quality=80)
    for row in tested.itertuples():
        file = tmp_path / 'again' / row.label / f'tested {Path(row.path).name}'
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(Path(row.path).read_bytes())
    done = fungi('evaluate', small_run.folder, '--source', tmp_path / 'again', '--json')
    metrics = json.loads(done.out)
    assert metrics['n_seen_in_training'] == metrics['n_near_duplicates_in_training'] == 4 and metrics['n_test'] == 8
    known = {Path(row['path']).stem: row['seen_in_training'] for row in metrics['seen_in_training']}
    assert known == dict(zip('0123', trained.path, strict=True))
    unseen = small_run.predictions.set_index('path').loc[tested.path]
    assert metrics['accuracy_unseen'] == pytest.approx((unseen.predicted == unseen.label).mean())
    assert '0 as the same file, 4 saved again' in done.err and f'({trained.path.iloc[0]})' in done.err


def test_evaluate_on_a_subset_of_the_classes(fungi, small_run, zipped):
    some = small_run.items[small_run.items.label.isin(['roses', 'tulips'])].head(8)
    archive = zipped('two.zip', {f'{r.label}/{i}.jpg': r.path for i, r in enumerate(some.itertuples())})
    metrics = json.loads(fungi('evaluate', small_run.folder, '--source', archive, '--json').out)
    assert metrics['n_test'] == 8 and metrics['n_classes'] == 5


def test_evaluate_on_unknown_and_missing_classes(fungi, small_run, zipped):
    some = small_run.items.head(4)
    archive = zipped(
        'unknown.zip', {f'{"Fliegenpilz" if i else r.label}/{i}.jpg': r.path for i, r in enumerate(some.itertuples())}
    )
    result = fungi('evaluate', small_run.folder, '--source', archive, '--json', code=2)
    assert 'Fliegenpilz' in result.err and 'daisy' in result.err and not result.out
    bare = zipped('bare.zip', {f'{i}.jpg': r.path for i, r in enumerate(some.itertuples())})
    assert fungi('evaluate', small_run.folder, '--source', bare, code=2).err


def test_evaluate_counts_the_unreadable(fungi, small_run, zipped, tmp_path):
    (tmp_path / 'bad.jpg').write_text('no image')
    some = small_run.items.head(4)
    archive = zipped(
        'bad.zip',
        {f'{r.label}/{i}.jpg': r.path for i, r in enumerate(some.itertuples())}
        | {'roses/bad.jpg': tmp_path / 'bad.jpg'},
    )
    metrics = json.loads(fungi('evaluate', small_run.folder, '--source', archive, '--json').out)
    assert metrics['n_unreadable'] == 1 and metrics['n_test'] == 4


# --- predict, report


@pytest.mark.parametrize('ending', ['csv', 'parquet'])
def test_predict_files_and_folders(fungi, small_run, photos, tmp_path, ending):
    folder = tmp_path / 'Fotos & mehr'
    (folder / 'tief').mkdir(parents=True)
    some = sorted(photos.rglob('*.jpg'))[::20]
    names = ['Röhrling №1.jpg', 'b & c.jpg', 'tief/菌.jpg']
    for name, file in zip(names, some, strict=False):
        shutil.copy(file, folder / name)
    Image.new('L', (1, 1)).save(folder / 'pixel.png')
    (folder / 'notes.txt').write_text('no image, and not named like one')
    out = tmp_path / f'out.{ending}'
    result = fungi('predict', small_run.folder, folder, some[0], '--out', out)
    table = pd.read_csv(out, keep_default_na=False) if ending == 'csv' else pd.read_parquet(out)
    assert sorted(table['name']) == sorted([*names, 'pixel.png', some[0].name]) and (table.error == '').all()
    assert set(table.predicted) <= set(small_run.classes) and table.confidence.astype(float).between(0, 1).all()
    assert all(Path(p).exists() for p in table.path)
    assert not result.out
    assert 'no file' in fungi('predict', small_run.folder, folder / 'gone.jpg', code=2).out  # none of them can be read

    (folder / 'kaputt.jpg').write_text('no image')
    result = fungi(
        'predict', small_run.folder, folder, folder / 'gone.jpg', '--out', out, code=1
    )  # the rest is done all the same
    table = (pd.read_csv(out, keep_default_na=False) if ending == 'csv' else pd.read_parquet(out)).set_index('name')
    assert 'kaputt.jpg' in result.err and '2 of 6' in result.err
    assert table.error['kaputt.jpg'] and 'no file' in table.error['gone.jpg'] and table.predicted['kaputt.jpg'] == ''
    assert (table.error.drop(['kaputt.jpg', 'gone.jpg']) == '').all() and (table.predicted != '').sum() == 4


def test_predict_to_standard_output(fungi, small_run, photos):
    import io

    some = sorted(photos.rglob('*.jpg'))[:2]
    table = pd.read_csv(io.StringIO(fungi('predict', small_run.folder, *some).out))
    assert list(table['name']) == [f.name for f in some] and f'p_{small_run.classes[0]}' in table


def test_predict_in_a_terminal(fungi, small_run, photos, tmp_path, monkeypatch):
    some = sorted(photos.rglob('*.jpg'))[:2]
    (tmp_path / 'letter.jpg').write_text('Dear Sir')
    monkeypatch.setattr(sys.stdout.__class__, 'isatty', lambda self: True)
    result = fungi('predict', small_run.folder, *some, tmp_path / 'letter.jpg', code=1)
    blocks = result.out.strip().split('\n\n')
    assert [block.splitlines()[0] for block in blocks] == [*map(str, some), str(tmp_path / 'letter.jpg')]
    for block in blocks[:2]:
        *classes, answer = block.splitlines()[1:]
        assert len(classes) == 3 and re.match(r'  Answer: .+\. .*confidence', answer), answer
        assert all(re.match(r' +\w+ +\d+%  [█▏]', line) for line in classes)
    assert 'cannot be read' in blocks[2] and result.err.count('letter.jpg') == 0
    fungi('predict', small_run.folder, some[0], '--out', tmp_path / 'p.csv')
    assert (tmp_path / 'p.csv').read_text().startswith('path,name,predicted')
    assert json.loads(fungi('predict', small_run.folder, some[0], '--json').out)


def test_report_is_written_again(fungi, small_run, tmp_path):
    shutil.copytree(small_run.folder, tmp_path / 'copy')
    (tmp_path / 'copy/report.html').unlink()
    assert 'report.html' in fungi('report', tmp_path / 'copy').out
    assert (tmp_path / 'copy/report.html').read_text('utf8') == (small_run.folder / 'report.html').read_text('utf8')


def test_a_run_that_was_moved_still_predicts(fungi, small_run, photos, tmp_path):
    shutil.copytree(small_run.folder, tmp_path / 'Läufe & mehr')
    fungi('predict', tmp_path / 'Läufe & mehr', sorted(photos.rglob('*.jpg'))[0], '--out', tmp_path / 'p.csv')


def test_a_run_whose_images_are_gone_still_predicts(fungi, small_run, photos, tmp_path):
    shutil.copytree(small_run.folder, tmp_path / 'run')
    items = pd.read_parquet(tmp_path / 'run/items.parquet')
    gone = items.assign(path=items.path.str.replace(str(photos), str(tmp_path / 'gone')))
    gone.to_parquet(tmp_path / 'run/items.parquet')
    image = sorted(photos.rglob('*.jpg'))[0]
    fungi('predict', tmp_path / 'run', image, '--out', tmp_path / 'p.csv')
    expected, found = small_run.predict(image), pd.read_csv(tmp_path / 'p.csv')
    assert found.confidence[0] == pytest.approx(expected.confidence[0], abs=1e-5)
    (tmp_path / 'pool').mkdir()
    Image.effect_mandelbrot((64, 64), (-2, -1, 1, 1), 50).save(tmp_path / 'pool/new.png')
    assert 'None of the training images' in fungi('next', tmp_path / 'run', tmp_path / 'pool', code=2).err


def test_an_interrupt_names_the_folder_that_resumes(tmp_path):
    from fungi_fastai.cli import _interrupt_message
    from fungi_fastai.core.resume import ResumableFolder

    with pytest.raises(KeyboardInterrupt) as caught, ResumableFolder(tmp_path / 'study', early_files=()).open({}):
        (tmp_path / 'study/fold-1').mkdir()
        raise KeyboardInterrupt
    assert _interrupt_message(['folds', 'flowers'], caught.value.run).endswith(f'--out {tmp_path / "study"}')
    assert _interrupt_message(['check', 'photos'], None) == 'Stopped.'


def test_the_command_in_the_report_is_the_command(fungi, small_run, tmp_path):
    "The command in `How to repeat it` gives the same recipe"
    import html
    import shlex

    page = (small_run.folder / 'report.html').read_text('utf8')
    command_line = html.unescape(re.search(r'<pre>(fungi train .*?)</pre>', page, re.S)[1])
    fungi(*shlex.split(command_line)[1:], '--out', tmp_path / 'again')
    assert (tmp_path / 'again/recipe.json').read_text('utf8') == (small_run.folder / 'recipe.json').read_text('utf8')


@pytest.mark.parametrize(
    'change',
    [
        lambda r: r,
        lambda r: r.but(arch='resnet50', monitor='valid_loss', augment='field', exclude=()),
        lambda r: r.for_sample(),
        lambda r: r.for_sample().but(pretrained=False, trainable='all', source=f'sample:{r.name}'),
        lambda r: r.but(name='my own', cache=False),
    ],
)
@pytest.mark.parametrize('name', ['mushrooms', 'defungi', 'seedlings'])
def test_a_command_gives_the_whole_recipe(fungi, monkeypatch, name, change):
    "Also if a field has the default of `Recipe`, and the named recipe another value"
    import shlex

    from fungi_fastai.training.recipes import command_of, recipes

    launched, recipe = [], change(recipes[name])
    monkeypatch.setattr(
        'fungi_fastai.training.launch.launch', lambda processes, train, recipe, *_: launched.append(recipe)
    )
    fungi(*shlex.split(command_of(recipe))[1:])
    assert launched[0].differences(recipe) == {}


def test_without_out_runs_are_numbered(fungi, photos, home):
    for _ in range(2):
        fungi('train', 'seedlings', '--source', photos, *flags(**tiny))
    assert {'seedlings-1', 'seedlings-2'} <= {f.name for f in (home / 'runs').iterdir()}


@pytest.mark.slow
def test_leaks_and_labels(fungi, small_run, photos, tmp_path):
    result = fungi('evaluate', small_run.folder, '--leakage', '--out', tmp_path / 'leaks', '--group', r'(\d+)_\d')
    assert (
        'split at random' in result.out
        and 'specimens together' in result.out
        and (tmp_path / 'leaks/leakage.html').exists()
    )
    for label in ('daisy', 'roses'):  # two classes and no page: quick
        shutil.copytree(next(photos.rglob(label)), tmp_path / 'two' / label)
    network = ('--arch', 'convmixer_16_1', '--size', 32)
    weights = ('--weights', small_run.folder / 'model.safetensors')
    assert json.loads(fungi('evaluate', tmp_path / 'two', '--leakage', *network, *weights, '--json').out)
    result = fungi('labels', photos, *network, '--no-pretrained', '--out', tmp_path / 'labels')
    assert (tmp_path / 'labels/labels.html').exists() and 'labels.html' in result.out
    assert 'There is no' in fungi('evaluate', tmp_path / 'nowhere', '--leakage', code=2).err


def test_check_proposes_specimens(fungi, photos):
    assert '--group' in fungi('check', photos).out


def test_several_runs_on_one_page(fungi, small_run, photos, tmp_path):
    fungi(
        'train',
        'flowers',
        '--source',
        photos,
        '--out',
        tmp_path / 'other',
        *flags(**tiny | dict(epochs=1)),
        '--tracker',
        'curves',
    )
    assert (tmp_path / 'other/curves.svg').exists()
    fungi('report', small_run.folder, tmp_path / 'other', '--out', tmp_path / 'both.html')
    page = (tmp_path / 'both.html').read_text('utf8')
    assert 'compared' in page and '<svg' in page
    assert 'test images' in fungi('watch', tmp_path / 'other', '--once').out
    text = fungi('compare', small_run.folder, tmp_path / 'other').out
    assert 'statistically significant' in text or 'is better' in text
    assert (
        'tensorbord'
        in fungi('train', 'flowers', '--source', photos, '--out', tmp_path / 'x', '--tracker', 'tensorbord', code=2).err
    )


@pytest.mark.slow
def test_studies_by_command(fungi, photos, tmp_path):
    small = ('--source', photos, *flags(**tiny))
    assert '2 folds' in fungi('folds', 'flowers', *small, '--k', 2, '--out', tmp_path / 'folds').out
    assert fungi('curve', 'flowers', *small, '--fractions', 0.5, 1, '--seeds', 1, '--out', tmp_path / 'curve').out
    assert 'best' in fungi('sweep', 'flowers', *small, '--out', tmp_path / 'sweep', '--vary', 'bs=4,8').out
    assert 'FIELD=VALUES' in fungi('sweep', 'flowers', *small, '--out', tmp_path / 's2', '--vary', 'bs', code=2).err
    assert (
        'given twice'
        in fungi('sweep', 'flowers', *small, '--out', tmp_path / 's2', '--vary', 'bs=4', '--vary', 'bs=8', code=2).err
    )
    assert 'report.html' in fungi('report', tmp_path / 'folds').out


def test_options_without_effect_are_refused(fungi, small_run, photos, tmp_path):
    assert '--arch is for --leakage' in fungi('evaluate', small_run.folder, '--arch', 'resnet18', code=2).err
    assert '--leakage' in fungi('evaluate', small_run.folder, '--source', photos, '--leakage', code=2).err
    assert 'of several' in fungi('report', small_run.folder, '--out', tmp_path / 'x.html', code=2).err
    assert '.html' in fungi('report', small_run.folder, small_run.folder, '--out', tmp_path / 'x.txt', code=2).err
