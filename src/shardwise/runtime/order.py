"""A logit and its id as one whole number, so that ids are ordered by comparing alone: larger logits first, and of equal ones
the lower id. Such numbers are unique in a row: the largest k of them are the same ones on every device and at every degree."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

COLUMNS = {"cpu": 2**17, "cuda": 2**24}
"""How many 64-bit numbers are made at a time: what a core's cache holds, or what keeps a GPU busy."""

LEAST = -(2**63)
"""Below the number of any logit and id."""

_LOW = 2**32 - 1


def pack(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """int64 of the same shape as logits (float32, no NaN), whose `ids` are below 2^32. Zero of either sign is one number."""
    return (_turned((logits + 0.0).view(torch.int32)).long() << 32).bitwise_or_(_LOW - ids)


def unpack(packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(logits, ids)."""
    return _turned((packed >> 32).int()).view(torch.float32), _LOW - (packed & _LOW)


def largest(packed: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` largest numbers of each row, in falling order; LEAST where a row has fewer."""
    held = min(count, packed.shape[1])
    found = packed.new_full((len(packed), count), LEAST)
    if held:
        found[:, :held] = packed.topk(held, -1).values
    return found


def likeliest(logits: torch.Tensor, ids: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` largest of logits [N, ids], packed, in falling order; LEAST where there are fewer."""
    packed = torch.empty(logits.shape if count else (len(logits), 0), dtype=torch.int64, device=logits.device)
    for part in stretches(packed):
        packed[:, part] = pack(logits[:, part], ids[part])
    return largest(packed, count)


def falling(packed: torch.Tensor) -> torch.Tensor:
    """Each row of packed [N, ids] in falling order. The numbers are unique, so no sort needs to be stable."""
    if packed.device.type != "cpu":
        return packed.sort(-1, descending=True).values
    # NumPy sorts whole numbers with vector instructions: nine times as fast as torch on one core.
    return torch.from_numpy(np.sort(packed.numpy(), -1)).flip(-1)


def stretches(x: torch.Tensor) -> Iterator[slice]:
    """The columns of x [N, columns], as many at a time as COLUMNS allows."""
    width = max(1, COLUMNS[x.device.type] // max(1, len(x)))
    yield from (slice(start, min(start + width, x.shape[1])) for start in range(0, x.shape[1], width))


def _turned(bits: torch.Tensor) -> torch.Tensor:
    """The bits of floats as integers of the same order, and back: negative floats grow downwards."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
