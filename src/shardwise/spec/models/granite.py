"""Granite 3.x (dense): Llama with multipliers on embedding, attention, residuals and logits."""

from __future__ import annotations

from dataclasses import replace

from shardwise.spec.blocks import Chain, Model
from shardwise.spec.models.decoder import attention, decoder, gated_mlp, layer, read_shape, runs
from shardwise.spec.models.fields import Fields
from shardwise.spec.models.rope import rope


def granite(fields: Fields) -> Model:
    """As transformers' modeling_granite. `attention_multiplier` takes the place of 1 / sqrt(dim); logits are *divided*."""
    shape = read_shape(fields)
    turn = rope(fields, shape.dim)
    bias = fields.flag("attention_bias", False)
    mlp = gated_mlp(fields, shape, bias=fields.flag("mlp_bias", False))
    scale = fields.number("attention_multiplier", 1.0)
    residual = fields.number("residual_multiplier", 1.0)

    def build(window: int | None) -> Chain:
        attend = attention(shape, turn, window, qkv_bias=bias, o_bias=bias)
        return layer(shape, replace(attend, scale=scale), mlp, residual)

    return decoder(
        fields,
        "granite",
        shape,
        runs("model.layers", (None,) * shape.layers, build),
        embedding_scale=fields.number("embedding_multiplier", 1.0),
        logits_scale=1.0 / fields.number("logits_scaling", 1.0, above=0),
    )
