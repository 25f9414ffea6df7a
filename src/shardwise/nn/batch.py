"""What one forward needs besides the tokens, as tensors; and one rank's place in the group."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from shardwise.comm.protocol import Comm
from shardwise.spec.layout import Layout
from shardwise.spec.mesh import Coords


@dataclass(frozen=True, slots=True)
class Rank:
    """One rank's world, made once and passed in: there is no module global and no default group."""

    layout: Layout
    index: int
    comm: Comm
    device: torch.device
    dtype: torch.dtype
    kv_dtype: torch.dtype

    @property
    def at(self) -> Coords:
        return self.layout.mesh.coords(self.index)


@dataclass(frozen=True, slots=True)
class GroupBatch:
    """One cache group's part of a batch of T tokens in S sequences of at most Q new tokens.

    slots [T]: where each token's key and value go, as page · PAGE_TOKENS + offset.
    begun [B]: the pages whose first token is among them. They are cleared: what a request before left there is masked, but
    a NaN or an infinity would come through, as 0 · NaN.
    table [S, P]: the pages that each sequence reads.
    mask [S, 1, Q, P · PAGE_TOKENS]: True where a query may see a key.
    """

    slots: torch.Tensor
    begun: torch.Tensor
    table: torch.Tensor
    mask: torch.Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """A step's tokens laid out flat, sequence after sequence.

    positions [T], known [T]: each token's position, and how many tokens its request has by now (rope scaling asks).
    rows [S, Q]: index into T of each sequence's queries, padded with 0. flat [T]: index of each token in S · Q.
    sampled [N]: the rows of T whose logits are computed.
    """

    positions: torch.Tensor
    known: torch.Tensor
    rows: torch.Tensor
    flat: torch.Tensor
    sampled: torch.Tensor
    groups: tuple[GroupBatch, ...]
