"""What Llama and its relatives share: the shape, the pieces of a layer, and how layers become a model.

A family's function reads its own keys, builds a layer out of these, and changes what differs with `replace`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, TypeVar

from shardwise.errors import ConfigError
from shardwise.spec.axes import Axis, unit_grain
from shardwise.spec.blocks import (
    MLP,
    Attending,
    Attention,
    Block,
    Chain,
    Embedding,
    Head,
    Linear,
    Norm,
    Residual,
    Rope,
    Table,
    attentions,
)
from shardwise.spec.model import Model, Run
from shardwise.spec.models.fields import Fields

K = TypeVar("K")

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
"""transformers' names of activations."""

DTYPES = {name: name for name in ("float32", "bfloat16", "float16")}


@dataclass(frozen=True, slots=True)
class Shape:
    """The numbers of every layer. `dim` is of one head, `eps` of the norms, `context` in tokens."""

    hidden: int
    heads: int
    kv_heads: int
    dim: int
    layers: int
    context: int
    eps: float

    @property
    def q(self) -> Axis:
        """The query heads' elements."""
        return Axis(self.heads * self.dim, "q", self.dim, self.heads // self.kv_heads)

    @property
    def kv(self) -> Axis:
        """The KV heads' elements, of keys or of values."""
        return Axis(self.kv_heads * self.dim, "kv", self.dim, self.heads // self.kv_heads)


def read_shape(fields: Fields, *, kv_heads: int | None = None, dim: int | None = None, eps: float = 1e-6) -> Shape:
    """The shape by Llama's key names. The arguments are what the family takes where a key is absent.

    Raises ConfigError for heads that do not divide: KV heads must divide heads, and heads the hidden size where no
    `head_dim` is given.
    """
    hidden = fields.integer("hidden_size", most=2**24)
    heads = fields.integer("num_attention_heads", most=2**16)
    groups = fields.integer("num_key_value_heads", _absent(fields, kv_heads) or heads, most=2**16)
    if heads % groups:
        raise fields.wrong("num_key_value_heads", f"it must divide num_attention_heads, which is {heads}")
    return Shape(
        hidden=hidden,
        heads=heads,
        kv_heads=groups,
        dim=head_dim(fields, hidden, heads, dim),
        layers=fields.integer("num_hidden_layers", most=2**12),
        context=fields.integer("max_position_embeddings"),
        eps=fields.number("rms_norm_eps", eps, least=0, most=1),
    )


def _absent(fields: Fields, kv_heads: int | None) -> int | None:
    # Null means "as many as heads" in every family; only an absent key takes the family's number.
    return None if fields.states("num_key_value_heads") else kv_heads


def head_dim(fields: Fields, hidden: int, heads: int, dim: int | None = None) -> int:
    """`head_dim`, else `dim`, else hidden / heads, which must then divide."""
    found = fields.optional_integer("head_dim") or dim
    if found is None and hidden % heads:
        raise ConfigError(f"config.json: {heads} heads do not divide a hidden size of {hidden}; give head_dim")
    found = found or hidden // heads
    if found > 2**14:
        raise ConfigError(f"config.json: heads of {found} elements; up to {2**14} are understood")
    return found


def attention(shape: Shape, rope: Rope, window: int | None, *, qkv_bias: bool, o_bias: bool) -> Attention:
    """Attention with separate projections, under Llama's names."""
    hidden = Axis(shape.hidden)
    return Attention(
        "self_attn",
        q=Linear("q_proj", shape.q, hidden, qkv_bias),
        k=Linear("k_proj", shape.kv, hidden, qkv_bias),
        v=Linear("v_proj", shape.kv, hidden, qkv_bias),
        o=Linear("o_proj", hidden, shape.q, o_bias),
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        dim=shape.dim,
        scale=shape.dim**-0.5,
        rope=rope,
        window=window,
    )


def gated_mlp(fields: Fields, shape: Shape, *, bias: bool, inner: int | None = None, name: str = "mlp") -> MLP:
    """down(act(gate(x)) · up(x)), under Llama's names; `inner` elements wide, or as `intermediate_size` says."""
    hidden = Axis(shape.hidden)
    width = mlp_axis(fields.integer("intermediate_size", most=2**28) if inner is None else inner)
    return MLP(
        name,
        up=Linear("up_proj", width, hidden, bias),
        down=Linear("down_proj", hidden, width, bias),
        activation=fields.choice("hidden_act", ACTIVATIONS, "silu"),
        gate=Linear("gate_proj", width, hidden, bias),
    )


def mlp_axis(width: int) -> Axis:
    """The inner elements of an MLP."""
    return Axis(width, "mlp", unit_grain(width))


def layer(shape: Shape, attend: Attending, mlp: Block, scale: float = 1.0, *, wide: bool = False) -> Chain:
    """Pre-norm: x + scale · attend(norm(x)), then the same with the MLP, or with what stands in its place."""
    before = Norm("input_layernorm", shape.hidden, shape.eps, wide=wide)
    after = Norm("post_attention_layernorm", shape.hidden, shape.eps, wide=wide)
    return Chain((Residual(Chain((before, attend)), scale), Residual(Chain((after, mlp)), scale)))


def runs(name: str, kinds: Iterable[K], build: Callable[[K], Block]) -> tuple[Run, ...]:
    """Consecutive layers of one kind (a window, a name) as one run each; `build` is asked once for each distinct kind."""
    found: list[Run] = []
    blocks: dict[K, Block] = {}
    start = 0
    for kind, group in groupby(kinds):
        count = sum(1 for _ in group)
        block = blocks[kind] if kind in blocks else blocks.setdefault(kind, build(kind))
        found.append(Run(name, start, count, block))
        start += count
    return tuple(found)


def window_of(fields: Fields, key: str, context: int, default: int | None = None) -> int | None:
    """A sliding window in tokens. One that no sequence can outgrow is none: None is then exact, and needs no second cache."""
    window = fields.optional_integer(key) or default
    return window if window and window < context else None


def decoder(
    fields: Fields,
    architecture: str,
    shape: Shape,
    layers: tuple[Run, ...],
    *,
    embedding_scale: float = 1.0,
    logits_scale: float = 1.0,
    tied: bool = False,
    final: Norm | None = None,
    names: tuple[str, str] = ("model.embed_tokens", "lm_head"),
) -> Model:
    """The model around the layers: token table, final norm, and a head that may be tied to the table.

    `tied` is what the family takes where `tie_word_embeddings` is absent; `final` the norm, if it is not Llama's; `names`
    are those of table and head.
    """
    size, (table, head_name) = fields.integer("vocab_size", most=2**28), names
    vocab = Axis(size, "vocab", unit_grain(size))
    tied = fields.flag("tie_word_embeddings", tied)
    head = Linear(head_name, vocab, Axis(shape.hidden), tied=f"{table}.weight" if tied else None)
    tokens = Table(table, vocab, shape.hidden, (f"{head_name}.weight",) if tied else ())
    return Model(
        architecture=architecture,
        embed=Embedding(tokens, scale=embedding_scale),
        runs=layers,
        head=Head(final or Norm("model.norm", shape.hidden, shape.eps), head, logits_scale),
        vocab=size,
        hidden=shape.hidden,
        context=reach(shape.context, layers),
        dtype=read_dtype(fields),
        ignored=(".rotary_emb.inv_freq",),
    )


def reach(context: int, layers: tuple[Run, ...]) -> int:
    """The longest sequence: `context`, but for NTK by length, whose factor says how far beyond it the model may go."""
    factors = [a.rope.dynamic[1] for run in layers for a in attentions(run.block) if a.rope and a.rope.dynamic]
    return int(context * max(1.0, *factors)) if factors else context


def read_dtype(fields: Fields) -> str:
    """What the checkpoint was saved in: `dtype`, or `torch_dtype` as it was called before. Float32 where neither is there."""
    old = fields.choice("torch_dtype", DTYPES, "float32")
    new = fields.choice("dtype", DTYPES, old)
    if fields.has("torch_dtype") and new != old:
        raise fields.wrong("dtype", f"but torch_dtype is {old!r}; give one of them, or both alike")
    return new
