"The documentation site: built from the notebooks with strict checks, complete, and usable on a phone and a desktop"

import functools
import http.server
import importlib.util
import json
import re
import sys
import threading
import tomllib
from pathlib import Path
from typing import Annotated

import pytest
from chromium import Chromium, find

root = Path(__file__).parents[1]
docs = root / 'docs'
missing = [name for name in ('zensical', 'latex2mathml', 'nbdev') if importlib.util.find_spec(name) is None]
needs_docs = pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed: pip install -e '.[docs]'")
needs_browser = pytest.mark.skipif(find() is None, reason='no chromium or google-chrome on this machine')


@pytest.fixture(scope='module', autouse=True)
def docs_on_path():
    sys.path.insert(0, str(docs))
    yield
    sys.path.remove(str(docs))


@pytest.fixture(scope='module')
def site(tmp_path_factory, docs_on_path, ready):
    "The site, built once, as `make docs` builds it, but in this process, which has fastai imported"
    import build

    folder = tmp_path_factory.mktemp('docs')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'path', [*sys.path])
        patch.setenv('OMP_NUM_THREADS', '1')
        assert build.main(['--out', f'{folder}/www/fungi_fastai', '--work', f'{folder}/work']) == 0
    return folder / 'www' / 'fungi_fastai'


@pytest.fixture(scope='module')
def address(site):
    "The address of the site, served under the name of the project, as on GitHub Pages"

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=site.parent))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f'http://127.0.0.1:{server.server_port}/fungi_fastai/'
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope='module')
def browser():
    with Chromium() as started:
        yield started


# --- content of the pages ---
@needs_docs
def test_every_exported_name_is_on_a_page(site):
    from build import PageParser
    from symbols import exported

    import fungi_fastai

    anchors, pages = json.loads((site / 'symbols.json').read_text()), {}
    expected = {f'fungi_fastai.{home}.{name}' for name, home in fungi_fastai._modules.items()}
    for file in (root / 'fungi_fastai').rglob('*.py'):
        module = '.'.join(file.relative_to(root).with_suffix('').parts)
        if file.stem not in ('__init__', '_modidx'):
            expected |= {f'{module}.{name}' for name in exported(file)}
    assert len(expected) > 100
    assert not expected - anchors.keys()
    for name in expected:
        page, _, anchor = anchors[name].partition('#')
        if page not in pages:
            pages[page] = PageParser()
            pages[page].feed((site / page).read_text())
        assert anchor in pages[page].ids, name


@needs_docs
def test_every_notebook_is_a_page(site):
    for notebook in (root / 'nbs').rglob('*.ipynb'):
        name = notebook.relative_to(root / 'nbs')
        if not any(part.startswith(('.', '_')) for part in name.parts):
            assert (site / name.with_suffix('.html')).is_file(), name


@needs_docs
def test_field_comments_and_lazy_names_are_shown(site):
    assert 'one folder a run' in (site / 'core/settings.html').read_text()  # the comment of a dataclass field
    assert 'id="train_mushrooms"' in (site / 'runs/train.html').read_text()


@needs_docs
def test_a_failed_build_keeps_the_old_site(tmp_path, monkeypatch):
    import build
    from notebooks import DocError

    (tmp_path / 'old').mkdir()
    (tmp_path / 'old' / 'index.html').write_text('old')
    monkeypatch.setattr(build, 'dead_links', lambda *_: ['index.html: nowhere.html is a dead link'])
    monkeypatch.setattr(build, 'ROOT', _project(tmp_path / 'project', {'index': [('markdown', '# Start\n\n> Here')]}))
    with pytest.raises(DocError, match='nowhere.html'):
        build.build(tmp_path / 'old', tmp_path / 'work')
    assert (tmp_path / 'old' / 'index.html').read_text() == 'old'


def test_build_does_not_delete_other_folders(tmp_path, monkeypatch, capsys):
    import build

    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    monkeypatch.setattr(sys, 'path', [*sys.path])
    (tmp_path / 'thesis.txt').write_text('ten years')
    for option in ('--out', '--work'):
        new = ['--out', str(tmp_path / 'new'), '--work', str(tmp_path / 'new')]
        assert build.main([*new, option, str(tmp_path)]) == 2 and 'is not a site' in capsys.readouterr().err
    assert (tmp_path / 'thesis.txt').exists()


# --- notebooks of all kinds ---
def _project(folder, notebooks):
    "A project with notebooks of (kind, source[, outputs]) cells and the configuration of this project"
    (folder / 'docs').mkdir(parents=True)
    (folder / 'docs' / 'zensical.toml').write_text((docs / 'zensical.toml').read_text())
    (folder / 'docs' / 'theme').symlink_to(docs / 'theme')
    (folder / 'pyproject.toml').write_text((root / 'pyproject.toml').read_text())
    for name, cells in notebooks.items():
        dicts = [
            dict(
                cell_type=kind,
                id=f'c{i}',
                metadata={},
                source=source,
                **(dict(outputs=outputs, execution_count=None) if kind == 'code' else {}),
            )
            for i, (kind, source, *outputs) in enumerate(cells)
        ]
        file = folder / 'nbs' / f'{name}.ipynb'
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(dict(cells=dicts, metadata={}, nbformat=4, nbformat_minor=5)))
    return folder


def _build(tmp_path, monkeypatch, notebooks):
    import build

    monkeypatch.setattr(build, 'ROOT', _project(tmp_path / 'project', notebooks))
    monkeypatch.chdir(tmp_path / 'project')
    build.build(tmp_path / 'site', tmp_path / 'work')
    return tmp_path / 'site'


def _display(**data):
    return dict(
        output_type='display_data', metadata={}, data={key.replace('_', '/'): value for key, value in data.items()}
    )


image = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=='


@needs_docs
def test_a_tutorial_with_everything(tmp_path, monkeypatch):
    site = _build(
        tmp_path,
        monkeypatch,
        {
            'index': [('markdown', '# Start\n\n> Here'), ('markdown', 'See [the other](tutorials/all.ipynb#a-list).')],
            'tutorials/all': [
                ('markdown', '# Everything\n\n> What a notebook may hold'),
                (
                    'markdown',
                    '::: {.callout-tip title="Well met" collapse="true"}\nHello *there*\n:::\n\n> [!WARNING]\n> Poison',
                ),
                (
                    'markdown',
                    '## A list\nFirst:\n- one\n  - two\n- three\n\n'
                    'A sum $x_1 + \\frac{a*b}{2}$ costs $5 or $6, `$no$`.\n\n$$\\sum_i p_i = 1$$',
                ),
                ('markdown', 'Home is [there](../index.ipynb), and `names` is nothing.'),
                (
                    'code',
                    'print(1)',
                    dict(output_type='stream', name='stdout', text='\x1b[31mred\x1b[0m\nslow\rdone\n'),
                ),
                ('code', 'plot()', _display(image_png=image, text_plain='<Figure>')),
                (
                    'code',
                    'table',
                    _display(
                        text_html='<style>a{}</style><table class="dataframe">\n\n<tr><td>7</td></tr></table>',
                        text_plain='7',
                    ),
                ),
                ('code', 'drawing', _display(text_html=f'<img src="data:image/png;base64,{image}">', text_plain='x')),
                ('code', '#| echo: false\nunechoed = 1'),
                ('code', '#| hide\nkept_back = 1'),
            ],
        },
    )
    text = (site / 'tutorials' / 'all.html').read_text()
    assert '<details class="tip">' in text and 'Well met' in text and '<em>there</em>' in text
    assert 'admonition warning' in text and 'Poison' in text
    assert text.count('<li>\n') + text.count('<li>') >= 3 and text.index('two') > text.index('one')
    assert text.count('<math') == 2 and '$5 or $6' in text and '<code>$no$</code>' in text and '<mfrac>' in text
    assert 'href="../index.html"' in text and 'href="tutorials/all.html#a-list"' in (site / 'index.html').read_text()
    assert '\x1b' not in text and 'slow' not in text and 'done' in text
    assert text.count('<img src="all_files/') == 2 and (site / 'tutorials' / 'all_files' / 'c5_0.png').is_file()
    assert '<td>7</td>' in text and 'a{}' not in text
    assert 'unechoed' not in text and 'kept_back' not in text


@needs_docs
@pytest.mark.parametrize(
    'prose, wrong',
    [
        ('[gone](gone.html)', 'gone.html'),
        ('[gone](gone.ipynb)', 'gone.ipynb'),
        ('[here](#nowhere)', 'nowhere'),
        ('![image](gone.png)', 'gone.png'),
        ('<img src="https://example.com/x.png">', 'must be on the site itself'),
        ('[full](https://fungi-fastai.github.io/fungi_fastai/gone.html)', 'gone.html'),
        ('::: {.callout-note}\nopen', 'never closed'),
    ],
)
def test_a_dead_link_stops_the_build(tmp_path, monkeypatch, prose, wrong):
    from notebooks import DocError

    with pytest.raises(DocError, match=wrong.replace('.', r'\.')):
        _build(tmp_path, monkeypatch, {'index': [('markdown', '# Start\n\n> Here'), ('markdown', prose)]})


@needs_docs
def test_comments_beside_parameters():
    from symbols import comments_of

    def one(
        first,  # of all
        second: int = (
            1  # begun
            + 2
        ),  # ended
        *rest,  # more
        last=4,  # at last
        **others,  # any
    ) -> int:  # a number
        "Nothing"

    def two(first, second=2):  # both
        "Nothing"

    def three(first) -> int:  # a result
        "Nothing"

    assert comments_of(one) == {
        'first': 'of all',
        'second': 'ended',
        'rest': 'more',
        'last': 'at last',
        'others': 'any',
        'return': 'a number',
    }
    assert comments_of(two) == {'second': 'both'}
    assert comments_of(three) == {'return': 'a result'}


@needs_docs
def test_types_are_shown_without_annotations():
    from symbols import type_text

    assert type_text(Annotated[Path | None, 'a flag']) == 'Path | None'
    assert type_text(Annotated[str, 1] | list[int]) == 'str | list[int]'
    assert type_text('pathlib.Path | None') == 'Path | None'


@needs_docs
def test_the_reference_is_folded_away_from_the_guides(site):
    tab = re.compile(r'md-tabs__link[^>]*>\s*([^<]+?)\s*<')
    sidebar = re.compile(r'<nav class="md-nav md-nav--primary.*?</nav>\s*</div>', re.DOTALL)
    guide, reference = ((site / name).read_text() for name in ('tutorials/quickstart.html', 'data/scan.html'))
    assert tab.findall(guide) == ['Home', 'Tutorials', 'How-to', 'Explanations', 'API reference']
    links = [len(re.findall('href=', sidebar.search(page)[0])) for page in (guide, reference)]
    assert max(links) < 100, 'the sidebar lists everything at once'


def test_the_configuration_names_only_pages_that_exist():
    sections = tomllib.loads((docs / 'zensical.toml').read_text())['sections']
    for section in sections:
        folder = root / 'nbs' / section['folder']
        assert [name for name in section['pages'] if not (folder / f'{name}.ipynb').is_file()] == []


# --- in a browser ---
@needs_docs
@needs_browser
def test_search_works_on_a_site_that_is_opened_from_a_folder(site, browser):
    browser.size(1280, 900)
    browser.open((site / 'index.html').as_uri())
    search(browser, 'train_mushrooms', page='runs/train.html')


@needs_docs
@needs_browser
@pytest.mark.parametrize(
    'page', ['index.html', 'howto/commands.html', 'tutorials/quickstart.html', 'training/fit.html']
)
def test_code_is_not_cut_off(address, browser, page):
    browser.size(1280, 900)
    browser.open(address + page)
    assert browser.run("document.querySelectorAll('pre > code').length") > 1
    cut_off = 'code => code.scrollWidth > code.clientWidth + 1'
    assert browser.run(f"[...document.querySelectorAll('pre > code')].filter({cut_off}).map(c => c.textContent)") == []


@needs_docs
@needs_browser
@pytest.mark.parametrize(
    'page, dark_phone',
    [('index.html', False), ('index.html', True), ('data/scan.html', False), ('data/explore.html', True)]
    + [('runs/train.html', False), ('names.html', True)],
)
@pytest.mark.parametrize('width, height, phone', [(390, 844, True), (1280, 900, False)])
def test_pages_in_a_browser(address, browser, tmp_path, page, dark_phone, width, height, phone):
    dark = phone == dark_phone
    browser.size(width, height, phone, dark)
    browser.open(address + page)
    assert browser.errors() == []
    assert [url for url in browser.requested_urls() if not url.startswith((address, 'data:', 'blob:'))] == []
    assert browser.run('document.documentElement.scrollWidth') <= width, 'the page is wider than the screen'
    browser.run("document.querySelectorAll('img').forEach(img => img.loading = 'eager')")
    browser.wait('[...document.images].every(img => img.complete)')
    assert browser.run('[...document.images].filter(img => !img.naturalWidth).map(img => img.src)') == []
    channels = 'getComputedStyle(document.body).backgroundColor.match(/[\\d.]+/g).slice(0, 3).map(Number)'
    assert (sum(browser.run(channels)) < 380) == dark
    browser.screenshot(tmp_path / 'page.png')
    assert (tmp_path / 'page.png').stat().st_size > 10_000  # the page is not blank


@needs_docs
@needs_browser
@pytest.mark.parametrize('width, height, phone', [(390, 844, True), (1280, 900, False)])
def test_search_finds_train_mushrooms(address, browser, width, height, phone):
    browser.size(width, height, phone)
    browser.open(address + 'index.html')
    search(browser, 'train_mushrooms', page='runs/train.html')
    assert browser.errors() == []


def search(browser, words, page):
    "Open the search, type, and wait until the first result links to the name"
    browser.wait("document.querySelector('.md-search__button')")
    browser.run("document.querySelector('.md-search__button').click()")
    browser.wait('document.activeElement.shadowRoot')  # the search dialog
    browser.type(words)
    browser.wait(f"""[...document.querySelectorAll('*')]
                      .map(e => e.shadowRoot && e.shadowRoot.querySelector('a[role=option]'))
                      .some(a => a && a.getClientRects().length
                                 && a.href.includes('{page}') && a.href.endsWith('#{words}'))""")
