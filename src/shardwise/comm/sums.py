"""The one sum of the backends that add up on the host: in rank order, so that all ranks hold the same bits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# A 16-bit sum is carried in float32 and rounded once; rounding at every rank would lose about a bit for each of them.
_CARRIED_IN = {torch.bfloat16: torch.float32, torch.float16: torch.float32}


def rank_order_sum(parts: Sequence[Tensor]) -> Tensor:
    """((parts[0] + parts[1]) + parts[2]) + ..., all of one shape and dtype; a new tensor of that dtype.

    Integers are exact, modulo the range of their dtype.
    """
    dtype = parts[0].dtype
    if len(parts) == 1:
        return parts[0].clone(memory_format=torch.contiguous_format)
    if len(parts) == 2:  # torch adds two 16-bit floats in float32 and rounds once: the same bits in one pass
        return torch.add(parts[0], parts[1]).contiguous()
    total = parts[0].to(_CARRIED_IN.get(dtype, dtype), copy=True, memory_format=torch.contiguous_format)
    for part in parts[1:]:
        total += part
    return total.to(dtype)
