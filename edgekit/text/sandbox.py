"""The sandbox that chat templates run in: a budget of work, time and memory.

Templates run in Jinja's immutable sandbox with the names and filters that transformers gives them,
on a budget: every loop step, call and result is charged, and an operation whose result could exceed
the budget is refused before it runs. Only this module and chat.py use jinja2; it is imported when
the first template is rendered.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sized
from contextvars import ContextVar
from datetime import datetime
from functools import wraps
from typing import Any, Final

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

# A unit is about one written byte; a chat that fills a context of 128k tokens needs some 5 million.
_MAX_UNITS: Final = 16 << 20
_STEP_UNITS: Final = 256
_ITEM_UNITS: Final = 8
_MAX_S: Final = 10.0
_MAX_INT_BITS: Final = 4096
_WIDE_FIELD: Final = re.compile(r"\d{5,}|%[^a-zA-Z%]*\*")
_MAX_INDENT: Final = 64
_MAX_PRECISION: Final = 64
# Names that no prompt needs; each can make a large result before anything is charged.
_NOT_OFFERED: Final = ("lipsum",)
# Methods and filters whose result can be much longer than their input.
_GROWING_NAMES: Final = """
    center expandtabs format format_map indent join ljust replace rjust tojson translate truncate
    wordwrap xmlattr zfill
"""
# Filters that write their input as text, including lists and objects.
_WRITING_NAMES: Final = """
    capitalize e escape forceescape lower pprint safe string striptags title trim upper urlencode
    urlize wordcount
"""
_GROWING: Final = frozenset(_GROWING_NAMES.split())
_WRITING: Final = _GROWING | frozenset(_WRITING_NAMES.split())


class TemplateLimitError(jinja2.TemplateError):
    """A template does more work than any chat template needs."""


class _Budget:
    """What remains for one rendering: units of work, and seconds."""

    def __init__(self) -> None:
        self.n_units = _MAX_UNITS
        self.deadline_s = time.monotonic() + _MAX_S

    def spend(self, n_units: int) -> None:
        self.n_units -= _STEP_UNITS + n_units
        if self.n_units < 0 or time.monotonic() > self.deadline_s:
            raise TemplateLimitError("the template does too much work")

    def spend_deep(self, value: object) -> int:
        """Charge for writing a value as text, shared parts each time; give its size."""
        n_items, n_chars = _measure(
            value, _STEP_UNITS, self.n_units, "the template writes too much text"
        )
        self.spend(n_chars + _STEP_UNITS * n_items)
        return n_chars + n_items


_budget: ContextVar[_Budget] = ContextVar("budget")


class _Generation(Extension):
    """``{% generation %}`` marks the answer for training; in rendering it does nothing."""

    tags = {"generation"}  # noqa: RUF012 - the base class wants a set

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _NewDict:
    """``dict`` for templates: makes new objects, and gives no access to methods on our values."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """``namespace`` without the names that Python itself looks up on an object."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *values = args
        attributes = dict(*values, **kwargs)
        for name in attributes:
            _refuse_private(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: object) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"a namespace has no {str(name)[:40]!r}")


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """The environment that chat templates run in."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _Generation],
            finalize=_charged_output,
        )
        self.filters["tojson"] = _tojson
        self.filters = {name: _charged(name, call) for name, call in self.filters.items()}
        self._compiled: dict[str, jinja2.Template] = {}
        for name in _NOT_OFFERED:
            del self.globals[name]
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        self.globals["dict"] = _NewDict()
        self.globals["namespace"] = _Namespace

    def render_text(self, source: str, values: Mapping[str, Any]) -> str:
        """Render a template on a fresh budget.

        Raises:
            jinja2.TemplateError: The template is wrong, raises, or does too much work. Python
                errors from operations on the values are raised unchanged.
        """
        token = _budget.set(_Budget())
        try:
            pieces: list[str] = []
            for piece in self._template(source).generate(values):
                _budget.get().spend(len(piece))
                pieces.append(piece)
            return "".join(pieces)
        finally:
            _budget.reset(token)

    def _template(self, source: str) -> jinja2.Template:
        if source not in self._compiled:
            self._compiled[source] = self.from_string(source)
        return self._compiled[source]

    def step(self) -> bool:
        """Charge one step of a loop; called by every loop of a template."""
        _budget.get().spend(0)
        return True

    def contain(self, value: Any) -> Any:
        """Charge for a list, tuple or object that a template makes, and give it back."""
        return _counted(value)

    def concat_values(self, *values: object) -> str:
        """Compute ``a ~ b``, charged."""
        for value in values:
            _budget.get().spend_deep(value)
        return "".join(map(str, values))

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function for a template, and charge for it."""
        # Jinja wraps ``format``; the text's own method is inside.
        method = getattr(obj, "__wrapped__", obj)
        owner = getattr(method, "__self__", None)
        if isinstance(owner, int) and getattr(method, "__name__", "") == "to_bytes":
            raise TemplateLimitError("bytes are not offered")
        if isinstance(owner, str) and method.__name__ in _GROWING:
            if method.__name__.startswith("format"):
                _check_fields(owner)
            _check_growth(owner, *args, *kwargs.values())
        return _counted(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute a binary operation, refusing results without a limit."""
        if operator == "**":
            if not (_is_small(left) and _is_small(right) and abs(right) <= 64):
                raise TemplateLimitError("power too large")
        elif operator == "*" or (operator == "%" and isinstance(left, str)):
            if operator == "%":
                _check_fields(left)
            _check_growth(left, right)
        _budget.get().spend(_size(left) + _size(right))
        return _counted(super().call_binop(context, operator, left, right))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            step = _method_call("step", [])
            if loop.test is not None:
                loop.test = nodes.And(step, loop.test)
            loop.body.insert(0, nodes.ExprStmt(step))
        _replace_calls(tree)
        tree.set_environment(self)
        return tree


def _method_call(name: str, args: list[nodes.Expr]) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(name), args, [], None, None)


def _replace_calls(node: nodes.Node) -> None:
    """Turn every ``a ~ b``, list, tuple and object below a node into a call that is charged."""
    for key, value in list(node.iter_fields()):
        if isinstance(value, list):
            setattr(node, key, [_charged_node(item) for item in value])
        else:
            setattr(node, key, _charged_node(value))


def _charged_node(value: Any) -> Any:
    if not isinstance(value, nodes.Node):
        return value
    _replace_calls(value)
    if isinstance(value, nodes.Concat):
        return _method_call("concat_values", value.nodes).set_lineno(value.lineno)
    is_read = not isinstance(value, nodes.Tuple) or value.ctx == "load"
    if isinstance(value, nodes.List | nodes.Tuple | nodes.Dict) and is_read:
        return _method_call("contain", [value]).set_lineno(value.lineno)
    return value


def _charged(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(call)
    def charged(*args: Any, **kwargs: Any) -> Any:
        if name in _WRITING:
            _check_growth(*args, *kwargs.values(), is_growing=name in _GROWING)
        if name == "format":
            _check_fields(args[0])
        if name == "sum" and any(isinstance(arg, list | tuple) for arg in _starts(args, kwargs)):
            raise TemplateLimitError("sum accepts only numbers")
        if name in ("batch", "slice"):
            # They give lists of that many items, however short their input is.
            n_lists = abs(int(_argument(args, kwargs, ("linecount", "slices"))))
            _budget.get().spend(_ITEM_UNITS * _ITEM_UNITS * n_lists)
        if name == "round" and abs(int(_argument(args, kwargs, ("precision",)))) > _MAX_PRECISION:
            raise TemplateLimitError("too many digits")
        return _counted(call(*args, **kwargs))

    return charged


def _starts(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Give the start value of ``sum``; environment and input come before it."""
    return (*args[2:], kwargs.get("start"))


def _argument(args: tuple[Any, ...], kwargs: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """Give the first argument of a filter after its input, by position or by name."""
    # Some filters need an argument before their input, which is not the template's.
    given = [arg for arg in args if not isinstance(arg, nodes.EvalContext)]
    named = [kwargs[name] for name in names if name in kwargs]
    return given[1] if len(given) > 1 else named[0] if named else 0


def _counted(result: Any) -> Any:
    """Charge a result; refuse values that no prompt needs and later operations could blow up."""
    if isinstance(result, bytes | bytearray | memoryview):
        raise TemplateLimitError("bytes are not offered")
    if not _is_small(result):
        raise TemplateLimitError("number too large")
    if isinstance(result, list | tuple | dict | set | frozenset):
        _budget.get().spend(_ITEM_UNITS * _count_deep(result))
    else:
        _budget.get().spend(_size(result))
    return result


def _count_deep(value: Any) -> int:
    """Count what a container holds; a part that is held twice counts twice.

    Comparing and hashing go through all of it in one operation that cannot be interrupted. So two
    lists of 60 levels, each of which holds the level below twice, are never compared.
    """
    return _measure(value, _ITEM_UNITS, _MAX_UNITS, "a list or object holds too much")[0]


def _measure(value: object, n_item_units: int, n_most: int, message: str) -> tuple[int, int]:
    """Count items and characters, a shared part each time; stop beyond ``n_most``."""
    n_items = n_chars = 0
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, Mapping):
            waiting.extend((*item.keys(), *item.values()))
        elif isinstance(item, list | tuple | set | frozenset):
            waiting.extend(item)
        n_items += 1
        n_chars += len(item) if isinstance(item, str) else 0
        if n_chars + n_item_units * (n_items + len(waiting)) > n_most:
            raise TemplateLimitError(message)
    return n_items, n_chars


def _charged_output(value: Any) -> Any:
    if not isinstance(value, str):
        _budget.get().spend_deep(value)
    return value


def _check_growth(*values: Any, is_growing: bool = True) -> None:
    """Refuse an operation whose result might have more characters than the budget.

    The product of all sizes is an upper bound for padding, repeating, joining and replacing.
    """
    bound = 1
    for value in values:
        n_units = abs(value) if isinstance(value, int) else _budget.get().spend_deep(value)
        bound *= 1 + n_units
    if is_growing and bound > _MAX_UNITS:
        raise TemplateLimitError("text too long")


def _check_fields(form: object) -> None:
    if _WIDE_FIELD.search(str(form)):
        raise TemplateLimitError("format field too wide")


def _size(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    return _ITEM_UNITS * len(value) if isinstance(value, Sized) else 0


def _is_small(value: Any) -> bool:
    return not isinstance(value, int) or value.bit_length() <= _MAX_INT_BITS


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # As in transformers. Jinja's own filter escapes for HTML, which would change the prompt.
    if isinstance(indent, int) and indent > _MAX_INDENT:
        raise TemplateLimitError("indent too wide")
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)
