"""Attention over pages, in torch and compiled: keys and values as they are turned and written, and as queries read them."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional

from shardwise import native
from shardwise.nn.kernels.kept import as_floats, keep
from shardwise.nn.kernels.pool import Pool
from shardwise.nn.kernels.stored import STORED
from shardwise.nn.kernels.turning import Turn, rotate
from shardwise.nn.reach import GroupBatch, Reach

Pages = tuple[torch.Tensor, ...]
"""Keys and values of a layer, each [pages, PAGE_TOKENS, KV heads, what is kept of a head]."""


@dataclass(frozen=True, slots=True)
class Heads:
    """How the queries of a layer read: `readers` [heads] is the KV head of each query head, on the device.

    grouped: KV heads have equally many readers, in order, and the device's kernels can make use of it. sinks [heads], float32.
    """

    readers: torch.Tensor
    kv_heads: int
    scale: float
    softcap: float | None
    sinks: torch.Tensor | None
    grouped: bool


class Attending(Protocol):
    """What both offer."""

    def write(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, turn: Turn | None, pages: Pages, seen: GroupBatch
    ) -> torch.Tensor:
        """Turns q [T, heads, dim] and k [T, KV heads, dim], if so told, and keeps k and v. The turned q comes back; q and k may
        be lost."""
        ...

    def read(self, q: torch.Tensor, pages: Pages, seen: GroupBatch, heads: Heads) -> torch.Tensor:
        """q [T, heads, dim] against all keys that each may see: the same shape and dtype."""
        ...

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, turn: Turn | None, pages: Pages, seen: GroupBatch, heads: Heads
    ) -> torch.Tensor:
        """`write`, then `read`: [T, heads, dim]."""
        ...


class TorchAttending:
    """In torch: on any device, in any dtype; pages are gathered, sequences padded and masked."""

    def write(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, turn: Turn | None, pages: Pages, seen: GroupBatch
    ) -> torch.Tensor:
        if turn is not None:
            q, k = rotate(q, turn.angles, turn.halves), rotate(k, turn.angles, turn.halves)
        for into, x in zip(pages, (k, v), strict=True):
            into[seen.begun] = 0
            into.flatten(0, 1)[seen.slots] = keep(x, into.dtype)
        return q

    def read(self, q: torch.Tensor, pages: Pages, seen: GroupBatch, heads: Heads) -> torch.Tensor:
        return seen.attended(q, lambda q, reach: _read(q, pages, reach, heads))

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, turn: Turn | None, pages: Pages, seen: GroupBatch, heads: Heads
    ) -> torch.Tensor:
        return self.read(self.write(q, k, v, turn, pages, seen), pages, seen, heads)


def _read(q: torch.Tensor, pages: Pages, reach: Reach, heads: Heads) -> torch.Tensor:
    """q: [sequences, queries, heads, dim] against the pages of `reach.table`; the same shape comes back."""
    k, v = (part[reach.table].flatten(1, 2) for part in pages)  # [sequences, keys, kv heads, dim]
    if not heads.grouped:
        k, v = k.index_select(2, heads.readers), v.index_select(2, heads.readers)
    q, k, v = q.transpose(1, 2), as_floats(k, q.dtype).transpose(1, 2), as_floats(v, q.dtype).transpose(1, 2)
    if heads.softcap is not None or heads.sinks is not None:
        return _masked(q, k, v, reach.mask, heads).transpose(1, 2)
    gqa = heads.grouped and q.shape[1] != heads.kv_heads
    seen = functional.scaled_dot_product_attention(q, k, v, attn_mask=reach.mask, scale=heads.scale, enable_gqa=gqa)
    return seen.transpose(1, 2)


def _masked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, heads: Heads) -> torch.Tensor:
    """Attention whose scores torch's kernels cannot make, softmax in float32: all scores are held at once.

    q [sequences, heads, queries, dim]; k and v [sequences, kv heads, keys, dim], each KV head read by equally many heads, in
    order; mask [sequences, 1, queries, keys]. The shape of q comes back.
    """
    queries, softcap = q.shape[2], heads.softcap
    grouped = q.unflatten(1, (k.shape[1], -1)).flatten(2, 3)  # [sequences, kv heads, readers · queries, dim]
    # One step a line: two sets of scores are alive at a time, never three.
    scores = grouped @ k.transpose(-1, -2)
    scores = scores * (heads.scale if softcap is None else heads.scale / softcap)
    if softcap is not None:
        scores = scores.tanh()
        scores = scores * softcap
    scores = scores.float().unflatten(2, (-1, queries))  # [sequences, kv heads, readers, queries, keys]
    scores = scores.masked_fill(~mask[:, None], float("-inf"))
    if heads.sinks is not None:
        # One more key for every query, seen by all and worth nothing.
        sink = heads.sinks.view(k.shape[1], -1, 1, 1)  # [kv heads, readers, 1, 1]
        scores = torch.cat((scores, sink.expand(*scores.shape[:-1], 1)), -1)
    scores = scores.softmax(-1)[..., : k.shape[2]]
    return (scores.to(v.dtype).flatten(2, 3) @ v).unflatten(2, (-1, queries)).flatten(1, 2)


KEPT = {**STORED, torch.int8: 3}
"""How numbers of the cache are kept, as `native/attention.h` counts it."""


class _Reading(ctypes.Structure):
    """`Reading` of native/attention.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("q", "out", "keys", "values", "sequences", "pages", "readers", "sinks")),
        *((name, ctypes.c_int64) for name in ("count", "heads", "kv_heads", "dim", "kept", "window", "chunked")),
        *((name, ctypes.c_float) for name in ("scale", "softcap")),
    ]


class _Writing(ctypes.Structure):
    """`Writing` of native/attention.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "cos", "sin", "slots", "keys", "values")),
        *((name, ctypes.c_int64) for name in ("tokens", "heads", "kv_heads", "dim", "turned", "kept", "halves")),
    ]


class _Layer:
    """What the library is told of a layer: the same in every step but for what is seen and the angles."""

    def __init__(self, heads: Heads, pages: Pages, dim: int) -> None:
        self.heads, self.pages = heads, pages
        keys, values = pages
        self.reading = _Reading(
            keys=keys.data_ptr(), values=values.data_ptr(), readers=heads.readers.data_ptr(),
            sinks=None if heads.sinks is None else heads.sinks.data_ptr(),
            heads=len(heads.readers), kv_heads=heads.kv_heads, dim=dim, kept=KEPT[keys.dtype],
            scale=heads.scale, softcap=heads.softcap or 0.0,
        )  # fmt: skip
        self.writing = _Writing(
            keys=keys.data_ptr(), values=values.data_ptr(),
            heads=len(heads.readers), kv_heads=heads.kv_heads, dim=dim, kept=KEPT[keys.dtype],
        )  # fmt: skip
        self._now: tuple[GroupBatch, torch.Tensor | None] | None = None

    def see(self, seen: GroupBatch, turn: Turn | None) -> None:
        """Tells of a step, once."""
        cos = turn.angles[0] if turn else None
        if self._now is not None and self._now[0] is seen and self._now[1] is cos:
            return
        self._now = seen, cos
        read, write, tables = self.reading, self.writing, seen.tables
        read.sequences, read.pages, read.count = tables.sequences.data_ptr(), tables.pages.data_ptr(), len(tables.sequences)
        read.window, read.chunked = tables.window or 0, tables.chunked
        write.slots, write.tokens, write.halves = seen.slots.data_ptr(), tables.tokens, turn is None or turn.halves
        write.cos, write.sin, write.turned = None, None, 0
        if turn is not None:
            cos, sin = turn.angles
            assert cos.dtype is torch.float32 and cos.is_contiguous() and sin.is_contiguous()
            write.cos, write.sin, write.turned = cos.data_ptr(), sin.data_ptr(), cos.shape[-1]


class NativeAttending:
    """Compiled: float32 queries, keys and values of a CPU, and pages in any form of KEPT, read where they are."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        p, read, write = native.POINTER, ctypes.POINTER(_Reading), ctypes.POINTER(_Writing)
        self._read = native.function("sw_attention_read", p, read)
        self._write = native.function("sw_attention_write", p, write)
        self._attend = native.function("sw_attend", p, write, read, p, p, p, p)
        self._layers: dict[int, _Layer] = {}

    def write(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, turn: Turn | None, pages: Pages, seen: GroupBatch
    ) -> torch.Tensor:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        cos, sin = turn.angles if turn else (None, None)
        if cos is not None and sin is not None:
            cos, sin = cos.float().contiguous(), sin.float().contiguous()
        keys, values = pages
        told = _Writing(
            q=q.data_ptr(), k=k.data_ptr(), v=v.data_ptr(),
            cos=None if cos is None else cos.data_ptr(), sin=None if sin is None else sin.data_ptr(),
            slots=seen.slots.data_ptr(), keys=keys.data_ptr(), values=values.data_ptr(),
            tokens=seen.tables.tokens, heads=q.shape[1], kv_heads=k.shape[1], dim=q.shape[2],
            turned=0 if cos is None else cos.shape[-1], kept=KEPT[keys.dtype], halves=turn is None or turn.halves,
        )  # fmt: skip
        self._write(self._pool.handle, told)
        return q

    def read(self, q: torch.Tensor, pages: Pages, seen: GroupBatch, heads: Heads) -> torch.Tensor:
        q, tables = q.contiguous(), seen.tables
        out = torch.empty_like(q)
        if tables.tokens < len(q):  # rows that only pad see nothing; they must stay numbers all the same
            out[tables.tokens :] = 0
        keys, values = pages
        told = _Reading(
            q=q.data_ptr(), out=out.data_ptr(), keys=keys.data_ptr(), values=values.data_ptr(),
            sequences=tables.sequences.data_ptr(), pages=tables.pages.data_ptr(), readers=heads.readers.data_ptr(),
            sinks=None if heads.sinks is None else heads.sinks.data_ptr(),
            count=len(tables.sequences), heads=q.shape[1], kv_heads=heads.kv_heads, dim=q.shape[2], kept=KEPT[keys.dtype],
            window=tables.window or 0, chunked=tables.chunked, scale=heads.scale, softcap=heads.softcap or 0.0,
        )  # fmt: skip
        self._read(self._pool.handle, told)
        return out

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, turn: Turn | None, pages: Pages, seen: GroupBatch, heads: Heads
    ) -> torch.Tensor:
        layer = self._layers.get(id(heads))
        if layer is None or layer.heads is not heads or layer.pages is not pages:
            layer = self._layers[id(heads)] = _Layer(heads, pages, q.shape[2])
        layer.see(seen, turn)
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        out = torch.empty_like(q)
        if seen.tables.tokens < len(q):  # rows that only pad see nothing; they must stay numbers all the same
            out[seen.tables.tokens :] = 0
        told = layer.writing, layer.reading
        self._attend(self._pool.handle, *told, q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr())
        return out
