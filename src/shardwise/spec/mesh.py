"""Ranks on a grid: tensor × expert × pipeline × data parallel. Only arithmetic; nothing here knows a device."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal, get_args

from shardwise.errors import LayoutError

Dimension = Literal["tp", "ep", "pp", "dp"]


@dataclass(frozen=True, slots=True)
class Coords:
    """Where one rank stands on the mesh."""

    tp: int = 0
    ep: int = 0
    pp: int = 0
    dp: int = 0


@dataclass(frozen=True, slots=True)
class Mesh:
    """The degrees. tp runs fastest: neighbours in rank order, hence on one host, share the most traffic."""

    tp: int = 1
    ep: int = 1
    pp: int = 1
    dp: int = 1

    def __post_init__(self) -> None:
        for name in get_args(Dimension):
            degree = getattr(self, name)
            if not isinstance(degree, int) or degree < 1:
                raise LayoutError(f"{name} is {degree!r}; a degree is a whole number of at least 1")

    @property
    def degrees(self) -> tuple[int, int, int, int]:
        return self.tp, self.ep, self.pp, self.dp

    @property
    def size(self) -> int:
        """How many ranks there are."""
        return prod(self.degrees)

    def coords(self, rank: int) -> Coords:
        """Where `rank` stands."""
        if not 0 <= rank < self.size:
            raise LayoutError(f"rank {rank} is not on a mesh of {self.size}; ranks are 0 to {self.size - 1}")
        at = []
        for degree in self.degrees:
            rank, i = divmod(rank, degree)
            at.append(i)
        return Coords(*at)

    def rank(self, at: Coords) -> int:
        """The rank that stands at `at`."""
        rank = 0
        for degree, i in zip(reversed(self.degrees), (at.dp, at.pp, at.ep, at.tp), strict=True):
            rank = rank * degree + i
        return rank

    def group(self, along: Dimension, rank: int) -> tuple[int, ...]:
        """The ranks that differ from `rank` in the coordinate `along` alone, `rank` among them, in order."""
        degrees = dict(zip(get_args(Dimension), self.degrees, strict=True))
        stride = 1
        for name in get_args(Dimension):
            if name == along:
                break
            stride *= degrees[name]
        first = rank - (rank // stride % degrees[along]) * stride
        return tuple(first + i * stride for i in range(degrees[along]))
