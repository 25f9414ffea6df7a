"""Falcon 7B, 40B and 11B: as GPT-NeoX, with grouped KV heads and one norm or two before attention and MLP."""

from __future__ import annotations

from shardwise.spec.blocks import MLP, Attention, Chain, Residual
from shardwise.spec.model import Model
from shardwise.spec.models.decoder import ACTIVATIONS, Shape, attention, decoder, runs
from shardwise.spec.models.fields import Fields
from shardwise.spec.models.gpt_neox import in_turn, interleaved, layer_norm, plain_mlp, shape_of, side_by_side
from shardwise.spec.models.rope import rope
from shardwise.spec.rewrite import joined


def falcon(fields: Fields) -> Model:
    """As transformers' modeling_falcon, without alibi. The released configs have no `max_position_embeddings`."""
    fields = fields.supposing({"max_position_embeddings": 2048})
    heads = fields.integer("num_attention_heads", most=2**16)
    modern, alone = fields.flag("new_decoder_architecture", False), fields.flag("multi_query", True)
    kv_heads = fields.integer("num_kv_heads", heads, most=2**16) if modern else 1 if alone else heads
    if heads % kv_heads:
        raise fields.wrong("num_kv_heads", f"it must divide num_attention_heads, which is {heads}")
    shape = shape_of(fields, heads, kv_heads, "layer_norm_epsilon")
    bias = fields.flag("bias", False)
    attend = interleaved("self_attention", attention(shape, rope(fields, shape.dim), None, qkv_bias=bias, o_bias=bias))
    width = fields.integer("ffn_hidden_size", 4 * shape.hidden, most=2**28)
    mlp = plain_mlp(shape, width, fields.choice("activation", ACTIVATIONS, "gelu"), bias=bias)
    block = _layer(fields, shape, modern, attend, mlp)
    return decoder(
        fields,
        "falcon",
        shape,
        runs("transformer.h", (None,) * shape.layers, lambda _: block),
        tied=True,
        final=layer_norm("transformer.ln_f", shape),
        names=("transformer.word_embeddings", "lm_head"),
    )


def _layer(fields: Fields, shape: Shape, modern: bool, attend: Attention, mlp: MLP) -> Chain:
    """Side by side behind a norm each (40B), or behind one (7B, 11B), or one after the other."""
    beside = fields.flag("parallel_attn", True)
    if modern and not beside:
        raise fields.wrong("parallel_attn", "with new_decoder_architecture only true is implemented")
    norms = fields.integer("num_ln_in_parallel_attn", 2 if modern else 1, most=2)
    if norms == 2 and not modern:
        raise fields.wrong("num_ln_in_parallel_attn", "without new_decoder_architecture only 1 is implemented")
    if norms == 2:
        return side_by_side(Chain((layer_norm("ln_attn", shape), attend)), Chain((layer_norm("ln_mlp", shape), mlp)))
    first = layer_norm("input_layernorm", shape)
    if beside:
        return Chain((Residual(Chain((first, joined(attend, mlp)))),))
    return in_turn(Chain((first, attend)), Chain((layer_norm("post_attention_layernorm", shape), mlp)))
