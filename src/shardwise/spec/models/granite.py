"""Granite 3.x: Llama with multipliers on embedding, attention, residuals and logits; dense, or with experts."""

from __future__ import annotations

from dataclasses import replace

from shardwise.spec.blocks import Block, Chain
from shardwise.spec.model import Model
from shardwise.spec.models.decoder import ACTIVATIONS, Shape, attention, decoder, gated_mlp, layer, read_shape, runs
from shardwise.spec.models.experts import experts_of, stored_together, top_of
from shardwise.spec.models.fields import Fields
from shardwise.spec.models.rope import rope
from shardwise.spec.moe import MoE, Router


def granite(fields: Fields) -> Model:
    """As transformers' modeling_granite."""
    shape = read_shape(fields)
    return _multiplied(fields, "granite", shape, gated_mlp(fields, shape, bias=fields.flag("mlp_bias", False)))


def granitemoe(fields: Fields) -> Model:
    """As transformers' modeling_granitemoe: a softmax over the logits of the chosen experts alone."""
    shape = read_shape(fields)
    experts, width = experts_of(fields, "num_local_experts", 8), fields.integer("intermediate_size", most=2**28)
    stacks = stored_together(experts, shape.hidden, width, "input_linear.weight", "output_linear.weight")
    router = Router("router.layer", experts, shape.hidden, top_of(fields, experts, 2), "softmax_of_top", rounded=True)
    moe = MoE("block_sparse_moe", router, *stacks, fields.choice("hidden_act", ACTIVATIONS, "silu"))
    return _multiplied(fields, "granitemoe", shape, moe)


def _multiplied(fields: Fields, architecture: str, shape: Shape, mlp: Block) -> Model:
    """`attention_multiplier` takes the place of 1 / sqrt(dim); logits are *divided*."""
    turn = rope(fields, shape.dim)
    bias = fields.flag("attention_bias", False)
    scale = fields.number("attention_multiplier", 1.0)
    residual = fields.number("residual_multiplier", 1.0)

    def build(window: int | None) -> Chain:
        attend = attention(shape, turn, window, qkv_bias=bias, o_bias=bias)
        return layer(shape, replace(attend, scale=scale), mlp, residual)

    return decoder(
        fields,
        architecture,
        shape,
        runs("model.layers", (None,) * shape.layers, build),
        embedding_scale=fields.number("embedding_multiplier", 1.0),
        logits_scale=1.0 / fields.number("logits_scaling", 1.0, above=0),
    )
