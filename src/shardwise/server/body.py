"""From the bytes of a request's body to the struct that its route takes, or a refusal that names the field."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import msgspec
from msgspec import inspect

from shardwise.server.guard import Headers, values
from shardwise.server.refusal import Refusal
from shardwise.server.service import Service
from shardwise.server.settings import Settings
from shardwise.server.strict import loads, shown

LOG = logging.getLogger("shardwise.server")

LARGE_BYTES = 64 * 2**10
"""A body above this is read on another thread, so that the loop goes on with others' tokens."""

NAMES = 1000
"""Unknown fields that are counted by their names; all further ones together."""

LAST = {"connection": "close"}
"""Of a body that is not read to its end, nothing can follow."""

Receive = Callable[[], Awaitable[Any]]

_STEP = re.compile(r"([^.\[\]]+)|\[(\d+|\.\.\.)\]")
_PLACE = re.compile(r"(?P<what>.*) - at `(?P<key>key in )?\$?(?P<path>[^`]*)`", re.DOTALL)


class Gone(Exception):
    """The client has closed its connection: nobody is there to be told anything."""


# --- bytes ------------------------------------------------------------------------------------------------------------


def check_head(headers: Headers, settings: Settings) -> None:
    """Refuses a body by what its headers say of it, before a byte of it is read."""
    for value in values(headers, "content-type"):
        kind, _, rest = value.lower().partition(";")
        charset = re.search(r'charset\s*=\s*"?([\w-]+)', rest)
        if kind.strip() != "application/json" and not kind.strip().endswith("+json"):
            raise Refusal(415, f"the content type {value[:100]!r} is not taken; send application/json")
        if charset and charset[1] not in ("utf-8", "utf8", "us-ascii"):
            raise Refusal(415, f"the character set {charset[1][:40]!r} is not taken; send UTF-8")
    for value in values(headers, "content-encoding"):
        if value.lower() != "identity":
            raise Refusal(415, f"the content encoding {value[:40]!r} is not taken; send the body as it is")
    for value in values(headers, "content-length"):
        if not value.isdigit() or int(value[:20]) > settings.max_body_bytes:
            raise too_large(settings)


def too_large(settings: Settings) -> Refusal:
    most = settings.max_body_bytes
    return Refusal(413, f"the body is too large; {most} bytes are the most", code="body_too_large", headers=LAST)


async def read(receive: Receive, settings: Settings) -> bytes:
    """The whole body. 413 where it is too large, 408 where it comes too slowly; Gone where the client has gone."""
    parts: list[bytes] = []
    size, deadline = 0, asyncio.get_running_loop().time() + settings.body_timeout_s
    while True:
        left = deadline - asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(min(left, settings.body_stall_s)):
                message = await receive()
        except TimeoutError:
            late = f"the body did not come in time: {size} bytes of it have; send it at once"
            raise Refusal(408, late, headers=LAST) from None
        if message["type"] == "http.disconnect":
            raise Gone
        parts.append(message["body"])
        size += len(parts[-1])
        if size > settings.max_body_bytes:
            raise too_large(settings)
        if not message["more_body"]:
            return b"".join(parts)


# --- values -----------------------------------------------------------------------------------------------------------


async def struct(
    service: Service, kind: type[msgspec.Struct], data: bytes, given: Mapping[str, str]
) -> tuple[msgspec.Struct, tuple[str, ...]]:
    """`parse`, on another thread where it takes long."""
    settings = service.settings
    if len(data) > LARGE_BYTES:
        return await service.read(parse, data, kind, settings, given)
    return parse(data, kind, settings, given)


def parse(
    data: bytes, kind: type[msgspec.Struct], settings: Settings, given: Mapping[str, str]
) -> tuple[msgspec.Struct, tuple[str, ...]]:
    """The struct, and the names of fields that it does not have. `given` are the path's parameters, which go before the body's.

    Null at the top means that a field was not given. Refusal 400 names what is wrong, where, and what came.
    """
    fields = {name: value for name, value in loads(data, settings).items() if value is not None}
    fields.update(given)
    try:
        value = msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise reworded(str(error), fields, kind) from None
    known = known_fields(kind)
    return value, tuple(name for name in fields if name not in known)


_known: dict[type, frozenset[str]] = {}


def known_fields(kind: type[msgspec.Struct]) -> frozenset[str]:
    """The names of a struct's fields, as they are in JSON."""
    if (found := _known.get(kind)) is None:
        found = _known[kind] = frozenset(kind.__struct_encode_fields__)
    return found


def reworded(message: str, fields: Mapping[str, Any], kind: Any) -> Refusal:
    """msgspec's words as ours: `Expected `int`, got `str` - at `$.n`` is "n is the string "2"; it must be an integer"."""
    match = _PLACE.fullmatch(message)
    what, path = (match["what"], match["path"].removeprefix(".")) if match else (message, "")
    if missing := re.fullmatch(r"Object missing required field `(.*)`", what):
        name = f"{path}.{missing[1]}" if path else missing[1]
        return Refusal(400, f"{name} is missing", param=name, code="missing_field")
    wanted = re.fullmatch(r"Expected (.*?)(?:, got (.*))?", what, re.DOTALL)
    came = _at(fields, path)
    if what.startswith("Invalid enum value") and came and (one_of := _allowed(inspect.type_info(kind), path)):
        return Refusal(400, f"{path} is {came}; it must be one of {', '.join(one_of)}", param=path, code="invalid_value")
    if wanted is None or (match and match["key"]):
        return Refusal(400, f"{path or 'the body'}: {what}", param=path or None, code="invalid_value")
    # Of an object whose names are free, msgspec tells no name.
    param, free, _ = path.partition("[...]")
    is_it = f"is {came}" if came else f"is {_kinds(wanted[2])}" if wanted[2] else "is not right"
    said = f"{'a value of ' if free else ''}{param} {is_it}; it must be {_kinds(wanted[1])}"
    return Refusal(400, said, param=param or None, code="invalid_value")


KINDS = {
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}


def _kinds(wanted: str) -> str:
    """`int | null` in words; `int` >= 1 and `str` of length <= 4 keep what follows."""

    def words(match: re.Match[str]) -> str:
        kinds = [KINDS.get(each, each) for each in match[1].split(" | ")]
        return " or ".join(kinds) if len(kinds) < 3 else f"{', '.join(kinds[:-1])} or {kinds[-1]}"

    return re.sub(r"`([^`]*)`", words, re.sub(r"(\d)\.0$", r"\1", wanted))


def _allowed(kind: inspect.Type, path: str) -> list[str]:
    """The values that may stand at a path; none where it has no fixed ones."""
    level = [kind]
    for name, index in _STEP.findall(path):
        below: list[inspect.Type] = []
        for each in flat(level):
            if isinstance(each, inspect.StructType) and not index:
                below += (field.type for field in each.fields if field.encode_name == name)
            elif isinstance(each, inspect.CollectionType) and index:
                below.append(each.item_type)
            elif isinstance(each, inspect.DictType) and index:
                below.append(each.value_type)
        level = below
    return [json.dumps(value) for each in flat(level) if isinstance(each, inspect.LiteralType) for value in each.values]


def flat(kinds: list[inspect.Type]) -> Iterator[inspect.Type]:
    """Without unions and notes."""
    for each in kinds:
        if isinstance(each, inspect.UnionType):
            yield from flat(list(each.types))
        elif isinstance(each, inspect.Metadata):
            yield from flat([each.type])
        else:
            yield each


def _at(fields: object, path: str) -> str | None:
    """What came at a path such as messages[0].role; None where the path does not say, as in objects of free names."""
    value = fields
    for name, index in _STEP.findall(path):
        try:
            value = value[int(index)] if index else value[name]  # type: ignore[index]
        except (KeyError, IndexError, TypeError, ValueError):
            return None
    return shown(value)


def count_unknown(service: Service, names: tuple[str, ...]) -> None:
    """Counts fields that nobody knows, and names each once in the log; the requests are served all the same."""
    if len(names) > NAMES:  # a body has room for half a million
        service.unknown["others"] += len(names) - NAMES
    for name in names[:NAMES]:
        shown_name = name[:64] if name[:64] in service.unknown or len(service.unknown) < NAMES else "others"
        if shown_name not in service.unknown:
            LOG.info("the field %r is not known here and is ignored; this is said once", shown_name)
        service.unknown[shown_name] += 1
