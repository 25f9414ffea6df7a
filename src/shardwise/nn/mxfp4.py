"""MXFP4 to plain numbers, while weights are loaded. It knows the bits, not what a weight is.

Source: OCP Microscaling Formats (MX) Specification 1.0: E2M1 elements, the first of a pair in the low bits, and E8M0 scales.
"""

from __future__ import annotations

import torch

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""What the three low bits of an element stand for; the fourth is the sign."""

NUMBERS = torch.tensor([*E2M1, *(-n for n in E2M1)])
PAIRS = torch.stack((NUMBERS.repeat(16), NUMBERS.repeat_interleave(16)), 1)
"""The two numbers of every byte, [256, 2]."""

BIAS, NAN = 127, 255
"""A scale of b is 2^(b - BIAS); the last one is not a number."""


def unpack_mxfp4(blocks: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """blocks [..., groups, bytes] and scales [..., groups], both uint8, to [..., groups · 2 · bytes] on the CPU."""
    pairs = PAIRS.index_select(0, blocks.reshape(-1).int())
    numbers = pairs.view(*scales.shape, -1)  # [..., groups, 2 · bytes], float32
    steps = torch.where(scales == NAN, torch.nan, torch.exp2(scales.double() - BIAS)).float()
    return (numbers * steps[..., None]).flatten(-2).to(dtype)
