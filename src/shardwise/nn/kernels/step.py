"""The small parts of a step, in torch and compiled: norms, and the gate of a feed-forward block."""

from __future__ import annotations

from typing import Protocol

import torch
from torch.nn import functional

from shardwise import native
from shardwise.nn.kernels.activations import ACTIVATIONS
from shardwise.nn.kernels.pool import Pool
from shardwise.nn.kernels.stored import STORED


class Step(Protocol):
    """What both offer. Tensors come back new; inputs stay as they were. Weights may be of fewer bits than x."""

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float) -> torch.Tensor:
        """x [..., size] over the root of its mean square, times `weight` [size] + `offset`: the same shape and dtype."""
        ...

    def layer_norm(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
        """x [..., size] less its mean, over its standard deviation, times `weight` [size], plus `bias` [size]: the same shape
        and dtype. `bias` has the dtype of `weight`."""
        ...

    def gated(self, activation: str, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """What `activation`, a name of ACTIVATIONS, makes of `gate`, times `up`, element by element."""
        ...

    def best(self, x: torch.Tensor) -> torch.Tensor:
        """The greatest number of each row of x [rows, size] in float32, and where it is, the first place if it is there more
        than once: float64 [rows, 2]. Minus infinity and 0 where there is none, NaN and 0 where one of a row is not finite."""
        ...


class TorchStep:
    """In torch: on any device, in any dtype, computed in float32 and rounded once."""

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float) -> torch.Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        return (wide * (weight.float() + offset)).to(x.dtype)

    def layer_norm(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
        return functional.layer_norm(x, weight.shape, weight.to(x.dtype), None if bias is None else bias.to(x.dtype), eps)

    def gated(self, activation: str, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return ACTIVATIONS[activation](gate) * up

    def best(self, x: torch.Tensor) -> torch.Tensor:
        if not x.shape[1]:
            return torch.tensor([-torch.inf, 0.0], dtype=torch.float64, device=x.device).repeat(len(x), 1)
        most = x.max(-1)
        finite = torch.isfinite(most.values) & torch.isfinite(x.amin(-1))
        return torch.stack((torch.where(finite, most.values, torch.nan).double(), most.indices * finite.double()), -1)


class NativeStep:
    """Compiled: float32 tensors of a CPU, weights of 32 or 16 bits."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        p, n, r, k = native.POINTER, native.WHOLE, native.REAL, native.NUMBER
        self._rms_norm = native.function("sw_rms_norm", p, p, p, k, p, n, n, r, r)
        self._layer_norm = native.function("sw_layer_norm", p, p, p, p, k, p, n, n, r)
        self._best = native.function("sw_greatest", p, p, p, n, n)
        self._silu_times = native.function("sw_silu_times", p, p, p, p, n)

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float) -> torch.Tensor:
        x, y = x.contiguous(), torch.empty(x.shape, dtype=torch.float32)
        size = x.shape[-1]
        rows = x.numel() // max(size, 1)
        stored = STORED[weight.dtype]
        self._rms_norm(self._pool.handle, x.data_ptr(), weight.data_ptr(), stored, y.data_ptr(), rows, size, eps, offset)
        return y

    def layer_norm(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
        x, y = x.contiguous(), torch.empty(x.shape, dtype=torch.float32)
        size = x.shape[-1]
        rows = x.numel() // max(size, 1)
        assert bias is None or bias.dtype == weight.dtype
        self._layer_norm(
            self._pool.handle,
            x.data_ptr(),
            weight.data_ptr(),
            None if bias is None else bias.data_ptr(),
            STORED[weight.dtype],
            y.data_ptr(),
            rows,
            size,
            eps,
        )
        return y

    def gated(self, activation: str, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        if activation != "silu":  # of the others, few models have any
            return ACTIVATIONS[activation](gate) * up
        gate, up = gate.contiguous(), up.contiguous()
        y = torch.empty_like(gate)
        self._silu_times(self._pool.handle, gate.data_ptr(), up.data_ptr(), y.data_ptr(), gate.numel())
        return y

    def best(self, x: torch.Tensor) -> torch.Tensor:
        x, y = x.contiguous(), torch.empty(len(x), 2, dtype=torch.float64)
        assert x.dtype is torch.float32
        self._best(self._pool.handle, x.data_ptr(), y.data_ptr(), len(x), x.shape[1])
        return y
