"""The cut as a value: who holds which range of which tensor. The only place that divides anything by a degree.

Loader, modules, KV cache, planner and re-sharding all read it, so a planned byte is a loaded byte. It knows no device and
reads no file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod

from shardwise.errors import LayoutError
from shardwise.spec.axes import BITS, Axis, Weight, split
from shardwise.spec.blocks import Attending, Block, attentions, weights
from shardwise.spec.boxes import Box, atoms, intersect, subtract
from shardwise.spec.kept import Kept
from shardwise.spec.mesh import Coords, Mesh
from shardwise.spec.model import Model, layer_blocks
from shardwise.spec.moe import stacks

ALIGN_BYTES = 64
"""Every tensor starts on a cache line of its rank's arena."""

PAGE_TOKENS = 16
"""Tokens in a page of the KV cache."""

SCALE_BYTES = 4
"""What an int8 cache has behind the numbers of each token and head: what they are multiplied by, in float32."""


@dataclass(frozen=True, slots=True)
class Shares:
    """How much of each family every rank of the tensor-parallel group takes; only the proportions count."""

    attention: tuple[float, ...] = (1.0,)
    mlp: tuple[float, ...] = (1.0,)
    vocab: tuple[float, ...] = (1.0,)

    @staticmethod
    def of(values: Sequence[float]) -> Shares:
        """The same proportions for every family."""
        same = tuple(float(v) for v in values)
        return Shares(same, same, same)

    @staticmethod
    def even(degree: int) -> Shares:
        return Shares.of((1.0,) * degree)

    def family(self, cut: str) -> tuple[float, ...]:
        """The proportions by which the axes of a family are cut."""
        attention, mlp = self.attention, self.mlp
        return {"q": attention, "kv": attention, "mlp": mlp, "moe": mlp, "expert": mlp, "vocab": self.vocab}[cut]

    def check(self, degree: int) -> None:
        """Raises LayoutError unless there is one positive, finite share a rank."""
        for values in (self.attention, self.mlp, self.vocab):
            shown = ",".join(f"{v:g}" for v in values)
            if len(values) != degree:
                raise LayoutError(
                    f"{len(values)} shares ({shown}) for {degree} ranks; give exactly {degree}, one for each rank"
                )
            if not all(0 < v < float("inf") for v in values):
                raise LayoutError(f"shares {shown}: each must be positive and finite; leave a device out rather than give it 0")


@dataclass(frozen=True, slots=True)
class Slice:
    """One rank's part of one weight: its logical `ranges`, and where it stands in the rank's arena."""

    weight: Weight
    ranges: tuple[range, ...]
    shape: tuple[int, ...]
    dtype: str
    offset: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Move:
    """A box of a weight, in logical ranges, that rank `target` of the new layout gets from rank `source` of the old one."""

    weight: Weight
    ranges: tuple[range, ...]
    source: int
    target: int


@dataclass(frozen=True, slots=True)
class Copy:
    """A box of a weight and all the ranks that hold it."""

    ranges: tuple[range, ...]
    ranks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CacheGroup:
    """Layers that share one page table, for they keep the same of a token. `layers` are indices of the whole model."""

    kept: Kept
    layers: tuple[int, ...]

    @property
    def window(self) -> int | None:
        """None keeps every token; else a sequence needs pages for the last `window` tokens and the chunk in work."""
        return self.kept.window

    @property
    def chunked(self) -> bool:
        """Whether a query sees no farther back than the last multiple of `window`, which is never farther."""
        return self.kept.kind == "chunked"

    def pages(self, context: int, chunk: int) -> int:
        """Pages that one sequence of up to `context` tokens needs, computed in chunks of up to `chunk`."""
        tokens = context if self.window is None else min(context, self.window + chunk + PAGE_TOKENS)
        return -(-tokens // PAGE_TOKENS)


@lru_cache(maxsize=4096)
def cut_heads(kv_heads: int, group: int, shares: tuple[float, ...]) -> tuple[tuple[range, range], ...]:
    """(query heads, KV heads) of every rank, for `group` query heads to a KV head.

    Either whole KV groups are dealt out, or query heads are and each rank keeps the KV heads that its queries read, some of
    them held twice. The second is taken where it lightens the heaviest rank, counting a KV head double: its weights are as
    large as a query head's, and it costs cache besides.
    """

    def load(cut: Sequence[tuple[range, range]]) -> float:
        return max((len(q) + 2 * len(kv)) / share for (q, kv), share in zip(cut, shares, strict=True))

    by_group = [(range(r.start * group, r.stop * group), r) for r in split(kv_heads, shares)]
    by_head = [
        (q, range(q.start // group, -(-q.stop // group)) if q else range(q.start // group, q.start // group))
        for q in split(kv_heads * group, shares)
    ]
    return tuple(by_head if load(by_head) < load(by_group) else by_group)


@lru_cache(maxsize=65536)
def _cut(axis: Axis, shares: tuple[float, ...]) -> tuple[range, ...]:
    """Every rank's elements of a cut axis."""
    if axis.cut in ("q", "kv"):
        kv_heads = axis.units // axis.group if axis.cut == "q" else axis.units
        return tuple(axis.elements(pair[axis.cut == "kv"]) for pair in cut_heads(kv_heads, axis.group, shares))
    return tuple(axis.elements(units) for units in split(axis.units, shares))


@dataclass(frozen=True)
class Layout:
    """`model` cut over `mesh` in proportions `shares`, its dense weights held as `dtype`, its KV cache as `kv_dtype`.

    What it computes on the way is held as `activations`; None: as `dtype`.

    Every expert of a mixture is cut inside, as an MLP is. With `expert_parallel` whole experts are dealt to the same ranks.
    """

    model: Model
    mesh: Mesh
    shares: Shares
    dtype: str
    kv_dtype: str
    expert_parallel: bool = False
    activations: str | None = None

    def __post_init__(self) -> None:
        if self.mesh.tp > self.model.heads:
            raise LayoutError(
                f"tensor-parallel degree {self.mesh.tp} is above the {self.model.heads} query heads of this model; "
                f"the largest that works is -tp {self.model.heads}"
            )
        self.shares.check(self.mesh.tp)
        if self.mesh.pp > self.model.layers:
            raise LayoutError(f"{self.mesh.pp} pipeline stages for {self.model.layers} layers; the most is {self.model.layers}")
        if self.expert_parallel:
            self._check_experts()

    def _check_experts(self) -> None:
        if not any(stacks(self.model)):
            raise LayoutError(
                f"expert parallelism deals whole experts to ranks, and this model ({self.model.architecture}) has none; "
                "without --enable-expert-parallel it works"
            )
        if self.mesh.ep > 1:
            raise LayoutError(f"experts are dealt to {self.mesh.ep} ranks of their own already; either works, not both")

    @property
    def compute_dtype(self) -> str:
        """The dtype of activations: what travels between ranks, too."""
        return self.activations or self.dtype

    # --- spans --------------------------------------------------------------------------------------------------------

    def cut(self, axis: Axis) -> bool:
        """Whether the axis is divided over more than one rank: the only reason to reduce, or to gather."""
        return axis.cut is not None and len(self._group(axis.cut)) > 1

    def span(self, axis: Axis, at: Coords) -> range:
        """The elements of `axis` that the rank at `at` holds."""
        if axis.cut is None:
            return range(axis.size)
        spans = self.spans(axis)
        return spans[0] if len(spans) == 1 else spans[at.ep if axis.cut == "expert" and not self.expert_parallel else at.tp]

    def spans(self, axis: Axis) -> tuple[range, ...]:
        """The elements of a cut axis, rank by rank of the group that cuts it."""
        if axis.cut is None:
            raise LayoutError(f"an axis of {axis.size} elements is not cut: every rank holds all of it")
        return _cut(axis, self._group(axis.cut))

    def _group(self, cut: str) -> tuple[float, ...]:
        """The shares of the ranks that divide a family among them: one share where none do."""
        if cut == "moe" and self.expert_parallel:
            return (1.0,)
        if cut == "expert" and not self.expert_parallel:
            return (1.0,) * self.mesh.ep
        return self.shares.family(cut)

    def box(self, weight: Weight, at: Coords) -> Box:
        """The logical ranges of a weight that the rank at `at` holds, if its stage has the weight at all."""
        return tuple(self.span(axis, at) for axis in weight.axes)

    def heads(self, attention: Attending, at: Coords) -> tuple[range, range]:
        """The query heads and the KV heads that the rank at `at` computes."""
        return cut_heads(attention.kv_heads, attention.heads // attention.kv_heads, self.shares.attention)[at.tp]

    def counted(self, axis: Axis, at: Coords) -> range:
        """What the rank at `at` adds to a sum over all of a cut axis: the elements that it holds and no rank before it does."""
        own, before = self.span(axis, at), self.spans(axis)[: at.ep if axis.cut == "expert" else at.tp]
        return range(min(max([own.start, *(r.stop for r in before)]), own.stop), own.stop)

    def kv_of_queries(self, attention: Attending, at: Coords) -> tuple[int, ...]:
        """For each query head of the rank at `at`, the index among its own KV heads of the one that it reads."""
        q, kv = self.heads(attention, at)
        return tuple(head * attention.kv_heads // attention.heads - kv.start for head in q)

    def even_groups(self, attention: Attending, at: Coords) -> bool:
        """Whether the KV heads of the rank at `at` have equally many readers among its query heads, in order. Where a cut runs
        through a KV group they have not, and each query head needs its own copy of what it reads."""
        queries, kv = self.heads(attention, at)
        if not kv or len(queries) % len(kv):
            return False
        return self.kv_of_queries(attention, at) == tuple(i * len(kv) // len(queries) for i in range(len(queries)))

    # --- what a rank holds --------------------------------------------------------------------------------------------

    @cached_property
    def stages(self) -> tuple[range, ...]:
        """Layer indices of each pipeline stage."""
        return split(self.model.layers, (1.0,) * self.mesh.pp)

    def blocks(self, pp: int) -> Iterator[tuple[str, Block]]:
        """(path, block) of what pipeline stage `pp` runs: embedding first, head last, layers by `stages`."""
        if pp == 0:
            yield "", self.model.embed
        layers = tuple(layer_blocks(self.model))
        yield from (layers[i] for i in self.stages[pp])
        if pp == self.mesh.pp - 1:
            yield "", self.model.head

    def weights(self, pp: int) -> Iterator[Weight]:
        """Distinct weights of a pipeline stage. A tied head on another stage than its table is there a second time."""
        seen: set[str] = set()
        for path, block in self.blocks(pp):
            for weight in weights(block, path):
                if weight.name not in seen:
                    seen.add(weight.name)
                    yield weight

    def slices(self, rank: int) -> tuple[Slice, ...]:
        """Everything that `rank` loads, with its place in the arena."""
        at, offset, found = self.mesh.coords(rank), 0, []
        for weight in self.weights(at.pp):
            box = self.box(weight, at)
            shape = weight.held(box)
            dtype = weight.dtype or self.dtype
            size = prod(shape) * BITS[dtype] // 8
            found.append(Slice(weight, box, shape, dtype, offset, size))
            offset += _aligned(size)
        return tuple(found)

    def weight_bytes(self, rank: int) -> int:
        """Bytes of the weights that `rank` holds."""
        return self._sum(self.mesh.coords(rank), lambda size: size)

    def arena_bytes(self, rank: int) -> int:
        """Bytes of the one allocation that holds the weights of `rank`: `weight_bytes` plus alignment."""
        return self._sum(self.mesh.coords(rank), _aligned)

    def _sum(self, at: Coords, size: Callable[[int], int]) -> int:
        """The sizes of a stage's weights, rounded by `size`. Equal layers differ in name alone, so each is summed once."""
        known: dict[int, int] = {}
        total = 0
        for _, block in self.blocks(at.pp):
            if id(block) not in known:
                known[id(block)] = sum(size(self._bytes(w, at)) for w in weights(block))
            total += known[id(block)]
        head = self.model.head.linear
        if head.tied and self.mesh.pp == 1:
            total -= sum(size(self._bytes(w, at)) for w, _ in head.format.weights(head.name, head.out, head.inp))
        return total

    def _bytes(self, weight: Weight, at: Coords) -> int:
        return prod(weight.held(self.box(weight, at))) * BITS[weight.dtype or self.dtype] // 8

    # --- the cache ----------------------------------------------------------------------------------------------------

    @cached_property
    def cache(self) -> tuple[CacheGroup, ...]:
        """The groups of layers that share a page table, in order of their first layer."""
        found: dict[Kept, list[int]] = {}
        for i, (_, block) in enumerate(layer_blocks(self.model)):
            for attention in attentions(block):
                found.setdefault(attention.kept, []).append(i)
        return tuple(CacheGroup(kept, tuple(layers)) for kept, layers in found.items())

    def kept(self, group: CacheGroup, at: Coords) -> tuple[tuple[int, int], ...]:
        """(heads, elements of each) of each tensor that the rank at `at` keeps of a token, in each of its layers of `group`."""
        heads = len(self.span(group.kept.kv, at)) // group.kept.kv.grain
        held = min(heads, 1) if group.kept.kind == "latent" else heads
        scale = SCALE_BYTES if self.kv_dtype == "int8" else 0
        return tuple((held, dim + scale) for dim in group.kept.dims)

    def token_bytes(self, group: CacheGroup, rank: int) -> int:
        """Bytes that one cached token takes of `rank` in `group`: what the stage's layers keep of it."""
        at = self.mesh.coords(rank)
        layers = sum(i in self.stages[at.pp] for i in group.layers)
        return layers * sum(map(prod, self.kept(group, at))) * BITS[self.kv_dtype] // 8

    def kv_bytes_per_token(self, rank: int) -> int:
        """Bytes of cache that one more token takes of `rank`, over all groups, before any window is full."""
        return sum(self.token_bytes(group, rank) for group in self.cache)

    def kv_pages(self, context: int, chunk: int) -> tuple[int, ...]:
        """Pages of each group for one sequence of `context` tokens, computed in chunks of up to `chunk`."""
        return tuple(group.pages(context, chunk) for group in self.cache)

    def kv_bytes(self, rank: int, pages: Sequence[int]) -> int:
        """Bytes of the arena that holds `pages[g]` pages of each group g on `rank`."""
        groups = zip(self.cache, pages, strict=True)
        return sum(n * PAGE_TOKENS * self.token_bytes(group, rank) for group, n in groups)

    # --- other layouts ------------------------------------------------------------------------------------------------

    def copies(self, weight: Weight) -> tuple[Copy, ...]:
        """Which ranks hold which part of a weight: disjoint boxes that cover it, each with its holders."""
        held = [(rank, self.box(weight, self.mesh.coords(rank))) for rank in self._holders(weight.name)]
        whole = tuple(range(axis.size) for axis in weight.axes)
        boxes = atoms(whole, [box for _, box in held])
        return tuple(Copy(box, tuple(rank for rank, own in held if intersect(box, own) == box)) for box in boxes)

    def moves(self, new: Layout) -> Iterator[Move]:
        """What must travel to turn this layout into `new` (of the same model): nothing that a rank holds already.

        Ranks keep their numbers. Where several old ranks hold a box, the targets take turns, so that one does not serve all.
        """
        for weight in {w.name: w for pp in range(new.mesh.pp) for w in new.weights(pp)}.values():
            old = [(rank, self.box(weight, self.mesh.coords(rank))) for rank in self._holders(weight.name)]
            for target in new._holders(weight.name):
                missing = [new.box(weight, new.mesh.coords(target))]
                here = [box for rank, box in old if rank == target]
                others = [pair for pair in old if pair[0] != target]
                for box in here:
                    missing = [part for whole in missing for part in subtract(whole, box)]
                turn = target % len(others) if others else 0
                for source, box in others[turn:] + others[:turn]:
                    for found in (intersect(part, box) for part in missing):
                        if all(found):
                            yield Move(weight, found, source, target)
                    missing = [part for whole in missing for part in subtract(whole, box)]

    def _holders(self, name: str) -> tuple[int, ...]:
        """The ranks whose stage has the weight `name`."""
        stages = [pp for pp in range(self.mesh.pp) if name in self._names[pp]]
        return tuple(rank for rank in range(self.mesh.size) if self.mesh.coords(rank).pp in stages)

    @cached_property
    def _names(self) -> tuple[frozenset[str], ...]:
        return tuple(frozenset(w.name for w in self.weights(pp)) for pp in range(self.mesh.pp))


def _aligned(size: int) -> int:
    return -(-size // ALIGN_BYTES) * ALIGN_BYTES
