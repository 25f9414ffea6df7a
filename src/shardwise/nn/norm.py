"""RMS and layer norm. Computed in float32 and rounded once, as the models were trained."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

from shardwise.nn.batch import Rank
from shardwise.spec import blocks


class Norm(nn.Module):
    """[..., size] to the same shape and dtype."""

    def __init__(self, block: blocks.Norm, path: str, rank: Rank, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.eps = block.eps
        self.rms = block.kind == "rms"
        self.weight = tensors[f"{path}.weight"]
        self.bias = tensors[f"{path}.bias"] if block.bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.rms:
            return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)
