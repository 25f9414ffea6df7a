"""Phi-3, Phi-3.5 and Phi-4: Llama with q, k, v in one stored tensor, gate and up in another, and longrope."""

from __future__ import annotations

from dataclasses import replace

from shardwise.spec.axes import Fused
from shardwise.spec.blocks import MLP, Attention, Chain, Linear
from shardwise.spec.model import Model
from shardwise.spec.models.decoder import attention, decoder, gated_mlp, layer, read_shape, runs, window_of
from shardwise.spec.models.fields import Fields
from shardwise.spec.models.rope import rope

KINDS = {"default": "default", "longrope": "longrope", "su": "longrope", "yarn": "longrope"}
"""Early checkpoints say "su" or "yarn" for what became longrope."""


def phi3(fields: Fields) -> Model:
    """As transformers' modeling_phi3."""
    shape = read_shape(fields, eps=1e-5)
    turn = rope(fields, shape.dim, kinds=KINDS, partial=True, original=4096)
    mlp = _one_tensor_mlp(gated_mlp(fields, shape, bias=False))
    window = window_of(fields, "sliding_window", shape.context)

    def build(window: int | None) -> Chain:
        attend = attention(shape, turn, window, qkv_bias=False, o_bias=False)
        return layer(shape, _one_tensor_attention(attend), mlp)

    return decoder(fields, "phi3", shape, runs("model.layers", (window,) * shape.layers, build))


def _one_tensor_attention(attend: Attention) -> Attention:
    """q, k and v stored one after the other in `qkv_proj`."""
    q, k, v = stacked("qkv_proj", attend.q, attend.k, attend.v)
    return replace(attend, q=q, k=k, v=v)


def _one_tensor_mlp(mlp: MLP) -> MLP:
    """gate and up stored one after the other in `gate_up_proj`."""
    assert mlp.gate is not None
    gate, up = stacked("gate_up_proj", mlp.gate, mlp.up)
    return replace(mlp, gate=gate, up=up)


def stacked(name: str, *linears: Linear) -> tuple[Linear, ...]:
    """The same linears, stored one after the other in one tensor called `name`."""
    found, start = [], 0
    for linear in linears:
        size = linear.out.size
        found.append(replace(linear, fused=Fused(name, start, size, size)))
        start += size
    return tuple(found)
