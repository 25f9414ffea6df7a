"""Mixtral: Mistral with eight experts in the place of the MLP, of which a token visits two."""

from __future__ import annotations

from shardwise.spec.blocks import Chain
from shardwise.spec.model import Model
from shardwise.spec.models.decoder import ACTIVATIONS, attention, decoder, layer, read_shape, runs, window_of
from shardwise.spec.models.experts import stored_apart, top_of
from shardwise.spec.models.fields import Fields
from shardwise.spec.models.rope import rope
from shardwise.spec.moe import MoE, Router


def mixtral(fields: Fields) -> Model:
    """As transformers' modeling_mixtral."""
    shape = read_shape(fields, kv_heads=8, eps=1e-5)
    turn = rope(fields, shape.dim, theta=1e6)
    experts = fields.integer("num_local_experts", 8, most=2**16)
    width = fields.integer("intermediate_size", most=2**28)
    # transformers 5 calls the block "mlp" in memory, so that is not a segment of the path but part of the names.
    hub, new = "block_sparse_moe", "mlp"
    parts = (f"{hub}.experts.*.w1", f"{hub}.experts.*.w3", f"{hub}.experts.*.w2")
    gate, up, down = stored_apart(
        experts, shape.hidden, width, parts, f"{new}.experts.gate_up_proj", f"{new}.experts.down_proj"
    )
    router = Router(
        f"{hub}.gate", experts, shape.hidden, top_of(fields, experts, 2), "softmax", normed=True, also=f"{new}.gate"
    )
    moe = MoE("", router, gate, up, down, fields.choice("hidden_act", ACTIVATIONS, "silu"))

    def build(window: int | None) -> Chain:
        return layer(shape, attention(shape, turn, window, qkv_bias=False, o_bias=False), moe)

    window = window_of(fields, "sliding_window", shape.context)
    return decoder(fields, "mixtral", shape, runs("model.layers", (window,) * shape.layers, build))
