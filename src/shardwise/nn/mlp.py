"""The feed-forward block, gated or plain."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from shardwise.nn.batch import Rank
from shardwise.nn.joined import gated, joined
from shardwise.nn.kernels.activations import ACTIVATIONS
from shardwise.nn.linear import Linear
from shardwise.nn.norm import Norm
from shardwise.nn.state import State
from shardwise.spec import blocks


class MLP:
    """[tokens, hidden] to [tokens, hidden] over this rank's rows."""

    def __init__(self, block: blocks.MLP, path: str, rank: Rank, tensors: Mapping[str, torch.Tensor]) -> None:
        self.gate = Linear(block.gate, f"{path}.{block.gate.name}", rank, tensors) if block.gate else None
        self.up = Linear(block.up, f"{path}.{block.up.name}", rank, tensors)
        self.down = Linear(block.down, f"{path}.{block.down.name}", rank, tensors)
        self.activation = block.activation
        self.kernels, self.comm = rank.kernels, rank.comm
        self.out = gated(self.down.part, self.activation, rank.kernels)
        self.after(None)

    def after(self, norm: Norm | None) -> None:
        """From here on x comes as it is before this norm."""
        ways_in = [self.up] if self.gate is None else [self.gate, self.up]
        self.ways_in = joined([linear.part for linear in ways_in], self.kernels, norm)

    def __call__(self, x: torch.Tensor, state: State) -> torch.Tensor:
        x = self.comm.enter(x, site="mlp_in")
        if self.gate is None:
            return self.down(ACTIVATIONS[self.activation](self.ways_in(x)[0]))
        return self.down.finished(self.out(*self.ways_in(x))[0], x.dtype)
