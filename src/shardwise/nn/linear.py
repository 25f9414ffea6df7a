"""The linear layer, whole or cut. Where its input axis is cut its outputs are parts of a sum, and it reduces."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from shardwise.nn.batch import Rank
from shardwise.nn.joined import joined
from shardwise.nn.product import Product, product
from shardwise.spec import blocks
from shardwise.spec.traffic import SITES


class Linear:
    """y = x · Wᵀ + b over this rank's part of W: [tokens, own inputs] to [tokens, own outputs]; float64 of a wide and
    partial one."""

    def __init__(self, block: blocks.Linear, path: str, rank: Rank, tensors: Mapping[str, torch.Tensor]) -> None:
        name = block.tied or f"{path}.weight"
        self.product = product(block, name, rank, tensors)
        self.weight = tensors[name]
        cut = rank.layout.cut(block.inp)
        self.site = SITES[block.inp.cut] if block.inp.cut and cut and not block.partial else None
        self.wide = block.wide
        # Of a sum that is finished elsewhere, the first rank's part alone has the bias.
        biased = block.bias and not (cut and block.partial and rank.at.tp)
        self.bias = tensors[f"{path}.bias"] if biased else None
        self.comm = rank.comm
        self.joined = joined([self.part], rank.kernels)

    @property
    def part(self) -> tuple[Product, torch.Tensor | None]:
        """What is multiplied, and the bias as far as it is this product's own. `finished` makes the linear of it."""
        return self.product, self.bias if self.site is None else None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if x.dim() == 2:
            return self.finished(self.joined(x)[0], x.dtype)
        return self.finished(self.product(x, self.part[1]), x.dtype)

    def finished(self, y: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """What `part` gave, summed over ranks where it is cut: of `dtype`, or as it is where the sum goes on elsewhere."""
        if self.site is None:
            return y
        y = self.comm.all_reduce(y, site=self.site, dtype=dtype if self.wide else None)
        # The bias is added once, to the finished sum; every rank holds all of it.
        return y if self.bias is None else y + self.bias
