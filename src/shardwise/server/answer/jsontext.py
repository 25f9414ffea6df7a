"""JSON read as it comes: checked character by character, given on as it was written. Builds no values."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from typing import Any

from shardwise.server.answer.tape import NotCall, Reading, Tape

DEPTH = 64
MOST_NAME = 256  # characters of a name or a key of a call, as written
MOST_WORD = 1024  # characters of a number

_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_WORDS = re.compile(r"[-+.0-9A-Za-z]*")
_WORD = re.compile(r"true|false|null|-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_ESCAPE = re.compile(r'\\(["\\/bfnrt]|u[0-9a-fA-F]{4})')

Sink = Callable[[str], None]


def value(tape: Tape, sink: Sink) -> Reading[None]:
    """Read one JSON value and give `sink` its text; NotCall where it is none, or nested deeper than DEPTH.

    A control character in a string, which models write and JSON forbids, is given on escaped. Where the text ends inside the
    value, `sink` has got all of it.
    """
    closing: list[str] = []
    while True:
        opened = yield from _begin(tape, sink)
        if opened:
            closing.append(opened)
            if len(closing) > DEPTH:
                raise NotCall
            yield from _space(tape, sink)
            if (yield from tape.peek()) != opened:
                if opened == "}":
                    yield from _key(tape, sink)
                continue
        while closing:
            yield from _space(tape, sink)
            mark = yield from tape.expect(",", closing[-1])
            sink(mark)
            if mark == ",":
                break
            closing.pop()
        if not closing:
            return
        if closing[-1] == "}":
            yield from _key(tape, sink)


def _begin(tape: Tape, sink: Sink) -> Reading[str]:
    """Read a string, a word, or the opening of an object or a list; of those, returns what closes it."""
    yield from _space(tape, sink)
    first = yield from tape.peek()
    if first in ("{", "["):
        sink(tape.take(1))
        return "}" if first == "{" else "]"
    yield from (_string(tape, sink) if first == '"' else _word(tape, sink))
    return ""


def _key(tape: Tape, sink: Sink) -> Reading[None]:
    yield from _space(tape, sink)
    yield from _string(tape, sink)
    yield from _space(tape, sink)
    sink((yield from tape.expect(":")))


def _space(tape: Tape, sink: Sink) -> Reading[None]:
    while (yield from tape.peek()) and (text := (yield from tape.run(tape.SPACES))):
        sink(text)


def _word(tape: Tape, sink: Sink) -> Reading[None]:
    word = ""
    while more := (yield from tape.run(_WORDS, MOST_WORD - len(word))):
        word += more
    if tape.over:
        sink(word)
    if not _WORD.fullmatch(word):
        raise NotCall
    if not tape.over:
        sink(word)


def _string(tape: Tape, sink: Sink, most: int = sys.maxsize) -> Reading[None]:
    sink((yield from tape.expect('"')))
    while True:
        while text := (yield from tape.run(_PLAIN, most)):
            most -= len(text)
            sink(text)
        mark = yield from tape.peek()
        if mark == '"':
            sink(tape.take(1))
            return
        if mark == "\\":
            escape = yield from _escape(tape, sink)
        elif mark and mark < " ":
            escape = json.dumps(tape.take(1))[1:-1]
        else:
            raise NotCall
        most = max(most - len(escape), 0)
        sink(escape)


def _escape(tape: Tape, sink: Sink) -> Reading[str]:
    text = yield from tape.peek(2)
    chars = 6 if text == "\\u" else 2
    text = yield from tape.peek(chars)
    if tape.ended and len(text) < chars:
        sink(tape.take(len(text)))
    if not _ESCAPE.fullmatch(text):
        raise NotCall
    return tape.take(chars)


def short_string(tape: Tape) -> Reading[str]:
    """Read a JSON string of at most about MOST_NAME characters, and return what it says."""
    parts: list[str] = []
    yield from _string(tape, parts.append, MOST_NAME)
    return str(json.loads("".join(parts)))


def whole(tape: Tape) -> Reading[str]:
    """Read one JSON value and return its text."""
    parts: list[str] = []
    yield from value(tape, parts.append)
    return "".join(parts)


def object_in(text: str) -> dict[str, Any] | None:
    """The object that `text` is the JSON of, None if it is none."""
    try:
        found = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _refuse(word: str) -> None:
    raise ValueError(word)
