"""Latent attention by its definition: keys and values of every head expanded out of every latent, in plain float64 sums."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from shardwise.comm.solo import Solo
from shardwise.nn.batch import Rank
from shardwise.nn.build import Decoder
from shardwise.nn.mla import MLA
from shardwise.nn.state import State
from shardwise.runtime import load
from shardwise.runtime.cache import PagedCache
from shardwise.runtime.inputs import Inputs
from shardwise.runtime.limits import Buckets, Limits
from shardwise.runtime.recent import Recent
from shardwise.sched.step import Item, Pages, Step
from shardwise.spec.blocks import Rope
from shardwise.spec.layout import PAGE_TOKENS
from tests.checkpoints import FAMILIES
from tests.group import Group, even, layout_of
from tests.nn.pieces import CPU

CONFIG = {**FAMILIES["deepseek-v2"], "num_hidden_layers": 1, "first_k_dense_replace": 1}
STILL = (torch.ones(()), torch.zeros(()))
"""cos and sin of no turn at all."""


def by_definition(module: MLA, weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """This rank's part of the output, [tokens, hidden], of a sequence that starts at position 0, without rope."""
    block, x = module.block, x.double()

    def linear(name: str, y: torch.Tensor) -> torch.Tensor:
        return y @ weights[f"model.layers.0.self_attn.{name}.weight"].double().t()

    def norm(name: str, y: torch.Tensor) -> torch.Tensor:
        weight = weights[f"model.layers.0.self_attn.{name}.weight"].double()
        return y * (y.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weight

    latent, shared = linear("kv_a_proj_with_mqa", x).split((24, 8), -1)
    q = linear("q_b_proj", norm("q_a_layernorm", linear("q_a_proj", x))).view(len(x), -1, 20)
    k, v = linear("kv_b_proj", norm("kv_a_layernorm", latent)).view(len(x), -1, 22).split((12, 10), -1)
    seen = torch.zeros(len(x), q.shape[1], 10, dtype=torch.float64)
    for head in range(q.shape[1]):
        for t in range(len(x)):
            keys = torch.cat((k[: t + 1, head], shared[: t + 1]), -1)
            scores = (keys @ q[t, head] * block.scale).softmax(0)
            seen[t, head] = scores @ v[: t + 1, head]
    return linear("o_proj", seen.flatten(1))


@pytest.mark.parametrize("shares", [even(1), even(3), even(8), (3.0, 1.0, 1.0), (1.0, 1e-6)], ids=str)
def test_every_rank_contributes_its_heads(shares: tuple[float, ...]) -> None:
    layout = layout_of(CONFIG, shares)
    x = torch.randn(20, layout.model.hidden, generator=torch.Generator().manual_seed(1)) * 3
    step = Step(1, (Item(0, (0,) * 20, 0, 20, (Pages(0, (4, 1)),)),))
    for index in range(len(shares)):
        rank = Rank(layout, index, Solo(), CPU, torch.float32, torch.float32)
        _, tensors = load.arena(layout, index, CPU)
        load.fill_dummy(tensors, layout.slices(index), lambda _: None)
        module, cache = Decoder(rank, tensors).layers[0].steps[0].body.steps[1], PagedCache(rank, (6,))
        assert isinstance(module, MLA)
        _, batch = Inputs(rank, Limits(20, 1, (2,)), Buckets(), Recent(1, CPU)).batch(step)
        rope: Rope = module.block.rope
        found = module(x, State(batch, cache, {rope: (STILL[0].expand(20, 1, 8), STILL[1].expand(20, 1, 8))}))
        want = by_definition(module, tensors, x)
        assert (found - want).abs().max() < 1e-5 * max(1.0, want.abs().max().item())


def test_one_latent_a_token_is_all_that_is_kept(checkpoint: Callable[[str], Path]) -> None:
    """Three ranks hold the same latents, in the pages of their tokens; one without heads holds none."""
    folder = checkpoint("deepseek-v2")
    with Group(layout_of(folder, (1.0, 1.0, 1e-6)), folder) as group:
        request = group.request()
        request.tokens[:] = range(3, 3 + 20)
        item = request.take()
        group.logits(item)
        pages = torch.tensor(item.pages[0].ids)
        for layer in range(3):
            first, second, none = (runner.cache.layer(layer)[0][0] for runner in group.runners)
            assert first.shape == (group.pages[0], PAGE_TOKENS, 1, 24 + 8) and none.numel() == 0
            kept = first[pages].flatten(0, 1)[:20]
            assert torch.equal(kept, second[pages].flatten(0, 1)[:20])
            assert kept.std() > 0.1


def test_a_null_latent_of_queries_takes_them_from_the_hidden_state() -> None:
    [layer] = layout_of(CONFIG | {"q_lora_rank": None}, even(1)).model.runs
    names = [child.name for child in layer.block.children()[0].children()[0].children()[1].children()]
    assert names == ["q_proj", "kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj", "o_proj"]


def test_blocks_of_fp8_are_described_and_refused_when_run() -> None:
    fp8 = {"quant_method": "fp8", "weight_block_size": [16, 16], "activation_scheme": "dynamic"}
    layout = layout_of({**CONFIG, "quantization_config": fp8}, even(2))
    _, tensors = load.arena(layout, 0, CPU)
    assert tensors["model.layers.0.self_attn.kv_b_proj.weight_scale_inv"].shape == (6, 2)
    with pytest.raises(NotImplementedError, match="q_a_proj: format fp8 is described but not computed yet"):
        Decoder(Rank(layout, 0, Solo(), CPU, torch.float32, torch.float32), tensors)
