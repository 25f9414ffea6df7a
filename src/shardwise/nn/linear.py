"""The linear layer, whole or cut. Where its input axis is cut its outputs are parts of a sum, and it reduces."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

from shardwise.nn.batch import Rank
from shardwise.nn.kernels.packing import Packed
from shardwise.spec import blocks
from shardwise.spec.axes import Axis
from shardwise.spec.formats import Dense, Format, Grouped
from shardwise.spec.traffic import SITES


class Linear(nn.Module):
    """y = x · Wᵀ + b over this rank's part of W: [tokens, own inputs] to [tokens, own outputs]."""

    def __init__(self, block: blocks.Linear, path: str, rank: Rank, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        if not isinstance(block.format, Dense | Grouped):
            raise NotImplementedError(f"{path}: format {block.format.name} is described but not computed yet")
        name = block.tied or f"{path}.weight"
        self.weight = tensors[name]
        self.packed = packed(block.format, name, rank, (block.out, block.inp), tensors)
        self.quantised = rank.kernels.quantised
        cut = rank.layout.cut(block.inp)
        self.site = SITES[block.inp.cut] if block.inp.cut and cut and not block.partial else None
        # Of a sum that is finished elsewhere, the first rank's part alone has the bias.
        biased = block.bias and not (cut and block.partial and rank.at.tp)
        self.bias = tensors[f"{path}.bias"] if biased else None
        self.comm = rank.comm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.site is None:
            return self._product(x, self.bias)
        y = self.comm.all_reduce(self._product(x, None), site=self.site)
        # The bias is added once, to the finished sum; every rank holds all of it.
        return y if self.bias is None else y + self.bias

    def _product(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x · Wᵀ, with `bias` added where it is given."""
        if self.packed is None:
            return functional.linear(x, self.weight, bias)
        if self.packed.rows and self.packed.columns:
            return self.quantised.linear(x, self.packed, bias)
        # Nothing to multiply: a sum over no inputs, or no outputs.
        y = x.new_zeros(*x.shape[:-1], self.packed.rows)
        return y if bias is None else y + bias


def packed(form: Format, name: str, rank: Rank, axes: tuple[Axis, Axis], tensors: Mapping[str, torch.Tensor]) -> Packed | None:
    """This rank's part of the quantised weight `name` of axes (outputs, inputs); None where `form` is a dense one."""
    if not isinstance(form, Grouped):
        return None
    rows, columns = (len(rank.layout.span(axis, rank.at)) for axis in axes)
    return Packed(form.kind, tensors[name], tensors[f"{name}_scale"], rows, columns, form.size)
