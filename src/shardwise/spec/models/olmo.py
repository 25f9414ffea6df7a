"""OLMo-2 and OLMo-3: a layer norms what its blocks give, not what they get, and q and k over all heads together."""

from __future__ import annotations

from dataclasses import replace

from shardwise.spec.blocks import MLP, Attention, Chain, HeadsNorm, Norm, Residual, Rope
from shardwise.spec.model import Model, Run
from shardwise.spec.models.decoder import Shape, attention, decoder, gated_mlp, read_shape, runs, window_of
from shardwise.spec.models.fields import Fields
from shardwise.spec.models.kinds import SLIDING, layer_kinds
from shardwise.spec.models.rope import layer_ropes, rope


def olmo2(fields: Fields) -> Model:
    """As transformers' modeling_olmo2."""
    shape = read_shape(fields, eps=1e-5)
    turn = rope(fields, shape.dim)
    bias = fields.flag("attention_bias", False)
    mlp = gated_mlp(fields, shape, bias=False)

    def build(window: int | None) -> Chain:
        return _layer(shape, _attention(shape, turn, window, bias), mlp)

    return _around(fields, "olmo2", shape, runs("model.layers", (None,) * shape.layers, build))


def olmo3(fields: Fields) -> Model:
    """As transformers' modeling_olmo3: three layers of four slide; only the full ones have their positions scaled."""
    shape = read_shape(fields, eps=1e-5)
    turns = layer_ropes(fields, shape.dim, full=5e5, sliding=5e5, local=None)
    bias = fields.flag("attention_bias", False)
    mlp = gated_mlp(fields, shape, bias=False)
    window = window_of(fields, "sliding_window", shape.context, None if fields.states("sliding_window") else 4096)

    def build(kind: str) -> Chain:
        return _layer(shape, _attention(shape, turns[kind], window if kind == SLIDING else None, bias), mlp)

    return _around(fields, "olmo3", shape, runs("model.layers", layer_kinds(fields, shape.layers, 4), build))


def _attention(shape: Shape, turn: Rope, window: int | None, bias: bool) -> Attention:
    attend = attention(shape, replace(turn, wide=True), window, qkv_bias=bias, o_bias=bias)
    return replace(attend, heads_norm=HeadsNorm(shape.q, shape.kv, shape.eps))


def _layer(shape: Shape, attend: Attention, mlp: MLP) -> Chain:
    """x + norm(attend(x)), then the same with the MLP."""
    first, second = (
        Norm(name, shape.hidden, shape.eps, wide=True) for name in ("post_attention_layernorm", "post_feedforward_layernorm")
    )
    return Chain((Residual(Chain((attend, first))), Residual(Chain((mlp, second)))))


def _around(fields: Fields, architecture: str, shape: Shape, layers: tuple[Run, ...]) -> Model:
    return decoder(fields, architecture, shape, layers, final=Norm("model.norm", shape.hidden, shape.eps, wide=True))
