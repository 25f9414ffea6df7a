"""What a weight is: logical axes, how they may be cut, and where the numbers stand in a checkpoint.

Slices are always stated in *logical* elements. A packed or grouped tensor (int4, GPTQ, AWQ, FP8 blocks) says how many
logical elements one stored element stands for (`per`), so that nothing that slices ever mentions a format.
This module does not know how many ranks there are: that is `layout`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from math import lcm, prod

# Bits of one stored element. The names are torch's; "auto" is not among them on purpose.
BITS = {
    "float64": 64, "float32": 32, "float16": 16, "bfloat16": 16, "float8_e4m3fn": 8, "float8_e5m2": 8,
    "int64": 64, "int32": 32, "int16": 16, "int8": 8, "uint8": 8, "bool": 8,
}  # fmt: skip


def split(units: int, shares: Sequence[float]) -> tuple[range, ...]:
    """Cut `units` into contiguous, disjoint, exhaustive ranges whose lengths follow `shares`.

    Cumulative rounding: no rank is more than one unit away from its exact share, and a rank may get an empty range.
    The same function cuts rows, heads, pipeline layers, experts and requests per replica.
    """
    # In whole numbers, so that only proportions count: float sums cut ten shares of 0.1 unlike ten of 1.0.
    ratios = [share.as_integer_ratio() for share in shares]
    scale = lcm(*(below for _, below in ratios))
    runs = [0, *accumulate(above * (scale // below) for above, below in ratios)]
    # Half rounds up, not to even: ends then never depend on whether the count before was odd.
    ends = [(2 * units * run + runs[-1]) // (2 * runs[-1]) for run in runs]
    return tuple(range(a, b) for a, b in pairwise(ends))


@dataclass(frozen=True, slots=True)
class Axis:
    """One logical dimension of `size` elements.

    `cut` names the family it is divided by ("q", "kv", "mlp", "vocab", "expert", "moe"), or None where every rank holds all of
    it. "expert" counts experts, "moe" the inner rows of each: a layout divides one of the two.
    `grain` elements stay together (a head, a quantisation group). `group` is the number of query heads that read one KV
    head: the axes "q" and "kv" of an attention carry it, because one follows from the other.
    """

    size: int
    cut: str | None = None
    grain: int = 1
    group: int = 1

    @property
    def units(self) -> int:
        """How many grains the axis has; the last one may be smaller."""
        return -(-self.size // self.grain)

    def elements(self, units: range) -> range:
        """The elements that a range of units stands for."""
        return range(min(units.start * self.grain, self.size), min(units.stop * self.grain, self.size))


@dataclass(frozen=True, slots=True)
class Fused:
    """A linear stored inside a wider tensor: its output rows come in blocks of `block`, one every `stride` rows from `start`.

    Phi-3's `qkv_proj` holds q, k and v one after the other (one block each); Falcon and GPT-NeoX interleave them head by head,
    gpt-oss the gate and up rows of its experts one by one.
    """

    name: str
    start: int
    block: int
    stride: int

    def pieces(self, rows: range) -> Iterator[range]:
        """Stored rows, in order, that hold the logical `rows`: contiguous ones, or a run with a step where a block is a row."""
        if self.block == 1 and rows:
            begin = self.start + rows.start * self.stride
            yield range(begin, begin + (len(rows) - 1) * self.stride + 1, self.stride)
            return
        at = rows.start
        while at < rows.stop:
            index, offset = divmod(at, self.block)
            count = min(self.block - offset, rows.stop - at)
            begin = self.start + index * self.stride + offset
            yield range(begin, begin + count)
            at += count


@dataclass(frozen=True, slots=True)
class Packed:
    """`size` neighbours along the last axis share a scale, and `per_byte` of them a byte: `tensor` + `blocks` is
    [..., groups, bytes of a group] and `tensor` + `scales` [..., groups], both of bytes."""

    format: str
    size: int
    per_byte: int
    blocks: str
    scales: str


@dataclass(frozen=True, slots=True)
class Tile:
    """How the last two axes of a weight, outputs and inputs, are laid in memory: tiles of `rows` outputs by `columns` inputs,
    `cells` stored elements each. A rank's tiles begin with its own first row and column; the last of each may be padded.
    `kind` says what stands in them."""

    kind: str
    rows: int
    columns: int
    cells: int


@dataclass(frozen=True, slots=True)
class Source:
    """Where a weight stands in the checkpoint, if not under its own name and as it is.

    `tensor` is the stored name; with a `*` in it there is a tensor for each index of the weight's first axis, and that index
    stands in the star's place. `fused` applies to axis `axis` of the weight; `transposed` says that the last two axes are
    stored the other way round (GPT-2's Conv1D). `packed`: stored as blocks of small numbers with a scale each, in two tensors.
    """

    tensor: str
    transposed: bool = False
    fused: Fused | None = None
    axis: int = 0
    packed: Packed | None = None


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor. `dtype` None means the dtype the model runs in; `per[i]` logical elements of axis i share a stored one.

    `aliases` are other names under which a checkpoint may store the same tensor (a tied head), `also` is another way in which
    it may. A `companion` (scales, zero points) belongs to another weight and holds no parameters of its own.
    `tile`: dense in the checkpoint, and in memory what is made of it while it is loaded.
    """

    name: str
    axes: tuple[Axis, ...]
    dtype: str | None = None
    per: tuple[int, ...] = ()
    source: Source | None = None
    aliases: tuple[str, ...] = ()
    companion: bool = False
    also: Source | None = None
    tile: Tile | None = None

    @property
    def made(self) -> bool:
        """Whether it comes with another weight's numbers, and no checkpoint has it."""
        return self.companion and self.tile is not None

    @property
    def shape(self) -> tuple[int, ...]:
        """The whole tensor's stored shape, before any cut."""
        return tuple(len(r) for r in self.stored(tuple(range(a.size) for a in self.axes)))

    @property
    def elements(self) -> int:
        """Logical elements: what a parameter count counts."""
        return prod(a.size for a in self.axes)

    def stored(self, ranges: Sequence[range]) -> tuple[range, ...]:
        """Logical ranges in stored elements, rounded outward: a group that straddles two ranks is held by both."""
        per = self.per or (1,) * len(self.axes)
        return tuple(
            range(r.start // p, -(-r.stop // p)) if len(r) else range(r.start // p, r.start // p)
            for r, p in zip(ranges, per, strict=True)
        )

    def held(self, ranges: Sequence[range]) -> tuple[int, ...]:
        """The shape in memory of what a rank holds, of the logical `ranges`."""
        if self.tile is None:
            return tuple(len(r) for r in self.stored(ranges))
        *above, rows, columns = ranges
        tile = self.tile
        groups = -(-columns.stop // tile.columns) - columns.start // tile.columns if columns else 0
        return (*(len(r) for r in above), -(-len(rows) // tile.rows), groups, tile.cells)

    def prefixed(self, prefix: str) -> Weight:
        """The same weight below `prefix` in the tree of blocks."""
        if not prefix:
            return self
        source, also = (s and replace(s, tensor=f"{prefix}.{s.tensor}") for s in (self.source, self.also))
        return replace(self, name=f"{prefix}.{self.name}", source=source, also=also)


def unit_grain(size: int, least: int = 256, most: int = 32) -> int:
    """A grain for an axis that may be cut anywhere: the largest power of two up to `most` that leaves `least` units.

    Kernels like multiples of 32 rows; balance at odd degrees likes many units (256 units over 7 ranks differ by 3 %).
    """
    grain = most
    while grain > 1 and (size % grain or size // grain < least):
        grain //= 2
    return grain
