"""What happens to requests, as plain values, in the order in which it happened. Every request ends with exactly one `Ended`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shardwise.sched.step import Chosen

Finish = Literal["stop", "length", "abort"]
"""Why a continuation ended: an end token or a stop string, the limit of tokens, or the client's wish."""


@dataclass(frozen=True, slots=True)
class Emitted:
    """One more token of one of the continuations of `request`. `finish` is set on the last, an end token itself included."""

    request: int
    choice: int
    chosen: Chosen
    finish: Finish | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    """The log-probabilities of some more tokens of the prompt of `request`, in order. The first token has none."""

    request: int
    scores: tuple[Chosen, ...]


@dataclass(frozen=True, slots=True)
class Pooled:
    """The final hidden states of the prompt of `request`, pooled: float32 in little-endian order, the sum over `count` tokens.
    It comes once, before `Ended`."""

    request: int
    vector: bytes
    count: int


@dataclass(frozen=True, slots=True)
class Ended:
    """Nothing more comes of `request`. `error` says why where it failed, `asked` that it could not but fail, as what was asked
    for contradicts itself: its client can mend that. `unfit`: it could run when it came, and there are fewer ranks, or less
    memory, since. `prefilled` is how many tokens of its prompt were computed when it first ran, `cached` how many were found in
    the cache instead, `preempted` how often it started over."""

    request: int
    error: str | None = None
    prefilled: int = 0
    cached: int = 0
    preempted: int = 0
    asked: bool = False
    unfit: bool = False


Event = Emitted | Scored | Pooled | Ended
