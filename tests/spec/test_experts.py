"""Configs of mixtures of experts: what they mean, what is refused, and how stacks are cut and stored."""

from __future__ import annotations

import math

import pytest

from shardwise.errors import ConfigError, LayoutError
from shardwise.spec.axes import BITS
from shardwise.spec.binding import names
from shardwise.spec.blocks import attentions, walk
from shardwise.spec.config import read_model
from shardwise.spec.layout import Layout, Shares
from shardwise.spec.mesh import Mesh
from shardwise.spec.model import layer_blocks, model_weights
from shardwise.spec.moe import Groups, MoE, stacks
from tests.spec.test_models import SMALL, TINY

REFUSED = [
    ("mixtral", {"num_experts_per_tok": 6}, "num_experts_per_tok is 6; there are 5 experts"),
    ("mixtral", {"n_shared_experts": 1}, "n_shared_experts is 1"),
    ("mixtral", {"routed_scaling_factor": 2.5}, "routed_scaling_factor is 2.5"),
    ("mixtral", {"scoring_func": "sigmoid"}, "scoring_func is 'sigmoid'"),
    ("qwen3_moe", {"use_qk_norm": False}, "use_qk_norm is False"),
    ("qwen3_moe", {"num_local_experts": 4}, "num_local_experts is 4; but num_experts is 9"),
    ("qwen3_moe", {"shared_expert_intermediate_size": 512}, "shared_expert_intermediate_size is 512"),
    ("qwen3_moe", {"mlp_only_layers": [1.5]}, r"mlp_only_layers is \[1.5\]; it must be a list of whole numbers"),
    ("qwen2_moe", {"use_sliding_window": True}, "use_sliding_window is True"),
    ("glm4_moe", {"n_group": 3}, "n_group is 3; 8 experts must fall into equal groups of two or more"),
    ("glm4_moe", {"n_group": 8}, "n_group is 8; 8 experts must fall into equal groups of two or more"),
    ("glm4_moe", {"topk_group": 1}, "topk_group is 1; groups of 2 experts hold too few"),
    ("glm4_moe", {"scoring_func": "softmax"}, "scoring_func is 'softmax'"),
    ("glm4_moe", {"topk_method": "greedy"}, "topk_method is 'greedy'"),
    ("gpt_oss", {"experts_per_token": 2}, "experts_per_token is not num_experts_per_tok, 4"),
    ("gpt_oss", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ("gpt_oss", {"layer_types": ["chunked_attention"] * 3}, r"layer_types\[0\] is 'chunked_attention'"),
    ("llama4_text", {"layer_types": ["sliding_attention"] * 3}, r"layer_types\[0\] is 'sliding_attention'"),
    ("llama4_text", {"no_rope_layers": [1, 0]}, r"no_rope_layers is \[1, 0\]; it has another number of entries"),
    ("llama", {"swiglu_limit": 7.0}, "swiglu_limit is 7.0"),
    ("llama", {"first_k_dense_replace": 1}, "first_k_dense_replace is 1"),
]


@pytest.mark.parametrize(("name", "change", "told"), REFUSED)
def test_refused(name, change, told):
    with pytest.raises(ConfigError, match=told):
        read_model(TINY[name] | change)


def mixtures(name, change=None):
    """The mixture of each layer, None where it has an MLP."""
    model = read_model(TINY[name] | (change or {}))
    return [next((n for _, n in walk(b) if isinstance(n, MoE)), None) for _, b in layer_blocks(model)]


@pytest.mark.parametrize(
    ("name", "change", "sparse"),
    [
        ("mixtral", {}, [True, True, True]),
        ("qwen3_moe", {}, [True, False, True]),
        ("qwen2_moe", {}, [False, True, False]),
        ("qwen2_moe", {"decoder_sparse_step": 1, "mlp_only_layers": [0, 2]}, [False, True, False]),
        ("glm4_moe", {}, [False, False, True]),
        ("glm4_moe", {"first_k_dense_replace": 0}, [True, True, True]),
        ("llama4_text", {}, [False, True, False]),
        ("llama4_text", {"moe_layers": [2]}, [False, False, True]),
    ],
)
def test_which_layers_have_experts(name, change, sparse):
    assert [moe is not None for moe in mixtures(name, change)] == sparse


def test_groups_of_which_all_may_be_chosen_are_none():
    assert mixtures("glm4_moe")[-1].router.groups == Groups(4, 2, "top2")
    assert mixtures("glm4_moe", {"topk_group": 4})[-1].router.groups is None


def test_chunks_are_groups_of_pages_of_their_own():
    model = read_model(TINY["llama4_text"])
    assert [(a.window, a.chunked, a.rope is None) for _, b in layer_blocks(model) for a in attentions(b)] == [
        (8, True, False), (None, False, True), (8, True, False),
    ]  # fmt: skip
    groups = Layout(model, Mesh(), Shares(), "float32", "float32").cache
    assert [(group.window, group.chunked, group.layers) for group in groups] == [(8, True, (0, 2)), (None, False, (1,))]
    whole = read_model(TINY["llama4_text"] | {"attention_chunk_size": 64})
    assert not any(a.chunked for _, b in layer_blocks(whole) for a in attentions(b)), "no sequence leaves its first chunk"


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "glm4_moe", "gpt_oss", "llama4_text"])
def test_either_the_experts_are_cut_or_each_of_them(name):
    model = read_model(TINY[name])
    for linear in stacks(model):
        inner = linear.out if linear.out.cut else linear.inp
        for whole in (False, True):
            layout = Layout(model, Mesh(tp=3), Shares.of((1.0, 2.0, 1.0)), "float32", "float32", expert_parallel=whole)
            assert (layout.cut(linear.experts), layout.cut(inner)) == (whole, not whole)
            boxes = [layout.box(weight, layout.mesh.coords(rank)) for weight in linear.own_weights() for rank in range(3)]
            assert {tuple(b[0]) for b in boxes} == ({tuple(r) for r in layout.spans(linear.experts)} if whole else {
                tuple(range(linear.experts.size))
            })  # fmt: skip


def test_experts_are_dealt_once():
    model = read_model(TINY["mixtral"])
    with pytest.raises(LayoutError, match="experts are dealt to 2 ranks of their own already"):
        Layout(model, Mesh(tp=2, ep=2), Shares.even(2), "float32", "float32", expert_parallel=True)


def test_quantised_experts_are_stacked_too():
    """FP8 in blocks, as Qwen3-30B-A3B-FP8 stores it: a byte a number, and four for each block of every expert."""
    sizes = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    config = SMALL | {"model_type": "qwen3_moe", "head_dim": 8} | sizes
    fp8 = {"quant_method": "fp8", "weight_block_size": [16, 16], "modules_to_not_convert": ["lm_head", "model.layers.0.mlp"]}
    model = read_model(config | {"quantization_config": fp8})
    found = {w.name: w for w in model_weights(model) if "experts" in w.name}
    assert found["model.layers.0.mlp.experts.*.up_proj.weight"].dtype is None
    assert "model.layers.0.mlp.experts.*.up_proj.weight_scale_inv" not in found
    up, scale = (found[f"model.layers.1.mlp.experts.*.up_proj.{part}"] for part in ("weight", "weight_scale_inv"))
    assert (up.shape, scale.shape) == ((6, 32, 48), (6, 2, 3))
    assert math.prod(up.shape) * BITS[up.dtype or ""] // 8 == 6 * 32 * 48
    stored = names(scale, scale.source) if scale.source else [scale.name.replace("*", str(i)) for i in range(6)]
    assert stored[5] == "model.layers.1.mlp.experts.5.up_proj.weight_scale_inv"
