"""Embedding tables, whole or cut by rows, and the head that turns hidden states into logits."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

from shardwise.nn.batch import Batch, Rank
from shardwise.nn.linear import Linear
from shardwise.nn.norm import Norm
from shardwise.spec import blocks
from shardwise.spec.traffic import SITES


class Table(nn.Module):
    """Rows by index: [tokens] to [tokens, size]. A rank that lacks a row adds zero to the sum over ranks."""

    def __init__(self, block: blocks.Table, path: str, rank: Rank, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.weight = tensors[f"{path}.weight"]
        self.rows = rank.layout.span(block.rows, rank.at)
        self.site = SITES[block.rows.cut] if block.rows.cut and rank.layout.cut(block.rows) else None
        self.comm, self.dtype = rank.comm, rank.dtype

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        if self.site is None:
            return functional.embedding(ids, self.weight).to(self.dtype)
        if not self.rows:
            part = self.weight.new_zeros(len(ids), self.weight.shape[1])
        else:
            local = ids - self.rows.start
            held = (local >= 0) & (local < len(self.rows))
            part = functional.embedding(local.clamp(0, len(self.rows) - 1), self.weight)
            part = part.masked_fill(~held[:, None], 0)
        return self.comm.all_reduce(part.to(self.dtype), site=self.site)


class Embedding(nn.Module):
    """Token vectors, scaled, plus learned positions where the model has them: [tokens] to [tokens, hidden]."""

    def __init__(self, block: blocks.Embedding, path: str, rank: Rank, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.tokens = Table(block.tokens, _join(path, block.tokens.name), rank, tensors)
        positions = block.positions
        self.positions = Table(positions, _join(path, positions.name), rank, tensors) if positions else None
        # Rounded as the model is held: it was trained with that number, whatever computes it.
        held: torch.dtype = getattr(torch, rank.layout.dtype)
        self.scale = torch.tensor(block.scale, dtype=held).item() if block.rounded else block.scale

    def forward(self, ids: torch.Tensor, batch: Batch) -> torch.Tensor:
        x = self.tokens(ids)
        if self.scale != 1.0:
            x = x * self.scale
        return x if self.positions is None else x + self.positions(batch.positions)


class Head(nn.Module):
    """Logits of some rows over this rank's range of the vocabulary: [rows, hidden] to [rows, own ids], float32."""

    def __init__(self, block: blocks.Head, path: str, rank: Rank, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.norm = Norm(block.norm, _join(path, block.norm.name), rank, tensors)
        self.linear = Linear(block.linear, _join(path, block.linear.name), rank, tensors)
        self.scale, self.softcap = block.scale, block.softcap

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.linear(self.norm(x)).float()
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.softcap is None else (logits / self.softcap).tanh() * self.softcap


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
