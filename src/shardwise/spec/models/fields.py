"""Typed reading of a config.json: every value is checked where it is read, and what was read is remembered.

It knows types and ranges, not what a key means: that is the model functions' affair.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from shardwise.errors import ConfigError

T = TypeVar("T")

LARGEST = 2**31 - 1
"""The largest whole number that any key may have, unless it says less: sizes beyond it are damage, not models."""


def shown(value: object, most: int = 80) -> str:
    """The value for an error message: its repr, cut short."""
    try:
        text = repr(value)
    except ValueError:  # an int of more digits than Python is willing to print
        text = f"a value of {type(value).__name__}, too long to print"
    return text if len(text) <= most else f"{text[: most - 4]} ..."


class Fields:
    """The keys of a config, or of a section of it (`path` is then "section."). Null counts as absent, as in transformers.

    Every accessor raises ConfigError with the key, its value, and what would work. A `default` of None means required.
    """

    def __init__(self, values: Mapping[str, Any], path: str = "") -> None:
        self._values = values
        self._path = path
        self._read: set[str] = set()
        self._sections: dict[str, Fields] = {}

    def has(self, key: str) -> bool:
        """Whether the key is there and not null. Does not count as reading it."""
        return self._values.get(key) is not None

    def states(self, key: str) -> bool:
        """Whether the key is there at all: for the few keys where null says more than absence."""
        return key in self._values

    def unread(self) -> list[tuple[str, Any]]:
        """(key, value) of all that no accessor has looked at, in the order of the file."""
        return [(key, value) for key, value in self._values.items() if key not in self._read]

    def wrong(self, key: str, works: str) -> ConfigError:
        """The error for `key`: what it is, and what would work instead. The caller raises it."""
        return ConfigError(f"config.json: {self._path}{key} is {shown(self._values.get(key))}; {works}")

    def integer(self, key: str, default: int | None = None, *, least: int = 1, most: int = LARGEST) -> int:
        """A whole number from `least` to `most`."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.wrong(key, f"it must be a whole number from {least} to {most}")
        return value

    def optional_integer(self, key: str, *, least: int = 1, most: int = LARGEST) -> int | None:
        """A whole number from `least` to `most`, or None where it is absent."""
        return self.integer(key, least=least, most=most) if self._look(key) else None

    def number(
        self,
        key: str,
        default: float | None = None,
        *,
        least: float = -1e18,
        most: float = 1e18,
        above: float = -math.inf,
    ) -> float:
        """A finite number from `least` to `most` and greater than `above`."""
        value = self._value(key, default)
        if not _is_number(value) or not (least <= value <= most and value > above):
            low = f"above {above:g}" if above >= least else f"from {least:g}"
            raise self.wrong(key, f"it must be a number {low} to {most:g}")
        return float(value)

    def optional_number(self, key: str, *, least: float = -1e18, most: float = 1e18) -> float | None:
        """A finite number from `least` to `most`, or None where it is absent."""
        return self.number(key, least=least, most=most) if self._look(key) else None

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "it must be true or false")
        return value

    def choice(self, key: str, known: Mapping[str, T], default: str | None = None) -> T:
        """What `known` says of the name that stands at `key`."""
        value = self._value(key, default)
        if not isinstance(value, str) or value not in known:
            raise self.wrong(key, f"known here: {', '.join(known)}")
        return known[value]

    def numbers(self, key: str, length: int, *, least: float, most: float) -> tuple[float, ...]:
        """A list of exactly `length` numbers from `least` to `most`."""
        value = self._value(key, None)
        if not isinstance(value, list | tuple) or not all(_is_number(v) and least <= v <= most for v in value):
            raise self.wrong(key, f"it must be a list of numbers from {least:g} to {most:g}")
        if len(value) != length:
            raise self.wrong(key, f"it has {len(value)} numbers and must have {length}")
        return tuple(float(v) for v in value)

    def integers(self, key: str, *, least: int = 0, most: int = LARGEST) -> tuple[int, ...]:
        """A list of whole numbers from `least` to `most`; empty where it is absent."""
        value = self._value(key, ())
        if not isinstance(value, list | tuple) or not all(type(v) is int and least <= v <= most for v in value):
            raise self.wrong(key, f"it must be a list of whole numbers from {least} to {most}")
        return tuple(value)

    def names(self, key: str) -> tuple[str, ...]:
        """A list of strings; empty where it is absent."""
        value = self._value(key, ())
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            raise self.wrong(key, "it must be a list of strings")
        return tuple(value)

    def section(self, key: str) -> Fields:
        """The object at `key` as fields of its own, the same ones each time; empty where it is absent."""
        if key in self._sections:
            return self._sections[key]
        value = self._value(key, {})
        if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
            raise self.wrong(key, "it must be an object, or null")
        return self._sections.setdefault(key, Fields(value, f"{self._path}{key}."))

    def supposing(self, absent: Mapping[str, Any]) -> Fields:
        """The same fields, with values for keys that are not there. What is read of one counts as read of the other."""
        found = Fields({**absent, **self._values}, self._path)
        found._read, found._sections = self._read, self._sections
        return found

    def mapping(self) -> Mapping[str, Any]:
        """All keys with their values, unchecked."""
        return self._values

    def _look(self, key: str) -> bool:
        self._read.add(key)
        return self.has(key)

    def _value(self, key: str, default: object) -> Any:
        if self._look(key):
            return self._values[key]
        if default is None:
            raise ConfigError(f"config.json: {self._path}{key} is missing; this architecture needs it")
        return default


def refuse_unread(fields: Fields, neutral: Sequence[tuple[str, tuple[object, ...]]], who: str) -> None:
    """Raises ConfigError at the first key that nobody read, that `neutral` knows, and whose value is not neutral.

    `neutral` holds (pattern, values that change nothing) and the first pattern that is the key, or that ends or begins with
    "*" and fits it, decides. `who` names what would have had to read it.
    """
    for key, value in fields.unread():
        for pattern, harmless in neutral:
            if _fits(pattern, key):
                if value is not None and not any(value == same for same in harmless):
                    works = " or ".join(shown(same) for same in (*harmless, None)).replace("None", "null")
                    raise fields.wrong(key, f"{who} is implemented without it: {works} would work")
                break


def _fits(pattern: str, key: str) -> bool:
    if pattern.startswith("*") and pattern.endswith("*"):
        return pattern[1:-1] in key
    if pattern.startswith("*"):
        return key.endswith(pattern[1:])
    return key.startswith(pattern[:-1]) if pattern.endswith("*") else key == pattern


def _is_number(value: object) -> bool:
    # NaN and infinity are what Python's json reads for them; an int may be too large for a float, and is then infinite.
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= 1e300
