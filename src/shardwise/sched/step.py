"""A step as a value: what every rank computes next, and what comes back. Ranks turn it into tensors and decide nothing.

A step travels as two messages: the forward (`Step`) as soon as it is planned, and how to choose its tokens (`Draw`s), which
may have to wait for tokens of the step before. Steps are computed in the order of their numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SCRATCH = 0
"""The page that no sequence ever holds: rows that only pad a batch read and write it."""


Pool = Literal["", "mean", "last"]
"""What is wanted of an item's final hidden states: nothing, their sum over its tokens, or that of its last token."""


@dataclass(frozen=True, slots=True)
class Pages:
    """The pages of one sequence in one cache group: `ids` hold its tokens from position `first`, a multiple of the page."""

    first: int
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Item:
    """The next tokens of one sequence, at positions `start`, `start` + 1, …

    `tokens` are their ids; or `source` is the number of an earlier step, and the one token is what that step draws for this
    sequence (it has not reached the host yet). `known` is how many tokens the sequence had when it was begun or turned by
    other angles: rope scaling by length asks.
    `pages[g]` is its page table in cache group g. `targets` are the ids whose log-probabilities are wanted: the last
    `len(targets)` tokens that are not drawn after are followed by them. `top` of the likeliest ids come with each.
    `drawn` are the sequences that continue after the last token: this one, or all n choices of a request. The last `drafts`
    tokens are guesses: one token is drawn after each of them too, and kept as long as the guesses were right.
    `pool`: which of its hidden states are wanted, instead of draws and targets.
    """

    sequence: int
    tokens: tuple[int, ...]
    start: int
    known: int
    pages: tuple[Pages, ...]
    source: int | None = None
    targets: tuple[int, ...] = ()
    top: int = 0
    drawn: tuple[int, ...] = ()
    drafts: int = 0
    pool: Pool = ""

    @property
    def count(self) -> int:
        """How many tokens it computes."""
        return len(self.tokens) if self.source is None else 1

    @property
    def rows(self) -> int:
        """How many of its last tokens have their logits computed: first those of `targets`, then those drawn after."""
        return len(self.targets) + (1 + self.drafts if self.drawn else 0)


@dataclass(frozen=True, slots=True)
class Step:
    """One forward over the tokens of all items, after the pages in `copies[g]`, as (from, to), were copied in group g."""

    number: int
    items: tuple[Item, ...]
    copies: tuple[tuple[tuple[int, int], ...], ...] = ()

    @property
    def tokens(self) -> int:
        return sum(item.count for item in self.items)


@dataclass(frozen=True, slots=True)
class Edit:
    """How the logits of one row are changed before a token is chosen. Empty parts change nothing.

    Penalties as vLLM has them: `repetition` divides (or multiplies, below zero) the logits of every id in `seen`;
    `frequency` times its count and `presence` once are subtracted from each id in `written`, as (id, count). Then `bias` is
    added, and at last ids in `barred`, or outside of `allowed` or `mask` where these are given, are excluded. `mask` has a bit
    for each id: id i is allowed if bit i % 8, from the lowest, of byte i // 8 is set; ids beyond it are not.
    """

    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    seen: tuple[int, ...] = ()
    written: tuple[tuple[int, int], ...] = ()
    bias: tuple[tuple[int, float], ...] = ()
    barred: tuple[int, ...] = ()
    allowed: tuple[int, ...] | None = None
    mask: bytes | None = None


@dataclass(frozen=True, slots=True)
class Draw:
    """How to choose the next token of `sequence`: numbers only, seed resolved. `choice` tells the n continuations apart.

    `temperature` 0 is greedy; `top_k` 0 or less is all. `logprobs` n: the n likeliest ids come with the chosen one; or the ids
    that are `named`, where there are some.
    """

    sequence: int
    temperature: float
    seed: int
    choice: int = 0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    logprobs: int | None = None
    edit: Edit | None = None
    named: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Chosen:
    """One token at its place: its log-probability before temperature and edits, its rank among all ids (1 is the
    likeliest), and in `top` the likeliest ids, or those that were named, where they were asked for. `rank` 0 and `logprob` 0
    where nobody asked."""

    token: int
    logprob: float = 0.0
    rank: int = 0
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """What a step made for one sequence: the tokens drawn (more than one where guesses were right), the scores of its
    item's `targets`, or the reason why there is nothing. `pooled`: the hidden state after the final norm that its item's `pool`
    asks for, float32 in little-endian order; of "mean" the sum over the item's tokens."""

    sequence: int
    tokens: tuple[Chosen, ...] = ()
    scores: tuple[Chosen, ...] = ()
    error: str | None = None
    pooled: bytes = b""
