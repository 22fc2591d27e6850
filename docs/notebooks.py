"Convert a notebook to the Markdown of a page: nbdev reads its directives, saved outputs are kept, nothing is executed"

import ast
import base64
import html
import io
import re
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

from fastcore.nbio import mk_cell, read_nb
from nbdev.frontmatter import FrontmatterProc
from nbdev.process import NBProcessor, Processor
from nbdev.processors import (
    clean_magics,
    filter_stream_,
    hide_,
    hide_line,
    populate_language,
    rm_export,
    rm_header_dash,
    strip_hidden_metadata,
)
from symbols import bound_names

IMAGE_TYPES = {'image/png': 'png', 'image/jpeg': 'jpg', 'image/gif': 'gif', 'image/webp': 'webp'}
CALLOUTS = dict(note='note', tip='tip', warning='warning', caution='warning', important='danger')


class DocError(Exception):
    "A problem that prevents the build of the site"


@dataclass
class Page:
    "A page of the site"

    name: str  # address without the suffix, such as data/sources
    notebook: Path | None = None
    title: str = ''
    summary: str = ''
    module: str = ''  # fungi_fastai.data.sources, '' for a tutorial
    markdown: str = ''
    files: dict[str, bytes] = field(default_factory=dict)  # images, stored beside the page

    def to(self, other, anchor=''):
        "The link from this page to another one"
        up = '../' * self.name.count('/')
        return (f'{up}{other}.html' if other != self.name else '' if anchor else f'{self.name.split("/")[-1]}.html') + (
            f'#{anchor}' if anchor else ''
        )


# --- nbdev's processors, with the symbols of the package instead of executed `show_doc` cells ---------------------
def documented(page, module, link, package_names):
    "An nbdev processor that adds the documentation of exported symbols after each cell"

    class Document(Processor):
        def begin(self):
            cells, calls = self.nb.cells, {}
            for cell in cells:  # `show_doc(Source.of)` moves the documentation of a symbol
                for node in (cell.parsed_() or []) if cell.cell_type == 'code' else []:
                    if (
                        isinstance(node, ast.Expr)
                        and isinstance(node.value, ast.Call)
                        and getattr(node.value.func, 'id', '') == 'show_doc'
                    ):
                        calls[ast.unparse(node.value.args[0])] = cell
            done, after_cells = set(calls), []
            for cell in cells:
                directives = set(cell.directives_ or ())
                if cell.cell_type != 'code':
                    continue
                if directives & {'export', 'exports'} and 'hide' not in directives:
                    for node in cell.parsed_() or []:
                        for name in bound_names(node):
                            if (
                                name in done
                                or name.split('.')[-1].startswith('_')
                                or ('.' not in name and name not in module.exports)
                            ):
                                continue
                            done.add(name)
                            after_cells.append(
                                (
                                    cell,
                                    module.document(
                                        name, link, skip=calls, source=ast.get_source_segment(cell.source, node) or ''
                                    ),
                                )
                            )
                for name, shown in calls.items():
                    if shown is cell:
                        after_cells.append((cell, self.show(name)))
            exports = [
                cell
                for cell in cells
                if cell.cell_type == 'code' and {'export', 'exports'} & set(cell.directives_ or ())
            ]
            if module:  # names that the package imports lazily
                for name in package_names:
                    if name not in module.exports and name not in done:
                        after_cells.append((exports[-1], module.document(name, link)))
            for cell, blocks in reversed(after_cells):
                new_cell = mk_cell('\n\n'.join(blocks), 'markdown')
                new_cell.ready = True
                cells.insert(cells.index(cell) + 1, new_cell)
            for cell in set(calls.values()):
                cell.source = '#| hide\n' + cell.source
                cell.directives_ = {'hide': ''}

        def show(self, name):
            if module and (name in module.exports or name.split('.')[0] in module.exports):
                return module.document(name, link)
            where = module.name if module else 'a notebook that exports nothing'
            raise DocError(f'{page.notebook}: show_doc({name}): no such name in {where}.')

    return Document


def read_page(path, nbs):
    "Read the title, summary and module of a notebook, without its text"
    notebook = read_nb(path)
    page = Page(path.relative_to(nbs).with_suffix('').as_posix(), path)
    for cell in notebook.cells:
        if cell.cell_type == 'code' and (match := re.search(r'^#\|\s*default_exp\s+(\S+)', cell.source, re.MULTILINE)):
            page.module = match[1]
    processor = NBProcessor(nb=notebook, procs=[FrontmatterProc], rm_directives=False)
    processor.process()
    fm = notebook.frontmatter_
    page.title, page.summary = (
        str(fm.get('title') or path.stem.replace('_', ' ').capitalize()),
        ' '.join(str(fm.get('description') or '').split()),
    )
    return page


def write_page(page, module, link, package_names=()):
    "Write the Markdown and the images of a page"
    notebook = read_nb(page.notebook)
    procs = [
        FrontmatterProc,
        populate_language,
        hide_line,
        filter_stream_,
        rm_header_dash,
        documented(page, module, link, package_names),
        rm_export,
        magics,
        hide_,
        strip_hidden_metadata,
    ]
    NBProcessor(nb=notebook, procs=procs, rm_directives='quarto').process()
    blocks = [head(page, module, link)]
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == 'raw':
            continue
        if cell.cell_type == 'markdown':
            blocks.append(cell.source if getattr(cell, 'ready', False) else prose(page, cell, link))
        else:
            blocks += code(page, cell, number)
    page.markdown = '\n\n'.join(block for block in blocks if block.strip()) + '\n'


def head(page, module, link):
    "Front matter, heading, summary and links to the source"
    text = f'---\ntitle: {page.title!r}\ndescription: {page.summary!r}\n---\n\n# {page.title}\n'
    if page.summary:
        text += f'\n{link.markdown(escape(page.summary))}\n{{ .doc-lead }}\n'
    if module:
        links = f'[module]({module.source_link("")}) · [notebook]({link.notebook(page)})'
        text += f'\n`{module.name}` · {links}\n{{ .doc-origin }}\n'
    elif page.notebook and page.name != 'index':
        text += f'\n[notebook]({link.notebook(page)})\n{{ .doc-origin }}\n'
    return text


def magics(cell):
    "nbdev's `clean_magics`, only where a cell has magics: it reads pyproject.toml twice for each cell"
    if re.search(r'^\s*%', cell.source, re.MULTILINE):
        clean_magics(cell)


def escape(text):
    return text.replace('<', '&lt;')


# --- prose -------------------------------------------------------------------------------------------------------
def prose(page, cell, link):
    "Convert a Markdown cell for Python-Markdown: callouts, lists, links, formulas and attachments"
    source = cell.source
    for name, data in (cell.get('attachments') or {}).items():
        kind, content = next(iter(data.items()))
        file = f'{page.name}_files/{cell.id}_{Path(name).name}'
        page.files[file] = base64.b64decode(''.join(content))
        source = source.replace(f'attachment:{name}', f'{Path(file).parent.name}/{Path(file).name}')
    return link.markdown(lists(callouts(source)))


def callouts(text):
    "Convert Quarto's `::: {.callout-note}` and GitHub's `> [!NOTE]` to admonitions; remove other fenced divs"
    lines, out, fence = text.splitlines(), [], ''
    stack = []  # the opening and the lines of each open div
    for line in lines:
        if mark := re.match(r'\s*(`{3,}|~{3,})', line):
            fence = '' if fence and line.strip().startswith(fence) else fence or mark[1]
        opening = None if fence else re.match(r':{3,}\s*(\{.*\}|\S+)\s*$', line)
        if opening:
            stack.append((opening[1], []))
        elif not fence and stack and re.match(r':{3,}\s*$', line):
            attributes, inner = stack.pop()
            (stack[-1][1] if stack else out).extend(_callout(attributes, inner))
        else:
            (stack[-1][1] if stack else out).append(line)
    for attributes, inner in stack:
        raise DocError(f'A fenced div {attributes} is never closed: ' + ' '.join(inner)[:80])
    text = '\n'.join(out)
    return re.sub(
        r'^> \[!(\w+)\]\s*\n((?:>.*(?:\n|$))+)',
        lambda match: (
            '\n'.join(
                _callout(
                    '{.callout-' + match[1].lower() + '}', [re.sub(r'^> ?', '', line) for line in match[2].splitlines()]
                )
            )
            + '\n'
        ),
        text,
        flags=re.MULTILINE,
    )


def _callout(attributes, inner):
    kind = re.search(r'callout-(\w+)', attributes)
    if not kind:
        return ['', *inner, '']
    title = re.search(r'title\s*=\s*"([^"]*)"', attributes)
    title = title[1] if title else None
    while inner and not inner[0].strip():
        inner = inner[1:]
    if title is None and inner and (heading := re.match(r'#+\s+(.*)', inner[0])):
        title, inner = heading[1], inner[1:]
    collapse = re.search(r'collapse\s*=\s*"?(true|false)', attributes)
    mark = '!!!' if not collapse else '???' if collapse[1] == 'true' else '???+'
    head = f'{mark} {CALLOUTS.get(kind[1], "note")}' + (f' "{title}"' if title is not None else '')
    return ['', head, '', *textwrap.indent('\n'.join(inner), '    ').splitlines(), '']


def lists(text):
    "Convert lists for Python-Markdown: a blank line before, four spaces per level"
    out, fence, indents = [], '', []
    for line in text.splitlines():
        if mark := re.match(r'\s*(`{3,}|~{3,})', line):
            fence = '' if fence else mark[1]
        item = None if fence or mark else re.match(r'( *)([-*+]|\d+[.)])( +)(?=\S)', line)
        if item:
            depth = len(item[1])
            if not indents and depth >= 4:
                out.append(line)
                continue  # inside an admonition or a code block
            while indents and depth < indents[-1]:
                indents.pop()
            if not indents or depth > indents[-1]:
                if not indents and out and out[-1].strip():
                    out.append('')
                indents.append(depth)
            out.append('    ' * (len(indents) - 1) + line.lstrip())
        else:
            if indents and line.strip():
                if not line.startswith(' '):
                    if not (out and out[-1].strip()):
                        indents = []  # a new paragraph ends the list
                else:
                    line = (
                        '    ' * len(indents) + line[min(len(line) - len(line.lstrip()), indents[-1] + 2) :]
                    )  # part of the item
            out.append(line)
    return '\n'.join(out)


# --- code and its outputs ----------------------------------------------------------------------------------------
def code(page, cell, number):
    "A code cell and its saved outputs"
    options = dict(re.findall(r'^#\|\s*([\w-]+)\s*:\s*(.*?)\s*$', cell.source, re.MULTILINE))
    source = re.sub(r'^#\|.*\n?', '', cell.source, flags=re.MULTILINE).strip('\n')
    if options.get('include') == 'false':
        return []
    blocks = []
    if source.strip() and options.get('echo') != 'false':
        mark = fence_for(source)
        shown = f'{mark}python\n{source}\n{mark}'
        if options.get('code-fold') == 'true':
            shown = f'??? note "{options.get("code-summary", "Code").strip(chr(34))}"\n\n' + textwrap.indent(
                shown, '    '
            )
        blocks.append(shown)
    if options.get('output') == 'false':
        return blocks
    caption = options.get('fig-cap', '').strip('"')
    last = next(
        (line for line in reversed(source.splitlines()) if line.strip() and not line.strip().startswith('#')), 'code'
    )
    alt = options.get('fig-alt', '').strip('"') or caption or f'Image made by {last.strip().rstrip(";")}'
    for position, output in enumerate(cell.get('outputs') or []):
        blocks.append(show_output(page, output, f'{cell.id}_{position}', alt, caption))
    return [block for block in blocks if block]


def fence_for(text):
    return '`' * max(3, 1 + max((len(run) for run in re.findall(r'^\s*(`{3,})', text, re.MULTILINE)), default=0))


def text_block(text):
    "Printed text"
    text = re.sub(r'\x1B(?:[@-Z\\-_]|\[[0-?]*[ -/]*[@-~])', '', text)
    text = '\n'.join(line.rsplit('\r', 1)[-1] for line in text.replace('\r\n', '\n').split('\n')).strip('\n')
    if not text.strip():
        return ''
    mark = fence_for(text)
    return f'{mark} {{ .text .doc-output }}\n{text}\n{mark}'


def show_output(page, output, name, alt, caption):
    "One output of a cell, in its richest format"
    if output.output_type == 'stream':
        return text_block(''.join(output.text))
    if output.output_type == 'error':
        return text_block(f'{output.ename}: {output.evalue}')
    data = {kind: ''.join(value) if isinstance(value, list) else value for kind, value in output.data.items()}
    if 'text/html' in data and (shown := show_html(page, data['text/html'], name)):
        return shown
    if 'image/svg+xml' in data:
        return show_image(page, data['image/svg+xml'].encode(), f'{name}.svg', alt, caption)
    for kind, suffix in IMAGE_TYPES.items():
        if kind in data:
            return show_image(page, base64.b64decode(data[kind]), f'{name}.{suffix}', alt, caption)
    if 'text/markdown' in data:
        return data['text/markdown']
    return text_block(data.get('text/plain', ''))


def show_image(page, content, name, alt, caption):
    "An image as a file beside the page, with its size, so that the layout is stable while it loads"
    folder = f'{page.name}_files'
    page.files[f'{folder}/{name}'] = content
    size, style = '', 'doc-figure'
    if not name.endswith('.svg'):
        from PIL import Image

        with Image.open(io.BytesIO(content)) as image:
            size = ' width="{}" height="{}"'.format(*image.size)
            if image.mode == 'RGBA' and image.getextrema()[3][0] == 0:  # transparent: the page shows through
                style += ' doc-chart'
    img = f'<img src="{Path(folder).name}/{name}" alt="{html.escape(alt)}"{size} loading="lazy">'
    caption = f'<figcaption>{html.escape(caption)}</figcaption>' if caption else ''
    return f'<figure class="{style}">{img}{caption}</figure>'


def show_html(page, text, name):
    "HTML without scripts and styles, with embedded images as files"
    text = re.sub(r'<(script|style)\b.*?</\1\s*>', '', text, flags=re.DOTALL | re.IGNORECASE)

    def to_file(match):
        suffix = {'svg+xml': 'svg', 'jpeg': 'jpg'}.get(match[1], match[1])
        file = f'{page.name}_files/{name}_{len(page.files)}.{suffix}'
        page.files[file] = base64.b64decode(match[2])
        return f'src="{Path(file).parent.name}/{Path(file).name}"'

    text = re.sub(r'src="data:image/([\w+]+);base64,([^"]+)"', to_file, text)
    text = re.sub(r'\s*\n\s*', '\n', text).strip()  # a blank line would end the block
    if not re.sub(r'<[^>]*>', '', text).strip() and '<img' not in text and '<svg' not in text:
        return ''
    return f'<div class="doc-html">{text}</div>'
