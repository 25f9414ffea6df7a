"""Latent attention as a block, beside `blocks`, which holds the usual one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from shardwise.spec.axes import Weight
from shardwise.spec.blocks import Block, Linear, Norm, Rope
from shardwise.spec.kept import Kept


@dataclass(frozen=True, slots=True)
class MLA:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1): all heads read one latent a token.

    `kv_a` makes a latent of `kv_norm.size` elements, and `rope.dim` more that are turned and go to every head's key as they
    are; `kv_b` makes `nope_dim` elements of key and `v_dim` of value out of the latent for each head. `q` makes `nope_dim` +
    `rope.dim` elements for each head, out of the hidden state, or of a latent of its own by `q_a` and `q_norm`. What makes a
    latent is not cut; what makes heads is, head by head, and the axes of q, kv_b and o differ in grain alone.
    """

    name: str
    q: Linear
    kv_a: Linear
    kv_norm: Norm
    kv_b: Linear
    o: Linear
    heads: int
    nope_dim: int
    v_dim: int
    scale: float
    rope: Rope
    q_a: Linear | None = None
    q_norm: Norm | None = None

    @property
    def kv_heads(self) -> int:
        """As many as query heads: each would have keys of its own, were they ever made."""
        return self.heads

    @property
    def kept(self) -> Kept:
        """The normed latent and the turned part of the keys, in one tensor."""
        return Kept("latent", self.q.out, (self.kv_norm.size + self.rope.dim,))

    def children(self) -> tuple[Block, ...]:
        blocks = (self.q_a, self.q_norm, self.q, self.kv_a, self.kv_norm, self.kv_b, self.o)
        return tuple(b for b in blocks if b)

    def own_weights(self) -> Iterator[Weight]:
        return iter(())
