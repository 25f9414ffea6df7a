"""What one forward needs besides the tokens, as tensors; and one rank's place in the group."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from shardwise.comm.protocol import Comm
from shardwise.comm.ticking import Silent, Ticks
from shardwise.nn.kernels.kernels import Kernels
from shardwise.nn.reach import GroupBatch, Segment
from shardwise.spec.layout import Layout
from shardwise.spec.mesh import Coords


@dataclass(frozen=True, slots=True)
class Rank:
    """One rank's world, made once and passed in: there is no module global and no default group.

    Activations are of `dtype`, float32 where the kernels are compiled; keys and values are kept as `kv_dtype`. `pulse` is told
    where the rank stands.
    """

    layout: Layout
    index: int
    comm: Comm
    device: torch.device
    dtype: torch.dtype
    kv_dtype: torch.dtype
    kernels: Kernels = field(default_factory=Kernels.reference)
    pulse: Ticks = field(default_factory=Silent)

    @property
    def at(self) -> Coords:
        return self.layout.mesh.coords(self.index)


@dataclass(frozen=True, slots=True)
class Batch:
    """A step's tokens laid out flat, sequence after sequence. T may be more than the step has: the last ones then only pad.

    positions [T], known [T]: each token's position, and how many tokens its request has by now (rope scaling asks).
    flat [T]: index of each token among the queries of all segments, laid one after another.
    segments: none where no layer gathers pages; `flat` then means nothing.
    drawn [D]: the rows of T after which tokens are drawn, padded with 0. scored [N]: those whose next token is given.
    """

    positions: torch.Tensor
    known: torch.Tensor
    flat: torch.Tensor
    drawn: torch.Tensor
    scored: torch.Tensor
    segments: tuple[Segment, ...]
    groups: tuple[GroupBatch, ...]
