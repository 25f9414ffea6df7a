"""Pooled hidden states: how a client asks for them, and the sum over the chunks of a prompt. It knows bytes, and no model."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from operator import add
from typing import Literal

from shardwise.errors import RequestError
from shardwise.sched.checks import shown
from shardwise.sched.step import Item

POOLINGS = ("last", "mean")


@dataclass(frozen=True, slots=True)
class PoolingParams:
    """In place of SamplingParams: the prompt's final hidden states, after the last norm, are wanted, and nothing is generated.

    `pooling`: "last" is the state of the last token, "mean" the mean over all tokens. RequestError for anything else.
    """

    pooling: Literal["last", "mean"] = "last"

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise RequestError(f"pooling is {shown(self.pooling)}; it takes one of {', '.join(map(repr, POOLINGS))}")


class Sum:
    """Of one prompt, over the chunks that it is computed in: what `Item.pool` asks for. Kept in double precision; a single
    chunk, which most prompts are, is passed on as it came.

    A prompt that starts over, because its cache was lost, is summed up anew: its first chunk forgets what was there, also what
    came late of the life before. Nothing counts twice.
    """

    __slots__ = ("_first", "_sum", "count")

    def __init__(self) -> None:
        self.count = 0
        self._first = b""
        self._sum: list[float] | None = None

    def add(self, item: Item, vector: bytes) -> None:
        """What a step made of the next chunk."""
        assert vector, f"sequence {item.sequence} lacks its hidden states"
        if item.start == 0 or item.pool == "last":
            self.count, self._first, self._sum = 0, vector, None
        else:
            self._sum = list(map(add, floats(self._first) if self._sum is None else self._sum, floats(vector)))
        self.count += item.count if item.pool == "mean" else 1

    def vector(self) -> bytes:
        """All so far, rounded once."""
        return self._first if self._sum is None else packed(self._sum)


def floats(vector: bytes) -> array[float]:
    """The numbers of a vector of float32 in little-endian order."""
    return _little(array("f", vector))


def packed(numbers: Iterable[float]) -> bytes:
    """Numbers as float32 in little-endian order. What float32 cannot hold becomes an infinity."""
    return _little(array("f", numbers)).tobytes()


def _little(numbers: array[float]) -> array[float]:
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
