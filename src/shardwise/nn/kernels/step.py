"""The small parts of a step, in torch and compiled: norms."""

from __future__ import annotations

from typing import Protocol

import torch

from shardwise import native
from shardwise.nn.kernels.pool import Pool


class Step(Protocol):
    """What both offer. Tensors come back new; inputs stay as they were."""

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float) -> torch.Tensor:
        """x [..., size] over the root of its mean square, times `weight` [size] + `offset`: the same shape and dtype."""
        ...


class TorchStep:
    """In torch: on any device, in any dtype, computed in float32 and rounded once."""

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float) -> torch.Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        return (wide * (weight.float() + offset)).to(x.dtype)


class NativeStep:
    """Compiled: float32 tensors of a CPU."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        p, n, r = native.POINTER, native.WHOLE, native.REAL
        self._rms_norm = native.function("sw_rms_norm", p, p, p, p, n, n, r, r)

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float) -> torch.Tensor:
        x, y = x.contiguous(), torch.empty(x.shape, dtype=torch.float32)
        size = x.shape[-1]
        self._rms_norm(
            self._pool.handle, x.data_ptr(), weight.data_ptr(), y.data_ptr(), x.numel() // max(size, 1), size, eps, offset
        )
        return y
