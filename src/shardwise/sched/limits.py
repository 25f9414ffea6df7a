"""The numbers that bound a scheduler, and how many pages a sequence can come to hold."""

from __future__ import annotations

from dataclasses import dataclass
from sys import maxsize

from shardwise.spec.layout import PAGE_TOKENS


@dataclass(frozen=True, slots=True)
class Limits:
    """`tokens` and `sequences` are the most of one step, `flight` the steps that may be under way at once. A sequence is
    computed further while up to `ahead` of its tokens are drawn and not known yet: 1 hides the host behind the device; 0 where
    stages are to work on different sequences, or tokens are guessed, which needs the last one.

    A sequence that was preempted `preemptions` times is not preempted again. `turns`: a sequence that grows beyond such a
    length is computed anew, because its keys are turned by other angles then (longrope). `shared`: keys of positions from
    there on depend on when they were computed, and are nobody else's (rope that scales with every token); None is nowhere.
    `prefixes`: whether known prefixes are looked up.
    """

    tokens: int
    sequences: int
    flight: int = 2
    ahead: int = 1
    preemptions: int = 3
    turns: tuple[int, ...] = ()
    shared: int | None = None
    prefixes: bool = True

    def __post_init__(self) -> None:
        for name in ("tokens", "sequences", "flight", "preemptions"):
            assert getattr(self, name) >= 1, name
        assert self.ahead >= 0, "ahead"

    def turned(self, known: int, length: int) -> bool:
        """Whether keys that were turned for `known` tokens are no longer right for `length`."""
        return any(known <= end < length for end in self.turns)

    def unturned(self, length: int) -> int:
        """How many tokens more a sequence can grow by before its keys are turned by other angles."""
        return min((end - length for end in self.turns if end >= length), default=maxsize)


def peak_pages(window: int | None, tokens: int) -> int:
    """The pages of a group that one sequence must be able to hold to reach `tokens` tokens, one at a time if need be."""
    whole = -(-tokens // PAGE_TOKENS)
    return whole if window is None else min(whole, -(-(window - 1) // PAGE_TOKENS) + 1)
