"""JSON as strict as it can be read: what other readers let pass or read in different ways is refused, and said where it is.

No NaN, no number too large for its kind, no name twice in an object, no half characters, no deep nesting, not too many values.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from shardwise.server.refusal import Refusal
from shardwise.server.settings import Settings

DIGITS = 19
"""A number of more digits may not fit 64 bits."""

PIECE = 2**16
"""Bytes that are looked at in one go: other threads have to get their turn between."""

_STRUCTURE = b'{[:,"'
_REST = bytes(each for each in range(256) if each not in _STRUCTURE)
_LONG = re.compile(rb"[0-9]{%d}" % DIGITS)
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")


def loads(data: bytes, settings: Settings) -> dict[str, Any]:
    """The object that `data` is. Refusal 400 for anything else, and for what is beyond the limits of `settings`."""
    if not data.strip(b" \t\r\n"):
        raise Refusal(400, "the body is empty; send a JSON object", code="invalid_json")
    if data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise Refusal(400, "the body begins with a byte order mark; send plain UTF-8", code="invalid_json")
    check_many(data, settings.max_values, settings.max_parts)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise Refusal(
            400, f"the body is not UTF-8: byte {error.start} is {data[error.start]:#04x}", code="invalid_json"
        ) from None
    value = _parsed(text, whole if has_long(data) else None)
    if type(value) is not dict:
        raise Refusal(400, f"the body is {shown(value)}; send a JSON object", code="invalid_json")
    # Brackets within strings count too here, so this only spares the walk.
    if data.count(b"{") + data.count(b"[") > settings.max_depth:
        check_depth(value, settings.max_depth)
    if _HALF.search(data):
        check_characters(value)
    return value


def check_many(data: bytes, values: int, parts: int) -> None:
    """Refuses what makes too many values before it is parsed: a parser makes them in one go, and all else waits for it.

    Seen with Python 3.11: 4 MiB of `[],` take a second, of `1,` 0.14 s; one number takes 70 ns, one list 600 ns.
    """
    if data.count(b",") <= values and sum(map(data.count, (b"{", b"[", b":"))) <= parts:
        return  # of which those within strings are no values
    found = outside(data)
    if (many := sum(found[each] for each in "{[:")) > parts:
        raise Refusal(
            400, f"the body has {many} objects, lists and names; {parts} are the most together", code="too_many_values"
        )
    if found[","] > values:
        raise Refusal(400, f"the body has more than {found[',']} values; {values} are the most", code="too_many_values")


def outside(data: bytes) -> dict[str, int]:
    """How often each of `{[:,` is in JSON outside of its strings."""
    bare = data.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _REST)
    found = dict.fromkeys("{[:,", 0)
    within = False
    for at in range(0, len(bare), PIECE):
        pieces = bare[at : at + PIECE].split(b'"')
        text = b"".join(pieces[int(within) :: 2])
        for each in found:
            found[each] += text.count(each.encode())
        within ^= len(pieces) % 2 == 0
    return found


def has_long(data: bytes) -> bool:
    """Whether there are so many digits in a row that they may be a number of more than 64 bits."""
    return any(_LONG.search(data, at, at + PIECE + DIGITS) for at in range(0, len(data), PIECE))


def _parsed(text: str, parse_int: Any) -> Any:
    try:
        return json.loads(text, object_pairs_hook=once, parse_float=finite, parse_int=parse_int, parse_constant=no_number)
    except json.JSONDecodeError as error:
        raise Refusal(
            400, f"the body is not JSON: {error.msg} at line {error.lineno} column {error.colno}", code="invalid_json"
        ) from None
    except RecursionError:
        raise too_deep(None) from None


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object with every name once: of two values, readers disagree which counts."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise Refusal(400, f"the field {name[:100]!r} is there twice in one object; send it once", param=name[:100])
            seen.add(name)
    return found


def finite(text: str) -> float:
    if math.isinf(value := float(text)):
        raise Refusal(400, f"the number {text[:40]} is too large", code="invalid_json")
    return value


def whole(text: str) -> int:
    """An int of 64 bits, signed or not."""
    value = int(text) if len(text) <= DIGITS + 2 else 2**64
    if not -(2**63) <= value < 2**64:
        raise Refusal(400, f"the number {text[:40]}{'...' if len(text) > 40 else ''} is beyond 64 bits", code="invalid_json")
    return value


def no_number(text: str) -> NoReturn:
    raise Refusal(400, f"{text} is no number in JSON", code="invalid_json")


def too_deep(depth: int | None) -> Refusal:
    most = "" if depth is None else f"; {depth} levels are the most"
    return Refusal(400, f"the body has too many objects and lists within each other{most}", code="invalid_json")


def check_depth(value: object, depth: int) -> None:
    level: list[object] = [value]
    for _ in range(depth):
        level = [each for outer in level for each in children(outer) if type(each) is dict or type(each) is list]
        if not level:
            return
    raise too_deep(depth)


def children(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def check_characters(value: object) -> None:
    """Refuses halves of surrogate pairs: they are no characters, and cannot be written out again."""
    for path, text in strings(value, ""):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            where = path[:200].encode("ascii", "replace").decode()
            raise Refusal(
                400,
                f"{where or 'a name'} has half a character, \\u{ord(text[error.start]):04x}, at {error.start}",
                param=where or None,
            ) from None


def strings(value: object, path: str) -> Iterator[tuple[str, str]]:
    """(where, text) of every string, names of fields included."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for name, each in value.items():
            yield path, name
            yield from strings(each, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from strings(each, f"{path}[{index}]")


def shown(value: object) -> str:
    """A value as an error names it: its kind, and itself if it is short."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int() | float():
            return f"the number {value!r}"
        case str():
            text = json.dumps(value[:60])
            return f"the string {text}{f'... of {len(value)} characters' if len(value) > 60 else ''}"
        case list():
            return f"a list of {len(value)}" if value else "an empty list"
        case _:
            return "an object"
