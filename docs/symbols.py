"The API part of a page: what a module exports, as headings, signatures and parameter tables in Markdown"

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
from functools import cache
from pathlib import Path

from fastcore.docments import docments
from nbdev.doclinks import patch_name

DEFINITIONS = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef
LONGEST_CONSTANT = 40  # lines of an exported constant's source that are shown as they are


@dataclasses.dataclass
class Symbol:
    "A documented name and where it stands"

    name: str  # `train`, `Source`, `Source.of`
    module: str  # fungi_fastai.data.sources
    kind: str  # function, class, method, property, constant
    summary: str = ''  # the docstring's first sentence or line
    page: str = ''  # data/sources, set when its page is written

    @property
    def anchor(self):
        return self.name.lower()  # nbdev's links end so


# --- where things are defined ------------------------------------------------------------------------------------
@cache
def lines_of(file: Path):
    "name -> the first line of its definition in a Python file"
    found = {}
    for node in ast.parse(file.read_text(encoding='utf-8')).body:
        for name in bound_names(node):
            found.setdefault(name, node.lineno)
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                for name in bound_names(inner):
                    found.setdefault(f'{node.name}.{name}', inner.lineno)
    return found


def bound_names(node):
    "The names a statement defines; for a patched method `Class.method`"
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
def type_text(annotation):
    "An annotation as it is written: `str|Path|None` rather than `str | pathlib.Path | None`"
    if annotation is inspect.Parameter.empty or annotation is None:
        return ''
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return re.sub(r'\b(?:\w+\.)+(?=\w)', '', text.strip('\'"')).replace(' | ', '|')


def default_text(default):
    "A default as it is written, or '' for a parameter that must be given"
    if default is inspect.Parameter.empty:
        return ''
    if isinstance(default, enum.Enum):
        return str(default)
    if inspect.isclass(default) or inspect.isroutine(default):
        return getattr(default, '__name__', repr(default))
    if isinstance(default, Path):
        return repr(str(default))
    if dataclasses.is_dataclass(default):  # one that is made of defaults itself is written so
        with contextlib.suppress(TypeError):
            if type(default)() == default:
                return f'{type(default).__name__}()'
    text = repr(default)
    if text == '<factory>' or ' at 0x' in text:
        return '…'
    return text if len(text) <= 120 else '…'


def escape_prose(text):
    "A docstring as Markdown: `<` outside backticks is text, not the begin of a tag"
    return ''.join(part if part.startswith('`') else part.replace('<', '&lt;') for part in re.split(r'(`[^`]*`)', text))


def summary_of(docstring):
    "The first paragraph of a docstring on one line"
    return ' '.join((docstring or '').strip().split('\n\n')[0].split())


def own_doc(thing):
    "The docstring of `thing` itself: not its class's, nor the signature that dataclass writes for want of one"
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
    "name -> the comment beside each parameter or field, 'return' -> that of the result, from the source (docments)"
    if inspect.isclass(thing) and dataclasses.is_dataclass(thing):
        return {
            name: text
            for base in reversed(thing.__mro__)
            if dataclasses.is_dataclass(base)
            for name, text in _comments(base).items()
        }
    return _comments(thing.__init__ if inspect.isclass(thing) else inspect.unwrap(thing))


def _comments(thing):
    try:
        source = textwrap.dedent(inspect.getsource(thing))
    except (OSError, TypeError):
        return {}
    node = ast.parse(source).body[0]
    if isinstance(node, ast.ClassDef):
        places = {field.end_lineno: field.target.id for field in node.body if isinstance(field, ast.AnnAssign)}
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        given = node.args
        arguments = [*given.posonlyargs, *given.args, given.vararg, *given.kwonlyargs, given.kwarg]
        defaults = dict(
            zip(
                [argument.arg for argument in [*given.posonlyargs, *given.args]][::-1],
                given.defaults[::-1],
                strict=False,
            )
        )
        defaults |= {
            argument.arg: default
            for argument, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)
            if default
        }
        places = {
            getattr(defaults.get(argument.arg), 'end_lineno', argument.end_lineno): argument.arg
            for argument in arguments
            if argument
        }
        if node.returns:
            places[node.returns.end_lineno] = 'return'
    else:
        return {}
    found, above, code = {}, [], set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        line = token.start[0]
        if token.type == tokenize.COMMENT:
            text = token.string.lstrip('# ').rstrip()
            if line not in code:
                above.append(text)  # on a line of its own: meant for what follows, if that has none
            elif line in places and places[line] not in found:
                found[places[line]] = text
        elif token.type not in (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            code.update(range(line, token.end[0] + 1))
        if token.type in (tokenize.NL, tokenize.NEWLINE) and line in code:
            if line in places and above and not above[0].startswith('---'):
                found.setdefault(places[line], ' '.join(above))
            above = []
    return found


def parameters_of(thing, bound=False):
    "The parameters as dictionaries name, type, default, meaning, and what is returned as type, meaning"
    try:
        signature = inspect.signature(thing)
    except (ValueError, TypeError):
        return None, None
    comments = comments_of(thing)
    if set(signature.parameters) - set(comments):
        with contextlib.suppress(Exception):  # what `@delegates` took from elsewhere
            given = docments(thing, full=True, returns=False, eval_str=False)
            comments = {
                name: about['docment']
                for name, about in given.items()
                if name in signature.parameters and about['docment']
            } | comments
    found = []
    for position, (name, parameter) in enumerate(signature.parameters.items()):
        if bound and position == 0 and name in ('self', 'cls'):
            continue
        stars = {parameter.VAR_POSITIONAL: '*', parameter.VAR_KEYWORD: '**'}.get(parameter.kind, '')
        meaning = comments.get(name)
        found.append(
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
    return found, None if inspect.isclass(thing) else returns


def signature_text(name, parameters, returns, types=True, width=88):
    "A call as code, one parameter a line where it is long"
    written, star = [], False
    for p in parameters:
        if p['kind'] is inspect.Parameter.VAR_POSITIONAL:
            star = True
        if p['kind'] is inspect.Parameter.KEYWORD_ONLY and not star:
            written.append('*')
            star = True
        kind = f':{p["type"]}' if types and p['type'] else ''
        default = p['default'] if len(p['default']) <= 32 else '…'  # the table shows it whole
        written.append(p['name'] + kind + (f'={default}' if default else ''))
    end = f' -> {returns["type"]}' if returns and returns['type'] else ''
    line = f'{name}({", ".join(written)}){end}'
    if len(line) <= width:
        return line
    lines, row = [], ''
    for item in written:  # as many as fit on a line: a table below holds them one by one
        if row and len(row) + len(item) > width - 8:
            lines.append(row)
            row = ''
        row += f'{item}, '
    lines.append(row)
    inner = '\n'.join(f'    {row.rstrip()}' for row in lines)
    return f'{name}(\n{inner}\n){end}'


def table_html(parameters, returns, link, heading='Parameter'):
    "The parameters that have something to say, as an HTML table; `link` turns prose with backticks into HTML"
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
            f'<tr><th scope="row"><code>{html.escape(p["name"])}</code>{kind}</th><td class="doc-meaning">{link(p["meaning"])}</td>'
            f'<td class="doc-default">{default}</td></tr>'
        )
    if returns and returns['meaning']:  # the type alone stands in the signature
        kind = _type_html(returns['type'])
        rows.append(
            f'<tr class="doc-returns"><th scope="row"><em>returns</em>{kind}</th><td class="doc-meaning">{link(returns["meaning"])}</td><td></td></tr>'
        )
    if not rows:
        return ''
    head = f'<thead><tr><th scope="col">{heading}</th><th scope="col">Meaning</th><th scope="col">Default</th></tr></thead>'
    return f'<div class="doc-table"><table class="doc-params">{head}<tbody>{"".join(rows)}</tbody></table></div>'


def _type_html(text):
    if not text:
        return ''
    if len(text) <= 24:
        return f'<code class="doc-type">{html.escape(text)}</code>'
    broken = re.sub(r'([|,\[])', r'\1<wbr>', html.escape(text))  # where a long one may be broken
    return f'<code class="doc-type doc-long">{broken}</code>'


# --- a symbol ----------------------------------------------------------------------------------------------------
class Module:
    "An exported module, whose symbols are turned into Markdown"

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
        "The heading of a symbol, and the link to its source (docs.css writes its word, so that no search result begins with it)"
        self.symbols.append(symbol)
        return (
            f'{"#" * level} `{symbol.name}` {{ #{symbol.anchor} .doc-heading .doc-{symbol.kind} data-toc-label="{symbol.name}" }}\n\n'
            f'<p class="doc-source"><a href="{self.source_link(symbol.name)}" aria-label="Source of {symbol.name}"></a></p>'
        )

    def resolve(self, name):
        "The object a name stands for; a property as itself, a class method unbound"
        thing = self.module
        for part in name.split('.'):
            thing = inspect.getattr_static(thing, part) if inspect.isclass(thing) else getattr(thing, part)
        return thing

    def document(self, name, link, level=3, skip=(), source=''):
        "One exported name as Markdown blocks; of a class its documented public methods too, less those in `skip`"
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
        talking = any(p['meaning'] for p in parameters or ()) or bool(returns and returns['meaning'])
        blocks = []
        if kind == 'property':
            code = f'{name}: {returns["type"]}' if returns and returns['type'] else ''
        elif parameters is None:
            code = f'{prefix}{name}(…)'
        else:
            code = signature_text(prefix + name, parameters, returns, types=not talking)
        if code:
            blocks.append(f'``` {{ .python .doc-signature }}\n{code}\n```')
        if doc:
            blocks.append(link.markdown(escape_prose(doc), skip=own))
        if talking:
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
        made = dataclasses.is_dataclass(thing) or '__init__' in thing.__dict__
        if made:
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
        found = ['\n\n'.join(blocks)]
        for inner, member in thing.__dict__.items():
            if inner.startswith('_') or f'{name}.{inner}' in skip:
                continue
            routine = (
                inspect.isroutine(member)
                or isinstance(member, property | classmethod | staticmethod)
                or type(member).__name__ == 'cached_property'
            )
            if not routine or f'{name}.{inner}' not in lines_of(self.file):
                continue  # a patched or generated one stands elsewhere
            function = (
                member.fget
                if isinstance(member, property)
                else getattr(member, '__func__', None) or getattr(member, 'func', member)
            )
            if inspect.isroutine(function) and function.__doc__:
                found.append(self._callable(f'{name}.{inner}', member, link, level + 1))
        return found

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
