"""GPT-2: learned positions, layer norms with bias, and projections stored the other way round (Conv1D)."""

from __future__ import annotations

from shardwise.spec.axes import Axis, Fused, unit_grain
from shardwise.spec.blocks import MLP, Attention, Chain, Embedding, Head, Linear, Norm, Residual, Table
from shardwise.spec.model import Model
from shardwise.spec.models.decoder import ACTIVATIONS, mlp_axis, read_dtype, runs
from shardwise.spec.models.fields import Fields


def gpt2(fields: Fields) -> Model:
    """As transformers' modeling_gpt2, language-model head; `n_inner` is 4 · n_embd where it is absent."""
    hidden, eps = fields.integer("n_embd", most=2**24), fields.number("layer_norm_epsilon", 1e-5, least=0, most=1)
    heads = fields.integer("n_head", most=2**16)
    context, size = fields.integer("n_positions"), fields.integer("vocab_size", most=2**28)
    fields.choice("position_embedding_type", {"absolute": None}, "absolute")
    if hidden % heads:
        raise fields.wrong("n_head", f"it must divide n_embd, which is {hidden}")
    attend = _attention(hidden, heads, hidden // heads, fields.flag("scale_attn_weights", True))
    mlp = _mlp(fields, hidden)
    first, second = (Norm(name, hidden, eps, "layer", bias=True) for name in ("ln_1", "ln_2"))
    block = Chain((Residual(Chain((first, attend))), Residual(Chain((second, mlp)))))
    vocab, tied = Axis(size, "vocab", unit_grain(size)), fields.flag("tie_word_embeddings", True)
    return Model(
        architecture="gpt2",
        embed=Embedding(
            Table("wte", vocab, hidden, ("lm_head.weight",) if tied else ()),
            positions=Table("wpe", Axis(context), hidden),
        ),
        runs=runs("h", (None,) * fields.integer("n_layer", most=2**12), lambda _: block),
        head=Head(
            Norm("ln_f", hidden, eps, "layer", bias=True),
            Linear("lm_head", vocab, Axis(hidden), tied="wte.weight" if tied else None),
        ),
        vocab=size,
        hidden=hidden,
        context=context,
        dtype=read_dtype(fields),
        prefix="transformer.",
        # Causal masks that old checkpoints store as buffers.
        ignored=(".attn.bias", ".attn.masked_bias"),
    )


def _attention(hidden: int, heads: int, dim: int, scaled: bool) -> Attention:
    axis = Axis(hidden, "q", dim)
    q, k, v = (
        Linear(
            name,
            Axis(hidden, cut, dim),
            Axis(hidden),
            bias=True,
            fused=Fused("c_attn", i * hidden, hidden, hidden),
            transposed=True,
        )
        for i, (name, cut) in enumerate((("q", "q"), ("k", "kv"), ("v", "kv")))
    )
    o = Linear("c_proj", Axis(hidden), axis, bias=True, transposed=True)
    return Attention("attn", q, k, v, o, heads, heads, dim, scale=dim**-0.5 if scaled else 1.0)


def _mlp(fields: Fields, hidden: int) -> MLP:
    width = mlp_axis(fields.integer("n_inner", 4 * hidden, most=2**28))
    return MLP(
        "mlp",
        up=Linear("c_fc", width, Axis(hidden), bias=True, transposed=True),
        down=Linear("c_proj", Axis(hidden), width, bias=True, transposed=True),
        activation=fields.choice("activation_function", ACTIVATIONS, "gelu_new"),
    )
