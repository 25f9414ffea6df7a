"""Embedding tables, whole or cut by rows, and the head that turns hidden states into logits."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import functional

from shardwise.nn.batch import Batch, Rank
from shardwise.nn.joined import joined
from shardwise.nn.linear import Linear
from shardwise.nn.norm import Norm
from shardwise.nn.product import packed
from shardwise.spec import blocks
from shardwise.spec.axes import Axis
from shardwise.spec.traffic import SITES


class Table:
    """Rows by index: [tokens] to [tokens, size]. A rank that lacks a row adds zero to the sum over ranks."""

    def __init__(self, block: blocks.Table, path: str, rank: Rank, tensors: Mapping[str, torch.Tensor]) -> None:
        name = f"{path}.weight"
        self.weight, self.size = tensors[name], block.size
        self.packed = packed(block.format, name, rank, (block.rows, Axis(block.size)), tensors)
        self.quantised = rank.kernels.quantised
        self.rows = rank.layout.span(block.rows, rank.at)
        self.site = SITES[block.rows.cut] if block.rows.cut and rank.layout.cut(block.rows) else None
        self.comm, self.dtype = rank.comm, rank.dtype

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        if self.site is None:
            return self._found(ids)
        if not self.rows:
            part = torch.zeros(len(ids), self.size, dtype=self.dtype, device=self.weight.device)
        else:
            local = ids - self.rows.start
            held = (local >= 0) & (local < len(self.rows))
            part = self._found(local.clamp(0, len(self.rows) - 1)).masked_fill(~held[:, None], 0)
        return self.comm.all_reduce(part, site=self.site)

    def _found(self, ids: torch.Tensor) -> torch.Tensor:
        """The rows `ids` of this rank's part, counted from its first."""
        if self.packed is None:
            return functional.embedding(ids, self.weight).to(self.dtype)
        return self.quantised.rows(self.packed, ids).to(self.dtype)


class Embedding:
    """Token vectors, scaled, plus learned positions where the model has them: [tokens] to [tokens, hidden]."""

    def __init__(self, block: blocks.Embedding, path: str, rank: Rank, tensors: Mapping[str, torch.Tensor]) -> None:
        self.tokens = Table(block.tokens, _join(path, block.tokens.name), rank, tensors)
        positions = block.positions
        self.positions = Table(positions, _join(path, positions.name), rank, tensors) if positions else None
        # Rounded as the model is held: it was trained with that number, whatever computes it.
        held: torch.dtype = getattr(torch, rank.layout.dtype)
        self.scale = torch.tensor(block.scale, dtype=held).item() if block.rounded else block.scale

    def __call__(self, ids: torch.Tensor, batch: Batch) -> torch.Tensor:
        x = self.tokens(ids)
        if self.scale != 1.0:
            x = x * self.scale
        return x if self.positions is None else x + self.positions(batch.positions)


class Head:
    """Logits of some rows over this rank's range of the vocabulary: [rows, hidden] to [rows, own ids], float32."""

    def __init__(self, block: blocks.Head, path: str, rank: Rank, tensors: Mapping[str, torch.Tensor]) -> None:
        self.norm = Norm(block.norm, _join(path, block.norm.name), rank, tensors)
        self.linear = Linear(block.linear, _join(path, block.linear.name), rank, tensors)
        self.joined = joined([self.linear.part], rank.kernels, self.norm)
        self.scale, self.softcap = block.scale, block.softcap

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.linear.finished(self.joined(x)[0], x.dtype).float()
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.softcap is None else (logits / self.softcap).tanh() * self.softcap


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
