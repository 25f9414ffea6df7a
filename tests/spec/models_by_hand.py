"""Small model trees built by hand: the layout's tests need shapes, and neither configs nor checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import lcm
from typing import Any

from shardwise.spec.axes import Axis, Weight
from shardwise.spec.blocks import MLP, Attention, Block, Chain, Embedding, Head, Linear, Norm, Residual, Table
from shardwise.spec.formats import AWQ, GPTQ, Dense, Format, FP8Block, Grouped
from shardwise.spec.layout import Layout, Shares
from shardwise.spec.mesh import Mesh
from shardwise.spec.model import Model, Run

FORMATS: tuple[Format, ...] = (
    Dense(),
    Grouped("int8", 16),
    Grouped("int4", 32),
    GPTQ(4, 16),
    GPTQ(8, 16),
    GPTQ(4, 16, permuted=True),
    GPTQ(8, 32, permuted=True),
    AWQ(4, 16),
    AWQ(8, 32),
    FP8Block(16, 32),
)
"""Every format, with groups small enough that small shapes have several of them and cuts fall between and inside."""


@dataclass(frozen=True)
class Counted:
    """A dense format that counts how often it is asked for its tensors."""

    name = "counted"
    asked: list[str] = field(default_factory=list)

    def weights(self, name: str, out: Axis, inp: Axis) -> Iterator[tuple[Weight, int]]:
        self.asked.append(name)
        yield from Dense().weights(name, out, inp)

    def pack(self, side: str) -> int:
        return 1

    def group(self, side: str) -> int:
        return 1


@dataclass(frozen=True)
class Experts:
    """Stacked experts, whole ones dealt to the expert-parallel group; inside, cut like any MLP."""

    name: str
    count: int
    width: Axis
    hidden: int

    def children(self) -> tuple[Block, ...]:
        return ()

    def own_weights(self) -> Iterator[Weight]:
        yield Weight(f"{self.name}.up", (Axis(self.count, "expert"), self.width, Axis(self.hidden)))


def attention(
    heads: int, kv_heads: int, dim: int, hidden: int, *, fmt: Format, bias: bool = False, window: int | None = None
) -> Attention:
    """Attention of `heads` over `kv_heads` of `dim`, in format `fmt`."""
    group, inner = heads // kv_heads, Axis(hidden)
    q, kv = Axis(heads * dim, "q", dim, group), Axis(kv_heads * dim, "kv", dim, group)
    return Attention(
        "attn",
        Linear("q", q, inner, bias, fmt),
        Linear("k", kv, inner, bias, fmt),
        Linear("v", kv, inner, bias, fmt),
        Linear("o", inner, q, bias, fmt),
        heads,
        kv_heads,
        dim,
        dim**-0.5,
        window=window,
    )


def mlp(hidden: int, width: int, *, fmt: Format, grain: int | None = None, bias: bool = False, name: str = "mlp") -> MLP:
    """A gated MLP. Its grain is what the format packs together, unless `grain` is given."""
    inner, cut = Axis(hidden), Axis(width, "mlp", grain or lcm(fmt.pack("out"), fmt.pack("in")))
    up, gate = (Linear(n, cut, inner, bias, fmt) for n in ("up", "gate"))
    return MLP(name, up, Linear("down", inner, cut, bias, fmt), "silu", gate)


def layer(attend: Attention, body: Block, hidden: int) -> Chain:
    """Pre-norm, two residuals."""
    return Chain(
        (
            Residual(Chain((Norm("norm_1", hidden, 1e-6), attend))),
            Residual(Chain((Norm("norm_2", hidden, 1e-6), body))),
        )
    )


def around(runs: tuple[Run, ...], hidden: int, vocab: int, *, tied: bool = False) -> Model:
    """The token table and the head around `runs`."""
    rows = Axis(vocab, "vocab")
    head = Linear("lm_head", rows, Axis(hidden), tied="embed.weight" if tied else None)
    table = Table("embed", rows, hidden, ("lm_head.weight",) if tied else ())
    return Model("by_hand", Embedding(table), runs, Head(Norm("norm", hidden, 1e-6), head), vocab, hidden, 512, "float32")


def model(
    heads: int = 6,
    kv_heads: int = 2,
    dim: int = 2,
    hidden: int = 5,
    width: int = 11,
    vocab: int = 13,
    layers: int = 3,
    *,
    fmt: Format | None = None,
    grain: int | None = None,
    tied: bool = False,
    bias: bool = False,
    windows: tuple[int | None, ...] = (None,),
) -> Model:
    """`layers` layers, whose windows go round `windows`; runs of equal layers share one block, as in the real models."""
    found = fmt or Dense()
    blocks = {}
    for window in windows:
        attend = attention(heads, kv_heads, dim, hidden, fmt=found, bias=bias, window=window)
        blocks[window] = layer(attend, mlp(hidden, width, fmt=found, grain=grain, bias=bias), hidden)
    if len(windows) == 1:
        return around((Run("layers", 0, layers, blocks[windows[0]]),), hidden, vocab, tied=tied)
    runs = tuple(Run("layers", i, 1, blocks[windows[i % len(windows)]]) for i in range(layers))
    return around(runs, hidden, vocab, tied=tied)


def lay(of: Model, shares: Any = (1.0,), *, ep: int = 1, pp: int = 1, dp: int = 1, dtype: str = "bfloat16") -> Layout:
    """A layout of `of`, cut by `shares`: a sequence for every family alike, or `Shares`."""
    each = shares if isinstance(shares, Shares) else Shares.of(shares)
    return Layout(of, Mesh(len(each.attention), ep, pp, dp), each, dtype, "bfloat16")
