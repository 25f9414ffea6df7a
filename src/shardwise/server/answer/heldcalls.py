"""Calls that are read as a whole before they count, as their arguments are not written as JSON: Python's, Qwen3-Coder's."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from shardwise.server.answer.choice import Tool
from shardwise.server.answer.jsoncalls import Source
from shardwise.server.answer.jsontext import DEPTH, MOST_NAME
from shardwise.server.answer.schema import typed
from shardwise.server.answer.tape import NotCall, Reading, Tape

MOST_PYTHON = 1 << 16  # characters of a list of Python calls
_TAG_NAME = re.compile(r"[^<>\n]*")
_START = re.compile(r"[A-Za-z_]")
_PLAIN = re.compile(r"""[^"'\\(){}\[\]]*""")
_PAIRS = {"(": ")", "[": "]", "{": "}"}
PYTHON_TAGS = (("<|python_start|>", "<|python_end|>"), ("<|tool_call_start|>", "<|tool_call_end|>"))
_WORDS = {"true": True, "false": False, "null": None}

# --- Python -----------------------------------------------------------------------------------------------------------


def pythonic(source: Source) -> Reading[None]:
    """`[f(a=1, b="x"), g()]`: the whole of an answer, or between marks (Llama 4, LFM2). Literals only; all calls or none."""
    tape, ends = source.tape, dict(PYTHON_TAGS)
    end = ""

    def calls() -> Reading[None]:
        nonlocal end
        yield from tape.space()
        if not end and (found := (yield from tape.literal(*ends))):
            end = ends[found]
            yield from tape.space()
        listed: list[tuple[str, list[str]]] = []
        source.outlet.held = lambda: _so_far(listed, source.offered)
        yield from _bracketed(tape, listed)
        if not all(name in source.offered for name, _ in listed):
            raise NotCall
        for name, arguments in [(name, python_arguments("".join(parts))) for name, parts in listed]:
            source.begin(name)
            source.outlet.argue(arguments)
        yield from tape.space()
        if end:
            yield from tape.closing(end)
        tape.drop()

    yield from source.attempt(calls)
    while mark := (yield from tape.until(tuple(ends), source.outlet.say)):
        end = ends[mark]
        yield from source.attempt(calls)


def _so_far(found: Sequence[tuple[str, list[str]]], offered: Collection[str]) -> Iterator[tuple[str, str]]:
    """The calls of a list that was cut short; the last of them says nothing of its arguments."""
    for name, parts in found if all(name in offered for name, _ in found) else ():
        try:
            yield name, python_arguments("".join(parts))
        except NotCall:
            yield name, ""


def _bracketed(tape: Tape, found: list[tuple[str, list[str]]]) -> Reading[None]:
    """Read `[name(` and on to the bracket that closes the list; brackets in strings do not count.

    `found` gets the calls as they come: the name, which Python need not know for one (a tool may be called `get-now`), and the
    parts of the text with `_` for it.
    """
    yield from tape.expect("[")
    yield from tape.space()
    if not _START.match((yield from tape.peek())):
        raise NotCall  # the usual list is told from calls by its first character
    closing, used = ["]"], 1
    while closing:
        last = ""
        while text := (yield from tape.run(_PLAIN, MOST_PYTHON - used)):
            last += text
            used += len(text)
        mark = yield from tape.peek()
        if not mark or used >= MOST_PYTHON or len(closing) > DEPTH:
            raise NotCall
        if mark == "(" and len(closing) == 1:
            comma = "," if found else ""
            found.append((last.strip().removeprefix(comma).strip(), []))
            last = "_"
        if not found:
            raise NotCall
        if mark in _PAIRS:
            closing.append(_PAIRS[mark])
        elif mark in ")]}" and closing.pop() != mark:
            raise NotCall
        text = (yield from _quoted(tape, mark, MOST_PYTHON - used)) if mark in "\"'" else tape.take(1)
        found[-1][1].extend([last, text] if closing else [last])
        used += len(text)


_ESCAPED = "\n\\'\"abfnrtv01234567NuUx"
_QUOTED = {'"': re.compile(r'[^"\\\n]*'), "'": re.compile(r"[^'\\\n]*")}


def _quoted(tape: Tape, quote: str, most: int) -> Reading[str]:
    """Read a string on one line. A tripled quote reads as an empty string and another one, which comes to the same."""
    parts = [tape.take(1)]
    while True:
        while text := (yield from tape.run(_QUOTED[quote], most)):
            parts.append(text)
            most -= len(text)
        mark = yield from tape.peek(2)
        if mark.startswith(quote):
            return "".join([*parts, tape.take(1)])
        if len(mark) < 2 or mark[0] != "\\" or most < 2:
            raise NotCall
        escape = tape.take(2)
        if escape == "\\/":  # JSON's, which models write here too
            parts.append("/")
        else:
            parts.append(escape if escape[1] in _ESCAPED else f"\\{escape}")  # as Python reads it, without its warning
        most -= 2


def python_arguments(text: str) -> str:
    """The arguments as JSON of a call in Python. Raises NotCall for anything else."""
    try:
        tree = ast.parse(f"[{text}]", mode="eval").body
        if not isinstance(tree, ast.List) or len(tree.elts) != 1:
            raise NotCall
        return _keywords(tree.elts[0])
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the parser of Python 3.11 raises any of them
        raise NotCall from error


def _keywords(node: ast.expr) -> str:
    if not isinstance(node, ast.Call) or node.args or not isinstance(node.func, ast.Name):
        raise NotCall
    arguments = {word.arg: _literal(word.value) for word in node.keywords if word.arg is not None}
    if len(arguments) != len(node.keywords):  # `**more`, or a name twice
        raise NotCall
    return json.dumps(arguments, ensure_ascii=False, allow_nan=False)


def _literal(node: ast.expr) -> Any:
    """The JSON value of a literal; JSON's own words are taken too. Raises NotCall for what is not one."""
    match node:
        case ast.Constant(value=str() as value):
            # Pairs of surrogates, as JSON writes them, become the character; half a pair is a ValueError.
            return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
        case ast.Constant(value=bool() | None | int() as value):
            return value
        case ast.Constant(value=float() as value) if math.isfinite(value):
            return value
        case ast.Name(id=word) if word in _WORDS:
            return _WORDS[word]
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)) if not isinstance(value, bool):
            return -value
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_literal(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            named = [key.value if isinstance(key, ast.Constant) else None for key in keys]
            if all(isinstance(key, str) for key in named):
                return {key: _literal(value) for key, value in zip(named, values, strict=True)}
    raise NotCall


# --- Qwen3-Coder ------------------------------------------------------------------------------------------------------


def coder(source: Source, tools: Sequence[Tool]) -> Reading[None]:
    """`<tool_call><function=name><parameter=key>value</parameter></function></tool_call>`; the outer marks may be left out."""
    tape, schemas = source.tape, {tool.name: tool.parameters for tool in tools}

    def function() -> Reading[None]:
        name = yield from _tag_name(tape)
        if name not in source.offered:
            raise NotCall
        arguments: dict[str, Any] = {}
        # What is cut short looks so: an object without its end.
        source.outlet.held = lambda: [(name, json.dumps(arguments, ensure_ascii=False)[:-1] if arguments else "")]
        yield from tape.space()
        while (yield from tape.expect("<parameter=", "</function>")) == "<parameter=":
            key = yield from _tag_name(tape)
            arguments[key] = _value((yield from _until(tape, "</parameter>")), key, schemas[name])
            yield from tape.space()
        source.begin(name)
        source.outlet.argue(json.dumps(arguments, ensure_ascii=False))

    def call(tagged: bool) -> Callable[[], Reading[None]]:
        def read() -> Reading[None]:
            if tagged:
                yield from tape.space()
                yield from tape.expect("<function=")
            yield from function()
            yield from tape.space()
            if tagged:
                yield from tape.closing("</tool_call>")
                tape.drop()

        return read

    while mark := (yield from tape.until(("<tool_call>", "<function="), source.outlet.say)):
        yield from source.attempt(call(mark == "<tool_call>"))


def _tag_name(tape: Tape) -> Reading[str]:
    name = ""
    while more := (yield from tape.run(_TAG_NAME, MOST_NAME - len(name))):
        name += more
    yield from tape.expect(">")
    return name


def _until(tape: Tape, mark: str) -> Reading[str]:
    """Read on to `mark`, and over it; what is before it. Raises NotCall if it does not come."""
    parts: list[str] = []
    if not (yield from tape.until((mark,), parts.append)):
        raise NotCall
    return "".join(parts)


def _value(text: str, key: str, schema: Mapping[str, Any]) -> Any:
    """One newline at either end belongs to the format, not to the value."""
    text = text.removeprefix("\n").removesuffix("\n")
    properties = schema.get("properties")
    return typed(text, properties.get(key, {}) if isinstance(properties, Mapping) else {}, schema)
