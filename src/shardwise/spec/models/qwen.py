"""Qwen 2, 2.5 and 3 (dense): Llama with biases on q, k and v, or with norms on the heads of q and k."""

from __future__ import annotations

from dataclasses import replace

from shardwise.errors import ConfigError
from shardwise.spec.blocks import Chain, Norm
from shardwise.spec.model import Model
from shardwise.spec.models.decoder import Shape, attention, decoder, gated_mlp, layer, read_shape, runs, window_of
from shardwise.spec.models.fields import Fields
from shardwise.spec.models.kinds import SLIDING, layer_kinds
from shardwise.spec.models.rope import rope


def qwen2(fields: Fields) -> Model:
    """As transformers' modeling_qwen2: biases on q, k and v, never on o."""
    shape = read_shape(fields, kv_heads=32)
    turn = rope(fields, shape.dim)
    mlp = gated_mlp(fields, shape, bias=False)

    def build(window: int | None) -> Chain:
        return layer(shape, attention(shape, turn, window, qkv_bias=True, o_bias=False), mlp)

    return decoder(fields, "qwen2", shape, runs("model.layers", windows(fields, shape), build))


def qwen3(fields: Fields) -> Model:
    """As transformers' modeling_qwen3: q and k are normed head by head; heads are 128 wide unless the config says else."""
    shape = read_shape(fields, kv_heads=32, dim=128)
    turn = rope(fields, shape.dim)
    bias = fields.flag("attention_bias", False)
    mlp = gated_mlp(fields, shape, bias=False)
    q_norm, k_norm = (Norm(name, shape.dim, shape.eps) for name in ("q_norm", "k_norm"))

    def build(window: int | None) -> Chain:
        attend = attention(shape, turn, window, qkv_bias=bias, o_bias=bias)
        return layer(shape, replace(attend, q_norm=q_norm, k_norm=k_norm), mlp)

    return decoder(fields, "qwen3", shape, runs("model.layers", windows(fields, shape), build))


def windows(fields: Fields, shape: Shape) -> tuple[int | None, ...]:
    """Each layer's window: by `layer_types`, else for layers from `max_window_layers` on; none unless `use_sliding_window`."""
    used = fields.flag("use_sliding_window", False)
    stated = None if fields.states("sliding_window") else 4096
    window = window_of(fields, "sliding_window", shape.context, stated)
    first = fields.integer("max_window_layers", 28, least=0)
    kinds = layer_kinds(fields, shape.layers)
    if not kinds:
        return tuple(window if used and i >= first else None for i in range(shape.layers))
    if SLIDING in kinds and not (used and fields.has("sliding_window")):
        raise ConfigError(
            f"config.json: layer_types[{kinds.index(SLIDING)}] is {SLIDING!r} without use_sliding_window true and a "
            "sliding_window in tokens"
        )
    return tuple(window if kind == SLIDING else None for kind in kinds)
