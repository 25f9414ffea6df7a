"""Values that come from outside, checked: what is returned is plain and in range, all else is a RequestError that says what,
which value, and what would work. numpy's scalars are taken for the numbers they are; a bool is not a number."""

from __future__ import annotations

import re
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

from shardwise.errors import RequestError

SHOWN_CHARS = 60

_WORDS = {"None": "null", "True": "true", "False": "false", "True or False": "true or false"}
_PYTHON = re.compile(r"(?:(?<= is )|(?<= of type ))(?:None|True|False)(?=[;,])|(?<=it takes )True or False")


def shown(value: object) -> str:
    """The value as a message shows it: not all of a long one."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of more digits than Python prints
        return "a number of thousands of digits"
    return text if len(text) <= 2 * SHOWN_CHARS else f"{text[:SHOWN_CHARS]}…{text[-10:]}"


def in_json(message: str) -> str:
    """The message of an error for whoever wrote JSON: what came and what would work, without Python's words for them."""
    return _PYTHON.sub(lambda match: _WORDS[match[0]], message)


def real(name: str, value: object, low: float, high: float, *, above: bool = False) -> float:
    """A finite number from `low` (or `above` it) to `high`, as a float."""
    number: Any = None if isinstance(value, bool) or not isinstance(value, Real) else value
    # NaN fails both comparisons.
    if number is None or not (low < number if above else low <= number) or not number <= high:
        raise RequestError(f"{name} is {shown(value)}; it takes a number {'above' if above else 'from'} {low} to {high}")
    return float(number)


def whole(name: str, value: object, low: int, high: int, hint: str = "") -> int:
    """A whole number from `low` to `high`. `hint` is said besides."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= int(value) <= high:
        raise RequestError(f"{name} is {shown(value)}; it takes a whole number from {low} to {high}{hint}")
    return int(value)


def flag(name: str, value: object) -> bool:
    """True or False, nothing that merely counts as one."""
    if not isinstance(value, bool):
        raise RequestError(f"{name} is {shown(value)}; it takes True or False")
    return value


def sequence(name: str, value: object, most: int, what: str) -> list[object]:
    """A list or tuple of up to `most` values, which are called `what`."""
    if not isinstance(value, list | tuple):
        raise RequestError(f"{name} is {shown(value)}; it takes a list of {what}")
    if len(value) > most:
        raise RequestError(f"{name} has {len(value)} {what}; it takes at most {most}")
    return list(value)


def token_ids(name: str, value: object, most: int) -> tuple[int, ...]:
    """Token ids, each once, in their order. Whether the model knows them is `in_vocabulary`'s to say."""
    found = [whole(f"{name}[{n}]", each, 0, 2**31 - 1) for n, each in enumerate(sequence(name, value, most, "token ids"))]
    return tuple(dict.fromkeys(found))


def in_vocabulary(name: str, ids: Iterable[object], vocab: int) -> None:
    """RequestError, which calls them `name`, for an id that a model of `vocab` ids does not have."""
    found = ids if isinstance(ids, tuple | list) else tuple(ids)
    # Prompts can be long, and this is quick: it is the rule, the search for the culprit the exception.
    if not found or (set(map(type, found)) == {int} and min(found) >= 0 and max(found) < vocab):
        return
    for token in found:
        if not isinstance(token, int) or not 0 <= token < vocab:
            raise RequestError(f"{name}: token id {token!r} is not in this model's vocabulary of {vocab}: 0 to {vocab - 1} are")


def strings(name: str, value: object, most: int, most_chars: int) -> tuple[str, ...]:
    """Up to `most` strings of 1 to `most_chars` characters each."""
    found = sequence(name, value, most, "strings")
    for n, text in enumerate(found):
        if not isinstance(text, str) or not text:
            raise RequestError(f"{name}[{n}] is {shown(text)}; it takes a string of at least one character")
        if len(text) > most_chars:
            raise RequestError(f"{name}[{n}] has {len(text)} characters; it takes at most {most_chars}")
        check_text(text, f"{name}[{n}]")
    return tuple(str(text) for text in found)


def check_text(text: object, name: str) -> None:
    """Raises RequestError if `text`, called `name`, is not a string that UTF-8 can carry."""
    if not isinstance(text, str):
        raise RequestError(f"{name} must be a string, not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        half = f"half a surrogate pair (U+{code:04X}) at character {error.start}"
        raise RequestError(f"{name} has {half}, which is not Unicode text; send the whole character") from None
