"""DeepSeek-V2, V3 and R1, and Kimi-K2: latent attention; a few dense layers, then mixtures of experts."""

from __future__ import annotations

from dataclasses import replace

from shardwise.spec.axes import Axis
from shardwise.spec.blocks import MLA, Linear, Model, Norm, Run
from shardwise.spec.models.decoder import Shape, decoder, gated_mlp, layer, read_shape
from shardwise.spec.models.fields import Fields
from shardwise.spec.models.rope import rope, score_scale

LATENT_EPS = 1e-6
"""Of the norms of latents, whatever `rms_norm_eps` is: so transformers, and DeepSeek's own code."""


def deepseek_v2(fields: Fields) -> Model:
    """As transformers' modeling_deepseek_v2."""
    shape = read_shape(fields, dim=1)  # heads have widths of their own: see latent_attention
    attend = latent_attention(fields, shape, halves=False)
    mlp = gated_mlp(fields, shape, bias=fields.flag("mlp_bias", False))
    [fields._look(k) for k in list(fields.mapping()) if "exp" in k or "moe" in k or k.startswith("num_nextn") or "num_mtp" in k]
    fields.integer("first_k_dense_replace", 0, least=shape.layers)
    return decoder(fields, "deepseek_v2", shape, (Run("model.layers", 0, shape.layers, layer(shape, attend, mlp)),))


def deepseek_v3(fields: Fields) -> Model:
    """As transformers' modeling_deepseek_v3."""
    shape = read_shape(fields, dim=1)
    attend = latent_attention(fields, shape, halves=not fields.flag("rope_interleave", True))
    mlp = gated_mlp(fields, shape, bias=False)
    [fields._look(k) for k in list(fields.mapping()) if "exp" in k or "moe" in k or k.startswith("num_nextn") or "num_mtp" in k]
    fields.integer("first_k_dense_replace", 3, least=shape.layers)
    return decoder(fields, "deepseek_v3", shape, (Run("model.layers", 0, shape.layers, layer(shape, attend, mlp)),))


def latent_attention(fields: Fields, shape: Shape, *, halves: bool) -> MLA:
    """Latent attention under DeepSeek's names; `halves` is how turned elements are paired (`Rope.halves`)."""
    if shape.kv_heads != shape.heads:
        raise fields.wrong(
            "num_key_value_heads", f"latent attention has no groups: {shape.heads}, as many as heads, would work"
        )
    nope_dim, turned_dim, v_dim = (
        fields.integer(key, usual, most=2**14)
        for key, usual in (("qk_nope_head_dim", 128), ("qk_rope_head_dim", 64), ("v_head_dim", 128))
    )
    kv_rank = fields.integer("kv_lora_rank", 512, most=2**24)
    # Null says that queries have no latent (V2-Lite); only an absent key takes the family's number.
    q_rank = fields.optional_integer("q_lora_rank", most=2**24) or (0 if fields.states("q_lora_rank") else 1536)
    bias = fields.flag("attention_bias", False)
    hidden, kv_latent = Axis(shape.hidden), Axis(kv_rank)

    def heads(dim: int) -> Axis:
        return Axis(shape.heads * dim, "q", dim)

    return MLA(
        "self_attn",
        q=Linear("q_b_proj" if q_rank else "q_proj", heads(nope_dim + turned_dim), Axis(q_rank) if q_rank else hidden),
        kv_a=Linear("kv_a_proj_with_mqa", Axis(kv_rank + turned_dim), hidden, bias),
        kv_norm=Norm("kv_a_layernorm", kv_rank, LATENT_EPS),
        kv_b=Linear("kv_b_proj", heads(nope_dim + v_dim), kv_latent),
        o=Linear("o_proj", hidden, heads(v_dim), bias),
        heads=shape.heads,
        nope_dim=nope_dim,
        v_dim=v_dim,
        scale=(nope_dim + turned_dim) ** -0.5 * score_scale(fields),
        rope=replace(rope(fields, turned_dim), halves=halves),
        q_a=Linear("q_a_proj", Axis(q_rank), hidden, bias) if q_rank else None,
        q_norm=Norm("q_a_layernorm", q_rank, LATENT_EPS) if q_rank else None,
    )
