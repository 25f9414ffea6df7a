"""A step as a value: what every rank computes next, and what comes back. Ranks turn it into tensors and decide nothing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pages:
    """The pages of one sequence in one cache group: `ids` hold its tokens from position `first`, a multiple of the page."""

    first: int
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Draw:
    """How to choose one token: numbers only, seed resolved. `choice` tells the n continuations of a request apart."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int
    choice: int = 0
    logprobs: int | None = None
    barred: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Item:
    """`tokens` of one request at positions `start`, start + 1, …; `known` is how many tokens the request has by now.

    `pages[g]` is its page table in cache group g. `draw` is set where the next token is to be chosen after the last one.
    `wants` is of how many of its last tokens the logits are wanted besides (scoring, prompt log-probabilities).
    """

    request: int
    tokens: tuple[int, ...]
    start: int
    known: int
    pages: tuple[Pages, ...]
    draw: Draw | None = None
    wants: int = 0

    @property
    def rows(self) -> int:
        """How many of its last tokens have their logits computed."""
        return max(self.wants, self.draw is not None)


@dataclass(frozen=True, slots=True)
class Step:
    """One forward over the tokens of all items."""

    number: int
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Chosen:
    """One chosen token: its log-probability before temperature, and the most likely others where they were asked for."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """What an item with a `draw` got: a token, or the reason why there is none."""

    request: int
    chosen: Chosen | None
    error: str | None = None
