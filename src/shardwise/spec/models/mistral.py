"""Mistral 7B to Small and Nemo: Llama with a sliding window in every layer, or in none."""

from __future__ import annotations

from shardwise.spec.blocks import Chain
from shardwise.spec.model import Model
from shardwise.spec.models.decoder import attention, decoder, gated_mlp, layer, read_shape, runs, window_of
from shardwise.spec.models.fields import Fields
from shardwise.spec.models.rope import rope


def mistral(fields: Fields) -> Model:
    """As transformers' modeling_mistral. An absent `sliding_window` is 4096 there; null is none."""
    shape = read_shape(fields, kv_heads=8)
    turn = rope(fields, shape.dim)
    mlp = gated_mlp(fields, shape, bias=False)
    window = window_of(fields, "sliding_window", shape.context, None if fields.states("sliding_window") else 4096)

    def build(window: int | None) -> Chain:
        return layer(shape, attention(shape, turn, window, qkv_bias=False, o_bias=False), mlp)

    return decoder(fields, "mistral", shape, runs("model.layers", (window,) * shape.layers, build))
