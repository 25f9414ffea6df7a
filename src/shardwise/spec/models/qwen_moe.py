"""Qwen2-MoE and Qwen3-MoE: Qwen with many small experts in the place of most MLPs, and one shared expert in the older."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from shardwise.spec.axes import Axis
from shardwise.spec.blocks import Attention, Block, Chain, Linear, Norm
from shardwise.spec.model import Model
from shardwise.spec.models.decoder import ACTIVATIONS, Shape, attention, decoder, gated_mlp, layer, read_shape, runs, window_of
from shardwise.spec.models.experts import experts_of, shared_expert, stored_apart, top_of
from shardwise.spec.models.fields import Fields
from shardwise.spec.models.rope import rope
from shardwise.spec.moe import MoE, Router

PARTS = ("experts.*.gate_proj", "experts.*.up_proj", "experts.*.down_proj")


def qwen2_moe(fields: Fields) -> Model:
    """As transformers' modeling_qwen2_moe. Its alternating windows are refused (`use_sliding_window` is not read)."""
    shape = read_shape(fields, kv_heads=16)
    turn = rope(fields, shape.dim)
    bias = fields.flag("qkv_bias", True)
    fields.optional_integer("sliding_window", least=0)
    moe = _moe(fields, shape, experts=60, top=4, width=1408)
    inner = fields.integer("shared_expert_intermediate_size", 5632, most=2**28)
    shared = shared_expert(fields, shape, "shared_expert", inner)
    moe = replace(moe, shared=shared, shared_gate=Linear("shared_expert_gate", Axis(1), Axis(shape.hidden)))
    return _model(fields, "qwen2_moe", shape, moe, lambda: attention(shape, turn, None, qkv_bias=bias, o_bias=False))


def qwen3_moe(fields: Fields) -> Model:
    """As transformers' modeling_qwen3_moe: q and k are normed head by head, whatever `use_qk_norm` says."""
    shape = read_shape(fields, kv_heads=4)
    turn = rope(fields, shape.dim)
    bias = fields.flag("attention_bias", False)
    if not fields.flag("use_qk_norm", True):
        raise fields.wrong("use_qk_norm", "this architecture norms q and k: true would work")
    used = fields.flag("use_sliding_window", False)
    window = window_of(fields, "sliding_window", shape.context, None if fields.states("sliding_window") else 4096)
    q_norm, k_norm = (Norm(name, shape.dim, shape.eps) for name in ("q_norm", "k_norm"))

    def attend() -> Attention:
        plain = attention(shape, turn, window if used else None, qkv_bias=bias, o_bias=bias)
        return replace(plain, q_norm=q_norm, k_norm=k_norm)

    return _model(fields, "qwen3_moe", shape, _moe(fields, shape, experts=128, top=8, width=768), attend)


def _moe(fields: Fields, shape: Shape, *, experts: int, top: int, width: int) -> MoE:
    """The arguments are the family's defaults."""
    experts = experts_of(fields, "num_experts", experts)
    inner = fields.integer("moe_intermediate_size", width, most=2**28)
    stacks = stored_apart(experts, shape.hidden, inner, PARTS, "experts.gate_up_proj", "experts.down_proj")
    router = Router(
        "gate",
        experts,
        shape.hidden,
        top_of(fields, experts, top),
        "softmax",
        normed=fields.flag("norm_topk_prob", False),
        rounded=True,
    )
    return MoE("mlp", router, *stacks, fields.choice("hidden_act", ACTIVATIONS, "silu"))


def _model(fields: Fields, name: str, shape: Shape, moe: MoE, attend: Callable[[], Attention]) -> Model:
    """Layers with experts every `decoder_sparse_step`, but for those of `mlp_only_layers`."""
    dense = fields.integers("mlp_only_layers", most=2**12)
    step = fields.integer("decoder_sparse_step", 1)
    sparse = [i not in dense and (i + 1) % step == 0 for i in range(shape.layers)]
    mlp = gated_mlp(fields, shape, bias=False)
    blocks: dict[bool, Block] = {True: moe, False: mlp}

    def build(kind: bool) -> Chain:
        return layer(shape, attend(), blocks[kind])

    return decoder(fields, name, shape, runs("model.layers", sparse, build))
