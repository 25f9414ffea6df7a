"""The most that a step may ask of a rank, and the sizes to which its counts are padded. Knows no tensors."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """The most tokens of one step, the most sequences in it (drawn ones included), and the most pages that one of them has in
    each cache group. Buffers of this size are allocated once."""

    tokens: int
    sequences: int
    pages: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Buckets:
    """The sizes that a count may be padded to, in rising order; none: a count is its own size.

    Few sizes mean few shapes of a forward: each can be captured once as a CUDA graph and replayed.
    """

    sizes: tuple[int, ...] = ()

    @staticmethod
    def up_to(most: int) -> Buckets:
        """Powers of two and the numbers halfway between them, to the first that is not below `most`."""
        sizes = [1, 2]
        while sizes[-1] < most:
            sizes += [sizes[-1] * 3 // 2, sizes[-1] * 2]
        return Buckets(tuple(sizes))

    @staticmethod
    def of(device: str, limits: Limits) -> Buckets:
        """What suits a kind of device: on a CPU nothing is captured, and padding would only be computed in vain."""
        return Buckets() if device == "cpu" else Buckets.up_to(max(limits.tokens, limits.sequences, *limits.pages))

    def pad(self, count: int, most: int | None = None) -> int:
        """The size for `count`; 0 stays 0. Where all steps of one shape have up to `most`, the size for that: the shape then
        does not depend on how many there happen to be."""
        if not self.sizes or not (count if most is None else most):
            return count
        wanted = count if most is None else most
        place = bisect_left(self.sizes, wanted)
        assert place < len(self.sizes), f"{wanted} is above the largest size, {self.sizes[-1]}"
        return self.sizes[place]
