"""Llama 1 to 3.x, and all that are Llama by another name (SmolLM, Yi, DeepSeek-LLM, ...)."""

from __future__ import annotations

from shardwise.spec.blocks import Chain
from shardwise.spec.model import Model
from shardwise.spec.models.decoder import attention, decoder, gated_mlp, layer, read_shape, runs
from shardwise.spec.models.fields import Fields
from shardwise.spec.models.rope import rope


def llama(fields: Fields) -> Model:
    """As transformers' modeling_llama: `attention_bias` is on all four projections, `mlp_bias` on all three."""
    shape = read_shape(fields)
    turn = rope(fields, shape.dim)
    bias = fields.flag("attention_bias", False)
    mlp = gated_mlp(fields, shape, bias=fields.flag("mlp_bias", False))

    def build(window: int | None) -> Chain:
        return layer(shape, attention(shape, turn, window, qkv_bias=bias, o_bias=bias), mlp)

    return decoder(fields, "llama", shape, runs("model.layers", (None,) * shape.layers, build))
