"""Which keys the queries of a step see, in two forms: numbers for kernels that read pages in place, and padded tables with
masks for those that gather them. Masks are made when they are asked for. Knows no layer and no head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch

from shardwise.spec.layout import PAGE_TOKENS


@dataclass(frozen=True)
class Queries:
    """The queries of S sequences, padded to `width` of each: on the device each one's count of them, first row of the batch and
    first position, [S]."""

    counts: torch.Tensor
    offsets: torch.Tensor
    starts: torch.Tensor
    width: int

    @cached_property
    def _at(self) -> torch.Tensor:
        """Which of its sequence's each query is, [S, Q]. A padded one looks from the first token's place: it must see
        something, or its softmax would divide by zero."""
        at = torch.arange(self.width, device=self.counts.device)
        return torch.where(at < self.counts[:, None], at, 0)

    @cached_property
    def rows(self) -> torch.Tensor:
        """[S, Q]: the row of the batch that each query is; padded ones are the first."""
        return self.offsets[:, None] + self._at

    @cached_property
    def positions(self) -> torch.Tensor:
        """[S, Q]."""
        return self.starts[:, None] + self._at


@dataclass(frozen=True)
class Reach:
    """What the S sequences of a segment, each of up to Q new tokens, see of one cache group.

    table [S, P]: the pages that each sequence reads. first [S]: the position at which its table begins.
    window: how far back a query sees, itself included, or None; `chunked`: not so far, but to the last multiple of it.
    """

    table: torch.Tensor
    first: torch.Tensor
    queries: Queries
    window: int | None
    chunked: bool

    @cached_property
    def mask(self) -> torch.Tensor:
        """[S, 1, Q, P · PAGE_TOKENS]: True where a query may see a key. A query that only pads sees something too: a softmax
        over nothing has no value."""
        places = torch.arange(self.table.shape[1] * PAGE_TOKENS, device=self.first.device)
        keys = (self.first[:, None] + places)[:, None, None]
        queries = self.queries.positions[:, None, :, None]
        mask = keys <= queries
        if self.window is not None:
            # Chunks begin anew for all at once, windows slide along.
            seen = queries // self.window * self.window if self.chunked else queries - self.window + 1
            mask &= keys >= seen
        return mask


@dataclass(frozen=True, slots=True)
class Segment:
    """Sequences of a batch that are padded to one shape, because they are about equally long, and what their queries see of
    each cache group."""

    queries: Queries
    reach: tuple[Reach, ...]

    @property
    def rows(self) -> torch.Tensor:
        """[S, Q]: the index into T of each of their queries."""
        return self.queries.rows


@dataclass(frozen=True, slots=True)
class Tables:
    """The same of one cache group as plain numbers in the host's memory, int64; nothing is padded.

    sequences [B, 5]: of each sequence its first row of the batch, its count of rows, their first position, the position at
    which its table begins, and where in `pages` that is. tokens: the rows of all. `window` and `chunked` as in `Reach`.
    """

    sequences: torch.Tensor
    pages: torch.Tensor
    tokens: int
    window: int | None
    chunked: bool


Attend = Callable[[torch.Tensor, Reach], torch.Tensor]
"""Queries [S, Q, …] and what they see, to as many results [S, Q, …]."""


@dataclass(frozen=True, slots=True)
class GroupBatch:
    """Where cache group `group` keeps what a batch of T tokens computes, and what these see of it.

    slots [T]: where each token's key and value go, as page · PAGE_TOKENS + offset.
    begun [B]: the pages whose first token is among them. Who gathers pages clears them: what a request before left there is
    masked, but a NaN or an infinity would come through, as 0 · NaN.
    flat [T]: index of each token among the queries of all segments, laid one after another.
    """

    group: int
    slots: torch.Tensor
    begun: torch.Tensor
    flat: torch.Tensor
    segments: tuple[Segment, ...]
    tables: Tables

    def attended(self, q: torch.Tensor, attend: Attend) -> torch.Tensor:
        """`attend` on the queries of each segment, of q [T, …], and what it gives for each token: [T, …]."""
        found = [attend(q[segment.rows], segment.reach[self.group]).flatten(0, 1) for segment in self.segments]
        return (torch.cat(found) if len(found) > 1 else found[0])[self.flat]
