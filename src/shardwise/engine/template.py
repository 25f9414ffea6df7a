"""Chat templates: messages become one prompt, rendered as `transformers` does, in a closed and metered sandbox.

A template is a program that came with a checkpoint. It reaches only what is named here, and every step that can take time or
make text is charged first, so a hostile one ends in time with an error, in process, with no worker to start. Knows no tokens.
"""

from __future__ import annotations

import difflib
import functools
import json
import operator
import re
import threading
import time
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.runtime import LoopContext, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.utils import Cycler, Joiner, Namespace
from jinja2.visitor import NodeTransformer

from shardwise.engine.text import NAMED_TOKENS, check_text, read_json, read_special_tokens
from shardwise.errors import CheckpointError, RequestError

DEADLINE_S = 0.5
TEMPLATE_CHARS = 1 << 18
INPUT_DEPTH = 64
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
# What a request may set besides its messages; any other scalar that the model's own template reads is open to it too.
KNOWN_VARIABLES = ("enable_thinking", "thinking", "reasoning_effort")
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + (message.content or '') + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_REASONING = ("reasoning_content", "thinking", "reasoning")  # one thing under three names, the first the usual one
_TAG = "CONTINUE_FINAL_MESSAGE_TAG "
_METHODS: dict[type, str] = {
    str: "capitalize casefold center count endswith find format index isalnum isalpha isascii isdecimal isdigit islower "
    "isnumeric isspace istitle isupper join ljust lower lstrip partition removeprefix removesuffix replace rfind rindex rjust "
    "rpartition rsplit rstrip split splitlines startswith strip swapcase title upper zfill",
    dict: "copy get items keys values",
    list: "copy count index",
    tuple: "count index",
}
_FILTERS = (
    "abs capitalize count d default dictsort e escape first float format indent int items join last length list lower map max "
    "min reject rejectattr replace reverse round safe select selectattr sort string title tojson trim unique upper wordcount"
)
_OBJECTS = (LoopContext, Namespace, Cycler, Joiner, Undefined, jinja2.runtime.TemplateReference)


class _Refused(SecurityError):
    """A template went beyond what a template may do."""


def _weigh(value: object, limit: int) -> int:
    """Characters and members of `value`, shared parts counted each time; stops with `_Refused` above `limit`."""
    total, waiting = 0, [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, (str, range)):
            total += len(item)
        elif isinstance(item, Mapping):
            total += len(item)
            waiting += [*item.keys(), *item.values()] if total <= limit else []
        elif isinstance(item, (list, tuple, type({}.items()), type({}.keys()), type({}.values()))):
            total += len(item)
            waiting += item if total <= limit else []
        elif isinstance(item, int):
            total += 1 + item.bit_length() // 3
        elif not isinstance(item, (float, Undefined, type(None))):
            raise _Refused(f"a {type(item).__name__} can be called, looped over or asked, but not shown, stored or compared")
        if total > limit:
            raise _Refused(f"a value of more than {limit} characters and members is too large")
    return total


class _Meter:
    """What one rendering may still use: `room` in characters and list members, and the time."""

    def __init__(self, size: int, deadline_s: float) -> None:
        """`size`: characters and members of the input. What is allowed grows with it; a template's own text is short."""
        self.largest = (1 << 20) + 8 * size
        self.room = 8 * self.largest
        self.deadline = time.perf_counter() + deadline_s

    def charge(self, count: int = 0) -> None:
        self.room -= count
        if self.room < 0:
            raise _Refused("it makes more text than its input can need")
        if time.perf_counter() > self.deadline:
            raise _Refused("it takes too long")

    def made(self, value: Any) -> Any:
        """Charge for a value that an operation made."""
        if isinstance(value, str):
            self.fits(len(value))
        self.charge(8 * len(value) if isinstance(value, (list, tuple, dict)) else 0)
        return value

    def fits(self, count: int) -> None:
        """Charge for `count` characters that are about to be made."""
        if count > self.largest:
            raise _Refused(f"a text of {count} characters is too large: at most {self.largest} here")
        self.charge(count)


class _Metering(NodeTransformer):
    """Puts a charge into every loop, and before every operation that is not a call and costs as its operands are large."""

    def _call(self, name: str, *args: nodes.Expr) -> nodes.Call:
        # An environment attribute cannot be written in a template, so no template can reach these.
        return nodes.Call(nodes.EnvironmentAttribute(name), list(args), [], None, None)

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(self._call("charge", nodes.Const(1))))
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        count = sum(len(child.data) for child in node.nodes if isinstance(child, nodes.TemplateData))
        self.generic_visit(node)
        node.nodes.append(self._call("charge", nodes.Const(count)))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return self._call("joined", *node.nodes)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        for operand in node.ops:
            operand.expr = self._call("seen", operand.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return self._call("stored", node) if isinstance(node.arg, nodes.Slice) else node

    def _literal(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        return self._call("stored", node) if getattr(node, "ctx", "load") == "load" else node

    visit_List = visit_Dict = visit_Tuple = _literal


class _Generation(Extension):
    """`{% generation %}` marks what the model wrote, for training; in a prompt it only groups."""

    tags = {"generation"}  # noqa: RUF012 - the type that jinja2 declares

    def parse(self, parser: jinja2.parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class _Namespace(Namespace):
    """As jinja2's, but no name may begin with an underscore (as in transformers)."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that `namespace(self=...)` works, as in jinja2
        for name in dict(*args[1:], **kwargs):
            _Namespace._check(name)
        Namespace.__init__(*args, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        self._check(name)
        super().__setitem__(name, value)

    @staticmethod
    def _check(name: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise _Refused(f"a namespace cannot hold {name!r}: names beginning with an underscore are private")


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja2 with the extensions of transformers, closed: only what is listed above can be called, and all of it is charged."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, loopcontrols],
            optimized=False,  # constants would be folded while compiling, before there is a meter
            finalize=jinja2.pass_context(lambda _context, value: self.shown(value)),
        )
        self._current = threading.local()
        self.filters["tojson"] = self._tojson
        self.filters["format"] = lambda text, *args, **kwargs: self._percent(str(text), kwargs or args)
        self.filters = {name: self._guarded(name, self.filters[name]) for name in _FILTERS.split()}
        self.tests = {name: self._guarded(name, test) for name, test in self.tests.items()}
        allowed = {name: self.globals[name] for name in ("range", "cycler", "joiner")}
        own = {"dict": lambda *args, **kwargs: dict(*args, **kwargs), "namespace": _Namespace}
        self.globals = {**allowed, **own, "raise_exception": _raise_exception, "strftime_now": _strftime_now}

    def compiled(self, source: str) -> jinja2.Template:
        """Raises TemplateError, or whatever else a hostile source brings about."""
        if len(source) > TEMPLATE_CHARS:
            raise _Refused(f"a template of {len(source)} characters is too long: at most {TEMPLATE_CHARS} are taken")
        tree = _Metering().visit(self.parse(source)).set_environment(self)
        return jinja2.Template.from_code(self, self.compile(tree, filename="<chat template>"), self.globals)

    def rendered(self, template: jinja2.Template, variables: Mapping[str, Any], deadline_s: float) -> str:
        """Raises `_Refused` at the meter's limits, and whatever else the template brings about."""
        self._current.meter = _Meter(_weigh(variables, 1 << 30), deadline_s)
        try:
            return self.joined(*template.generate(**variables))
        finally:
            del self._current.meter

    @property
    def _meter(self) -> _Meter:
        meter: _Meter = self._current.meter
        return meter

    def charge(self, count: int) -> str:
        self._meter.charge(count)
        return ""

    def seen(self, value: Any) -> Any:
        self._meter.charge()
        return value

    def stored(self, value: Any) -> Any:
        """Nothing is put into anything unweighed: that keeps every later comparison, copy and print as small."""
        if not isinstance(value, str):
            _weigh(value, self._meter.largest)
        return self._meter.made(value)

    def shown(self, value: Any) -> str:
        if not isinstance(value, str):
            self._meter.fits(_weigh(value, self._meter.largest))
            return str(value)
        self._meter.fits(len(value))
        return value

    def joined(self, *parts: Any) -> str:
        texts = [self.shown(part) for part in parts]
        self._meter.fits(sum(map(len, texts)))
        return "".join(texts)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if not super().is_safe_attribute(obj, attr, value):
            return False
        if isinstance(obj, _OBJECTS):
            return True
        return any(isinstance(obj, kind) and attr in names.split() for kind, names in _METHODS.items())

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if not isinstance(value, types.BuiltinMethodType) or value.__name__ not in ("format", "format_map"):
            return None
        text = value.__self__
        return functools.partial(self._braces, text) if type(text) is str and value.__name__ == "format" else _no_format

    def call(self, context: jinja2.runtime.Context, obj: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if owner is self:  # a charge of our own
            return obj(*args)
        self._meter.charge()
        if isinstance(owner, str):
            args = self._text_arguments(owner, name, args)
        result = super().call(context, obj, *args, **kwargs)
        return self.stored(result) if type(result) is dict else self._meter.made(result)

    def _text_arguments(self, text: str, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments of a text's method, once its result is known to fit."""
        if name in ("center", "ljust", "rjust", "zfill") and args:
            self._meter.fits(operator.index(args[0]))
        elif name == "replace" and len(args) > 1:
            self._meter.fits(len(text) + text.count(args[0]) * len(args[1]))
        elif name == "join" and args:
            parts = list(args[0])
            self._meter.fits(_weigh(parts, self._meter.largest) + len(text) * len(parts))
            return (parts,)
        return args

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        meter = self._meter
        meter.charge()
        if operator == "%" and isinstance(left, str):
            return self._percent(left, right)
        sizes = [_weigh(value, meter.largest) for value in (left, right)]
        if operator == "*" and not (_is_number(left) and _is_number(right)):
            text, times = (left, right) if _is_number(right) else (right, left)
            if _is_number(times):
                meter.fits(max(0, int(times)) * (1 + _weigh(text, meter.largest)))
        elif operator == "+":
            meter.fits(sum(sizes) if isinstance(left, str) else 0)
        elif max(sizes) > 64 or (operator == "**" and abs(right) > 64):
            raise _Refused(f"{operator} of so large a number is not for a chat template")
        return meter.made(super().call_binop(context, operator, left, right))

    def _percent(self, text: str, args: Any) -> str:
        if not re.fullmatch(r"(?:[^%]|%%|%s|%d)*", text):
            raise _Refused(f"{text[:80]!r}: of % formats only %s and %d are open to chat templates")
        self._meter.fits(len(text) + _weigh(args, self._meter.largest))
        return text % args

    def _braces(self, text: str, *args: Any, **kwargs: Any) -> str:
        if not re.fullmatch(r"(?:[^{}]|\{\{|\}\}|\{\w*\})*", text):
            raise _Refused(f"{text[:80]!r}: of {{}} formats only {{}}, {{0}} and {{name}} are open to chat templates")
        self._meter.fits(len(text) + text.count("{") * _weigh([args, kwargs], self._meter.largest))
        return text.format(*args, **kwargs)

    def _tojson(
        self, x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        if _weigh([indent, separators], 64) > 32 or (isinstance(indent, int) and indent > 32):
            raise _Refused("tojson with so wide an indent is not for a chat template")
        encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        if indent is None:
            return encoder.encode(x)
        parts = []
        for part in encoder.iterencode(x):  # indents multiply with depth: count as they come
            self._meter.charge(len(part))
            parts.append(part)
        return "".join(parts)

    def _guarded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter or test, charged."""
        at = int(hasattr(function, "jinja_pass_arg"))  # where the value stands among the arguments

        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            meter = self._meter
            meter.charge()
            values = list(args)
            if name in ("join", "list", "sort", "unique", "reverse", "max", "min") and isinstance(values[at], Iterator):
                values[at] = list(values[at])
            size = sum(_weigh(value, meter.largest) for value in values[at:] if isinstance(value, (str, list, tuple, Mapping)))
            if name in ("replace", "join", "indent"):
                self._check_growth(name, values[at:], kwargs)
            elif name == "round" and abs([*values[at + 1 :], kwargs.get("precision", 0)][0]) > 64:
                raise _Refused("round to so many digits is not for a chat template")
            elif name in ("string", "trim", "upper", "lower", "title", "capitalize", "e", "escape"):
                meter.fits(size)
            return meter.made(function(*values, **kwargs))

        return guarded

    def _check_growth(self, name: str, values: list[Any], kwargs: Mapping[str, Any]) -> None:
        """Raises `_Refused` if a filter that multiplies would make too much."""
        more = [*values[1:], *kwargs.values()]
        widest = max((int(value) if _is_number(value) else len(str(value)) for value in more), default=4)
        count = len(values[0]) if isinstance(values[0], (list, tuple, Mapping)) else len(str(values[0])) + 1
        if name == "replace" and isinstance(values[0], str) and more and isinstance(more[0], str):
            count = values[0].count(more[0])
        elif name == "indent":
            count = str(values[0]).count("\n") + 1
        self._meter.fits(_weigh(values[0], self._meter.largest) + count * max(widest, 0))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float))


def _no_format(*_args: Any, **_kwargs: Any) -> NoReturn:
    raise _Refused("format_map is not open to chat templates")


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    if len(format) > 128 or not re.fullmatch(r"(?:[^%]|%-?[A-Za-z%])*", format):
        raise _Refused(f"strftime_now({format[:80]!r}): widths and very long formats are not for a chat template")
    return datetime.now().strftime(format)
