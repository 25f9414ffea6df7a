"""Products with weights that are stored as plain numbers, in torch and compiled."""

from __future__ import annotations

from typing import Protocol

import torch
from torch.nn import functional

from shardwise import native
from shardwise.nn.kernels.pool import Pool
from shardwise.nn.kernels.stored import STORED


class Dense(Protocol):
    """What both offer. Weights may be of fewer bits than x; what comes back has the dtype of x."""

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x [..., inputs] · weightᵀ [outputs, inputs] + bias [outputs]: [..., outputs]."""
        ...

    def by_head(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """x [tokens, heads, inputs], times each head's own matrix of weight [heads, inputs, outputs]: [tokens, heads, outputs].
        One of the weight's last two axes is contiguous, and its matrices are without gaps."""
        ...


class TorchDense:
    """In torch: on any device, in any dtype."""

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return functional.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    def by_head(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.bmm(x.transpose(0, 1), weight.to(x.dtype)).transpose(0, 1)


class NativeDense:
    """Compiled: float32 tensors of a CPU, weights of 32 or 16 bits. An element has the same bits however many rows, outputs
    and threads there are."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        p, n, k = native.POINTER, native.WHOLE, native.NUMBER
        self._linear = native.function("sw_linear", p, p, p, k, p, k, p, n, n, n)
        self._by_head = native.function("sw_by_head", p, p, p, k, n, k, p, n, n, n, n)

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        outputs, inputs = weight.shape
        x = x.contiguous()
        assert x.dtype == torch.float32 and x.shape[-1] == inputs and weight.is_contiguous()
        y = torch.empty(*x.shape[:-1], outputs)
        self._linear(
            self._pool.handle,
            x.data_ptr(),
            weight.data_ptr(),
            STORED[weight.dtype],
            None if bias is None else bias.data_ptr(),
            0 if bias is None else STORED[bias.dtype],
            y.data_ptr(),
            x.shape[:-1].numel(),
            inputs,
            outputs,
        )
        return y

    def by_head(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        heads, inputs, outputs = weight.shape
        x = x.contiguous()
        # A matrix of one row, or one column, lies both ways round.
        turned = weight.stride(2) == 1 or weight.stride(1) != 1
        assert x.dtype == torch.float32 and x.shape[1:] == (heads, inputs)
        assert not weight.numel() or weight[0].is_contiguous() or weight[0].T.is_contiguous()
        y = torch.empty(len(x), heads, outputs)
        self._by_head(
            self._pool.handle,
            x.data_ptr(),
            weight.data_ptr(),
            STORED[weight.dtype],
            weight.stride(0),
            turned,
            y.data_ptr(),
            len(x),
            heads,
            inputs,
            outputs,
        )
        return y
