"""A product with a rank's part of one weight, whichever way its numbers are held: as plain ones, or packed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

from shardwise.nn.batch import Rank
from shardwise.nn.kernels import dense as kernels
from shardwise.nn.kernels.packing import Packed
from shardwise.nn.kernels.quantised import Quantised, Sums
from shardwise.spec import blocks
from shardwise.spec.axes import Axis
from shardwise.spec.formats import Dense, Format, Grouped

Tensors = Mapping[str, torch.Tensor]


class Product(Protocol):
    """x [..., own inputs] · Wᵀ + `bias` [own outputs]: [..., own outputs], of float64 where a wide linear's sum goes on."""

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor: ...


class DenseProduct:
    """With plain numbers: weight [own outputs, own inputs]."""

    def __init__(self, weight: torch.Tensor, dense: kernels.Dense) -> None:
        self.weight, self.dense = weight, dense

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return self.dense.linear(x, self.weight, bias)


class PackedProduct:
    """With a quantised weight."""

    def __init__(self, packed: Packed, quantised: Quantised, sums: Sums) -> None:
        self.packed, self.quantised, self.sums = packed, quantised, sums

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if self.packed.rows and self.packed.columns:
            return self.quantised.linear(x, self.packed, None if bias is None else bias.float(), self.sums)
        # Nothing to multiply: a sum over no inputs, or no outputs.
        dtype = torch.float64 if self.sums is Sums.WIDE else x.dtype
        y = x.new_zeros(*x.shape[:-1], self.packed.rows, dtype=dtype)
        return y if bias is None else y + bias


def product(linear: blocks.Linear, name: str, rank: Rank, tensors: Tensors) -> Product:
    """The product with the weight `name` of `linear`."""
    _check(linear, name)
    if (held := packed(linear.format, name, rank, (linear.out, linear.inp), tensors)) is None:
        return DenseProduct(tensors[name], rank.kernels.dense)
    return PackedProduct(held, rank.kernels.quantised, _sums(linear, rank))


def products(linear: blocks.Linear, name: str, rank: Rank, tensors: Tensors) -> tuple[Product, ...]:
    """The same for each of a rank's own experts, of the stack `name`."""
    _check(linear, name)
    whole = packed(linear.format, name, rank, (linear.out, linear.inp), tensors)
    if whole is None:
        return tuple(DenseProduct(weight, rank.kernels.dense) for weight in tensors[name])
    each = zip(whole.weight, whole.scale, strict=True)
    own = (Packed(whole.kind, weight, scale, whole.rows, whole.columns, whole.group) for weight, scale in each)
    return tuple(PackedProduct(one, rank.kernels.quantised, _sums(linear, rank)) for one in own)


def packed(form: Format, name: str, rank: Rank, axes: tuple[Axis, Axis], tensors: Tensors) -> Packed | None:
    """This rank's part of the quantised weight `name` of axes (outputs, inputs); None where `form` is a dense one."""
    if not isinstance(form, Grouped):
        return None
    rows, columns = (len(rank.layout.span(axis, rank.at)) for axis in axes)
    return Packed(form.kind, tensors[name], tensors[f"{name}_scale"], rows, columns, form.size)


def _sums(linear: blocks.Linear, rank: Rank) -> Sums:
    """A wide linear's sum goes on where this rank has a part of it, or a block above adds more to it."""
    if not linear.wide:
        return Sums.NARROW
    return Sums.WIDE if linear.partial or rank.layout.cut(linear.inp) else Sums.ROUNDED


def _check(linear: blocks.Linear, name: str) -> None:
    if not isinstance(linear.format, Dense | Grouped):
        raise NotImplementedError(
            f"{name.removesuffix('.weight')}: format {linear.format.name} is described but not computed yet"
        )
