"""JSON of any size, made in portions: between two of them other threads have their turn, which one long call would not give.

The result is what one call makes. It knows no replies and no loop.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec
from msgspec import UNSET

PORTION = 8192
"""Values that are encoded at once: numbers, names, short texts. That takes about a millisecond."""

TEXT = 64
"""Characters that count as one value."""

FEW, SMALL = 16, 256
"""Longer lists may be weighed by some of their values, where those are no heavier."""

_ENCODER = msgspec.json.Encoder()
_PLAIN = (int, float, bool, type(None))


def is_large(value: object) -> bool:
    """Whether it is more than one portion. Looks at no more of it than that takes."""
    return weight(value) > PORTION


def encoded(value: object, end: bytes = b"") -> bytes:
    """The JSON of a value, with `end` behind it."""
    made: list[bytes] = []
    _encode(value, made)
    made.append(end)
    return b"".join(made)


def weight(value: object, most: int = PORTION) -> int:
    """How many values there are in one, about; counted until they are more than `most`."""
    if isinstance(value, str | bytes | msgspec.Raw):
        return 1 + len(memoryview(value) if isinstance(value, msgspec.Raw) else value) // TEXT
    inner: Iterable[object]
    if isinstance(value, list | tuple):
        if value and isinstance(value[0], _PLAIN) and isinstance(value[-1], _PLAIN):
            return 1 + len(value)
        if (one := _alike(value)) is not None:
            return 1 + len(value) * one
        inner = value
    elif isinstance(value, dict):
        if value and isinstance(next(iter(value.values())), _PLAIN):
            return 1 + 2 * len(value)
        inner = value.values()
    elif isinstance(value, msgspec.Struct):
        inner = (getattr(value, name) for name in value.__struct_fields__)
    else:
        return 1
    found = 1
    for each in inner:
        found += weight(each, most - found)
        if found > most:
            break
    return found


def _alike(value: Sequence[object]) -> int | None:
    """The weight of each, about, where all are small structs of one kind as far as three of them say. A token's
    log-probabilities are such, which take less time to encode than to look at."""
    if len(value) <= FEW or not isinstance(value[0], msgspec.Struct):
        return None
    some = value[0], value[len(value) // 2], value[-1]
    if any(type(each) is not type(value[0]) for each in some):
        return None
    most = max(weight(each, SMALL) for each in some)
    return most if most <= SMALL else None


def _encode(value: object, made: list[bytes]) -> None:
    if is_large(value):
        if isinstance(value, list):
            _items(value, made)
            return
        if isinstance(value, dict) and all(type(key) is str for key in value):
            _fields(value.items(), made)
            return
        if isinstance(value, msgspec.Struct) and _is_plain(value):
            _fields(_of(value), made)
            return
    made.append(_ENCODER.encode(value))


def _is_plain(value: msgspec.Struct) -> bool:
    """Whether its JSON is an object of its tag and fields, those left out that are UNSET."""
    config = value.__struct_config__
    return not (config.array_like or config.omit_defaults)


def _of(value: msgspec.Struct) -> Iterator[tuple[str, object]]:
    """(name, value) of all that a struct says; its tag first."""
    config = value.__struct_config__
    if config.tag_field is not None:
        yield config.tag_field, config.tag
    for name, field in zip(value.__struct_encode_fields__, value.__struct_fields__, strict=True):
        yield name, getattr(value, field)


def _fields(fields: Iterable[tuple[str, object]], made: list[bytes]) -> None:
    mark = b"{"
    for name, value in fields:
        if value is not UNSET:
            made += (mark, _ENCODER.encode(name), b":")
            _encode(value, made)
            mark = b","
    made.append(b"{}" if mark == b"{" else b"}")


def _items(items: list[object], made: list[bytes]) -> None:
    """Small ones together, up to a portion; a large one by itself."""
    if (one := _alike(items)) is not None:
        step = PORTION // one
        pieces = (_ENCODER.encode(items[begin : begin + step])[1:-1] for begin in range(0, len(items), step))
        made += (b"[", b",".join(pieces), b"]")
        return
    mark, begin, found = b"[", 0, 0
    for at, each in enumerate(items):
        size = weight(each)
        if found and found + size > PORTION:
            made += (mark, _ENCODER.encode(items[begin:at])[1:-1])
            mark, begin, found = b",", at, 0
        if size > PORTION:
            made.append(mark)
            _encode(each, made)
            mark, begin = b",", at + 1
        else:
            found += size
    if begin < len(items):
        made += (mark, _ENCODER.encode(items[begin:])[1:-1])
    made.append(b"]")
