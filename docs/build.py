"""Builds the documentation site from the notebooks alone: `python docs/build.py` (or `make docs`)

nbs/*.ipynb ─► Markdown in .cache/docs/pages ─► Zensical ─► every link checked ─► _site/

It needs `pip install -e '.[docs]'`, but neither Quarto nor a network connection. The API documentation comes from the
installed package (notebooks.py, symbols.py), so no notebook is executed. docs/zensical.toml holds the configuration.
Exit codes: 0 done, 1 a notebook or link has to be fixed, 2 a package is not installed.
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
    "All documented names and pages, for links from backticks"

    def __init__(self, pages, site_url, git, branch):
        self.pages = {page.name: page for page in pages}
        self.modules = {page.module: page for page in pages if page.module}
        self.site_url, self.git, self.branch = site_url.rstrip('/') + '/', git, branch
        self.symbols = {}  # name -> [Symbol], once all pages are written
        self.external = {}  # names of fastai and fastcore -> address

    def add(self, symbols, page):
        for symbol in symbols:
            symbol.page = page.name
            self.symbols.setdefault(symbol.name, []).append(symbol)

    def load_external(self):
        "The addresses of the documentation of fastai and fastcore, from the indexes of those packages"
        from nbdev.doclinks import NbdevLookup

        known = NbdevLookup(strip_libs=('fastai', 'fastcore'), incl_libs=('fastai', 'fastcore')).syms
        self.external = {name: entry[0] for name, entry in known.items() if isinstance(entry, tuple)}

    def target(self, text, page):
        "The address that `text` in backticks links to from `page`, or None"
        if command := re.match(r'fungi (\w+)', text):
            commands = [s for s in self.symbols.get(command[1], ()) if s.module.startswith(f'{PACKAGE}.commands.')]
            return page.to(commands[0].page, commands[0].anchor) if commands else None
        is_call, name = text.endswith('()'), re.sub(r'\(.*\)$', '', text)
        if not re.fullmatch(r'[A-Za-z_][\w.]*', name):
            return None
        short = name.removeprefix(f'{PACKAGE}.')
        if short in self.modules and ('.' in short or name != short):
            return page.to(self.modules[short].name)
        symbols = self.symbols.get(name) or self._qualified(short)
        if symbols:
            is_word = re.fullmatch(r'[a-z]+', name) and not is_call  # `train` may be a folder or a word
            on_page = [s for s in symbols if s.page == page.name]
            if on_page:
                return page.to(on_page[0].page, on_page[0].anchor)
            return None if is_word else page.to(symbols[0].page, symbols[0].anchor)
        if '.' in name or re.search('[A-Z]', name):
            return self.external.get(name)
        return None

    def _qualified(self, name):
        "The symbols for a qualified name such as `data.sources.Source`"
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
        "Resolve backticks, links between notebooks and formulas, but not in code"
        out, fence = [], ''
        for line in re.split(r'(\n)', text):
            if mark := re.match(r'\s*(`{3,}|~{3,})', line):
                fence = '' if fence and line.strip().startswith(fence) else fence or mark[1]
            elif not fence and not line.startswith('#'):
                line = re.sub(r'`([^`\n]+)`', lambda match: self._mark(match, skip), line)
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

    def _mark(self, match, skip):
        before, after = match.string[: match.start()], match.string[match.end() :]
        if match[1] in skip or re.search(r'\[[^\]]*$', before) and re.match(r'[^\[]*\]', after):
            return match[0]
        return f'\x01{match[1]}\x02{match[0]}\x03'

    def resolve(self, text):
        "Turn the marks into links, once all names are known"

        def link(match):
            address = self.index.target(match[1], self.page)
            if not address:
                return match[2]
            return f'<a href="{address}">{match[2]}</a>' if match[2].startswith('<') else f'[{match[2]}]({address})'

        return re.sub('\x01([^\x02]*)\x02([^\x03]*)\x03', link, text)

    def _pages(self, text):
        "Turn `[x](sources.ipynb)` and full addresses of this site into links to the page"

        def fix(match):
            address, anchor = match[2], match[3] or ''
            if address.startswith(self.index.site_url):
                name = address[len(self.index.site_url) :]
            elif '://' in address:
                return match[0]
            else:
                name = os.path.normpath(os.path.join(os.path.dirname(self.page.name), address))
            name = re.sub(r'\.(ipynb|html|md|html\.md)$', '', name)
            return (
                f'{match[1]}({self.page.to(name or "index", anchor.lstrip("#"))}'
                if name in self.index.pages or not name
                else match[0]
            )

        return re.sub(r'(\])\(([^()\s#]+(?:\.ipynb|\.html|\.md|/))(#[\w.-]+)?(?=[)\s])', fix, text)

    def _formulas(self, text):
        "Turn `$…$` and `$$…$$` into MathML, which browsers render without scripts and fonts"
        if '$' not in text:
            return text
        code = r'(^\s*(`{3,}|~{3,})[\s\S]*?^\s*\2|`[^`\n]+`)'

        def formula(match):
            if match[1]:
                return match[0]
            from latex2mathml.converter import convert

            shown = convert(match[3] or match[4], display='block' if match[3] else 'inline')
            return re.sub(r'[*_`\\\[\]]', lambda c: f'&#{ord(c[0])};', shown)

        return re.sub(
            code + r'|\$\$([^$]+?)\$\$|(?<![\\$\w])\$(?=\S)([^$\n]+?)(?<=\S)\$(?![\d$\w])',
            formula,
            text,
            flags=re.MULTILINE,
        )


# --- pages without a notebook -------------------------------------------------------------------------------------
def names_page(index, sections):
    "A page of all names, by module"
    from notebooks import Page

    page = Page('names', title='All names', summary='Everything that the package exports, by module')
    lines = [
        '---\ntitle: All names\ndescription: Everything that the package exports, by module\n---\n',
        '# All names\n',
        'Everything that the package exports, by module\n{ .doc-lead }\n',
    ]
    for _, pages in sections:
        for module in (page for page in pages if page.module):
            symbols = [
                s
                for same_name in index.symbols.values()
                for s in same_name
                if s.page == module.name and '.' not in s.name
            ]
            if not symbols:
                continue
            rows = ''.join(_name_row(module, symbol, Links(page, index)) for symbol in symbols)
            lines.append(
                f'## [{module.title}]({module.name}.html) {{ data-toc-label="{module.title}" }}\n\n'
                f'`{PACKAGE}.{module.module}`\n{{ .doc-origin }}\n\n'
                f'<div class="doc-table"><table class="doc-params doc-names"><tbody>{rows}</tbody></table></div>\n'
            )
    page.markdown = '\n'.join(lines)
    return page


def _name_row(module, symbol, links):
    address = f'{module.name}.html#{symbol.anchor}'
    meaning = links.html(symbol.summary) or f'<span class=doc-kind>{symbol.kind}</span>'
    return (
        f'<tr><th scope="row"><a href="{address}"><code>{symbol.name}</code></a></th>'
        f'<td class="doc-meaning">{meaning}</td></tr>'
    )


def home_page(project, sections):
    "A home page with links to all pages, used if nbs/index.ipynb does not exist"
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
    "[(title, pages)] in the order of the configuration; folders that it does not name come before the modules"
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
    at = next((i for i, (_, section_pages) in enumerate(sections) if section_pages[0].module), len(sections))
    sections[at:at] = [
        (folder.replace('_', ' ').replace('/', ': ').capitalize() or 'More', section_pages)
        for folder, section_pages in others.items()
    ]
    return sections


def navigation(sections):
    "The tabs of the site: a tab for each section of guides, and one for the API reference with all modules"
    tabs, reference = [{'Home': 'index.md'}], [{'All names': 'names.md'}]
    for title, pages in sections:
        entries = [{page.title: f'{page.name}.md'} for page in pages]
        group = reference if pages[0].module else tabs
        group.append(entries[0] if len(entries) == 1 and group is reference else {title: entries})
    return [*tabs, {'API reference': reference}]


# --- check the finished site -------------------------------------------------------------------------------------
class PageParser(HTMLParser):
    "Collects the ids and addresses of a page"

    def __init__(self):
        super().__init__()
        self.ids, self.addresses = set(), []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if values.get('id'):
            self.ids.add(values['id'])
        if tag == 'a' and values.get('name'):
            self.ids.add(values['name'])
        for key in ('href', 'src'):
            if values.get(key) is not None and not (
                tag == 'link' and values.get('rel') in ('canonical', 'prev', 'next', 'alternate')
            ):
                self.addresses.append((tag, values[key]))


def dead_links(site, site_url):
    "Problems of the addresses on a site's pages: dead files and anchors, and files fetched from other sites"
    base, pages = site_url.rstrip('/') + '/', {}
    for file in sorted(site.rglob('*.html')):
        pages[file] = PageParser()
        pages[file].feed(file.read_text(encoding='utf-8'))
    problems = set()
    for file, page in pages.items():
        page_url = urljoin(base, file.relative_to(site).as_posix())
        for tag, address in page.addresses:
            if problem := _link_problem(site, base, pages, tag, urljoin(page_url, address)):
                problems.add(f'{file.relative_to(site)}: {problem.format(tag=tag, address=address)}')
    return sorted(problems)


def _link_problem(site, base, pages, tag, url):
    "The problem of an address, as a template, or None"
    if not url.startswith(base):
        is_web = urlsplit(url).scheme in ('http', 'https')
        if is_web and urlsplit(url).netloc == urlsplit(base).netloc:
            return '{address} points outside the site'
        if is_web and tag != 'a':
            return '<{tag}> fetches {address}; every file must be on the site itself'
        return None
    parts = urlsplit(url[len(base) :])
    target = site / unquote(parts.path) if parts.path else site / 'index.html'
    if target.is_dir():
        target = target / 'index.html'
    if not target.is_file():
        return '{address} is a dead link: the file does not exist'
    anchors = pages[target].ids | {'__top', '__skip'} if target in pages else None
    if parts.fragment and anchors is not None and unquote(parts.fragment) not in anchors:
        return '{address}: the page has no such anchor'
    return None


# --- the build ---------------------------------------------------------------------------------------------------
def build(site, work):
    "Build the site into `site`; the folder is replaced only when the new one is complete. Returns counts"
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
    index.load_external()
    package = __import__(PACKAGE)
    links = {}
    for page in pages:
        link = links[page.name] = Links(page, index)
        module = Module(f'{PACKAGE}.{page.module}', ROOT, git, branch) if page.module else None
        lazy = [name for name in package.__all__ if page.module and package._modules.get(name) == page.module]
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
    for path in nbs.rglob('*'):  # images in the prose
        if path.suffix.lower() in ('.png', '.jpg', '.jpeg', '.gif', '.svg', '.webp') and not hidden.search(
            path.relative_to(nbs).as_posix()
        ):
            (texts / path.relative_to(nbs)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, texts / path.relative_to(nbs))
    shutil.copytree(ROOT / 'docs' / 'theme', texts / 'theme')

    settings = {
        **configuration['project'],
        'docs_dir': 'pages',
        'site_dir': 'site',
        'nav': navigation(sections),
        'use_directory_urls': False,
    }
    settings['extra'] = {
        'social': [{'icon': 'fontawesome/brands/github', 'link': git, 'name': 'Source on GitHub'}],
        'generator': False,
        'polyfills': [{'path': 'theme/iframe-worker.js', 'type': 'text/javascript', 'async': False, 'defer': False}],
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
        output = re.sub(r'\x1b\[[\d;]*m', '', done.stdout + done.stderr)
        raise DocError(f'Zensical could not build the site from {texts}:\n{output}')
    symbols = {
        f'{s.module}.{s.name}': f'{s.page}.html#{s.anchor}' for same_name in index.symbols.values() for s in same_name
    }
    (rendered / 'symbols.json').write_text(json.dumps(symbols, indent=1, sort_keys=True), encoding='utf-8')
    (rendered / '.nojekyll').touch()
    if problems := dead_links(rendered, site_url):
        raise DocError('Dead links:\n  ' + '\n  '.join(problems))
    shutil.rmtree(site, ignore_errors=True)
    site.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(rendered, site)
    return dict(pages=len(pages), names=len(symbols), images=sum(len(page.files) for page in pages))


def main(arguments=None):
    "The command line"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--out', type=Path, default=ROOT / '_site', help='folder for the finished site (default: _site)'
    )
    parser.add_argument(
        '--work',
        type=Path,
        default=ROOT / '.cache' / 'docs',
        help='folder for intermediate files (default: .cache/docs)',
    )
    arguments = parser.parse_args(arguments)
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    sys.path.insert(0, str(ROOT))
    start = time.monotonic()
    for folder, mark in ((arguments.out, 'symbols.json'), (arguments.work, 'pages')):  # both are deleted
        if (
            folder.exists()
            and not (folder / mark).exists()
            and not (folder.is_dir() and next(folder.iterdir(), None) is None)
        ):
            print(
                f'{folder} exists and is not a site; choose a new or an empty folder.',
                file=sys.stderr,
            )
            return 2
    try:
        import latex2mathml.converter  # noqa: F401
        import nbdev  # noqa: F401
        import zensical  # noqa: F401
    except ImportError as error:
        print(
            f"{error.name} is not installed. Install the packages for the documentation: pip install -e '.[docs]'",
            file=sys.stderr,
        )
        return 2
    from notebooks import DocError

    try:
        with warnings.catch_warnings(), contextlib.chdir(ROOT):
            warnings.simplefilter('ignore')
            counts = build(arguments.out.resolve(), arguments.work.resolve())
    except DocError as error:
        print(error, file=sys.stderr)
        return 1
    print(
        f'{arguments.out}: {counts["pages"]} pages, {counts["names"]} names, {counts["images"]} images, '
        f'no dead links ({time.monotonic() - start:.0f} s)'
    )
    return 0


if __name__ == '__main__':
    sys.exit(main())
