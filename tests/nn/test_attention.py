"""Attention by its definition: every query head by itself, every key by itself, in plain float64 sums."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from shardwise.comm.solo import Solo
from shardwise.nn.attention import Attention
from shardwise.nn.batch import Rank
from shardwise.nn.build import Decoder
from shardwise.nn.state import State
from shardwise.runtime import load
from shardwise.runtime.cache import PagedCache
from shardwise.runtime.inputs import Inputs
from shardwise.runtime.limits import Buckets, Limits
from shardwise.runtime.recent import Recent
from shardwise.sched.step import Item, Pages, Step
from shardwise.spec.blocks import attentions
from shardwise.spec.layout import Layout
from shardwise.spec.model import layer_blocks
from tests.checkpoints import FAMILIES
from tests.group import Group, even, layout_of
from tests.nn.pieces import CPU


def alone(layout: Layout, index: int) -> tuple[Rank, Decoder, PagedCache]:
    """One rank of a layout, with dummy weights and nobody to talk to: every sum stays its own part, which can be looked at."""
    rank = Rank(layout, index, Solo(), CPU, torch.float32, torch.float32)
    _, tensors = load.arena(layout, index, CPU)
    load.fill_dummy(tensors, layout.slices(index), lambda _: None)
    return rank, Decoder(rank, tensors), PagedCache(rank, (6,) * len(layout.cache))


def by_definition(module: Attention, rank: Rank, x: torch.Tensor, window: int | None) -> torch.Tensor:
    """This rank's part of the output, [tokens, hidden], of a sequence that starts at position 0, without rope."""
    block, (queries, kv) = module.block, rank.layout.heads(module.block, rank.at)
    x, dim = x.double(), module.block.dim
    q, k, v = ((x @ linear.weight.double().t()).view(len(x), -1, dim) for linear in (module.q, module.k, module.v))
    seen = torch.zeros(len(x), len(queries), dim, dtype=torch.float64)
    for i, head in enumerate(queries):
        own = head * block.kv_heads // block.heads - kv.start
        for t in range(len(x)):
            low = 0 if window is None else max(0, t - window + 1)
            scores = torch.stack([q[t, i] @ k[s, own] * block.scale for s in range(low, t + 1)])
            if block.softcap:
                scores = torch.tanh(scores / block.softcap) * block.softcap
            weights = zip(scores.softmax(0), range(low, t + 1), strict=True)
            seen[t, i] = sum(weight * v[s, own] for weight, s in weights)
    return seen.flatten(1) @ module.o.weight.double().t()


CUTS = [even(1), even(2), even(3), even(5), (3.0, 1.0, 1.0), (1.0, 6.0), (5.0, 2.0, 1.0)]


def attention_of(layer: Any) -> Attention:
    """The attention of a layer, among the norms around it."""
    return next(step for step in layer.steps[0].body.steps if isinstance(step, Attention))


@pytest.mark.parametrize("shares", CUTS, ids=str)
@pytest.mark.parametrize("name", ["llama", "llama-9-3", "mistral-window", "gemma2"])
def test_every_rank_contributes_its_heads(name: str, shares: tuple[float, ...]) -> None:
    layout = layout_of(FAMILIES[name], shares)
    window = layout.cache[0].window
    x = torch.randn(20, layout.model.hidden, generator=torch.Generator().manual_seed(1)) * 3
    step = Step(1, (Item(0, (0,) * 20, 0, 20, (Pages(0, (4, 1)),) * len(layout.cache)),))
    for index in range(len(shares)):
        rank, decoder, cache = alone(layout, index)
        module = attention_of(decoder.layers[0])
        module.block = replace(module.block, rope=None)
        _, batch = Inputs(rank, Limits(20, 1, (2,)), Buckets(), Recent(1, CPU)).batch(step)
        found = module(x, State(batch, cache, {}))
        want = by_definition(module, rank, x, window)
        assert (found - want).abs().max() < 1e-5 * max(1.0, want.abs().max().item())


def test_copies_of_kv_heads_are_made_only_where_groups_are_cut() -> None:
    """Eight query heads read four KV heads: at 2 and 4 ranks groups stay whole, at 3 some rank's heads share unevenly."""
    for shares, copied in ((even(1), False), (even(2), False), (even(4), False), ((5.0, 3.0), True)):
        layout = layout_of(FAMILIES["llama"], shares)
        modules = [attention_of(layer) for i in range(len(shares)) for layer in alone(layout, i)[1].layers]
        assert any(not module.reads.grouped for module in modules) == copied


def test_a_rank_without_heads_takes_part_in_every_sum(checkpoint: Callable[[str], Path]) -> None:
    folder = checkpoint("llama")
    layout = layout_of(folder, (1.0, 1e-6))
    [attention] = {id(block): block for _, each in layer_blocks(layout.model) for block in attentions(each)}.values()
    assert layout.heads(attention, layout.mesh.coords(1))[0] == range(8, 8)
    with Group(layout, folder) as group:
        sequence = group.request()
        sequence.tokens[:] = [5, 6, 7]
        group.logits(sequence.take())
        assert group.comms[0].calls == group.comms[1].calls
        assert group.runners[1].cache.arena.nbytes == 0
