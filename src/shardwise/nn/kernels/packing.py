"""Weights of 8 and 4 bits as they lie in memory: rounded in groups along the inputs, sixteen outputs side by side.

The order is that in which one instruction multiplies sixteen outputs by four inputs each. Knows no product.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from shardwise import native
from shardwise.nn.kernels.pool import Pool
from shardwise.nn.kernels.stored import STORED

BITS = {"int8": 8, "int4": 4}
TILE = 16
"""Rows that lie side by side; the last tile may hold fewer, and zeros."""

BLOCK_ELEMENTS = 1 << 20
"""How many weights are rounded at a time: some MiB of float32 beside the packed ones."""


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """The weight of a linear with `rows` outputs and `columns` inputs, rounded in groups of `group` inputs; usually views
    into a rank's arena.

    weight: uint8 [ceil(rows/16), ceil(columns/group), 16·group·bits/8], a tile and group being, of int8, [group/4][16 rows][4
    inputs] bytes q + 128 with q in -127..127, and of int4 [group/8][16][4] bytes: the low nibbles four inputs, the high
    nibbles the next four, q + 8 with q in -8..7. scale: float16 [ceil(rows/16), ceil(columns/group), 16]; a weight is
    q · scale. What is beyond the last row or input is q = 0.
    """

    kind: str
    weight: torch.Tensor
    scale: torch.Tensor
    rows: int
    columns: int
    group: int


def packed_shapes(kind: str, rows: int, columns: int, group: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of `Packed.weight` (uint8) and of `Packed.scale` (float16)."""
    tiles, groups = -(-rows // TILE), -(-columns // group)
    return (tiles, groups, TILE * group * BITS[kind] // 8), (tiles, groups, TILE)


def empty(kind: str, rows: int, columns: int, group: int) -> Packed:
    """A packed weight that nothing was written to yet."""
    weight, scale = packed_shapes(kind, rows, columns, group)
    return Packed(kind, torch.empty(weight, dtype=torch.uint8), torch.empty(scale, dtype=torch.float16), rows, columns, group)


def quantise(values: torch.Tensor, kind: str, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """values [rows, columns] of floats to q int8 [rows, columns] and scale float16 [rows, groups]; a value is about
    q · scale. A group with a NaN or an infinity, or one beyond 16-bit scales, gets the scale NaN, and q = 0."""
    rows, columns = values.shape
    grouped = functional.pad(values.float(), (0, -columns % group)).view(rows, -(-columns // group), group)
    high, low = grouped.amax(-1), grouped.amin(-1)
    if kind == "int8":
        scale, least, most = torch.maximum(high, -low) / 127.0, -127.0, 127.0
    else:
        # There is one more step below zero than above: the greatest magnitude takes it, as in ggml's Q4_0.
        scale, least, most = torch.where(high > -low, high, low) / -8.0, -8.0, 7.0
    stored = (scale + 0.0).half()  # + 0: no negative zero
    stored = stored.where(stored.isfinite(), torch.nan)
    wide = stored.float()
    inverse = torch.where(wide == 0.0, 0.0, 1.0 / wide)
    q = (grouped * inverse[..., None]).round_().clamp_(least, most).nan_to_num_(0.0)
    return q.flatten(1)[:, :columns].to(torch.int8), stored


def pack(q: torch.Tensor, scale: torch.Tensor, kind: str, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """q int8 [rows, columns] and scale float16 [rows, groups] in tiles: `Packed.weight` and `Packed.scale`."""
    rows, columns = q.shape
    tiles, groups = -(-rows // TILE), scale.shape[1]
    padded = functional.pad(q, (0, groups * group - columns, 0, tiles * TILE - rows))
    # A tile's bytes go [group, four inputs, row, input].
    blocks = padded.view(tiles, TILE, groups, group // 4, 4).permute(0, 2, 3, 1, 4)
    if kind == "int8":
        weight = (blocks.to(torch.int16) + 128).to(torch.uint8)
    else:
        nibbles = (blocks + 8).to(torch.uint8)
        weight = nibbles[:, :, 0::2] | (nibbles[:, :, 1::2] << 4)
    scales = functional.pad(scale, (0, 0, 0, tiles * TILE - rows)).view(tiles, TILE, groups).transpose(1, 2)
    return weight.reshape(tiles, groups, -1), scales.contiguous()


def unpack(packed: Packed) -> tuple[torch.Tensor, torch.Tensor]:
    """What `pack` was given: q int8 [rows, columns], scale float16 [rows, groups]."""
    q = _blocks(packed, packed.weight).permute(0, 3, 1, 2, 4).flatten(2).flatten(0, 1)
    scale = packed.scale.transpose(1, 2).reshape(len(packed.scale) * TILE, -1)
    return q[: packed.rows, : packed.columns], scale[: packed.rows]


def dequantise(packed: Packed) -> torch.Tensor:
    """The weights as float32 [rows, columns]."""
    q, scale = unpack(packed)
    return q.float() * scale.float().repeat_interleave(packed.group, 1)[:, : packed.columns]


def rows_of(packed: Packed, ids: torch.Tensor) -> torch.Tensor:
    """The rows `ids` [T] of int64, all in 0..rows-1, as float32 [T, columns]."""
    tiles, lanes = ids // TILE, ids % TILE
    q = _blocks(packed, packed.weight[tiles])[torch.arange(len(ids), device=ids.device), :, :, lanes]
    wide = q.flatten(2).float() * packed.scale[tiles, :, lanes].float()[..., None]
    return wide.flatten(1)[:, : packed.columns]


def pack_into(values: torch.Tensor, packed: Packed, first: int = 0, pool: Pool | None = None) -> None:
    """Rounds `values` [n, columns] of floats, and writes them as rows first..first+n-1; others stay as they are. With the
    last row the rest of its tile is written, too. Compiled where it can be, by the caller or its `pool`; else in torch, which
    needs some MiB beside the packed weight. Both write the same."""
    assert values.shape[1] == packed.columns and first + len(values) <= packed.rows, "more than the weight holds"
    if native.available() and values.device.type == "cpu" and values.dtype in STORED and values.stride(1) == 1:
        p, n, i = native.POINTER, native.WHOLE, native.NUMBER
        native.function("sw_pack", p, p, i, n, n, n, p, p, n, n, i, i)(
            None if pool is None else pool.handle,
            values.data_ptr(),
            STORED[values.dtype],
            values.stride(0),
            len(values),
            first,
            packed.weight.data_ptr(),
            packed.scale.data_ptr(),
            packed.rows,
            packed.columns,
            packed.group,
            BITS[packed.kind],
        )
    else:
        pack_in_torch(values, packed, first)


def pack_in_torch(values: torch.Tensor, packed: Packed, first: int) -> None:
    """What `pack_into` does, on any device, of any floats."""
    block = max(BLOCK_ELEMENTS // max(packed.columns, 1) // TILE, 1) * TILE
    count, start = len(values), 0
    while start < count:
        # Blocks begin where a tile does, whatever `first` is.
        stop = min(start + block - (first + start) % TILE, count)
        _write(values[start:stop], packed, first + start)
        start = stop


def _write(values: torch.Tensor, packed: Packed, first: int) -> None:
    """One block of rows, within tiles that may hold others."""
    kind, group = packed.kind, packed.group
    stop = first + len(values)
    begin, end = first // TILE, -(-stop // TILE)
    q, scale = quantise(values, kind, group)
    before, after = first % TILE, end * TILE - stop
    weight, scales = pack(functional.pad(q, (0, 0, before, after)), functional.pad(scale, (0, 0, before, after)), kind, group)
    whole_before, whole_after = before == 0, stop == packed.rows or after == 0
    if whole_before and whole_after:
        packed.weight[begin:end], packed.scale[begin:end] = weight, scales
        return
    ours = torch.zeros((end - begin) * TILE, dtype=torch.bool, device=values.device)
    ours[before : len(ours) if stop == packed.rows else len(ours) - after] = True
    shape = (end - begin, weight.shape[1], -1, TILE, 4)
    chosen = ours.view(-1, 1, 1, TILE, 1).expand_as(weight.view(shape))
    old = packed.weight[begin:end]
    packed.weight[begin:end] = torch.where(chosen.reshape(old.shape), weight, old)
    packed.scale[begin:end] = torch.where(ours.view(-1, 1, TILE), scales, packed.scale[begin:end])


def _blocks(packed: Packed, weight: torch.Tensor) -> torch.Tensor:
    """Tiles of packed bytes as q, int8 [tiles, groups, group/4, 16 rows, 4 inputs]."""
    tiles, groups, size = weight.shape
    bytes_ = weight.view(tiles, groups, size // (TILE * 4), TILE, 4)
    if packed.kind == "int8":
        return (bytes_ ^ 128).view(torch.int8)
    nibbles = torch.stack([bytes_ & 15, bytes_ >> 4], 3)
    return nibbles.flatten(2, 3).to(torch.int8) - 8
