"""The vocabulary of models: small frozen blocks that nest. A model is a tree of them, and says nothing about devices.

A block yields its own weights by names relative to where it stands; `walk` puts the path in front. Residual structure is
nesting (`Residual`, `Sum`), not flags. A weight's axes say how it may be cut; nothing here divides by a degree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, TypeGuard, runtime_checkable

from shardwise.spec.axes import Axis, Fused, Source, Weight
from shardwise.spec.formats import Dense, Format, Grouped, fused_source, stacked
from shardwise.spec.kept import Kept


@runtime_checkable
class Block(Protocol):
    """A node of the tree. `name` is its segment of the path ("" adds none)."""

    @property
    def name(self) -> str: ...

    def children(self) -> tuple[Block, ...]: ...

    def own_weights(self) -> Iterator[Weight]: ...


@dataclass(frozen=True, slots=True)
class Linear:
    """y = x · Wᵀ + b. Column-parallel where `out` is cut, row-parallel where `inp` is: nothing else decides it.

    `fused`: stored inside a wider tensor. `transposed`: stored as [inp, out]. `tied`: the absolute name of the weight that
    it shares with an embedding table. `partial`: where `inp` is cut, the sum over ranks is left to a block above. `experts`:
    not one linear but one for each expert, stacked along that axis. They are one weight, however they are stored, because an
    axis can be cut and a list of names cannot: each in a tensor of its own (the name then has a `*` for the expert's number,
    and `fused` is the other way in which they may be stored), or all in one tensor, `fused`.
    """

    name: str
    out: Axis
    inp: Axis
    bias: bool = False
    format: Format = field(default_factory=Dense)
    fused: Fused | None = None
    transposed: bool = False
    tied: str | None = None
    partial: bool = False
    experts: Axis | None = None

    @property
    def wide(self) -> bool:
        """Whether its products are summed in float64 until the sum over ranks is whole, at every degree: it rounds activations
        to 8 bits, as do those after it, which must not depend on where its inputs are cut."""
        return isinstance(self.format, Grouped) and self.inp.cut is not None

    def children(self) -> tuple[Block, ...]:
        return ()

    def own_weights(self) -> Iterator[Weight]:
        for weight, out_axis in self._single_weights():
            if self.experts:
                yield stacked(weight, self.experts, out_axis, self.name, self.fused, self._turned(weight))
            else:
                yield replace(weight, source=self._source(weight, out_axis))

    def _single_weights(self) -> Iterator[tuple[Weight, int]]:
        yield from self.format.weights(self.name, self.out, self.inp)
        if self.bias:
            yield Weight(f"{self.name}.bias", (self.out,)), 0

    def _source(self, weight: Weight, out_axis: int) -> Source | None:
        if self.fused and out_axis >= 0:
            return replace(fused_source(weight, out_axis, self.name, self.fused), transposed=self._turned(weight))
        return Source(weight.name, transposed=True) if self._turned(weight) else None

    def _turned(self, weight: Weight) -> bool:
        return self.transposed and len(weight.axes) == 2


@dataclass(frozen=True, slots=True)
class Norm:
    """RMS or layer norm over the last `size` elements, or "l2": an RMS norm without a weight. Never cut.

    `offset` is added to the weight: Gemma stores how far it is from one. `wide`: an RMS norm's weight is applied in float32,
    before rounding to the model's dtype (Gemma, OLMo), and not after it (Llama).
    """

    name: str
    size: int
    eps: float
    kind: Literal["rms", "layer", "l2"] = "rms"
    bias: bool = False
    offset: float = 0.0
    wide: bool = False

    def children(self) -> tuple[Block, ...]:
        return ()

    def own_weights(self) -> Iterator[Weight]:
        if self.kind != "l2":
            yield Weight(f"{self.name}.weight", (Axis(self.size),))
        if self.bias:
            yield Weight(f"{self.name}.bias", (Axis(self.size),))


@dataclass(frozen=True, slots=True)
class HeadsNorm:
    """RMS norms over all query heads together and over all KV heads together (OLMo-2), each weight cut with its heads.

    A rank has only its part of the sums of squares: both travel in one small sum over ranks, in which a KV head that several
    ranks hold counts once. Weights are applied in float32. `wide`: the squares are summed in float64, as of a linear.
    """

    q: Axis
    k: Axis
    eps: float
    name: str = ""
    wide: bool = False

    def children(self) -> tuple[Block, ...]:
        return ()

    def own_weights(self) -> Iterator[Weight]:
        yield Weight("q_norm.weight", (self.q,))
        yield Weight("k_norm.weight", (self.k,))


@dataclass(frozen=True, slots=True)
class Table:
    """A lookup of `rows` vectors of `size`. Where the rows are cut, a rank looks up what it holds and the parts are summed.

    A head that is tied to it has its `format`, too.
    """

    name: str
    rows: Axis
    size: int
    aliases: tuple[str, ...] = ()
    format: Format = field(default_factory=Dense)

    def children(self) -> tuple[Block, ...]:
        return ()

    def own_weights(self) -> Iterator[Weight]:
        for weight, _ in self.format.weights(self.name, self.rows, Axis(self.size)):
            yield weight if weight.companion else replace(weight, aliases=self.aliases)


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding: inverse frequencies as numbers, decided once from the config.

    `frequencies` are the dim / 2 angular steps per position. `long` replaces them for sequences of more than `boundary`
    tokens (longrope). `dynamic` is NTK scaling by length past `boundary`, as (base, factor). `scale` multiplies cos and sin.
    `halves`: element i is paired with i + dim / 2 (Llama), else with its neighbour (GPT-J). `wide`: cos and sin stay float32
    and the rotation is rounded once, after it (OLMo).
    Sources: RoFormer (arXiv 2104.09864), YaRN (2309.00071), LongRoPE (2402.13753), Llama 3.1's rule as in transformers.
    """

    dim: int
    frequencies: tuple[float, ...]
    scale: float = 1.0
    long: tuple[float, ...] | None = None
    long_scale: float = 1.0
    dynamic: tuple[float, float] | None = None
    boundary: int | None = None
    halves: bool = True
    wide: bool = False


@runtime_checkable
class Attending(Block, Protocol):
    """What turns a token's hidden state by what it sees of the tokens before it: `Attention`, and `mla.MLA`."""

    @property
    def heads(self) -> int: ...

    @property
    def kv_heads(self) -> int: ...

    @property
    def rope(self) -> Rope | None: ...

    @property
    def kept(self) -> Kept: ...


@dataclass(frozen=True, slots=True)
class Temperature:
    """Queries at position p times 1 + `scale` · log(1 + floor((p + 1) / `every`)), for softmaxes over long contexts
    (arXiv 2501.19399, as Llama 4 has it)."""

    every: int
    scale: float


@dataclass(frozen=True, slots=True)
class Attention:
    """Causal attention with `heads` query heads over `kv_heads` KV heads of `dim`. `window` None sees everything.

    q and k are normed head by head (`q_norm`, `k_norm`), or all heads together (`heads_norm`). `softcap` c bends a score s to
    c · tanh(s / c) (Gemma-2, arXiv 2408.00118). `sinks`: a score a head that takes part in the softmax and adds nothing
    (gpt-oss). `chunked`: a query sees no farther back than the last multiple of `window` (Llama 4).
    `temperature` grows queries with their position.
    """

    name: str
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    heads: int
    kv_heads: int
    dim: int
    scale: float
    rope: Rope | None = None
    window: int | None = None
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    heads_norm: HeadsNorm | None = None
    softcap: float | None = None
    sinks: bool = False
    chunked: bool = False
    temperature: Temperature | None = None

    @property
    def kept(self) -> Kept:
        """Keys and values, as wide as each other."""
        kind: Literal["full", "window", "chunked"] = "full" if self.window is None else "chunked" if self.chunked else "window"
        return Kept(kind, self.k.out, (self.dim, self.dim), self.window)

    def children(self) -> tuple[Block, ...]:
        norms = tuple(n for n in (self.q_norm, self.k_norm, self.heads_norm) if n)
        return (self.q, self.k, self.v, *norms, self.o)

    def own_weights(self) -> Iterator[Weight]:
        if self.sinks:
            yield Weight(f"{self.name}.sinks", (Axis(self.heads, "q", 1, self.heads // self.kv_heads),))


@dataclass(frozen=True, slots=True)
class MLP:
    """down(act(gate(x)) · up(x)), or down(act(up(x))) where there is no gate."""

    name: str
    up: Linear
    down: Linear
    activation: Literal["silu", "gelu", "gelu_tanh", "relu"]
    gate: Linear | None = None

    def children(self) -> tuple[Block, ...]:
        return tuple(b for b in (self.gate, self.up, self.down) if b)

    def own_weights(self) -> Iterator[Weight]:
        return iter(())


@dataclass(frozen=True, slots=True)
class Chain:
    """Blocks one after another."""

    blocks: tuple[Block, ...]
    name: str = ""

    def children(self) -> tuple[Block, ...]:
        return self.blocks

    def own_weights(self) -> Iterator[Weight]:
        return iter(())


@dataclass(frozen=True, slots=True)
class Residual:
    """x + scale · body(x)."""

    body: Block
    scale: float = 1.0
    name: str = ""

    def children(self) -> tuple[Block, ...]:
        return (self.body,)

    def own_weights(self) -> Iterator[Weight]:
        return iter(())


@dataclass(frozen=True, slots=True)
class Sum:
    """The sum of what each branch makes of the same x: attention and MLP side by side.

    A branch may leave its sum over ranks to this one (`partial` linears): then all of them do, and one sum serves all.
    """

    branches: tuple[Block, ...]
    name: str = ""

    @property
    def ends(self) -> tuple[Linear, ...]:
        """The linears below whose sums over ranks are taken here."""
        return tuple(node for _, node in walk(self) if isinstance(node, Linear) and node.partial)

    @property
    def wide(self) -> bool:
        """As of a linear."""
        return any(end.wide for end in self.ends)

    def children(self) -> tuple[Block, ...]:
        return self.branches

    def own_weights(self) -> Iterator[Weight]:
        return iter(())


@dataclass(frozen=True, slots=True)
class Embedding:
    """Token vectors times `scale`, plus learned position vectors where there is a table of them.

    `rounded`: the scale is first rounded to the dtype that the model runs in (Gemma).
    """

    tokens: Table
    positions: Table | None = None
    scale: float = 1.0
    rounded: bool = False
    name: str = ""

    def children(self) -> tuple[Block, ...]:
        return tuple(b for b in (self.tokens, self.positions) if b)

    def own_weights(self) -> Iterator[Weight]:
        return iter(())


@dataclass(frozen=True, slots=True)
class Head:
    """logits = linear(norm(x)) · scale, then bent to c · tanh(logits / c) where there is a `softcap` c."""

    norm: Norm
    linear: Linear
    scale: float = 1.0
    softcap: float | None = None
    name: str = ""

    def children(self) -> tuple[Block, ...]:
        return (self.norm, self.linear)

    def own_weights(self) -> Iterator[Weight]:
        return iter(())


def walk(block: Block, prefix: str = "") -> Iterator[tuple[str, Block]]:
    """The block and all below it, each with its parent's path. (A block's own weights are relative to that.)"""
    yield prefix, block
    below = ".".join(p for p in (prefix, block.name) if p)
    for child in block.children():
        yield from walk(child, below)


def weights(block: Block, prefix: str = "") -> Iterator[Weight]:
    """Every weight below `block`, named by its path."""
    for path, node in walk(block, prefix):
        for weight in node.own_weights():
            if isinstance(node, Linear) and node.tied:
                name = node.tied + weight.name.removeprefix(f"{node.name}.weight")
                yield replace(weight, name=name, source=None)
            else:
                yield weight.prefixed(path)


def attentions(block: Block) -> Iterator[Attending]:
    """Every attention below `block`, of either kind, in order."""
    return (node for _, node in walk(block) if _attends(node))


_ATTENDING: dict[type, bool] = {}  # to ask a protocol costs as much as a node's module


def _attends(block: Block) -> TypeGuard[Attending]:
    known = _ATTENDING.get(type(block))
    if known is None:
        known = _ATTENDING[type(block)] = isinstance(block, Attending)
    return known
