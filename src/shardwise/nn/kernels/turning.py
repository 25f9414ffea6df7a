"""How queries and keys are turned by their positions, in torch. Knows no positions: the angles are given."""

from __future__ import annotations

from dataclasses import dataclass

import torch

Angles = tuple[torch.Tensor, torch.Tensor]
"""cos and sin, each [tokens, 1, dim], in the dtype of the model, or in float32 where the rope is `wide`."""


@dataclass(frozen=True, slots=True)
class Turn:
    """By which angles heads are turned; `halves`: element i with i + dim / 2, and not with its neighbour."""

    angles: Angles
    halves: bool


def rotate(x: torch.Tensor, angles: Angles, halves: bool) -> torch.Tensor:
    """Rotates the first `dim` elements of each head; the rest of a head passes through. x: [tokens, heads, head dim]."""
    cos, sin = angles
    dim = cos.shape[-1]
    turned, rest = x[..., :dim], x[..., dim:]
    if halves:
        a, b = turned.chunk(2, -1)
        other = torch.cat((-b, a), -1)
    else:
        other = torch.stack((-turned[..., 1::2], turned[..., ::2]), -1).flatten(-2)
    turned = (turned * cos + other * sin).to(x.dtype)
    return torch.cat((turned, rest), -1) if rest.shape[-1] else turned
