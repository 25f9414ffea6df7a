"""DeepSeek-V2, V3 and R1, and Kimi-K2: latent attention; a few dense layers, then mixtures of experts."""

from __future__ import annotations

from dataclasses import replace

from shardwise.spec.axes import Axis
from shardwise.spec.blocks import Block, Chain, Linear, Norm
from shardwise.spec.mla import MLA
from shardwise.spec.model import Model
from shardwise.spec.models.decoder import ACTIVATIONS, Shape, decoder, gated_mlp, layer, read_shape, runs
from shardwise.spec.models.experts import experts_of, groups_of, shared_expert, stored_apart, top_of
from shardwise.spec.models.fields import Fields
from shardwise.spec.models.rope import rope, score_scale
from shardwise.spec.moe import MoE, Router

LATENT_EPS = 1e-6
"""Of the norms of latents, whatever `rms_norm_eps` is: so transformers, and DeepSeek's own code."""


PARTS = ("experts.*.gate_proj", "experts.*.up_proj", "experts.*.down_proj")


def deepseek_v2(fields: Fields) -> Model:
    """As transformers' modeling_deepseek_v2, which never norms the weights of experts."""
    shape = read_shape(fields, dim=1)  # heads have widths of their own: see latent_attention
    attend = latent_attention(fields, shape, halves=False)
    attend = replace(attend, rope=replace(attend.rope, wide=True))
    experts = experts_of(fields, "n_routed_experts", 64)
    grouped = fields.choice("topk_method", {"greedy": False, "group_limited_greedy": True}, "greedy")
    fields.choice("scoring_func", {"softmax": True}, "softmax")
    if fields.flag("norm_topk_prob", False):
        raise fields.wrong("norm_topk_prob", "DeepSeek's own code and transformers disagree on it here; false would work")
    router = Router(
        "gate",
        experts,
        shape.hidden,
        fields.integer("num_experts_per_tok", most=experts),
        "softmax",
        groups=groups_of(fields, experts, "max") if grouped else None,
        scale=fields.number("routed_scaling_factor", 1.0),
        precise=True,
    )
    moe = _moe(fields, shape, router, width=1407, shared=2)
    return _model(fields, "deepseek_v2", shape, attend, moe, dense=0)


def deepseek_v3(fields: Fields, name: str = "deepseek_v3") -> Model:
    """As transformers' modeling_deepseek_v3."""
    shape = read_shape(fields, dim=1)
    attend = latent_attention(fields, shape, halves=not fields.flag("rope_interleave", True))
    experts = experts_of(fields, "n_routed_experts", 256)
    fields.choice("topk_method", {"noaux_tc": True}, "noaux_tc")
    fields.choice("scoring_func", {"sigmoid": True}, "sigmoid")
    router = Router(
        "gate",
        experts,
        shape.hidden,
        top_of(fields, experts, 8),
        "sigmoid",
        correction=True,
        groups=groups_of(fields, experts, "top2", count=8, top=4),
        normed=fields.flag("norm_topk_prob", True),
        floor=1e-20,
        scale=fields.number("routed_scaling_factor", 2.5),
        precise=True,
    )
    moe = _moe(fields, shape, router, width=2048, shared=1)
    model = _model(fields, name, shape, attend, moe, dense=3)
    # The layers of multi-token prediction stand behind the last one. They draft, and plain decoding has no use for them:
    # transformers ignores their tensors too, though by DeepSeek-V3's own number ("model.layers.61.").
    more = fields.integer("num_nextn_predict_layers", 1, least=0, most=64)
    return replace(model, foreign=tuple(f"model.layers.{shape.layers + i}." for i in range(more)))


def kimi_k2(fields: Fields) -> Model:
    """DeepSeek-V3 by another name, as its own code has it."""
    return deepseek_v3(fields, "kimi_k2")


def _moe(fields: Fields, shape: Shape, router: Router, *, width: int, shared: int) -> MoE:
    """Routed experts and shared ones; the latter are one MLP as wide as all of them. `width` and `shared` are defaults."""
    width = fields.integer("moe_intermediate_size", width, most=2**28)
    stacks = stored_apart(router.experts, shape.hidden, width, PARTS, "experts.gate_up_proj", "experts.down_proj")
    inner = width * fields.integer("n_shared_experts", shared, most=2**10)
    always = shared_expert(fields, shape, "shared_experts", inner)
    return MoE("mlp", router, *stacks, fields.choice("hidden_act", ACTIVATIONS, "silu"), always)


def _model(fields: Fields, name: str, shape: Shape, attend: MLA, moe: MoE, *, dense: int) -> Model:
    """Dense layers, `dense` where the config does not say how many, then mixtures."""
    dense = fields.integer("first_k_dense_replace", dense, least=0)
    if fields.integer("moe_layer_freq", 1) != 1:
        raise fields.wrong("moe_layer_freq", "implemented are mixtures in every layer after the dense ones: 1 would work")
    blocks: dict[bool, Block] = {True: moe, False: gated_mlp(fields, shape, bias=False)}

    def build(mixed: bool) -> Chain:
        return layer(shape, attend, blocks[mixed])

    return decoder(fields, name, shape, runs("model.layers", (i >= dense for i in range(shape.layers)), build))


def latent_attention(fields: Fields, shape: Shape, *, halves: bool) -> MLA:
    """Latent attention under DeepSeek's names; `halves` is how turned elements are paired (`Rope.halves`)."""
    if shape.kv_heads != shape.heads:
        raise fields.wrong(
            "num_key_value_heads", f"latent attention has no groups: {shape.heads}, as many as heads, would work"
        )
    nope_dim, turned_dim, v_dim = (
        fields.integer(key, usual, most=2**14)
        for key, usual in (("qk_nope_head_dim", 128), ("qk_rope_head_dim", 64), ("v_head_dim", 128))
    )
    kv_rank = fields.integer("kv_lora_rank", 512, most=2**24)
    # Null says that queries have no latent (V2-Lite); only an absent key takes the family's number.
    q_rank = fields.optional_integer("q_lora_rank", most=2**24) or (0 if fields.states("q_lora_rank") else 1536)
    bias = fields.flag("attention_bias", False)
    hidden, kv_latent = Axis(shape.hidden), Axis(kv_rank)

    def heads(dim: int) -> Axis:
        return Axis(shape.heads * dim, "q", dim)

    return MLA(
        "self_attn",
        q=Linear("q_b_proj" if q_rank else "q_proj", heads(nope_dim + turned_dim), Axis(q_rank) if q_rank else hidden),
        kv_a=Linear("kv_a_proj_with_mqa", Axis(kv_rank + turned_dim), hidden, bias),
        kv_norm=Norm("kv_a_layernorm", kv_rank, LATENT_EPS),
        kv_b=Linear("kv_b_proj", heads(nope_dim + v_dim), kv_latent),
        o=Linear("o_proj", hidden, heads(v_dim), bias),
        heads=shape.heads,
        nope_dim=nope_dim,
        v_dim=v_dim,
        scale=(nope_dim + turned_dim) ** -0.5 * score_scale(fields),
        rope=replace(rope(fields, turned_dim), halves=halves),
        q_a=Linear("q_a_proj", Axis(q_rank), hidden, bias) if q_rank else None,
        q_norm=Norm("q_a_layernorm", q_rank, LATENT_EPS) if q_rank else None,
    )
