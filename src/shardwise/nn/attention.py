"""Attention over pages: this rank's heads, grouped however the cut fell. No loop over requests or pages."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from shardwise.nn.batch import Rank
from shardwise.nn.joined import joined
from shardwise.nn.kernels.attention import Heads
from shardwise.nn.kernels.turning import Turn
from shardwise.nn.linear import Linear
from shardwise.nn.norm import HeadsNorm, Norm
from shardwise.nn.state import State
from shardwise.spec import blocks


class Attention:
    """[tokens, hidden] to [tokens, hidden]; writes the tokens' keys and values, then reads all that a query may see."""

    def __init__(self, block: blocks.Attention, path: str, rank: Rank, tensors: Mapping[str, torch.Tensor]) -> None:
        self.q = Linear(block.q, f"{path}.{block.q.name}", rank, tensors)
        self.k = Linear(block.k, f"{path}.{block.k.name}", rank, tensors)
        self.v = Linear(block.v, f"{path}.{block.v.name}", rank, tensors)
        self.o = Linear(block.o, f"{path}.{block.o.name}", rank, tensors)
        self.q_norm = Norm(block.q_norm, f"{path}.{block.q_norm.name}", rank, tensors) if block.q_norm else None
        self.k_norm = Norm(block.k_norm, f"{path}.{block.k_norm.name}", rank, tensors) if block.k_norm else None
        self.heads_norm = HeadsNorm(block.heads_norm, path, rank, tensors) if block.heads_norm else None
        self.block = block
        queries, kv = rank.layout.heads(block, rank.at)
        self.heads, self.kv_heads = len(queries), len(kv)
        # On CUDA the kernels that never hold all scores at once want one KV head for each query head; on CPUs they do not.
        grouped = rank.layout.even_groups(block, rank.at) and (rank.device.type == "cpu" or self.heads == self.kv_heads)
        readers = torch.tensor(rank.layout.kv_of_queries(block, rank.at), dtype=torch.int64, device=rank.device)
        sinks = tensors[f"{path}.sinks"].float() if block.sinks else None  # [own query heads]
        self.reads = Heads(readers, self.kv_heads, block.scale, block.softcap, sinks, grouped)
        self.kernels = rank.kernels
        self.comm = rank.comm
        self.after(None)
        self.layer = int(path.rsplit(".", 2)[-2])

    def after(self, norm: Norm | None) -> None:
        """From here on x comes as it is before this norm."""
        self.qkv = joined([linear.part for linear in (self.q, self.k, self.v)], self.kernels, norm)

    def __call__(self, x: torch.Tensor, state: State) -> torch.Tensor:
        x = self.comm.enter(x, site="attn_in")
        dim = self.block.dim
        if not self.heads:
            none = x.new_zeros(len(x), 0, dim)
            if self.heads_norm is not None:
                self.heads_norm(none, none)
            return self.o(none.flatten(1))
        q, k, v = self.qkv(x)
        q, k, v = q.view(-1, self.heads, dim), k.view(-1, self.kv_heads, dim), v.view(-1, self.kv_heads, dim)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.heads_norm is not None:
            q, k = self.heads_norm(q, k)
        rope = self.block.rope
        turn = Turn(state.angles[rope], rope.halves) if rope else None
        pages, group = state.cache.layer(self.layer)
        batch = state.batch.groups[group]
        attention = self.kernels.attention
        if self.block.temperature:
            q = attention.write(q, k, v, turn, pages, batch)
            q = q * warmth(state.batch.positions, self.block.temperature).to(q.dtype)
            seen = attention.read(q, pages, batch, self.reads)
        else:
            seen = attention.attend(q, k, v, turn, pages, batch, self.reads)
        return self.o(seen.flatten(1))


def warmth(positions: torch.Tensor, of: blocks.Temperature) -> torch.Tensor:
    """What queries at `positions` [tokens] are multiplied by, [tokens, 1, 1]."""
    steps = torch.floor((positions.float() + 1) / of.every)
    return (torch.log1p(steps) * of.scale + 1)[:, None, None]
