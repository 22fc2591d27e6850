"""Builds the documentation site from the notebooks alone: `python docs/build.py` (or `make docs`)

nbs/*.ipynb ─► Markdown in .cache/docs/pages ─► Zensical ─► every link checked ─► _site/

It needs `pip install -e '.[docs]'`, and neither Quarto nor a network. What a cell exports is documented from the installed
package itself (notebooks.py, symbols.py), so no notebook is run. docs/zensical.toml holds everything there is to configure.
Exit codes: 0 done, 1 a notebook or link has to be mended, 2 something isn't installed.
"""

import argparse
import contextlib
import html
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
import warnings
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = 'fungi_fastai'


# --- links in prose ----------------------------------------------------------------------------------------------
class Index:
    "Every documented name and page, for links from backticks"

    def __init__(self, pages, site_url, git, branch):
        self.pages = {page.name: page for page in pages}
        self.modules = {page.module: page for page in pages if page.module}
        self.site_url, self.git, self.branch = site_url.rstrip('/') + '/', git, branch
        self.symbols = {}  # name -> [Symbol], once all pages are written
        self.outside = {}  # fastai's and fastcore's names -> address

    def add(self, symbols, page):
        for symbol in symbols:
            symbol.page = page.name
            self.symbols.setdefault(symbol.name, []).append(symbol)

    def load_outside(self):
        "The documentation of fastai and fastcore, as those packages describe it"
        from nbdev.doclinks import NbdevLookup

        known = NbdevLookup(strip_libs=('fastai', 'fastcore'), incl_libs=('fastai', 'fastcore')).syms
        self.outside = {name: found[0] for name, found in known.items() if isinstance(found, tuple)}

    def target(self, text, page):
        "The address that `text` in backticks means on `page`, or None"
        if command := re.match(r'fungi (\w+)', text):
            found = [symbol for symbol in self.symbols.get(command[1], ()) if symbol.module == f'{PACKAGE}.cli']
            return page.to(found[0].page, found[0].anchor) if found else None
        called, name = text.endswith('()'), re.sub(r'\(.*\)$', '', text)
        if not re.fullmatch(r'[A-Za-z_][\w.]*', name):
            return None
        short = name.removeprefix(f'{PACKAGE}.')
        if short in self.modules and ('.' in short or name != short):
            return page.to(self.modules[short].name)
        found = self.symbols.get(name) or self._qualified(short)
        if found:
            plain = re.fullmatch(r'[a-z]+', name) and not called  # `train` may be a folder or a word
            here = [s for s in found if s.page == page.name]
            if here:
                return page.to(here[0].page, here[0].anchor)
            return None if plain else page.to(found[0].page, found[0].anchor)
        if '.' in name or re.search('[A-Z]', name):
            return self.outside.get(name)
        return None

    def _qualified(self, name):
        "`data.sources.Source` as the symbol it is"
        for module in self.modules:
            if name.startswith(f'{module}.'):
                return [s for s in self.symbols.get(name[len(module) + 1 :], ()) if s.module == f'{PACKAGE}.{module}']
        return []


class Links:
    "Turns the prose of one page into Markdown or HTML with links. Marks them first, for names of pages not yet written"

    def __init__(self, page, index):
        self.page, self.index = page, index

    def notebook(self, page):
        return f'{self.index.git}/blob/{self.index.branch}/{page.notebook.relative_to(ROOT).as_posix()}'

    def markdown(self, text, skip=()):
        "Backticks, links between notebooks and formulas, left alone in code"
        out, fence = [], ''
        for line in re.split(r'(\n)', text):
            if mark := re.match(r'\s*(`{3,}|~{3,})', line):
                fence = '' if fence and line.strip().startswith(fence) else fence or mark[1]
            elif not fence and not line.startswith('#'):
                line = re.sub(r'`([^`\n]+)`', lambda found: self._mark(found, skip), line)
            out.append(line)
        return self._formulas(self._pages(''.join(out)))

    def html(self, text, skip=()):
        "A short text as HTML"

        def part(piece):
            if piece.startswith('`'):
                shown = f'<code>{html.escape(piece.strip("`"))}</code>'
                return shown if piece.strip('`') in skip else f'\x01{piece.strip("`")}\x02{shown}\x03'
            return (
                re.sub(r'\*\*?(?=\S)(.+?)(?<=\S)\*\*?', r'<em>\1</em>', html.escape(piece))
                if '**' not in piece
                else html.escape(piece)
            )

        return ''.join(part(piece) for piece in re.split(r'(`[^`]+`)', text) if piece)

    def _mark(self, found, skip):
        before, after = found.string[: found.start()], found.string[found.end() :]
        if found[1] in skip or re.search(r'\[[^\]]*$', before) and re.match(r'[^\[]*\]', after):
            return found[0]
        return f'\x01{found[1]}\x02{found[0]}\x03'

    def resolve(self, text):
        "The marks as links, once all names are known"

        def link(found):
            address = self.index.target(found[1], self.page)
            if not address:
                return found[2]
            return f'<a href="{address}">{found[2]}</a>' if found[2].startswith('<') else f'[{found[2]}]({address})'

        return re.sub('\x01([^\x02]*)\x02([^\x03]*)\x03', link, text)

    def _pages(self, text):
        "`[x](sources.ipynb)` and the site's own full address as a link to the page"

        def fix(found):
            address, anchor = found[2], found[3] or ''
            if address.startswith(self.index.site_url):
                name = address[len(self.index.site_url) :]
            elif '://' in address:
                return found[0]
            else:
                name = os.path.normpath(os.path.join(os.path.dirname(self.page.name), address))
            name = re.sub(r'\.(ipynb|html|md|html\.md)$', '', name)
            return (
                f'{found[1]}({self.page.to(name or "index", anchor.lstrip("#"))}'
                if name in self.index.pages or not name
                else found[0]
            )

        return re.sub(r'(\])\(([^()\s#]+(?:\.ipynb|\.html|\.md|/))(#[\w.-]+)?(?=[)\s])', fix, text)

    def _formulas(self, text):
        "`$…$` and `$$…$$` as MathML, which browsers draw themselves: no script, no fonts"
        if '$' not in text:
            return text
        code = r'(^\s*(`{3,}|~{3,})[\s\S]*?^\s*\2|`[^`\n]+`)'

        def formula(found):
            if found[1]:
                return found[0]
            from latex2mathml.converter import convert

            shown = convert(found[3] or found[4], display='block' if found[3] else 'inline')
            return re.sub(r'[*_`\\\[\]]', lambda c: f'&#{ord(c[0])};', shown)

        return re.sub(
            code + r'|\$\$([^$]+?)\$\$|(?<![\\$\w])\$(?=\S)([^$\n]+?)(?<=\S)\$(?![\d$\w])',
            formula,
            text,
            flags=re.MULTILINE,
        )


# --- pages that no notebook holds --------------------------------------------------------------------------------
def names_page(index, sections):
    "All names on one page, by module"
    from notebooks import Page

    page = Page('names', title='All names', summary='Everything the package exports, by module')
    lines = [
        '---\ntitle: All names\ndescription: Everything the package exports, by module\n---\n',
        '# All names\n',
        'Everything the package exports, by module\n{ .doc-lead }\n',
    ]
    for _, pages in sections:
        for module in (page for page in pages if page.module):
            here = [s for found in index.symbols.values() for s in found if s.page == module.name and '.' not in s.name]
            if not here:
                continue
            rows = ''.join(
                f'<tr><th scope="row"><a href="{module.name}.html#{s.anchor}"><code>{s.name}</code></a></th>'
                f'<td class="doc-meaning">{Links(page, index).html(s.summary) or f"<span class=doc-kind>{s.kind}</span>"}</td></tr>'
                for s in here
            )
            lines.append(
                f'## [{module.title}]({module.name}.html) {{ data-toc-label="{module.title}" }}\n\n`{PACKAGE}.{module.module}`\n{{ .doc-origin }}\n\n'
                f'<div class="doc-table"><table class="doc-params doc-names"><tbody>{rows}</tbody></table></div>\n'
            )
    page.markdown = '\n'.join(lines)
    return page


def home_page(project, sections):
    "A first page for as long as nbs/index.ipynb is not there: what it is, and what there is to read"
    from notebooks import Page, escape

    page = Page('index', title=project['name'], summary=project['description'])
    lines = [
        f'---\ntitle: {project["name"]}\n---\n\n# {project["name"]}\n\n{project["description"]}\n{{ .doc-lead }}\n'
    ]
    for title, pages in sections:
        if title:
            lines.append(f'\n## {title}\n')
        lines += [f'- [{p.title}]({p.name}.html)' + (f' — {escape(p.summary)}' if p.summary else '') for p in pages]
    page.markdown = '\n'.join(lines) + '\n'
    return page


def in_sections(pages, configured):
    "[(title, pages)] in the order of the configuration; a folder that isn't named there stands before the modules"
    left, sections = {page.name: page for page in pages if page.name != 'index'}, []
    for section in configured:
        folder = section['folder']
        first = [f'{folder}/{name}'.lstrip('/') for name in section.get('pages', [])]
        inside = lambda name: name.rpartition('/')[0] == folder if folder else '/' not in name and name in first  # noqa: B023, E731
        order = [name for name in first if name in left] + sorted(
            name for name in left if inside(name) and name not in first
        )
        if order:
            sections.append((section['title'], [left.pop(name) for name in order]))
    others = {}
    for name in sorted(left):
        others.setdefault(name.rpartition('/')[0], []).append(left[name])
    at = next((i for i, (_, found) in enumerate(sections) if found[0].module), len(sections))
    sections[at:at] = [
        (folder.replace('_', ' ').replace('/', ': ').capitalize() or 'More', found) for folder, found in others.items()
    ]
    return sections


# --- checking the finished site ----------------------------------------------------------------------------------
class Found(HTMLParser):
    "The ids and addresses of a page"

    def __init__(self):
        super().__init__()
        self.ids, self.addresses = set(), []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if given.get('id'):
            self.ids.add(given['id'])
        if tag == 'a' and given.get('name'):
            self.ids.add(given['name'])
        for key in ('href', 'src'):
            if given.get(key) is not None and not (
                tag == 'link' and given.get('rel') in ('canonical', 'prev', 'next', 'alternate')
            ):
                self.addresses.append((tag, given[key]))


def dead_links(site, site_url):
    "What is wrong with the addresses on the site's pages: dead files and anchors, and things fetched from elsewhere"
    base, found = site_url.rstrip('/') + '/', {}
    for file in sorted(site.rglob('*.html')):
        found[file] = Found()
        found[file].feed(file.read_text(encoding='utf-8'))
    wrong = []
    for file, page in found.items():
        here = urljoin(base, file.relative_to(site).as_posix())
        for tag, address in page.addresses:
            whole = urljoin(here, address)
            if not whole.startswith(base):
                outside = urlsplit(whole).scheme in ('http', 'https')
                if urlsplit(whole).netloc == urlsplit(base).netloc and outside:
                    wrong.append(f'{file.relative_to(site)}: {address} leads out of the site')
                elif outside and tag != 'a':
                    wrong.append(
                        f'{file.relative_to(site)}: <{tag}> fetches {address}; every file must be on the site itself'
                    )
                continue
            parts = urlsplit(whole[len(base) :])
            target = site / unquote(parts.path) if parts.path else site / 'index.html'
            if target.is_dir():
                target = target / 'index.html'
            if not target.is_file():
                wrong.append(f'{file.relative_to(site)}: {address} leads to no file')
            elif (
                parts.fragment
                and target in found
                and unquote(parts.fragment) not in found[target].ids | {'__top', '__skip'}
            ):
                wrong.append(f'{file.relative_to(site)}: {address}: no such place on that page')
    return sorted(set(wrong))


# --- the build ---------------------------------------------------------------------------------------------------
def build(site, work):
    "Build the site into `site`; the folder is replaced only by a whole one. Returns its numbers"
    from nbdev.config import get_config
    from notebooks import DocError, read_page, write_page
    from symbols import Module

    with open(ROOT / 'docs' / 'zensical.toml', 'rb') as file:
        configuration = tomllib.load(file)
    with open(ROOT / 'pyproject.toml', 'rb') as file:
        project = tomllib.load(file)['project']
    nbdev = get_config(ROOT)
    nbs, git, branch = Path(nbdev.nbs_path), project['urls']['Repository'].rstrip('/'), nbdev.branch
    site_url = configuration['project'].setdefault('site_url', project['urls']['Documentation'])

    hidden = re.compile(r'(^|/)[._]')
    paths = [path for path in sorted(nbs.rglob('*.ipynb')) if not hidden.search(path.relative_to(nbs).as_posix())]
    pages = [read_page(path, nbs) for path in paths]
    index = Index(pages, site_url, git, branch)
    index.load_outside()
    package = __import__(PACKAGE)
    links = {}
    for page in pages:
        link = links[page.name] = Links(page, index)
        module = Module(f'{PACKAGE}.{page.module}', ROOT, git, branch) if page.module else None
        lazy = [
            name for name in package.__all__ if page.module and getattr(package, '_home', {}).get(name) == page.module
        ]
        try:
            write_page(page, module, link, lazy)
        except DocError as error:
            raise DocError(f'{page.notebook.relative_to(ROOT)}: {error}') from None
        if module:
            index.add(module.symbols, page)
    sections = in_sections(pages, configuration.get('sections', []))
    if 'index' not in index.pages:
        pages.append(home_page(project, sections))
    pages.append(names_page(index, sections))

    shutil.rmtree(work, ignore_errors=True)
    texts, rendered = work / 'pages', work / 'site'
    for page in pages:
        text = Links(page, index).resolve(page.markdown)
        for name, content in {f'{page.name}.md': text.encode(), **page.files}.items():
            (texts / name).parent.mkdir(parents=True, exist_ok=True)
            (texts / name).write_bytes(content)
    for path in nbs.rglob('*'):  # images that the prose shows
        if path.suffix.lower() in ('.png', '.jpg', '.jpeg', '.gif', '.svg', '.webp') and not hidden.search(
            path.relative_to(nbs).as_posix()
        ):
            (texts / path.relative_to(nbs)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, texts / path.relative_to(nbs))
    shutil.copytree(ROOT / 'docs' / 'theme', texts / 'theme')

    nav = [{'Home': 'index.md'}]
    for title, found in sections:
        if title:
            nav.append({title: [{p.title: f'{p.name}.md'} for p in found]})
        else:
            nav += [{p.title: f'{p.name}.md'} for p in found]
    nav.append({'All names': 'names.md'})
    settings = {
        **configuration['project'],
        'docs_dir': 'pages',
        'site_dir': 'site',
        'nav': nav,
        'use_directory_urls': False,
    }
    settings['extra'] = {
        'social': [{'icon': 'fontawesome/brands/github', 'link': git, 'name': 'Source on GitHub'}],
        'generator': False,
    }
    (work / 'mkdocs.yml').write_text(
        json.dumps(settings, indent=1), encoding='utf-8'
    )  # JSON is YAML; both Zensical and MkDocs read it
    done = subprocess.run(
        [sys.executable, '-m', 'zensical', 'build', '--strict', '--clean', '--config-file', work / 'mkdocs.yml'],
        capture_output=True,
        text=True,
        cwd=work,
    )
    if done.returncode:
        said = re.sub(r'\x1b\[[\d;]*m', '', done.stdout + done.stderr)
        raise DocError(f'Zensical could not build the site from {texts}:\n{said}')
    symbols = {f'{s.module}.{s.name}': f'{s.page}.html#{s.anchor}' for found in index.symbols.values() for s in found}
    (rendered / 'symbols.json').write_text(json.dumps(symbols, indent=1, sort_keys=True), encoding='utf-8')
    (rendered / '.nojekyll').touch()
    if wrong := dead_links(rendered, site_url):
        raise DocError('Dead links:\n  ' + '\n  '.join(wrong))
    shutil.rmtree(site, ignore_errors=True)
    site.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(rendered, site)
    return dict(pages=len(pages), names=len(symbols), images=sum(len(page.files) for page in pages))


def main():
    "The command"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=ROOT / '_site', help='folder of the finished site (default: _site)')
    parser.add_argument(
        '--work',
        type=Path,
        default=ROOT / '.cache' / 'docs',
        help='folder for the Markdown in between (default: .cache/docs)',
    )
    given = parser.parse_args()
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    sys.path.insert(0, str(ROOT))
    start = time.monotonic()
    for folder, mark in ((given.out, 'symbols.json'), (given.work, 'pages')):  # both are deleted
        if (
            folder.exists()
            and not (folder / mark).exists()
            and not (folder.is_dir() and next(folder.iterdir(), None) is None)
        ):
            print(
                f'{folder} is there and holds something else than a site; name an empty folder or a new one.',
                file=sys.stderr,
            )
            return 2
    try:
        import latex2mathml.converter  # noqa: F401
        import nbdev  # noqa: F401
        import zensical  # noqa: F401
    except ImportError as error:
        print(
            f"{error.name} is not installed. Install the packages of the site: pip install -e '.[docs]'",
            file=sys.stderr,
        )
        return 2
    from notebooks import DocError

    try:
        with warnings.catch_warnings(), contextlib.chdir(ROOT):
            warnings.simplefilter('ignore')
            counts = build(given.out.resolve(), given.work.resolve())
    except DocError as error:
        print(error, file=sys.stderr)
        return 1
    print(
        f'{given.out}: {counts["pages"]} pages, {counts["names"]} names, {counts["images"]} images, no dead link ({time.monotonic() - start:.0f} s)'
    )
    return 0


if __name__ == '__main__':
    sys.exit(main())
