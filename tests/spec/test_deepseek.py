"""DeepSeek and its relatives: published totals, what is cut how, what a token keeps, what is left unread or refused."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from shardwise.errors import ConfigError
from shardwise.spec.blocks import attentions
from shardwise.spec.config import read_model
from shardwise.spec.layout import Layout, Shares
from shardwise.spec.mesh import Mesh
from shardwise.spec.mla import MLA
from shardwise.spec.model import layer_blocks, parameters
from shardwise.spec.moe import MoE
from tests.spec.latent import LATENT

V2 = {
    "model_type": "deepseek_v2", "vocab_size": 102400, "hidden_size": 5120, "intermediate_size": 12288,
    "moe_intermediate_size": 1536, "num_hidden_layers": 60, "num_attention_heads": 128, "num_key_value_heads": 128,
    "n_shared_experts": 2, "n_routed_experts": 160, "num_experts_per_tok": 6, "routed_scaling_factor": 16.0,
    "topk_method": "group_limited_greedy", "n_group": 8, "topk_group": 3, "first_k_dense_replace": 1, "moe_layer_freq": 1,
    "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128,
    "norm_topk_prob": False, "scoring_func": "softmax", "max_position_embeddings": 163840,
}  # fmt: skip
LITE = V2 | {
    "hidden_size": 2048, "intermediate_size": 10944, "moe_intermediate_size": 1408, "num_hidden_layers": 27,
    "num_attention_heads": 16, "num_key_value_heads": 16, "n_routed_experts": 64, "q_lora_rank": None, "topk_method": "greedy",
    "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0,
}  # fmt: skip
V3 = V2 | {
    "model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432,
    "moe_intermediate_size": 2048, "num_hidden_layers": 61, "n_shared_experts": 1, "n_routed_experts": 256,
    "num_experts_per_tok": 8, "routed_scaling_factor": 2.5, "topk_method": "noaux_tc", "topk_group": 4,
    "first_k_dense_replace": 3, "norm_topk_prob": True, "scoring_func": "sigmoid", "num_nextn_predict_layers": 1,
}  # fmt: skip


def even(config, degree):
    return Layout(read_model(config), Mesh(tp=degree), Shares.even(degree), "bfloat16", "bfloat16")


@pytest.mark.parametrize(
    ("config", "total"), [(V2, 235_741_434_880), (LITE, 15_706_484_224), (V3, 671_026_419_200)], ids=["V2", "V2-Lite", "V3"]
)
def test_totals(config, total):
    """V2 and Lite: safetensors.total of their entries on the Hugging Face Hub. V3: see `published`."""
    assert parameters(read_model(config)) == total


@pytest.mark.parametrize("degree", [1, 3, 8, 128])
def test_a_token_keeps_576_numbers_a_layer_on_every_rank(degree):
    """DeepSeek-V3's 70 272 bytes in bfloat16 (arXiv 2412.19437, table 1 of 2505.09343: 70.272 KB)."""
    layout = even(V3, degree)
    assert {layout.kv_bytes_per_token(rank) for rank in range(degree)} == {61 * (512 + 64) * 2} == {70272}
    assert len(layout.cache) == 1 and layout.cache[0].kept.kind == "latent"


@pytest.mark.parametrize("shares", [(1.0,) * 3, (5.0, 2.0, 1.0), (1.0,) * 6, (1.0, 1e-6)], ids=str)
@pytest.mark.parametrize("name", LATENT)
def test_every_axis_is_cut_at_the_same_heads(name, shares):
    model = read_model(LATENT[name])
    layout = Layout(model, Mesh(tp=len(shares)), Shares.of(shares), "float32", "float32")
    for attend in (a for _, block in layer_blocks(model) for a in attentions(block)):
        assert isinstance(attend, MLA)
        turned = attend.rope.dim
        for rank in range(len(shares)):
            at = layout.mesh.coords(rank)
            heads, _ = layout.heads(attend, at)
            for axis, dim in (
                (attend.q.out, attend.nope_dim + turned),
                (attend.kv_b.out, attend.nope_dim + attend.v_dim),
                (attend.o.inp, attend.v_dim),
            ):
                assert layout.span(axis, at) == range(heads.start * dim, heads.stop * dim)
        uncut = [attend.kv_a, *([attend.q_a] if attend.q_a else [])]
        assert all(not layout.cut(axis) for linear in uncut for axis in (linear.out, linear.inp))
        assert (attend.q_a is None) == (name == "deepseek_v2, lite")


def test_dense_layers_come_first():
    model = read_model(V3)
    assert [(run.start, run.count) for run in model.runs] == [(0, 3), (3, 58)]
    mlps = [run.block.blocks[1].body.blocks[1] for run in model.runs]
    assert [isinstance(mlp, MoE) for mlp in mlps] == [False, True]


def test_planning_takes_milliseconds():
    start = time.process_time()
    layout = even(V3, 8)
    assert sum(map(layout.arena_bytes, range(8))) > 2 * 671e9
    assert time.process_time() - start < 0.5  # 10 ms where nothing else runs; tensor by tensor it would be seconds


def test_the_layers_of_multi_token_prediction_are_left_unread():
    assert read_model(V3).foreign == ("model.layers.61.",)
    assert read_model(V3 | {"num_nextn_predict_layers": 0}).foreign == read_model(V2).foreign == ()


def test_kimi_k2_is_a_deepseek_v3_by_another_name():
    assert read_model(V3 | {"model_type": "kimi_k2"}) == replace(read_model(V3), architecture="kimi_k2")


def test_the_scale_of_scores_grows_with_the_context():
    """DeepSeek-V3's published yarn: (0.1 · ln 40 + 1)², and cos and sin as they are."""
    yarn = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "mscale": 1.0, "mscale_all_dim": 1.0}
    (plain, grown) = (next(attentions(read_model(V3 | {"rope_scaling": y}).runs[0].block)) for y in (None, yarn))
    assert plain.scale == 192**-0.5
    assert grown.scale / plain.scale == pytest.approx(1.3688879454**2, rel=1e-9)
    assert grown.rope.scale == plain.rope.scale == 1.0


@pytest.mark.parametrize(
    ("config", "change"),
    [
        (V2, {"num_key_value_heads": 16}),
        (V2, {"norm_topk_prob": True}),
        (V2, {"topk_method": "noaux_tc"}),
        (V2, {"scoring_func": "sigmoid"}),
        (V2, {"mlp_bias": True}),
        (V2, {"moe_layer_freq": 2}),
        (V2, {"topk_group": 9}),
        (V2, {"n_group": 7}),
        (V2, {"num_experts_per_tok": 61}),
        (V2, {"num_nextn_predict_layers": 1}),
        (V3, {"topk_method": "greedy"}),
        (V3, {"scoring_func": "softmax"}),
        (V3, {"moe_layer_freq": 2}),
        (V3, {"kv_lora_rank": 0}),
        (V3, {"qk_rope_head_dim": 63}),
        (V3, {"sliding_window": 128}),
        (V3, {"index_topk": 2048}),
        (V3, {"model_type": "deepseek_v32"}),
    ],
    ids=lambda value: next(iter(value)) if len(value) == 1 else value["model_type"],
)
def test_refused_by_name(config, change):
    ((key, value),) = change.items()
    with pytest.raises(ConfigError) as caught:
        read_model(config | change)
    if key == "num_experts_per_tok":
        key = "topk_group"  # three groups of twenty hold sixty
    told = str(caught.value)
    assert (key in told or "rotated" in told) and (str(value) in told or "20 experts" in told)
    if key == "model_type":
        assert "sparse attention" in told
