"""GLM-4.5 and 4.6: Llama with half-rotated heads, a few dense layers, then DeepSeek-V3's kind of experts."""

from __future__ import annotations

from dataclasses import replace

from shardwise.spec.blocks import Attention, Block, Chain, Norm
from shardwise.spec.model import Model
from shardwise.spec.models.decoder import ACTIVATIONS, Shape, attention, decoder, gated_mlp, layer, read_shape, runs
from shardwise.spec.models.experts import experts_of, groups_of, shared_expert, stored_apart, top_of
from shardwise.spec.models.fields import Fields
from shardwise.spec.models.rope import rope
from shardwise.spec.moe import MoE, Router

PARTS = ("experts.*.gate_proj", "experts.*.up_proj", "experts.*.down_proj")


def glm4_moe(fields: Fields) -> Model:
    """As transformers' modeling_glm4_moe. The layers of multi-token prediction, after the last one, are left unread."""
    shape = read_shape(fields, kv_heads=8, eps=1e-5)
    turn = rope(fields, shape.dim, partial=True, part=0.5)
    attend = attention(shape, turn, None, qkv_bias=fields.flag("attention_bias", False), o_bias=False)
    attend = _normed(attend, shape) if fields.flag("use_qk_norm", False) else attend
    dense = fields.integer("first_k_dense_replace", 1, least=0)
    blocks: dict[bool, Block] = {True: _moe(fields, shape), False: gated_mlp(fields, shape, bias=False)}

    def build(kind: bool) -> Chain:
        return layer(shape, attend, blocks[kind])

    more = fields.integer("num_nextn_predict_layers", 1, least=0, most=64)
    foreign = tuple(f"model.layers.{shape.layers + i}." for i in range(more))
    model = decoder(fields, "glm4_moe", shape, runs("model.layers", (i >= dense for i in range(shape.layers)), build))
    return replace(model, foreign=foreign)


def _normed(attend: Attention, shape: Shape) -> Attention:
    q_norm, k_norm = (Norm(name, shape.dim, shape.eps) for name in ("q_norm", "k_norm"))
    return replace(attend, q_norm=q_norm, k_norm=k_norm)


def _moe(fields: Fields, shape: Shape) -> MoE:
    experts = experts_of(fields, "n_routed_experts", 128)
    width = fields.integer("moe_intermediate_size", 1408, most=2**28)
    stacks = stored_apart(experts, shape.hidden, width, PARTS, "experts.gate_up_proj", "experts.down_proj")
    fields.choice("scoring_func", {"sigmoid": None}, "sigmoid")
    fields.choice("topk_method", {"noaux_tc": None}, "noaux_tc")
    router = Router(
        "gate",
        experts,
        shape.hidden,
        top_of(fields, experts, 8),
        "sigmoid",
        correction=True,
        groups=groups_of(fields, experts, "top2"),
        normed=fields.flag("norm_topk_prob", True),
        floor=1e-20,
        scale=fields.number("routed_scaling_factor", 1.0),
        precise=True,
    )
    inner = width * fields.integer("n_shared_experts", 1, most=2**10)
    shared = shared_expert(fields, shape, "shared_experts", inner)
    return MoE("mlp", router, *stacks, fields.choice("hidden_act", ACTIVATIONS, "silu"), shared)
