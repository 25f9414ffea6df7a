"""Blocks become modules: one class for each kind of block, and the whole decoder of a pipeline stage."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch

from shardwise.nn.attention import Attention
from shardwise.nn.batch import Batch, Rank
from shardwise.nn.mla import MLA
from shardwise.nn.mlp import MLP
from shardwise.nn.moe import MoE
from shardwise.nn.norm import Norm
from shardwise.nn.rope import Rope
from shardwise.nn.state import Cache, State
from shardwise.nn.table import Embedding, Head
from shardwise.spec import blocks, mla, moe
from shardwise.spec.model import layer_blocks, ropes
from shardwise.spec.traffic import BRANCHES

Tensors = Mapping[str, torch.Tensor]
"""A rank's weights by their full names: views of its arena."""

Module = Callable[[torch.Tensor, State], torch.Tensor]
"""What a block becomes: [tokens, hidden] to the same shape. A plain object: torch's modules cost a microsecond a call, and keep
nothing that a rank asks for."""


class NormStep:
    """A norm among blocks that take the state as well."""

    def __init__(self, block: blocks.Norm, path: str, rank: Rank, tensors: Tensors) -> None:
        self.norm = Norm(block, path, rank, tensors)

    def __call__(self, x: torch.Tensor, state: State) -> torch.Tensor:
        return self.norm(x)


class Chain:
    """Blocks one after another."""

    def __init__(self, block: blocks.Chain, path: str, rank: Rank, tensors: Tensors) -> None:
        self.steps = _folded([build(b, path, rank, tensors) for b in block.blocks], rank)

    def __call__(self, x: torch.Tensor, state: State) -> torch.Tensor:
        for step in self.steps:
            x = step(x, state)
        return x


def _folded(steps: list[Module], rank: Rank) -> list[Module]:
    """With compiled kernels, norms go into the products after them."""
    found: list[Module] = []
    for step in steps:
        last = found[-1] if found else None
        if rank.kernels.compiled and isinstance(last, NormStep) and isinstance(step, Attention | MLP):
            found.pop()
            step.after(last.norm)
        found.append(step)
    return found


class Residual:
    """x + scale · body(x)."""

    def __init__(self, block: blocks.Residual, path: str, rank: Rank, tensors: Tensors) -> None:
        self.body = build(block.body, path, rank, tensors)
        self.scale = block.scale

    def __call__(self, x: torch.Tensor, state: State) -> torch.Tensor:
        y = self.body(x, state)
        # What a body gives is nobody else's: no memory is taken anew.
        return (y if self.scale == 1.0 else y * self.scale).add_(x)


class Sum:
    """The sum of what each branch makes of the same x, and over ranks where the branches left that to it."""

    def __init__(self, block: blocks.Sum, path: str, rank: Rank, tensors: Tensors) -> None:
        self.branches = [build(b, path, rank, tensors) for b in block.branches]
        self.comm, self.cut = rank.comm, any(rank.layout.cut(end.inp) for end in block.ends)

    def __call__(self, x: torch.Tensor, state: State) -> torch.Tensor:
        parts: list[torch.Tensor] = [branch(x, state) for branch in self.branches]
        y = functools.reduce(torch.add, parts)
        return self.comm.all_reduce(y, site=BRANCHES, dtype=x.dtype) if self.cut else y.to(x.dtype)


MODULES: dict[type, Any] = {
    blocks.Chain: Chain,
    blocks.Sum: Sum,
    blocks.Residual: Residual,
    blocks.Norm: NormStep,
    blocks.Attention: Attention,
    mla.MLA: MLA,
    blocks.MLP: MLP,
    moe.MoE: MoE,
}


def build(block: blocks.Block, path: str, rank: Rank, tensors: Tensors) -> Module:
    """The module of `block`, whose parent stands at `path`."""
    own = f"{path}.{block.name}" if path and block.name else path or block.name
    module: Module = MODULES[type(block)](block, own, rank, tensors)
    return module


class Decoder:
    """Tokens in, hidden states out; `logits` of some of them."""

    def __init__(self, rank: Rank, tensors: Tensors) -> None:
        model, self._tick = rank.layout.model, rank.pulse.layer
        self.embed = Embedding(model.embed, model.embed.name, rank, tensors)
        self.layers = [build(block, path, rank, tensors) for path, block in layer_blocks(model)]
        self.head = Head(model.head, model.head.name, rank, tensors)
        self.ropes = {rope: Rope(rope, rank.device) for rope in ropes(model)}

    def __call__(self, tokens: torch.Tensor, batch: Batch, cache: Cache) -> torch.Tensor:
        """tokens [T] to hidden states [T, hidden], the same on every rank."""
        x = self.embed(tokens, batch)
        state = State(batch, cache, {rope: module(batch, x.dtype) for rope, module in self.ropes.items()})
        tick = self._tick
        for index, layer in enumerate(self.layers):
            tick(index)
            x = layer(x, state)
        return x

    def final(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [rows, hidden] after the last norm, as the head sees it: the same on every rank."""
        return self.head.norm(hidden)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [rows, hidden] to [rows, own ids] in float32, over this rank's range of the vocabulary."""
        return self.head(hidden)
