"""The numbers that bound a scheduler, and how many pages a sequence can come to hold."""

from __future__ import annotations

from dataclasses import dataclass

from shardwise.spec.layout import PAGE_TOKENS


@dataclass(frozen=True, slots=True)
class Limits:
    """`tokens` and `sequences` are the most of one step, `flight` the steps that may be under way at once.

    A sequence that was preempted `preemptions` times is not preempted again. `turns`: a sequence that grows beyond such a
    length is computed anew, because its keys are turned by other angles then (longrope). `shared`: keys of positions from
    there on depend on when they were computed, and are nobody else's (rope that scales with every token); None is nowhere.
    `prefixes`: whether known prefixes are looked up.
    """

    tokens: int
    sequences: int
    flight: int = 2
    preemptions: int = 3
    turns: tuple[int, ...] = ()
    shared: int | None = None
    prefixes: bool = True

    def __post_init__(self) -> None:
        for name in ("tokens", "sequences", "flight", "preemptions"):
            assert getattr(self, name) >= 1, name


def peak_pages(window: int | None, tokens: int) -> int:
    """The pages of a group that one sequence must be able to hold to reach `tokens` tokens, one at a time if need be."""
    whole = -(-tokens // PAGE_TOKENS)
    return whole if window is None else min(whole, -(-(window - 1) // PAGE_TOKENS) + 1)
