"""Multi-head latent attention over pages of latents: this rank's heads. No loop over requests, pages or heads.

One form for prompts and for decoding. `kv_b` is never applied to what is cached: its key half takes the queries into the
space of the latents, its value half takes what was read out of it (DeepSeek-V2, arXiv 2405.04434, section 2.1.2), so that a
decoded token costs no expansion of all tokens before it, and no rank ever holds keys and values of every head. A prompt in
chunks of 512 would take about half the multiplications with them expanded; that would be a second form, and more memory.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import functional

from shardwise.nn.batch import Rank
from shardwise.nn.kernels.kept import as_floats, keep
from shardwise.nn.kernels.turning import rotate
from shardwise.nn.linear import Linear
from shardwise.nn.norm import Norm
from shardwise.nn.reach import Reach
from shardwise.nn.state import State
from shardwise.spec import mla


class MLA:
    """[tokens, hidden] to [tokens, hidden]; writes the tokens' latents, then reads all that a query may see."""

    def __init__(self, block: mla.MLA, path: str, rank: Rank, tensors: Mapping[str, torch.Tensor]) -> None:
        self.q_a = Linear(block.q_a, f"{path}.{block.q_a.name}", rank, tensors) if block.q_a else None
        self.q_norm = Norm(block.q_norm, f"{path}.{block.q_norm.name}", rank, tensors) if block.q_norm else None
        self.q = Linear(block.q, f"{path}.{block.q.name}", rank, tensors)
        self.kv_a = Linear(block.kv_a, f"{path}.{block.kv_a.name}", rank, tensors)
        self.kv_norm = Norm(block.kv_norm, f"{path}.{block.kv_norm.name}", rank, tensors)
        self.o = Linear(block.o, f"{path}.{block.o.name}", rank, tensors)
        self.heads = len(rank.layout.heads(block, rank.at)[0])
        self.latent = block.kv_norm.size
        kv_b = Linear(block.kv_b, f"{path}.{block.kv_b.name}", rank, tensors).weight
        dims = block.nope_dim, block.v_dim
        # [heads, nope dim, latent] and [heads, v dim, latent]
        self.k_of, self.v_of = kv_b.view(self.heads, sum(dims), self.latent).split(dims, 1)
        self.block = block
        self.comm, self.dense = rank.comm, rank.kernels.dense
        self.layer = int(path.rsplit(".", 2)[-2])

    def __call__(self, x: torch.Tensor, state: State) -> torch.Tensor:
        angles, halves = state.angles[self.block.rope], self.block.rope.halves
        latent, turned = self.kv_a(x).split((self.latent, self.block.rope.dim), -1)
        kept = torch.cat((self.kv_norm(latent), rotate(turned[:, None], angles, halves)[:, 0]), -1)
        if self.q_a is not None and self.q_norm is not None:
            x = self.q_norm(self.q_a(x))
        # Latents are whole on every rank: the cut begins after them.
        x, kept = self.comm.enter(x, site="attn_in"), self.comm.enter(kept, site="attn_in")
        if not self.heads:
            return self.o(x.new_zeros(len(x), 0))
        plain, turned = self.q(x).view(len(x), self.heads, -1).split((self.block.nope_dim, self.block.rope.dim), -1)
        q = torch.cat((self.dense.by_head(plain, self.k_of), rotate(turned, angles, halves)), -1)
        (pages,), group = state.cache.layer(self.layer)
        batch = state.batch.groups[group]
        pages[batch.begun] = 0
        pages.view(-1, pages.shape[-1])[batch.slots] = keep(kept, pages.dtype)
        seen = batch.attended(q, lambda q, reach: self._attend(q, pages, reach))  # [tokens, heads, latent]
        return self.o(self.dense.by_head(seen, self.v_of.transpose(1, 2)).flatten(1))

    def _attend(self, q: torch.Tensor, pages: torch.Tensor, reach: Reach) -> torch.Tensor:
        """q: [sequences, queries, heads, latent + rope dim] against the pages of `reach.table`; latents come back."""
        kept = as_floats(pages[reach.table].flatten(1, 2), q.dtype).transpose(1, 2)  # [sequences, 1, keys, latent + rope dim]
        # One tensor is key and value for all heads, without a copy. What comes back of its turned part means nothing, and is
        # cheaper to drop than values of another width: for those, torch's CPU kernel that never holds all scores is not taken.
        kept = kept.expand(-1, self.heads, -1, -1)
        seen = functional.scaled_dot_product_attention(
            q.transpose(1, 2), kept, kept, attn_mask=reach.mask, scale=self.block.scale
        )
        return seen.transpose(1, 2)[..., : self.latent]
