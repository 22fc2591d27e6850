"The API section of a page: the exports of a module as headings, signatures and parameter tables in Markdown"

import ast
import contextlib
import dataclasses
import enum
import html
import importlib
import inspect
import io
import re
import textwrap
import tokenize
from functools import cache, reduce
from itertools import pairwise
from operator import or_
from pathlib import Path
from types import UnionType
from typing import Annotated, Union, get_args, get_origin

from fastcore.docments import docments
from nbdev.doclinks import patch_name

DEFINITIONS = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef
LONGEST_CONSTANT = 40  # lines of source; the source of a longer constant is collapsed


@dataclasses.dataclass
class Symbol:
    "A documented name and its location"

    name: str  # `train`, `Source`, `Source.of`
    module: str  # fungi_fastai.data.sources
    kind: str  # function, class, method, property, constant
    summary: str = ''  # the docstring's first sentence or line
    page: str = ''  # data/sources, set when its page is written

    @property
    def anchor(self):
        return self.name.lower()  # as in nbdev's links


# --- locations of definitions ------------------------------------------------------------------------------------
@cache
def lines_of(file: Path):
    "name -> first line of its definition in a Python file"
    lines = {}
    for node in ast.parse(file.read_text(encoding='utf-8')).body:
        for name in bound_names(node):
            lines.setdefault(name, node.lineno)
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                for name in bound_names(inner):
                    lines.setdefault(f'{node.name}.{name}', inner.lineno)
    return lines


def bound_names(node):
    "The names that a statement defines; for a patched method, `Class.method`"
    if isinstance(node, DEFINITIONS):
        name = patch_name(node)
        return name if isinstance(name, list) else [name]
    if isinstance(node, ast.Assign):
        return [name for target in node.targets for name in _target_names(target)]
    if isinstance(node, ast.AnnAssign):
        return _target_names(node.target)
    return []


def _target_names(target):
    if isinstance(target, ast.Name):
        return [target.id]
    if isinstance(target, ast.Tuple | ast.List):
        return [name for inner in target.elts for name in _target_names(inner)]
    return []


def exported(file: Path):
    "A module's `__all__`, read without importing it"
    for node in ast.parse(file.read_text(encoding='utf-8')).body:
        if isinstance(node, ast.Assign) and '__all__' in bound_names(node):
            return [item.value for item in node.value.elts if isinstance(item, ast.Constant)]
    return []


# --- pieces of text ----------------------------------------------------------------------------------------------
def plain_type(annotation):
    "An annotation without what `Annotated` adds to it, also within a union"
    if get_origin(annotation) is Annotated:
        return plain_type(annotation.__origin__)
    if get_origin(annotation) in (Union, UnionType):
        return reduce(or_, map(plain_type, get_args(annotation)))
    return annotation


def type_text(annotation):
    "An annotation in short form: `Path | None` rather than `pathlib.Path | None`"
    if annotation is inspect.Parameter.empty or annotation is None:
        return ''
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(plain_type(annotation))
    return re.sub(r'\b(?:\w+\.)+(?=\w)', '', text.strip('\'"'))


def default_text(default):
    "A default in short form, or '' for a required parameter"
    if default is inspect.Parameter.empty:
        return ''
    if isinstance(default, enum.Enum):
        return str(default)
    if inspect.isclass(default) or inspect.isroutine(default):
        return getattr(default, '__name__', repr(default))
    if isinstance(default, Path):
        return repr(str(default))
    if dataclasses.is_dataclass(default):  # an instance with all defaults is shown as a call
        with contextlib.suppress(TypeError):
            if type(default)() == default:
                return f'{type(default).__name__}()'
    text = repr(default)
    if text == '<factory>' or ' at 0x' in text:
        return '…'
    return text if len(text) <= 120 else '…'


def escape_prose(text):
    "A docstring as Markdown: `<` outside backticks is text, not the start of a tag"
    return ''.join(part if part.startswith('`') else part.replace('<', '&lt;') for part in re.split(r'(`[^`]*`)', text))


def summary_of(docstring):
    "The first paragraph of a docstring on one line"
    return ' '.join((docstring or '').strip().split('\n\n')[0].split())


def own_doc(thing):
    "The docstring of `thing` itself: not that of its class, nor the signature that `dataclass` generates"
    doc = (
        inspect.getdoc(thing)
        if inspect.isclass(thing) or inspect.isroutine(thing) or isinstance(thing, property)
        else thing.__dict__.get('__doc__')
    )
    if inspect.isclass(thing):
        doc = thing.__dict__.get('__doc__')
        if dataclasses.is_dataclass(thing) and doc and doc.startswith(f'{thing.__name__}('):
            doc = None
    return inspect.cleandoc(doc) if doc else ''


# --- signature and parameters ------------------------------------------------------------------------------------
def comments_of(thing):
    "name -> the comment beside each parameter or field, 'return' -> that of the return value (docments)"
    if inspect.isclass(thing) and dataclasses.is_dataclass(thing):
        return {
            name: text
            for base in reversed(thing.__mro__)
            if dataclasses.is_dataclass(base)
            for name, text in _comments(base).items()
        }
    comments = _comments(thing.__init__ if inspect.isclass(thing) else inspect.unwrap(thing))
    recipe = getattr(thing, 'recipe', None)  # a `trainer` takes the fields of its recipe as parameters
    return comments_of(type(recipe)) | comments if dataclasses.is_dataclass(recipe) else comments


def _names_by_line(node):
    "The parameter or field that ends on each line of a definition"
    if isinstance(node, ast.ClassDef):
        return {field.end_lineno: field.target.id for field in node.body if isinstance(field, ast.AnnAssign)}
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return {}
    signature = node.args
    positional = [*signature.posonlyargs, *signature.args]
    defaults = dict(zip([one.arg for one in positional][::-1], signature.defaults[::-1], strict=False))
    keywords = zip(signature.kwonlyargs, signature.kw_defaults, strict=True)
    defaults |= {one.arg: default for one, default in keywords if default}
    parameters = [one for one in [*positional, signature.vararg, *signature.kwonlyargs, signature.kwarg] if one]
    names = {getattr(defaults.get(one.arg), 'end_lineno', one.end_lineno): one.arg for one in parameters}
    for one, following in pairwise(parameters):  # a default in parentheses ends after its value
        for line in range(one.end_lineno + 1, following.lineno):
            if line - 1 in names:
                names.setdefault(line, names[line - 1])
    if node.returns:
        names[node.returns.end_lineno] = 'return'
    return names


def _comments(thing):
    try:
        source = textwrap.dedent(inspect.getsource(thing))
    except (OSError, TypeError):
        return {}
    names_by_line = _names_by_line(ast.parse(source).body[0])
    comments, above, code = {}, [], set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        line = token.start[0]
        if token.type == tokenize.COMMENT:
            text = token.string.lstrip('# ').rstrip()
            if line not in code:
                above.append(text)  # on a separate line: applies to the next parameter without a comment
            elif line in names_by_line and names_by_line[line] not in comments:
                comments[names_by_line[line]] = text
        elif token.type not in (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            code.update(range(line, token.end[0] + 1))
        if token.type in (tokenize.NL, tokenize.NEWLINE) and line in code:
            if line in names_by_line and above and not above[0].startswith('---'):
                comments.setdefault(names_by_line[line], ' '.join(above))
            above = []
    return comments


def parameters_of(thing, bound=False):
    "The parameters as dictionaries (name, type, default, meaning), and the return value (type, meaning)"
    try:
        signature = inspect.signature(thing)
    except (ValueError, TypeError):
        return None, None
    comments = comments_of(thing)
    if set(signature.parameters) - set(comments):
        with contextlib.suppress(Exception):  # parameters added by `@delegates`
            fields = docments(thing, full=True, returns=False, eval_str=False)
            comments = {
                name: field['docment']
                for name, field in fields.items()
                if name in signature.parameters and field['docment']
            } | comments
    parameters = []
    for position, (name, parameter) in enumerate(signature.parameters.items()):
        if bound and position == 0 and name in ('self', 'cls'):
            continue
        stars = {parameter.VAR_POSITIONAL: '*', parameter.VAR_KEYWORD: '**'}.get(parameter.kind, '')
        meaning = comments.get(name)
        parameters.append(
            dict(
                name=stars + name,
                type=type_text(parameter.annotation),
                default=default_text(parameter.default),
                kind=parameter.kind,
                meaning=' '.join(meaning.split()) if isinstance(meaning, str) else '',
            )
        )
    meaning = comments.get('return')
    annotation = type_text(signature.return_annotation)
    returns = dict(
        type='' if annotation in ('', '_empty') else annotation,
        meaning=' '.join(meaning.split()) if isinstance(meaning, str) else '',
    )
    return parameters, None if inspect.isclass(thing) else returns


def signature_text(name, parameters, returns, types=True, width=88):
    "The signature as code, on several lines if it is long"
    items, star = [], False
    for p in parameters:
        if p['kind'] is inspect.Parameter.VAR_POSITIONAL:
            star = True
        if p['kind'] is inspect.Parameter.KEYWORD_ONLY and not star:
            items.append('*')
            star = True
        kind = f':{p["type"]}' if types and p['type'] else ''
        default = p['default'] if len(p['default']) <= 32 else '…'  # the table shows the full value
        items.append(p['name'] + kind + (f'={default}' if default else ''))
    end = f' -> {returns["type"]}' if returns and returns['type'] else ''
    line = f'{name}({", ".join(items)}){end}'
    if len(line) <= width:
        return line
    lines, row = [], ''
    for item in items:  # several per line; the table below has one row for each
        if row and len(row) + len(item) > width - 8:
            lines.append(row)
            row = ''
        row += f'{item}, '
    lines.append(row)
    inner = '\n'.join(f'    {row.rstrip()}' for row in lines)
    return f'{name}(\n{inner}\n){end}'


def table_html(parameters, returns, link, heading='Parameter'):
    "The parameters as an HTML table; `link` converts prose with backticks to HTML"
    rows = []
    for p in parameters:
        kind = _type_html(p['type'])
        long = ' class="doc-long"' if len(p['default']) > 24 else ''
        default = (
            f'<code{long}>{html.escape(p["default"])}</code>'
            if p['default']
            else '<span class="doc-required">required</span>'
        )
        if p['name'].startswith('*'):
            default = ''
        rows.append(
            f'<tr><th scope="row"><code>{html.escape(p["name"])}</code>{kind}</th>'
            f'<td class="doc-meaning">{link(p["meaning"])}</td><td class="doc-default">{default}</td></tr>'
        )
    if returns and returns['meaning']:  # the type alone is in the signature
        kind = _type_html(returns['type'])
        rows.append(
            f'<tr class="doc-returns"><th scope="row"><em>returns</em>{kind}</th>'
            f'<td class="doc-meaning">{link(returns["meaning"])}</td><td></td></tr>'
        )
    if not rows:
        return ''
    columns = ''.join(f'<th scope="col">{column}</th>' for column in (heading, 'Meaning', 'Default'))
    head = f'<thead><tr>{columns}</tr></thead>'
    return f'<div class="doc-table"><table class="doc-params">{head}<tbody>{"".join(rows)}</tbody></table></div>'


def _type_html(text):
    if not text:
        return ''
    if len(text) <= 26:
        return f'<code class="doc-type">{html.escape(text)}</code>'
    broken = re.sub(r'([,\[])', r'\1<wbr>', html.escape(text))  # possible line breaks
    return f'<code class="doc-type doc-long">{broken}</code>'


# --- a symbol ----------------------------------------------------------------------------------------------------
class Module:
    "An exported module, whose symbols are converted to Markdown"

    def __init__(self, name, root, git, branch):
        self.name, self.root, self.git, self.branch = name, root, git, branch
        self.module = importlib.import_module(name)
        self.file = Path(self.module.__file__)
        self.exports = set(exported(self.file))
        self.symbols = []

    def source_link(self, name):
        "The address of a definition on GitHub"
        line = lines_of(self.file).get(name)
        return f'{self.git}/blob/{self.branch}/{self.file.relative_to(self.root).as_posix()}' + (
            f'#L{line}' if line else ''
        )

    def heading(self, symbol, level):
        "The heading of a symbol, with a link to its source (docs.css adds the word, so that search results omit it)"
        self.symbols.append(symbol)
        attributes = f'#{symbol.anchor} .doc-heading .doc-{symbol.kind} data-toc-label="{symbol.name}"'
        source = f'<a href="{self.source_link(symbol.name)}" aria-label="Source of {symbol.name}"></a>'
        return f'{"#" * level} `{symbol.name}` {{ {attributes} }}\n\n<p class="doc-source">{source}</p>'

    def resolve(self, name):
        "The object of a name; a property as such, a class method unbound"
        thing = self.module
        for part in name.split('.'):
            thing = inspect.getattr_static(thing, part) if inspect.isclass(thing) else getattr(thing, part)
        return thing

    def document(self, name, link, level=3, skip=(), source=''):
        "One exported name as Markdown blocks; for a class also its documented public methods, except those in `skip`"
        thing = self.resolve(name)
        if inspect.isclass(thing):
            return self._class(name, thing, link, level, skip)
        if inspect.isroutine(thing) or isinstance(thing, property | classmethod | staticmethod):
            return [self._callable(name, thing, link, level)]
        return [self._constant(name, thing, link, level, source)]

    def _callable(self, name, thing, link, level):
        inside = '.' in name
        kind = (
            'property'
            if isinstance(thing, property) or type(thing).__name__ == 'cached_property'
            else 'method'
            if inside
            else 'function'
        )
        inner = (
            thing.fget
            if isinstance(thing, property)
            else getattr(thing, '__func__', None) or getattr(thing, 'func', thing)
        )
        doc = own_doc(inner)
        blocks = [self.heading(Symbol(name, self.name, kind, summary_of(doc)), level)]
        parameters, returns = parameters_of(inner, bound=inside and not isinstance(thing, staticmethod))
        return '\n\n'.join(blocks + self._body(name, kind, doc, parameters, returns, link))

    def _body(self, name, kind, doc, parameters, returns, link, prefix=''):
        own = {p['name'].lstrip('*') for p in parameters or ()}
        has_comments = any(p['meaning'] for p in parameters or ()) or bool(returns and returns['meaning'])
        blocks = []
        if kind == 'property':
            code = f'{name}: {returns["type"]}' if returns and returns['type'] else ''
        elif parameters is None:
            code = f'{prefix}{name}(…)'
        else:
            code = signature_text(prefix + name, parameters, returns, types=not has_comments)
        if code:
            blocks.append(f'``` {{ .python .doc-signature }}\n{code}\n```')
        if doc:
            blocks.append(link.markdown(escape_prose(doc), skip=own))
        if has_comments:
            blocks.append(
                table_html(
                    parameters,
                    returns,
                    lambda text: link.html(text, skip=own),
                    'Field' if kind == 'dataclass' else 'Parameter',
                )
            )
        return blocks

    def _class(self, name, thing, link, level, skip):
        doc = own_doc(thing)
        blocks = [self.heading(Symbol(name, self.name, 'class', summary_of(doc)), level)]
        bases = [base.__name__ for base in thing.__bases__ if base is not object]
        has_init = dataclasses.is_dataclass(thing) or '__init__' in thing.__dict__
        if has_init:
            parameters, _ = parameters_of(thing)
            blocks += self._body(
                name, 'dataclass' if dataclasses.is_dataclass(thing) else 'class', doc, parameters, None, link, 'class '
            )
            if bases:
                blocks.append(
                    f'<p class="doc-bases">A kind of {link.html(", ".join(f"`{base}`" for base in bases))}</p>'
                )
        else:
            blocks.append(
                f'``` {{ .python .doc-signature }}\nclass {name}{"(" + ", ".join(bases) + ")" if bases else ""}\n```'
            )
            if doc:
                blocks.append(link.markdown(escape_prose(doc)))
        sections = ['\n\n'.join(blocks)]
        for inner, member in thing.__dict__.items():
            if inner.startswith('_') or f'{name}.{inner}' in skip:
                continue
            routine = (
                inspect.isroutine(member)
                or isinstance(member, property | classmethod | staticmethod)
                or type(member).__name__ == 'cached_property'
            )
            if not routine or f'{name}.{inner}' not in lines_of(self.file):
                continue  # a patched or generated method is documented elsewhere
            function = (
                member.fget
                if isinstance(member, property)
                else getattr(member, '__func__', None) or getattr(member, 'func', member)
            )
            if inspect.isroutine(function) and function.__doc__:
                sections.append(self._callable(f'{name}.{inner}', member, link, level + 1))
        return sections

    def _constant(self, name, thing, link, level, source):
        doc = own_doc(thing) if hasattr(thing, '__dict__') and callable(thing) else ''
        kind = 'function' if callable(thing) else 'constant'
        blocks = [self.heading(Symbol(name, self.name, kind, summary_of(doc)), level)]
        if source.count('\n') > LONGEST_CONSTANT:
            blocks.append('??? note "Show the value"\n\n    ```python\n' + _indent(source) + '\n    ```')
        elif source:
            blocks.append(f'```python\n{source}\n```')
        if doc:
            blocks.append(link.markdown(escape_prose(doc)))
        return '\n\n'.join(blocks)


def _indent(text):
    return '\n'.join(f'    {line}' if line.strip() else '' for line in text.splitlines())
