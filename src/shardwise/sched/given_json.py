"""JSON that a client gives, as values or as its text: checked in form and size, and kept as text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from shardwise.errors import RequestError
from shardwise.sched.checks import check_text, shown

MAX_SCHEMA_BYTES = 256 * 2**10
MAX_SCHEMA_DEPTH = 64


def check_size(name: str, text: object, most: int) -> None:
    """RequestError for what is no text, is empty, or has more than `most` bytes of UTF-8."""
    check_text(text, name)
    assert isinstance(text, str)
    if not text:
        raise RequestError(f"{name} is empty; leave it out to allow any answer")
    if (size := len(text.encode())) > most:
        raise RequestError(f"{name} has {size} bytes; it takes at most {most}")


def object_given(name: str, value: object, what: str) -> dict[str, Any]:
    """The object that was given, of plain values; of a text its meaning, so that what two parsers may read in two ways does not
    get in. RequestError for anything else than `what`, which is an object."""
    if isinstance(value, str):
        check_size(name, value, MAX_SCHEMA_BYTES)
        try:
            value = json.loads(value, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            reason = "is nested too deep" if isinstance(error, RecursionError) else f"is not JSON: {error}"
            raise RequestError(f"{name} {reason}") from None
    if not isinstance(value, Mapping):
        raise RequestError(f"{name} is {shown(value)}; it takes {what}")
    _check_plain(value, name)
    return {key: _plain(each) for key, each in value.items()}


def written(name: str, value: object) -> str:
    """The plain value as short text. RequestError where that is too long."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    check_size(name, text, MAX_SCHEMA_BYTES)
    return text


def _plain(value: object) -> object:
    """With dicts and lists for all mappings and sequences."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _check_plain(value: object, name: str, depth: int = 1) -> None:
    """RequestError for what JSON does not hold, for numbers that no parser takes, and for too many levels."""
    if depth > MAX_SCHEMA_DEPTH:
        raise RequestError(f"{name} is nested more than {MAX_SCHEMA_DEPTH} levels deep")
    if isinstance(value, Mapping):
        for key, each in value.items():
            check_text(key, f"a key of {name}")
            _check_plain(each, name, depth + 1)
    elif isinstance(value, list | tuple):
        for each in value:
            _check_plain(each, name, depth + 1)
    elif isinstance(value, str):
        check_text(value, f"a text in {name}")
    elif isinstance(value, float) and not abs(value) < float("inf"):
        raise RequestError(f"{name} has {value}, which JSON does not")
    elif isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        raise RequestError(f"{name} has {shown(value)}; whole numbers in it take at most 63 bits")
    elif value is not None and not isinstance(value, bool | int | float):
        raise RequestError(f"{name} holds {shown(value)}; JSON has objects, lists, texts, numbers, true, false, null")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
