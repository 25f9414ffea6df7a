"""Llama 4's text model: layers that see a chunk and turn, layers that see everything and do not, and one expert a token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from shardwise.errors import ConfigError
from shardwise.spec.blocks import Attention, Chain, Norm, Temperature
from shardwise.spec.model import Model
from shardwise.spec.models.decoder import (  # fmt: skip
    ACTIVATIONS,
    Shape,
    attention,
    decoder,
    gated_mlp,
    layer,
    read_dtype,
    read_shape,
    runs,
    window_of,
)
from shardwise.spec.models.experts import experts_of, shared_expert, stored_together, top_of
from shardwise.spec.models.fields import Fields
from shardwise.spec.models.kinds import FULL
from shardwise.spec.models.rope import rope
from shardwise.spec.moe import MoE, Router

CHUNKED = "chunked_attention"


class Kind(NamedTuple):
    """What differs between layers."""

    chunked: bool
    turned: bool
    sparse: bool


def llama4_text(fields: Fields) -> Model:
    """As transformers' modeling_llama4 computes a text model."""
    shape = read_shape(fields, kv_heads=8, dim=128, eps=1e-5)
    build_attention = _attention(fields, shape)
    moe = _moe(fields, shape)
    mlp = gated_mlp(
        fields, shape, bias=False, inner=fields.integer("intermediate_size_mlp", 16384, most=2**28), name="feed_forward"
    )

    def build(kind: Kind) -> Chain:
        return layer(shape, build_attention(kind), moe if kind.sparse else mlp)

    return decoder(fields, "llama4_text", shape, runs("model.layers", _kinds(fields, shape.layers), build))


def llama4(fields: Fields) -> Model:
    """The text part of a multimodal checkpoint; its vision tower is left where it is."""
    if not fields.has("text_config"):
        raise fields.wrong("text_config", "a llama4 config must hold its text model there; a flat one is of a llama4_text")
    text = fields.section("text_config")
    text.choice("model_type", {"llama4_text": None}, "llama4_text")
    fields.section("vision_config")
    model = llama4_text(text)
    if fields.flag("tie_word_embeddings", False) != bool(model.head.linear.tied):
        raise fields.wrong("tie_word_embeddings", "but text_config has it the other way; give both alike")
    return replace(
        model,
        architecture="llama4",
        dtype=read_dtype(fields) if fields.has("dtype") or fields.has("torch_dtype") else model.dtype,
        prefix="language_model.",
        foreign=("vision_model.", "multi_modal_projector."),
    )


def _attention(fields: Fields, shape: Shape) -> Callable[[Kind], Attention]:
    turn = replace(rope(fields, shape.dim, theta=5e5), halves=False, wide=True)
    bias = fields.flag("attention_bias", False)
    chunk = window_of(fields, "attention_chunk_size", shape.context, None if fields.states("attention_chunk_size") else 8192)
    # transformers norms what is turned already; turning changes no length, so the order is free.
    norms = fields.flag("use_qk_norm", True)
    q_norm, k_norm = (Norm(name, shape.dim, shape.eps, "l2") for name in ("q_norm", "k_norm"))
    temperature = Temperature(fields.integer("floor_scale", 8192), fields.number("attn_scale", 0.1))
    tempered = _tempered(fields)

    def build(kind: Kind) -> Attention:
        window = chunk if kind.chunked else None
        attend = attention(shape, turn, window, qkv_bias=bias, o_bias=bias)
        attend = replace(attend, chunked=window is not None)
        if kind.turned:
            return replace(attend, q_norm=q_norm, k_norm=k_norm) if norms else attend
        return replace(attend, rope=None, temperature=temperature if tempered else None)

    return build


def _tempered(fields: Fields) -> bool:
    """Published configs have a number here for true."""
    key = "attn_temperature_tuning"
    return bool(fields.integer(key, least=0)) if type(fields.mapping().get(key)) is int else fields.flag(key, True)


def _kinds(fields: Fields, layers: int) -> tuple[Kind, ...]:
    """`no_rope_layers` has a 1 for every layer that *does* turn its heads, and `layer_types` follows it where it is absent."""
    every = fields.integer("no_rope_layer_interval", 4)
    turned = fields.integers("no_rope_layers", most=1) or tuple(int((i + 1) % every != 0) for i in range(layers))
    types = fields.names("layer_types") or tuple(CHUNKED if turn else FULL for turn in turned)
    step = fields.integer("interleave_moe_layer_step", 1)
    sparse = fields.integers("moe_layers") if fields.has("moe_layers") else tuple(range(step - 1, layers, step))
    if len(turned) < layers or len(types) != layers:
        key = "no_rope_layers" if len(turned) < layers else "layer_types"
        raise fields.wrong(key, f"it has another number of entries than there are layers, {layers}")
    for i, kind in enumerate(types):
        if kind not in (CHUNKED, FULL):
            raise ConfigError(f"config.json: layer_types[{i}] is {kind!r}; implemented are {FULL} and {CHUNKED}")
    return tuple(Kind(types[i] == CHUNKED, bool(turned[i]), i in sparse) for i in range(layers))


def _moe(fields: Fields, shape: Shape) -> MoE:
    """The router's weight multiplies what an expert gets, not what it gives."""
    experts = experts_of(fields, "num_local_experts", 16)
    width = fields.integer("intermediate_size", most=2**28)
    stacks = stored_together(experts, shape.hidden, width, "experts.gate_up_proj", "experts.down_proj", transposed=True)
    router = Router("router", experts, shape.hidden, top_of(fields, experts, 1), "sigmoid", rounded=True)
    shared = shared_expert(fields, shape, "shared_expert", width)
    activation = fields.choice("hidden_act", ACTIVATIONS, "silu")
    return MoE("feed_forward", router, *stacks, activation, shared, weighs_inputs=True)
