"""What one forward needs besides the tokens, as tensors; and one rank's place in the group."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from shardwise.comm.protocol import Comm
from shardwise.nn.kernels.kernels import Kernels
from shardwise.spec.layout import Layout
from shardwise.spec.mesh import Coords


@dataclass(frozen=True, slots=True)
class Rank:
    """One rank's world, made once and passed in: there is no module global and no default group.

    Activations are of `dtype`, float32 where the kernels are compiled; keys and values are kept as `kv_dtype`.
    """

    layout: Layout
    index: int
    comm: Comm
    device: torch.device
    dtype: torch.dtype
    kv_dtype: torch.dtype
    kernels: Kernels = field(default_factory=Kernels.reference)

    @property
    def at(self) -> Coords:
        return self.layout.mesh.coords(self.index)


@dataclass(frozen=True, slots=True)
class GroupBatch:
    """Where one cache group keeps what a batch of T tokens computes.

    slots [T]: where each token's key and value go, as page · PAGE_TOKENS + offset.
    begun [B]: the pages whose first token is among them. They are cleared: what a request before left there is masked, but
    a NaN or an infinity would come through, as 0 · NaN.
    """

    slots: torch.Tensor
    begun: torch.Tensor


@dataclass(frozen=True, slots=True)
class Reach:
    """What the S sequences of a segment, each of up to Q new tokens, see of one cache group.

    table [S, P]: the pages that each sequence reads.
    mask [S, 1, Q, P · PAGE_TOKENS]: True where a query may see a key. A query that only pads sees something too: a softmax
    over nothing has no value.
    """

    table: torch.Tensor
    mask: torch.Tensor


@dataclass(frozen=True, slots=True)
class Segment:
    """Sequences of a batch that are padded to one shape, because they are about equally long: rows [S, Q] is the index into T
    of each of their queries, padded with the first, and `reach` what these see of each cache group."""

    rows: torch.Tensor
    reach: tuple[Reach, ...]


Attend = Callable[[torch.Tensor, Reach], torch.Tensor]
"""Queries [S, Q, …] and what they see, to as many results [S, Q, …]."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A step's tokens laid out flat, sequence after sequence. T may be more than the step has: the last ones then only pad.

    positions [T], known [T]: each token's position, and how many tokens its request has by now (rope scaling asks).
    flat [T]: index of each token among the queries of all segments, laid one after another.
    drawn [D]: the rows of T after which tokens are drawn, padded with 0. scored [N]: those whose next token is given.
    """

    positions: torch.Tensor
    known: torch.Tensor
    flat: torch.Tensor
    drawn: torch.Tensor
    scored: torch.Tensor
    segments: tuple[Segment, ...]
    groups: tuple[GroupBatch, ...]

    def attended(self, q: torch.Tensor, group: int, attend: Attend) -> torch.Tensor:
        """`attend` on the queries of each segment, of q [T, …], and what it gives for each token: [T, …]."""
        seen = [attend(q[segment.rows], segment.reach[group]).flatten(0, 1) for segment in self.segments]
        return (torch.cat(seen) if len(seen) > 1 else seen[0])[self.flat]
