"""Gemma 1 to 3: norms that store their distance from one, scaled embeddings, and from 2 on norms on both sides of a block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from shardwise.spec.blocks import MLP, Attention, Chain, Norm, Residual
from shardwise.spec.model import Model, Run
from shardwise.spec.models.decoder import (  # fmt: skip
    ACTIVATIONS,
    Activation,
    Shape,
    attention,
    decoder,
    gated_mlp,
    read_dtype,
    read_shape,
    runs,
    window_of,
)
from shardwise.spec.models.fields import Fields
from shardwise.spec.models.kinds import SLIDING, layer_kinds
from shardwise.spec.models.rope import layer_ropes, rope

TANH = "gelu_pytorch_tanh"

SPELLINGS: Mapping[str, Mapping[str, Activation]] = {
    # The first configs say "gelu" here for what was trained with the tanh approximation.
    "hidden_act": ACTIVATIONS | {"gelu": "gelu_tanh"},
    "hidden_activation": ACTIVATIONS,
}

TEXT: Mapping[str, Any] = {
    "vocab_size": 262208,
    "num_attention_heads": 8,
    "max_position_embeddings": 131072,
}
"""What a multimodal checkpoint's `text_config` leaves out where it is transformers' default (gemma-3-4b)."""


def gemma(fields: Fields) -> Model:
    """As transformers' modeling_gemma: pre-norm."""
    shape = read_shape(fields, kv_heads=16, dim=256)
    turn = rope(fields, shape.dim)
    bias = fields.flag("attention_bias", False)
    mlp = _mlp(fields, shape, "hidden_act", "hidden_activation")

    def build(window: int | None) -> Chain:
        attend = attention(shape, turn, window, qkv_bias=bias, o_bias=bias)
        before, after = (_norm(name, shape) for name in ("input_layernorm", "post_attention_layernorm"))
        return Chain((Residual(Chain((before, attend))), Residual(Chain((after, mlp)))))

    return _around(fields, "gemma", shape, runs("model.layers", (None,) * shape.layers, build))


def gemma2(fields: Fields) -> Model:
    """As transformers' modeling_gemma2: scores and logits are bent, every other layer slides."""
    shape = read_shape(fields, kv_heads=4, dim=256)
    turn = rope(fields, shape.dim)
    bias = fields.flag("attention_bias", False)
    mlp = _mlp(fields, shape, "hidden_activation", "hidden_act")
    scale, softcap = _scale(fields), _softcap(fields, "attn_logit_softcapping", 50.0)
    windows = (_window(fields, shape) if kind == SLIDING else None for kind in layer_kinds(fields, shape.layers, 2))

    def build(window: int | None) -> Chain:
        attend = attention(shape, turn, window, qkv_bias=bias, o_bias=bias)
        return _layer(shape, replace(attend, scale=scale, softcap=softcap), mlp)

    model = _around(fields, "gemma2", shape, runs("model.layers", windows, build))
    return _capped(model, _softcap(fields, "final_logit_softcapping", 30.0))


def gemma3_text(fields: Fields) -> Model:
    """As transformers' modeling_gemma3, which never bends the scores: five layers of six slide, by another rope."""
    shape = read_shape(fields, kv_heads=4, dim=256)
    turns = layer_ropes(fields, shape.dim, full=1e6, sliding=1e4, local="rope_local_base_freq")
    bias = fields.flag("attention_bias", False)
    mlp = _mlp(fields, shape, "hidden_activation", "hidden_act")
    scale, window = _scale(fields), _window(fields, shape)
    kinds = layer_kinds(fields, shape.layers, fields.integer("sliding_window_pattern", 6))
    q_norm, k_norm = (Norm(name, shape.dim, shape.eps, offset=1.0, wide=True) for name in ("q_norm", "k_norm"))

    def build(kind: str) -> Chain:
        attend = attention(shape, turns[kind], window if kind == SLIDING else None, qkv_bias=bias, o_bias=bias)
        return _layer(shape, replace(attend, scale=scale, q_norm=q_norm, k_norm=k_norm), mlp)

    model = _around(fields, "gemma3_text", shape, runs("model.layers", kinds, build))
    return _capped(model, _softcap(fields, "final_logit_softcapping", None))


def gemma3(fields: Fields) -> Model:
    """The text part of a multimodal checkpoint; its vision tower is left where it is."""
    if not fields.has("text_config"):
        raise fields.wrong("text_config", "a gemma3 config must hold its text model there; a flat one is of a gemma3_text")
    text = fields.section("text_config").supposing(TEXT)
    text.choice("model_type", {"gemma3_text": None}, "gemma3_text")
    fields.section("vision_config")
    model = gemma3_text(text)
    if fields.flag("tie_word_embeddings", True) != bool(model.head.linear.tied):
        raise fields.wrong("tie_word_embeddings", "but text_config has it the other way; give both alike")
    return replace(
        model,
        architecture="gemma3",
        dtype=read_dtype(fields) if fields.has("dtype") or fields.has("torch_dtype") else model.dtype,
        prefix="language_model.",
        foreign=("vision_tower.", "multi_modal_projector."),
    )


def _norm(name: str, shape: Shape) -> Norm:
    return Norm(name, shape.hidden, shape.eps, offset=1.0, wide=True)


def _layer(shape: Shape, attend: Attention, mlp: MLP) -> Chain:
    """x + norm(body(norm(x))), of attention and then of the MLP."""
    names = "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"
    first, second, third, fourth = (_norm(name, shape) for name in names)
    return Chain((Residual(Chain((first, attend, second))), Residual(Chain((third, mlp, fourth)))))


def _mlp(fields: Fields, shape: Shape, key: str, other: str) -> MLP:
    """The activation stands at `key`; a config that says it at `other` too must agree with itself."""
    found = fields.choice(key, SPELLINGS[key], TANH)
    if fields.has(other) and fields.choice(other, SPELLINGS[other]) != found:
        raise fields.wrong(other, f"but {key} says {found}; they must be alike")
    return replace(gated_mlp(fields, shape, bias=False), activation=found)


def _scale(fields: Fields) -> float:
    return float(fields.number("query_pre_attn_scalar", 256, above=0) ** -0.5)


def _window(fields: Fields, shape: Shape) -> int | None:
    return window_of(fields, "sliding_window", shape.context, None if fields.states("sliding_window") else 4096)


def _softcap(fields: Fields, key: str, default: float | None) -> float | None:
    """Null is none; only an absent key takes the family's number."""
    return fields.optional_number(key, least=1e-6) if fields.states(key) else default


def _capped(model: Model, softcap: float | None) -> Model:
    return replace(model, head=replace(model.head, softcap=softcap))


def _around(fields: Fields, architecture: str, shape: Shape, layers: tuple[Run, ...]) -> Model:
    """Table and head, tied unless the config says else; the embedding is scaled by sqrt(hidden)."""
    final, scale = _norm("model.norm", shape), float(shape.hidden**0.5)
    model = decoder(fields, architecture, shape, layers, embedding_scale=scale, tied=True, final=final)
    return replace(model, embed=replace(model.embed, rounded=True))
