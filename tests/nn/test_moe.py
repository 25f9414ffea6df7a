"""Routers against transformers' own, to the last bit, and mixtures of experts against their definition."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import pytest
import torch

from shardwise.nn.kernels.dense import TorchDense
from shardwise.nn.moe import MoE, Router
from shardwise.spec.axes import Axis
from shardwise.spec.blocks import Linear
from shardwise.spec.formats import Dense
from shardwise.spec.model import Run
from shardwise.spec.moe import ClampedSwiglu, Groups
from shardwise.spec.moe import MoE as Block
from shardwise.spec.moe import Router as RouterBlock
from tests.nn.pieces import each, noise
from tests.spec.models_by_hand import around, attention, lay, layer

HIDDEN, EXPERTS = 32, 12


def of(score: Any, top: int = 3, **more: Any) -> RouterBlock:
    return RouterBlock("gate", EXPERTS, HIDDEN, top, score, **more)


DEEP: dict[str, Any] = {"n_routed_experts": EXPERTS, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5}
CASES: dict[str, tuple[str, str, dict[str, Any], RouterBlock]] = {
    "mixtral": ("mixtral", "MixtralTopKRouter", {"num_local_experts": EXPERTS}, of("softmax", normed=True)),
    "qwen3_moe": ("qwen3_moe", "Qwen3MoeTopKRouter", {"num_experts": EXPERTS}, of("softmax", rounded=True)),
    "qwen3_moe, normed": (
        "qwen3_moe",
        "Qwen3MoeTopKRouter",
        {"num_experts": EXPERTS, "norm_topk_prob": True},
        of("softmax", normed=True, rounded=True),
    ),
    "granitemoe": ("granitemoe", "GraniteMoeTopKRouter", {"num_local_experts": EXPERTS}, of("softmax_of_top", rounded=True)),
    "gpt_oss": ("gpt_oss", "GptOssTopKRouter", {"num_local_experts": EXPERTS}, of("softmax_of_top", bias=True, rounded=True)),
    "deepseek_v2, all": (
        "deepseek_v2",
        "DeepseekV2TopkRouter",
        {**DEEP, "topk_method": "greedy"},
        of("softmax", scale=2.5, precise=True),
    ),
    "deepseek_v2": (
        "deepseek_v2",
        "DeepseekV2TopkRouter",
        {**DEEP, "topk_method": "group_limited_greedy"},
        of("softmax", groups=Groups(4, 2, "max"), scale=2.5, precise=True),
    ),
    "deepseek_v3": (
        "deepseek_v3",
        "DeepseekV3TopkRouter",
        {**DEEP, "norm_topk_prob": True},
        of("sigmoid", correction=True, groups=Groups(4, 2, "top2"), normed=True, floor=1e-20, scale=2.5, precise=True),
    ),
    "glm4_moe": (
        "glm4_moe",
        "Glm4MoeTopkRouter",
        {**DEEP, "n_group": 1, "topk_group": 1, "norm_topk_prob": False},
        of("sigmoid", correction=True, scale=2.5, precise=True),
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_routers_are_transformers(name: str, dtype: torch.dtype) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers, the reference of these modules, is not installed")
    family, kind, changes, block = CASES[name]
    config = transformers.AutoConfig.for_model(family, hidden_size=HIDDEN, num_experts_per_tok=block.top, **changes)
    modeling = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    theirs = getattr(modeling, kind)(config)
    tensors = {"gate.weight": noise(EXPERTS, HIDDEN).to(dtype)}
    theirs.weight.data = tensors["gate.weight"]
    if block.bias:
        theirs.bias.data = tensors["gate.bias"] = noise(EXPERTS).to(dtype)
    if block.correction:
        # Large enough to change the choice, not the weights.
        theirs.e_score_correction_bias = tensors["gate.e_score_correction_bias"] = noise(EXPERTS) * 0.3
    x = noise(200, HIDDEN).to(dtype)
    with torch.inference_mode():
        weights, chosen = Router(block, "gate", TorchDense(), tensors)(x)
        _, their_weights, their_chosen = theirs(x)
    pairs = (chosen, weights), (their_chosen, their_weights)
    ours, others = (torch.zeros(200, EXPERTS).scatter(1, experts, each.float()) for experts, each in pairs)
    assert torch.equal(ours != 0, others != 0)
    assert weights.dtype == their_weights.dtype
    torch.testing.assert_close(ours, others, rtol=0 if block.rounded else 1e-6, atol=0)


def mixture(activation: Any = "silu", experts: int = 5, inner: int = 6, **more: Any) -> Block:
    count, width, hidden = Axis(experts, "expert"), Axis(inner, "moe"), Axis(8)
    gate, up = (Linear(f"experts.{name}", width, hidden, bias=True, experts=count) for name in ("gate", "up"))
    down = Linear("experts.down", hidden, width, bias=True, partial=True, experts=count)
    router = RouterBlock("router", experts, 8, 2, "softmax", normed=True)
    return Block("mlp", router, gate, up, down, activation, **more)


def by_hand(block: Block, x: torch.Tensor, whole: dict[str, torch.Tensor]) -> torch.Tensor:
    """Token by token, expert by expert."""
    rows = []
    for token in x:
        scores = (whole["mlp.router.weight"] @ token).softmax(-1)
        best = scores.topk(2)
        y = torch.zeros(8)
        for share, expert in zip(best.values / best.values.sum(), best.indices.tolist(), strict=True):
            seen = token * share if block.weighs_inputs else token
            gate, up = (
                whole[f"mlp.experts.{name}.weight"][expert] @ seen + whole[f"mlp.experts.{name}.bias"][expert]
                for name in ("gate", "up")
            )
            if isinstance(block.activation, ClampedSwiglu):
                gate, up = gate.clamp(max=block.activation.limit), up.clamp(-block.activation.limit, block.activation.limit)
                inner = (up + 1) * gate * torch.sigmoid(block.activation.alpha * gate)
            else:
                inner = torch.nn.functional.silu(gate) * up
            out = whole["mlp.experts.down.weight"][expert] @ inner + whole["mlp.experts.down.bias"][expert]
            y = y + (out if block.weighs_inputs else share * out)
        rows.append(y)
    return torch.stack(rows)


@pytest.mark.parametrize("expert_parallel", [False, True])
@pytest.mark.parametrize("shares", [(1.0,), (1.0, 1.0), (5.0, 1.0, 1.0), (1.0,) * 8], ids=str)
@pytest.mark.parametrize(
    "block",
    [mixture(), mixture(ClampedSwiglu(1.7, 0.5)), mixture(weighs_inputs=True), mixture(inner=1)],
    ids=["plain", "clamped", "weighed inputs", "one row"],
)
def test_any_cut_is_the_definition(block: Block, shares: tuple[float, ...], expert_parallel: bool) -> None:
    """Also where ranks hold no rows, no experts, or rows but not the first ones, to whose rank the biases belong."""
    body = layer(attention(8, 8, 1, 8, fmt=Dense()), block, 8)
    layout = replace(lay(around((Run("layers", 0, 1, body),), 8, 13), shares), expert_parallel=expert_parallel)
    whole = {f"mlp.{weight.name}": noise(*weight.shape) for part in block.children() for weight in part.own_weights()}
    x = noise(11, 8)

    def work(rank: Any) -> torch.Tensor:
        own = {}
        for part in block.children():
            for weight in part.own_weights():
                box = layout.box(weight, rank.at)
                own[f"mlp.{weight.name}"] = whole[f"mlp.{weight.name}"][tuple(slice(r.start, r.stop) for r in box)]
        with torch.inference_mode():
            return MoE(block, "mlp", rank, own)(x, None)  # type: ignore[arg-type]

    for found in each(layout, work):
        torch.testing.assert_close(found, by_hand(block, x, whole), rtol=1e-4, atol=1e-4)
