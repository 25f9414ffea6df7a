"""GPT-NeoX and Pythia: attention and MLP side by side, q, k and v stored head by head, part of each head rotated."""

from __future__ import annotations

from dataclasses import replace

from shardwise.spec.axes import Axis, Fused
from shardwise.spec.blocks import MLP, Attention, Block, Chain, Linear, Norm, Residual, Rope
from shardwise.spec.model import Model
from shardwise.spec.models.decoder import ACTIVATIONS, Activation, Shape, attention, decoder, head_dim, mlp_axis, runs
from shardwise.spec.models.fields import Fields
from shardwise.spec.models.rope import rope_of, stated
from shardwise.spec.rewrite import joined


def gpt_neox(fields: Fields) -> Model:
    """As transformers' modeling_gpt_neox."""
    heads = fields.integer("num_attention_heads", most=2**16)
    shape = shape_of(fields, heads, heads, "layer_norm_eps")
    bias = fields.flag("attention_bias", True)
    attend = interleaved("attention", attention(shape, _rope(fields, shape.dim), None, qkv_bias=bias, o_bias=bias))
    width = fields.integer("intermediate_size", most=2**28)
    mlp = plain_mlp(shape, width, fields.choice("hidden_act", ACTIVATIONS, "gelu"), bias=True)
    first, second = (layer_norm(name, shape) for name in ("input_layernorm", "post_attention_layernorm"))
    arrange = side_by_side if fields.flag("use_parallel_residual", True) else in_turn
    block = arrange(Chain((first, attend)), Chain((second, mlp)))
    model = decoder(
        fields,
        "gpt_neox",
        shape,
        runs("gpt_neox.layers", (None,) * shape.layers, lambda _: block),
        final=layer_norm("gpt_neox.final_layer_norm", shape),
        names=("gpt_neox.embed_in", "embed_out"),
    )
    # Causal masks that old checkpoints store as buffers.
    return replace(model, ignored=(*model.ignored, ".attention.bias", ".attention.masked_bias"))


def _rope(fields: Fields, dim: int) -> Rope:
    """By NeoX's own keys; where a config says the same under the usual ones as well, it has to say the same."""
    section = stated(fields)
    factor = fields.number("rotary_pct", 0.25, above=0, most=1)
    factor = section.number("partial_rotary_factor", factor, above=0, most=1)
    theta = section.number("rope_theta", fields.number("rotary_emb_base", 10000.0, above=1), above=1)
    for key, wanted in (("rope_theta", theta), ("partial_rotary_factor", factor)):
        if fields.number(key, wanted) != wanted:
            raise fields.wrong(key, f"rotary_emb_base and rotary_pct make it {wanted:g}, which would work")
    return rope_of(fields, section, dim, theta, factor=factor)


def shape_of(fields: Fields, heads: int, kv_heads: int, eps: str) -> Shape:
    """The shape of layers whose heads share out the hidden size; `eps` is the key of the norms' epsilon."""
    hidden = fields.integer("hidden_size", most=2**24)
    dim = head_dim(fields, hidden, heads)
    if dim * heads != hidden:
        raise fields.wrong("head_dim", f"{heads} heads share out a hidden size of {hidden} in this architecture: leave it out")
    return Shape(
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        dim=dim,
        layers=fields.integer("num_hidden_layers", most=2**12),
        context=fields.integer("max_position_embeddings"),
        eps=fields.number(eps, 1e-5, least=0, most=1),
    )


def interleaved(name: str, attend: Attention) -> Attention:
    """The attention with q, k and v stored in one tensor, group by group: a KV head's query heads, its key, its value."""
    dim, queries = attend.dim, attend.heads // attend.kv_heads * attend.dim
    stride = queries + 2 * dim

    def part(linear: Linear, start: int, block: int) -> Linear:
        return replace(linear, fused=Fused("query_key_value", start, block, stride))

    q, k, v = part(attend.q, 0, queries), part(attend.k, queries, dim), part(attend.v, queries + dim, dim)
    return replace(attend, name=name, q=q, k=k, v=v, o=replace(attend.o, name="dense"))


def plain_mlp(shape: Shape, width: int, activation: Activation, *, bias: bool) -> MLP:
    """down(act(up(x))), under NeoX's names."""
    hidden, inner = Axis(shape.hidden), mlp_axis(width)
    up, down = Linear("dense_h_to_4h", inner, hidden, bias), Linear("dense_4h_to_h", hidden, inner, bias)
    return MLP("mlp", up=up, down=down, activation=activation)


def layer_norm(name: str, shape: Shape) -> Norm:
    """A layer norm with a bias."""
    return Norm(name, shape.hidden, shape.eps, "layer", bias=True)


def side_by_side(first: Block, second: Block) -> Chain:
    """x + first(x) + second(x)."""
    return Chain((Residual(joined(first, second)),))


def in_turn(first: Block, second: Block) -> Chain:
    """x + first(x), then the same with the second."""
    return Chain((Residual(first), Residual(second)))
