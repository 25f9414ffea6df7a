"""Products with weights of 8 and 4 bits, in torch and compiled. Activations are rounded to 8 bits as well, row by row and
group by group, so that the products are of whole numbers."""

from __future__ import annotations

from enum import IntEnum
from typing import Protocol

import torch
from torch.nn import functional

from shardwise import native
from shardwise.nn.kernels.packing import BITS, TILE, Packed, rows_of, unpack
from shardwise.nn.kernels.pool import Pool

TINY = 1e-30
"""Activations that are all smaller are taken as zeros: the inverse of their scale would not be finite."""

BLOCK_BYTES = 1 << 26
"""What torch's class may take for products that are not yet summed."""


class Sums(IntEnum):
    """How the products of groups are added up. NARROW: in float32. ROUNDED: in float64, rounded once, before a bias. WIDE: in
    float64, and the result is that, for a sum that goes on elsewhere. `native/quantised.cpp` counts these alike.

    A sum in float64 may be cut into parts: rounded in the end, it is the same float32 but for one in hundreds of millions. One
    in float32 is not, and its last bit decides how the next product rounds an activation to 8 bits."""

    NARROW = 0
    ROUNDED = 1
    WIDE = 2


class Quantised(Protocol):
    """What both offer. Tensors come back new; inputs stay as they were."""

    def linear(self, x: torch.Tensor, packed: Packed, bias: torch.Tensor | None, sums: Sums = Sums.NARROW) -> torch.Tensor:
        """x [..., columns] of float32 times the weight, plus `bias` [rows]: float32 [..., rows], or float64 as `sums` says. A
        row of x with a NaN or an infinity comes back as NaNs."""
        ...

    def rows(self, packed: Packed, ids: torch.Tensor) -> torch.Tensor:
        """The rows `ids` [T] of int64, all in 0..rows-1, of a packed table: float32 [T, columns]."""
        ...


def quantise_rows(x: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x [rows, columns] to q as float32 whole numbers [rows, groups, group] in -127..127, and scale float32 [rows, groups]."""
    rows, columns = x.shape
    grouped = functional.pad(x.float(), (0, -columns % group)).view(rows, -(-columns // group), group)
    most = grouped.abs().amax(-1)
    counts = most >= TINY
    # A tensor, for a number divided by a tensor is computed as the number times an inverse, which rounds twice.
    full = torch.full_like(most, 127.0)
    inverse = torch.where(counts, full / most, 0.0)
    scale = torch.where(most.isfinite(), torch.where(counts, most / full, 0.0), torch.nan)
    return (grouped * inverse[..., None]).round().nan_to_num(0.0), scale


class TorchQuantised:
    """In torch, on any device: the reference. Slow."""

    def linear(self, x: torch.Tensor, packed: Packed, bias: torch.Tensor | None, sums: Sums = Sums.NARROW) -> torch.Tensor:
        flat = x.reshape(-1, packed.columns)
        q, x_scale = quantise_rows(flat, packed.group)
        y = flat.new_empty(len(flat), packed.rows, dtype=torch.float64 if sums else torch.float32)
        groups = packed.weight.shape[1]
        tiles = max(BLOCK_BYTES // (4 * TILE * max(groups * max(len(flat), packed.group), 1)), 1)
        for first in range(0, len(packed.weight), tiles):
            part = _tiles(packed, first, tiles)
            start = first * TILE
            y[:, start : start + part.rows] = self._products(q, x_scale, part, y.dtype)
        if sums == Sums.ROUNDED:
            y = y.to(x.dtype)
        if bias is not None:
            y += bias
        y = y.view(*x.shape[:-1], packed.rows)
        return y if sums == Sums.WIDE else y.to(x.dtype)

    def _products(self, q: torch.Tensor, x_scale: torch.Tensor, packed: Packed, dtype: torch.dtype) -> torch.Tensor:
        """q [M, groups, group] times some tiles, summed in `dtype`: [M, rows]."""
        weights, scale = unpack(packed)
        groups = q.shape[1]
        padded = functional.pad(weights, (0, groups * packed.group - packed.columns)).float()
        # Whole numbers below 2^24: exact in float32, in any order.
        dots = torch.bmm(q.transpose(0, 1), padded.view(packed.rows, groups, packed.group).permute(1, 2, 0))
        scales, x_scale = scale.to(dtype), x_scale.to(dtype)
        total = q.new_zeros(len(q), packed.rows, dtype=dtype)
        for i in range(groups):
            total = torch.addcmul(total, dots[i].to(dtype), x_scale[:, i, None] * scales[None, :, i])
        return total

    def rows(self, packed: Packed, ids: torch.Tensor) -> torch.Tensor:
        return rows_of(packed, ids)


def _tiles(packed: Packed, first: int, count: int) -> Packed:
    """The tiles first..first+count-1 as a packed weight of their own."""
    rows = min(packed.rows - first * TILE, count * TILE)
    stop = first + count
    return Packed(packed.kind, packed.weight[first:stop], packed.scale[first:stop], rows, packed.columns, packed.group)


class NativeQuantised:
    """Compiled: float32 tensors of a CPU."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        p, n, i = native.POINTER, native.WHOLE, native.NUMBER
        self._linear = native.function("sw_quantised_linear", p, p, p, p, p, p, p, n, n, n, i, i, i)
        self._rows = native.function("sw_quantised_rows", p, p, p, p, n, n, n, i, i)
        self._room = native.function("sw_rounded_bytes", n, n, i, result=n)
        self._scratch = torch.empty(0, dtype=torch.uint8)

    def linear(self, x: torch.Tensor, packed: Packed, bias: torch.Tensor | None, sums: Sums = Sums.NARROW) -> torch.Tensor:
        x, m, columns = x.contiguous(), x.numel() // packed.columns, packed.columns
        y = torch.empty(*x.shape[:-1], packed.rows, dtype=torch.float64 if sums is Sums.WIDE else torch.float32)
        room = self._room(m, columns, packed.group)
        if len(self._scratch) < room:
            # Grown by halves, so that slowly growing batches do not ask anew each time.
            self._scratch = torch.empty(room + room // 2, dtype=torch.uint8)
        self._linear(
            self._pool.handle,
            x.data_ptr(),
            self._scratch.data_ptr(),
            packed.weight.data_ptr(),
            packed.scale.data_ptr(),
            None if bias is None else bias.data_ptr(),
            y.data_ptr(),
            m,
            packed.rows,
            columns,
            packed.group,
            BITS[packed.kind],
            sums,
        )
        return y

    def rows(self, packed: Packed, ids: torch.Tensor) -> torch.Tensor:
        ids = ids.contiguous()
        y = torch.empty(len(ids), packed.columns, dtype=torch.float32)
        self._rows(
            packed.weight.data_ptr(),
            packed.scale.data_ptr(),
            ids.data_ptr(),
            y.data_ptr(),
            len(ids),
            packed.rows,
            packed.columns,
            packed.group,
            BITS[packed.kind],
        )
        return y
