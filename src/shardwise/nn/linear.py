"""The linear layer, whole or cut. Where its input axis is cut its outputs are parts of a sum, and it reduces."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from shardwise.nn.batch import Rank
from shardwise.spec import blocks
from shardwise.spec.formats import Dense
from shardwise.spec.traffic import SITES


class Linear(nn.Module):
    """y = x · Wᵀ + b over this rank's part of W: [tokens, own inputs] to [tokens, own outputs]."""

    def __init__(self, block: blocks.Linear, path: str, rank: Rank, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        if not isinstance(block.format, Dense):
            raise NotImplementedError(f"{path}: format {block.format.name} is described but not computed yet")
        name = block.tied or f"{path}.weight"
        self.weight = tensors[name]
        cut = rank.layout.cut(block.inp)
        self.site = SITES[block.inp.cut] if block.inp.cut and cut and not block.partial else None
        # Of a sum that is finished elsewhere, the first rank's part alone has the bias.
        biased = block.bias and not (cut and block.partial and rank.at.tp)
        self.bias = tensors[f"{path}.bias"] if biased else None
        self.comm, self.dense = rank.comm, rank.kernels.dense

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.site is None:
            return self.dense.linear(x, self.weight, self.bias)
        y = self.comm.all_reduce(self.dense.linear(x, self.weight, None), site=self.site)
        # The bias is added once, to the finished sum; every rank holds all of it.
        return y if self.bias is None else y + self.bias
