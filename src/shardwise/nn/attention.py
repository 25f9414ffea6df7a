"""Attention over pages: this rank's heads, grouped however the cut fell. No loop over requests or pages."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

from shardwise.nn.batch import Rank, Reach
from shardwise.nn.linear import Linear
from shardwise.nn.norm import HeadsNorm, Norm
from shardwise.nn.rope import Angles, rotate
from shardwise.nn.state import State
from shardwise.spec import blocks


class Attention(nn.Module):
    """[tokens, hidden] to [tokens, hidden]; writes the tokens' keys and values, then reads all that a query may see."""

    def __init__(self, block: blocks.Attention, path: str, rank: Rank, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.q = Linear(block.q, f"{path}.{block.q.name}", rank, tensors)
        self.k = Linear(block.k, f"{path}.{block.k.name}", rank, tensors)
        self.v = Linear(block.v, f"{path}.{block.v.name}", rank, tensors)
        self.o = Linear(block.o, f"{path}.{block.o.name}", rank, tensors)
        self.q_norm = Norm(block.q_norm, f"{path}.{block.q_norm.name}", rank, tensors) if block.q_norm else None
        self.k_norm = Norm(block.k_norm, f"{path}.{block.k_norm.name}", rank, tensors) if block.k_norm else None
        self.heads_norm = HeadsNorm(block.heads_norm, path, rank, tensors) if block.heads_norm else None
        self.sinks = tensors[f"{path}.sinks"] if block.sinks else None  # [own query heads]
        self.block = block
        queries, kv = rank.layout.heads(block, rank.at)
        self.heads, self.kv_heads = len(queries), len(kv)
        # On CUDA the kernels that never hold all scores at once want one KV head for each query head; on CPUs they do not.
        grouped = rank.layout.even_groups(block, rank.at) and (rank.device.type == "cpu" or self.heads == self.kv_heads)
        readers = rank.layout.kv_of_queries(block, rank.at)
        self.readers = None if grouped else torch.tensor(readers, device=rank.device)
        self.comm = rank.comm
        self.layer = int(path.rsplit(".", 2)[-2])

    def forward(self, x: torch.Tensor, state: State) -> torch.Tensor:
        x = self.comm.enter(x, site="attn_in")
        dim = self.block.dim
        if not self.heads:
            none = x.new_zeros(len(x), 0, dim)
            if self.heads_norm is not None:
                self.heads_norm(none, none)
            return self.o(none.flatten(1))
        q = self.q(x).view(-1, self.heads, dim)
        k = self.k(x).view(-1, self.kv_heads, dim)
        v = self.v(x).view(-1, self.kv_heads, dim)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.heads_norm is not None:
            q, k = self.heads_norm(q, k)
        if self.block.rope:
            angles: Angles = state.angles[self.block.rope]
            q, k = rotate(q, angles, self.block.rope.halves), rotate(k, angles, self.block.rope.halves)
        if self.block.temperature:
            q = q * warmth(state.batch.positions, self.block.temperature).to(q.dtype)
        (keys, values), group = state.cache.layer(self.layer)
        batch = state.batch.groups[group]
        keys[batch.begun], values[batch.begun] = 0, 0
        keys.view(-1, self.kv_heads, dim)[batch.slots] = k.to(keys.dtype)
        values.view(-1, self.kv_heads, dim)[batch.slots] = v.to(values.dtype)
        seen = state.batch.attended(q, group, lambda q, reach: self._attend(q, keys, values, reach))  # [tokens, heads, dim]
        return self.o(seen.flatten(1))

    def _attend(self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, reach: Reach) -> torch.Tensor:
        """q: [sequences, queries, heads, dim] against the pages of `reach.table`; the same shape comes back."""
        k = keys[reach.table].flatten(1, 2)  # [sequences, keys, kv heads, dim]
        v = values[reach.table].flatten(1, 2)
        if self.readers is not None:
            k, v = k.index_select(2, self.readers), v.index_select(2, self.readers)
        q, k, v = q.transpose(1, 2), k.to(q.dtype).transpose(1, 2), v.to(q.dtype).transpose(1, 2)
        if self.block.softcap is not None or self.sinks is not None:
            return masked(q, k, v, reach.mask, self.block.scale, self.block.softcap, self.sinks).transpose(1, 2)
        seen = functional.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=reach.mask,
            scale=self.block.scale,
            enable_gqa=self.readers is None and self.heads != self.kv_heads,
        )
        return seen.transpose(1, 2)


def warmth(positions: torch.Tensor, of: blocks.Temperature) -> torch.Tensor:
    """What queries at `positions` [tokens] are multiplied by, [tokens, 1, 1]."""
    steps = torch.floor((positions.float() + 1) / of.every)
    return (torch.log1p(steps) * of.scale + 1)[:, None, None]


def masked(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    scale: float,
    softcap: float | None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention whose scores torch's kernels cannot make, softmax in float32: all scores are held at once.

    q [sequences, heads, queries, dim]; k and v [sequences, kv heads, keys, dim], each KV head read by equally many heads, in
    order; mask [sequences, 1, queries, keys]; sinks [heads]. The shape of q comes back.
    """
    queries = q.shape[2]
    grouped = q.unflatten(1, (k.shape[1], -1)).flatten(2, 3)  # [sequences, kv heads, readers · queries, dim]
    # One step a line: two sets of scores are alive at a time, never three.
    scores = grouped @ k.transpose(-1, -2)
    scores = scores * (scale if softcap is None else scale / softcap)
    if softcap is not None:
        scores = scores.tanh()
        scores = scores * softcap
    scores = scores.float().unflatten(2, (-1, queries))  # [sequences, kv heads, readers, queries, keys]
    scores = scores.masked_fill(~mask[:, None], float("-inf"))
    if sinks is not None:
        # One more key for every query, seen by all and worth nothing.
        sink = sinks.float().view(k.shape[1], -1, 1, 1)  # [kv heads, readers, 1, 1]
        scores = torch.cat((scores, sink.expand(*scores.shape[:-1], 1)), -1)
    scores = scores.softmax(-1)[..., : k.shape[2]]
    return (scores.to(v.dtype).flatten(2, 3) @ v).unflatten(2, (-1, queries)).flatten(1, 2)
