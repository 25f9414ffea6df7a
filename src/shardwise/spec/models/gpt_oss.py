"""gpt-oss: sinks in the softmax, every other layer over a window, experts with biases and a clamped activation, in MXFP4."""

from __future__ import annotations

from dataclasses import replace

from shardwise.errors import ConfigError
from shardwise.spec.blocks import Chain, Norm, Rope
from shardwise.spec.model import Model
from shardwise.spec.models.decoder import Shape, attention, decoder, layer, read_shape, runs, window_of
from shardwise.spec.models.experts import experts_of, stored_together, top_of
from shardwise.spec.models.fields import Fields
from shardwise.spec.models.kinds import SLIDING, layer_kinds
from shardwise.spec.models.rope import rope_of, stated
from shardwise.spec.moe import ClampedSwiglu, MoE, Router

YARN = {
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096,
}  # fmt: skip
"""What transformers takes where a config says nothing of positions."""


def gpt_oss(fields: Fields) -> Model:
    """As transformers' modeling_gpt_oss. Experts stored in MXFP4 are held in the model's dtype."""
    shape = read_shape(fields, kv_heads=8, dim=64, eps=1e-5)
    turn, bias = _rope(fields, shape), fields.flag("attention_bias", True)
    window = window_of(fields, "sliding_window", shape.context, None if fields.states("sliding_window") else 128)
    moe = _moe(fields, shape)

    def build(kind: str) -> Chain:
        attend = attention(shape, turn, window if kind == SLIDING else None, qkv_bias=bias, o_bias=bias)
        return layer(shape, replace(attend, sinks=True), moe, wide=True)

    layers = runs("model.layers", layer_kinds(fields, shape.layers, 2), build)
    model = decoder(fields, "gpt_oss", shape, layers, final=Norm("model.norm", shape.hidden, shape.eps, wide=True))
    # The published configs say nothing of it: their dense tensors are bfloat16.
    return model if fields.has("dtype") or fields.has("torch_dtype") else replace(model, dtype="bfloat16")


def _rope(fields: Fields, shape: Shape) -> Rope:
    section = stated(fields)
    section = section if section.mapping() else Fields(YARN, "rope_parameters.")
    return rope_of(fields, section, shape.dim, fields.number("rope_theta", 150000.0, above=1))


def _moe(fields: Fields, shape: Shape) -> MoE:
    experts = experts_of(fields, "num_local_experts", 128)
    top = top_of(fields, experts, 4)
    if fields.integer("experts_per_token", top) != top:
        raise ConfigError(f"config.json: experts_per_token is not num_experts_per_tok, {top}; give one of them, or both alike")
    fields.choice("hidden_act", {"silu": None, "swish": None}, "silu")
    width = fields.integer("intermediate_size", most=2**28)
    # In one tensor, a gate row and an up row in turn.
    stacks = stored_together(
        experts, shape.hidden, width, "experts.gate_up_proj", "experts.down_proj", bias=True, transposed=True, in_turn=True
    )
    router = Router("router", experts, shape.hidden, top, "softmax_of_top", bias=True, rounded=True)
    alpha, limit = fields.number("swiglu_alpha", 1.702), fields.number("swiglu_limit", 7.0, above=0)
    return MoE("mlp", router, *stacks, ClampedSwiglu(alpha, limit))
