"""Products that share an input, with the norm or the gate before them: one call where the kernels can, one by one where not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from shardwise.nn.kernels.joint import Before, Gated, Term
from shardwise.nn.kernels.kernels import Kernels
from shardwise.nn.norm import Norm
from shardwise.nn.product import DenseProduct, PackedProduct, Product
from shardwise.spec.moe import ClampedSwiglu

Part = tuple[Product, torch.Tensor | None]
"""A product and its bias."""

Joined = Callable[..., Sequence[torch.Tensor]]
"""x [rows, inputs], and beside it `up` where a gate is before, to the result of each product."""


def joined(parts: Sequence[Part], kernels: Kernels, norm: Norm | None = None) -> Joined:
    """Several products of `norm` of x, or of x itself."""
    before = norm.described() if norm is not None else None
    if (norm is None or before is not None) and (joint := _joint(parts, kernels, before)) is not None:
        return joint

    def one_by_one(x: torch.Tensor) -> Sequence[torch.Tensor]:
        x = x if norm is None else norm(x)
        return [product(x, bias) for product, bias in parts]

    return one_by_one


def gated(part: Part, activation: str | ClampedSwiglu, kernels: Kernels) -> Joined:
    """A product of what an activation makes of a gate x and of `up`."""
    if activation == "silu" and (joint := _joint([part], kernels, Gated())) is not None:
        return joint
    product, bias = part
    if isinstance(activation, ClampedSwiglu):
        return lambda x, up: [product(_clamped(activation, x, up), bias)]
    return lambda x, up: [product(kernels.step.gated(activation, x, up), bias)]


def _clamped(of: ClampedSwiglu, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    gate, up = gate.clamp(max=of.limit), up.clamp(-of.limit, of.limit)
    return (up + 1) * (gate * torch.sigmoid(gate * of.alpha))


def _joint(parts: Sequence[Part], kernels: Kernels, before: Before) -> Joined | None:
    if kernels.joints is None:
        return None
    terms = [_term(*part) for part in parts]
    known = [term for term in terms if term is not None]
    return kernels.joints.joint(known, before) if len(known) == len(terms) else None


def _term(product: Product, bias: torch.Tensor | None) -> Term | None:
    if isinstance(product, PackedProduct):
        return Term(product.packed, bias, product.sums)
    return Term(product.weight, bias) if isinstance(product, DenseProduct) else None
