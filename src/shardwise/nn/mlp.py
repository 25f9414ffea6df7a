"""The feed-forward block, gated or plain."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import nn
from torch.nn import functional

from shardwise.nn.batch import Rank
from shardwise.nn.linear import Linear
from shardwise.nn.state import State
from shardwise.spec import blocks

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
}


class MLP(nn.Module):
    """[tokens, hidden] to [tokens, hidden] over this rank's rows."""

    def __init__(self, block: blocks.MLP, path: str, rank: Rank, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.gate = Linear(block.gate, f"{path}.{block.gate.name}", rank, tensors) if block.gate else None
        self.up = Linear(block.up, f"{path}.{block.up.name}", rank, tensors)
        self.down = Linear(block.down, f"{path}.{block.down.name}", rank, tensors)
        self.activation = ACTIVATIONS[block.activation]
        self.comm = rank.comm

    def forward(self, x: torch.Tensor, state: State) -> torch.Tensor:
        x = self.comm.enter(x, site="mlp_in")
        if self.gate is None:
            return self.down(self.activation(self.up(x)))
        return self.down(self.activation(self.gate(x)) * self.up(x))
