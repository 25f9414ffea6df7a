"""How numbers are kept in the cache: as floats of some width, or as int8 with a float32 scale for each token and head."""

from __future__ import annotations

import torch

from shardwise.spec.layout import SCALE_BYTES

LEAST = 1e-30
"""Where no number of a head is greater, all are kept as 0: the inverse of its scale would be none."""


def keep(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """x [..., dim] as the cache keeps it: in `dtype`, and for int8 [..., dim + SCALE_BYTES].

    Each head's scale is its greatest magnitude / 127, so a number comes back within half of that. A head with a NaN or an
    infinity comes back as NaN.
    """
    if dtype != torch.int8:
        return x.to(dtype)
    wide = x.float()
    peak = wide.abs().amax(-1, keepdim=True)
    peak = torch.where(peak.isfinite(), peak, torch.nan)
    factor = torch.where(peak > LEAST, 127 / peak, 0.0)
    numbers = (wide * factor).round().clamp(-127, 127)
    numbers = torch.where(peak.isfinite(), numbers, 0.0).to(torch.int8)
    return torch.cat((numbers, (peak / 127).contiguous().view(torch.int8)), -1)


def as_floats(kept: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What `keep` made of numbers as numbers again, in `dtype`."""
    if kept.dtype != torch.int8:
        return kept.to(dtype)
    # A copy: where it begins in memory must be a multiple of its size.
    scale = kept[..., -SCALE_BYTES:].clone(memory_format=torch.contiguous_format).view(torch.float32)
    return (kept[..., :-SCALE_BYTES].float() * scale).to(dtype)
