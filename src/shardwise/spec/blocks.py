"""The vocabulary of models: small frozen blocks that nest. A model is a tree of them, and says nothing about devices.

A block yields its own weights by names relative to where it stands; `walk` puts the path in front. Residual structure is
nesting (`Residual`, `Sum`), not flags. A weight's axes say how it may be cut; nothing here divides by a degree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

from shardwise.spec.axes import Axis, Fused, Source, Weight
from shardwise.spec.formats import Dense, Format, fused_source


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
    it shares with an embedding table. `experts`: not one linear but one for each expert, stacked along that axis. They are
    one weight, whichever way they are stored, because an axis can be cut and a list of names cannot: each in a tensor of its
    own (the name then has a `*` for the expert's number, and `fused` is the other way in which they may be stored), or all
    in one tensor, `fused`.
    """

    name: str
    out: Axis
    inp: Axis
    bias: bool = False
    format: Format = field(default_factory=Dense)
    fused: Fused | None = None
    transposed: bool = False
    tied: str | None = None
    experts: Axis | None = None

    def children(self) -> tuple[Block, ...]:
        return ()

    def own_weights(self) -> Iterator[Weight]:
        for weight, out_axis in self._single_weights():
            yield self._stack(weight, out_axis) if self.experts else replace(weight, source=self._source(weight, out_axis))

    def _single_weights(self) -> Iterator[tuple[Weight, int]]:
        yield from self.format.weights(self.name, self.out, self.inp)
        if self.bias:
            yield Weight(f"{self.name}.bias", (self.out,)), 0

    def _source(self, weight: Weight, out_axis: int) -> Source | None:
        if self.fused and out_axis >= 0:
            return replace(fused_source(weight, out_axis, self.name, self.fused), transposed=self._turned(weight))
        return Source(weight.name, transposed=True) if self._turned(weight) else None

    def _stack(self, weight: Weight, out_axis: int) -> Weight:
        """The same tensor of all experts. In one tensor, it is called as the linear is, and its bias with `_bias` behind."""
        assert self.experts is not None and out_axis >= 0
        per = weight.per and (1, *weight.per)
        stack = replace(weight, axes=(self.experts, *weight.axes), per=per)
        ends = {f"{self.name}.weight": "", f"{self.name}.bias": "_bias"}
        if self.fused is None or weight.name not in ends:
            return stack
        # Packed ones are rows of outputs, whichever way the dense ones stand.
        packed = weight.source.packed if weight.source else None
        turned = self._turned(weight) and not packed
        source = Source(self.fused.name + ends[weight.name], turned, self.fused, out_axis + 1, packed)
        return replace(stack, also=source) if "*" in self.name else replace(stack, source=source)

    def _turned(self, weight: Weight) -> bool:
        return self.transposed and len(weight.axes) == 2


@dataclass(frozen=True, slots=True)
class Norm:
    """RMS or layer norm over the last `size` elements. Never cut."""

    name: str
    size: int
    eps: float
    kind: Literal["rms", "layer"] = "rms"
    bias: bool = False

    def children(self) -> tuple[Block, ...]:
        return ()

    def own_weights(self) -> Iterator[Weight]:
        yield Weight(f"{self.name}.weight", (Axis(self.size),))
        if self.bias:
            yield Weight(f"{self.name}.bias", (Axis(self.size),))


@dataclass(frozen=True, slots=True)
class Table:
    """A lookup of `rows` vectors of `size`. Where the rows are cut, a rank looks up what it holds and the parts are summed."""

    name: str
    rows: Axis
    size: int
    aliases: tuple[str, ...] = ()

    def children(self) -> tuple[Block, ...]:
        return ()

    def own_weights(self) -> Iterator[Weight]:
        yield Weight(f"{self.name}.weight", (self.rows, Axis(self.size)), aliases=self.aliases)


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding: inverse frequencies as numbers, decided once from the config.

    `frequencies` are the dim / 2 angular steps per position. `long` replaces them for sequences of more than `boundary`
    tokens (longrope). `dynamic` is NTK scaling by length past `boundary`, as (base, factor). `scale` multiplies cos and sin.
    `halves`: element i is paired with i + dim / 2 (Llama), else with its neighbour (GPT-J).
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


@dataclass(frozen=True, slots=True)
class Kept:
    """What an attention keeps of every token: for each head of axis `kv` one tensor of each of `dims` elements.

    "full" keeps all tokens, "window" the last `window`. "latent" keeps all, but one tensor that every head reads: it is not
    cut, and a rank without heads has none.
    """

    kind: Literal["full", "window", "latent"]
    kv: Axis
    dims: tuple[int, ...]
    window: int | None = None


@dataclass(frozen=True, slots=True)
class Attention:
    """Causal attention with `heads` query heads over `kv_heads` KV heads of `dim`. `window` None sees everything."""

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

    @property
    def kept(self) -> Kept:
        """Keys and values, as wide as each other."""
        return Kept("full" if self.window is None else "window", self.k.out, (self.dim, self.dim), self.window)

    def children(self) -> tuple[Block, ...]:
        norms = tuple(n for n in (self.q_norm, self.k_norm) if n)
        return (self.q, self.k, self.v, *norms, self.o)

    def own_weights(self) -> Iterator[Weight]:
        return iter(())


@dataclass(frozen=True, slots=True)
class MLA:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1): all heads read one latent a token.

    `kv_a` makes a latent of `kv_norm.size` elements, and `rope.dim` more that are turned and go to every head's key as they
    are; `kv_b` makes `nope_dim` elements of key and `v_dim` of value out of the latent for each head. `q` makes `nope_dim` +
    `rope.dim` elements for each head, out of the hidden state, or of a latent of its own by `q_a` and `q_norm`. What makes a
    latent is not cut; what makes heads is, head by head, and the axes of q, kv_b and o differ in grain alone.
    """

    name: str
    q: Linear
    kv_a: Linear
    kv_norm: Norm
    kv_b: Linear
    o: Linear
    heads: int
    nope_dim: int
    v_dim: int
    scale: float
    rope: Rope
    q_a: Linear | None = None
    q_norm: Norm | None = None

    @property
    def kv_heads(self) -> int:
        """As many as query heads: each would have keys of its own, were they ever made."""
        return self.heads

    @property
    def window(self) -> int | None:
        return None

    @property
    def kept(self) -> Kept:
        """The normed latent and the turned part of the keys, in one tensor."""
        return Kept("latent", self.q.out, (self.kv_norm.size + self.rope.dim,))

    def children(self) -> tuple[Block, ...]:
        blocks = (self.q_a, self.q_norm, self.q, self.kv_a, self.kv_norm, self.kv_b, self.o)
        return tuple(b for b in blocks if b)

    def own_weights(self) -> Iterator[Weight]:
        return iter(())


Attending = Attention | MLA
"""What turns a token's hidden state by what it sees of the tokens before it."""


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
class Embedding:
    """Token vectors times `scale`, plus learned position vectors where there is a table of them."""

    tokens: Table
    positions: Table | None = None
    scale: float = 1.0
    name: str = ""

    def children(self) -> tuple[Block, ...]:
        return tuple(b for b in (self.tokens, self.positions) if b)

    def own_weights(self) -> Iterator[Weight]:
        return iter(())


@dataclass(frozen=True, slots=True)
class Head:
    """logits = linear(norm(x)) · scale."""

    norm: Norm
    linear: Linear
    scale: float = 1.0
    name: str = ""

    def children(self) -> tuple[Block, ...]:
        return (self.norm, self.linear)

    def own_weights(self) -> Iterator[Weight]:
        return iter(())


@dataclass(frozen=True, slots=True)
class Run:
    """`count` equal layers, the first with index `start`; layer i stands at path "`name`.i"."""

    name: str
    start: int
    count: int
    block: Block


@dataclass(frozen=True, slots=True)
class Model:
    """A whole network. `context` is the most tokens a sequence may have; `dtype` the one the checkpoint was saved in.

    `prefix`: a checkpoint may store every name below it ("transformer."). `ignored`: stored tensors that hold no parameter
    (masks, rotary tables), as suffixes. `unused`: prefixes of those that plain decoding does not read (multi-token prediction).
    """

    architecture: str
    embed: Embedding
    runs: tuple[Run, ...]
    head: Head
    vocab: int
    hidden: int
    context: int
    dtype: str
    prefix: str = ""
    ignored: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    @property
    def layers(self) -> int:
        return sum(run.count for run in self.runs)

    @property
    def heads(self) -> int:
        """The fewest query heads of any layer: the highest degree that can be cut."""
        return min(block.heads for run in self.runs for block in attentions(run.block))


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
            tied = isinstance(node, Linear) and node.tied
            yield replace(weight, name=tied, source=None) if tied else weight.prefixed(path)


def attentions(block: Block) -> Iterator[Attending]:
    """Every attention below `block`, of either kind, in order."""
    return (node for _, node in walk(block) if isinstance(node, Attending))


def stacks(model: Model) -> Iterator[Linear]:
    """Every distinct stack of experts' linears; none in a dense model."""
    nodes = (node for run in model.runs for _, node in walk(run.block))
    return (node for node in nodes if isinstance(node, Linear) and node.experts)


def layer_blocks(model: Model) -> Iterator[tuple[str, Block]]:
    """(path, block) of every layer, in order."""
    for run in model.runs:
        for i in range(run.start, run.start + run.count):
            yield f"{run.name}.{i}", run.block


def model_weights(model: Model) -> Iterator[Weight]:
    """Every distinct weight of the model; a tied head is its table's weight and is yielded once."""
    seen: set[str] = set()
    for path, block in (("", model.embed), *layer_blocks(model), ("", model.head)):
        for weight in weights(block, path):
            if weight.name not in seen:
                seen.add(weight.name)
                yield weight


def parameters(model: Model) -> int:
    """The number of parameters, without walking equal layers twice. Packed tensors count what they stand for."""

    def count(block: Block) -> int:
        return sum(weight.elements for weight in weights(block) if not weight.companion)

    total = count(model.embed) + sum(run.count * count(run.block) for run in model.runs) + count(model.head)
    tied = model.head.linear.tied
    return total - (model.head.linear.out.size * model.head.linear.inp.size if tied else 0)


def rewrite(block: Any, change: Callable[[str, Linear], Linear], prefix: str = "") -> Any:
    """The same tree with every linear replaced by change(path, linear): how formats are put on a model."""
    if isinstance(block, Linear):
        return change(".".join(p for p in (prefix, block.name) if p), block)
    below = ".".join(p for p in (prefix, getattr(block, "name", "")) if p)
    changed = {}
    for f in fields(block):
        value = getattr(block, f.name)
        if isinstance(value, tuple) and value and is_dataclass(value[0]):
            changed[f.name] = tuple(rewrite(v, change, below) for v in value)
        elif isinstance(value, Block):
            changed[f.name] = rewrite(value, change, below)
    return replace(block, **changed) if changed else block


def ropes(model: Model) -> tuple[Rope, ...]:
    """The distinct rotary embeddings of the model, in order of first use."""
    found = {a.rope: None for run in model.runs for a in attentions(run.block) if a.rope}
    return tuple(found)
