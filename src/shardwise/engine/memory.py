"""What a rank will take, and how long a sequence may therefore be. Estimates are upper ones: a cap has to hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from shardwise.engine.devices import available_bytes, gpus
from shardwise.errors import CapacityError, UserError
from shardwise.runtime.kinds import PIECE
from shardwise.spec.axes import BITS
from shardwise.spec.blocks import Attention, Linear, walk
from shardwise.spec.formats import Grouped
from shardwise.spec.layout import PAGE_TOKENS, Layout, Shares
from shardwise.spec.mesh import Coords, Mesh
from shardwise.spec.mla import MLA
from shardwise.spec.moe import MoE

STEP_TOKENS = {"cpu": 512, "cuda": 2048}
"""Unless told, the most tokens of one step: bounds the memory of activations, and how long a decode waits for a prompt."""

SEQUENCES = {"cpu": 64, "cuda": 256}
"""Unless told, the most sequences that run at once; fewer where memory is short."""

CACHE_BYTES = 4 * 2**30
"""Unless told, the most that the caches of a host's CPU ranks take together, if one sequence does not need more."""

LEAST_CONTEXT = 256
"""A layout that cannot hold the cache of this many tokens is refused rather than run."""

RANK_BYTES = {"cpu": 320 * 2**20, "cuda": 700 * 2**20}
"""What a rank takes besides weights, cache and activations: interpreter, torch, gloo or the driver. See docs/log.md."""

SLAB_ROWS = 128
"""Rows that are cut into parts for the tile unit at a time (native/dense.cpp)."""

SPREAD_BYTES = 3 * 2**26
"""What products with quantised weights take in torch: some rows of them as floats, and products that are not summed yet. See
docs/log.md."""
SPLIT_TOKENS, PARTS_BYTES = 512, 16 * 2**20
"""Keys that compiled attention may sum up apart from others, and the most that such sums take (native/attention.cpp)."""

Bound = Literal["model", "flag", "memory"]


@dataclass(frozen=True, slots=True)
class Room:
    """The most tokens that a request may have, and what sets that limit; the most sequences that run at once; and the pages of
    each cache group, SCRATCH among them."""

    context: int
    bound: Bound
    sequences: int
    pages: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Demand:
    """What the ranks of `layout` take, on what they are given.

    `memory` is what a rank may take in bytes, None for what is free; `cache` the most of it for the cache, None for what is
    left. A step has up to `tokens` tokens in up to `sequences` sequences.
    """

    layout: Layout
    device: str
    memory: int | None
    cache: int | None
    tokens: int
    sequences: int
    free: int | None = None
    """Bytes that may be taken where `memory` does not say: of each GPU, or of the host by all ranks together; None asks the
    machine."""

    @property
    def budget(self) -> int:
        """Bytes that each rank may take."""
        if self.memory or self.free is None:
            return self.memory or available_bytes(self.device, self.layout.mesh.tp)
        return self.free if self.device == "cuda" else self.free // self.layout.mesh.tp

    def pages(self, context: int, kept: int) -> tuple[int, ...]:
        """Pages of each group for `kept` tokens of several sequences, one of `context` tokens at the least."""
        found = []
        for group, one in zip(self.layout.cache, self.layout.kv_pages(context, self.tokens), strict=True):
            # What many short sequences need, or all of them with their windows full.
            whole = -(-kept // PAGE_TOKENS)
            found.append(1 + max(one, whole if group.window is None else min(whole, self.sequences * one)))
        return tuple(found)

    def rank_bytes(self, rank: int, context: int, kept: int) -> int:
        """What one rank will take: weights, cache, activations, its process."""
        cache = self.layout.kv_bytes(rank, self.pages(context, kept))
        return self.layout.arena_bytes(rank) + cache + self.activation_bytes(rank, context, kept) + RANK_BYTES[self.device]

    def fits(self, context: int, kept: int | None = None) -> bool:
        """Whether every rank has room for sequences of up to `context` tokens that keep `kept` together; by default for one."""
        budget, ranks = self.budget, range(self.layout.mesh.size)
        return all(self.rank_bytes(rank, context, kept or context) <= budget for rank in ranks)

    def activation_bytes(self, rank: int, context: int, kept: int) -> int:
        """What one forward needs beside weights and cache: hidden states and the widest linear's outputs, one layer's gathered
        keys and values with their mask, and logits with what sampling makes of them."""
        layout, at = self.layout, self.layout.mesh.coords(rank)
        tokens = min(self.tokens, kept)
        # Sequences are gathered side by side, padded to less than twice their length.
        gathered = max(context, min(2 * kept, self.sequences * context))
        widest, attended, rounded, states = 0, 0, 0, 6
        for block in {id(run.block): run.block for run in layout.model.runs}.values():
            for _, node in walk(block):
                if isinstance(node, Linear):
                    states = max(states, 8 if node.wide else 6)  # a part of a sum and the sum, in float64
                    widest = max(widest, len(layout.span(node.out, at)))
                    rounded = max(rounded, _rounded_bytes(tokens, len(layout.span(node.inp, at)), node, layout))
                elif isinstance(node, Attention):
                    attended = max(attended, _attention_bytes(layout, node, rank, tokens, context, gathered))
                elif isinstance(node, MLA):
                    attended = max(attended, _latent_bytes(layout, node, rank, tokens, context, gathered))
                elif isinstance(node, MoE):
                    # All tokens may go to one expert: its inputs, its outputs and these weighed, beside the sum.
                    states = max(states, 15 if node.wide else 10)
        # Norms are computed in float32, whatever the dtype.
        states_bytes = 4 * tokens * (states * layout.model.hidden + 3 * widest)
        return states_bytes + rounded + attended + self.sampling_bytes(at, kept)

    def sampling_bytes(self, at: Coords, kept: int) -> int:
        """Logits as they come and in float32, with what choosing makes of them or of the whole logits of a few rows, where
        candidates are not enough; or, before any of it, a piece of a prompt's log-probabilities. Factors: docs/log.md."""
        vocab, item = self.layout.model.vocab, BITS[self.layout.compute_dtype] // 8
        own, rows = len(self.layout.span(self.layout.model.head.linear.out, at)), min(self.sequences, kept)
        chosen = max(24 * rows * own, 180 * min(rows, PIECE // 8) * vocab)
        return max(rows * own * (item + 4) + chosen, min(PIECE, self.tokens, kept) * own * (item + 24))


def room(demand: Demand, asked: int | None, *, fewer: bool, most: int | None = None) -> Room:
    """How long sequences may be, as `asked` if that fits, else as the model or the memory allows; and how many are kept at
    once. `fewer`: fewer sequences than the demand says are as good, where more do not fit. `most`: no longer than that, though
    the model could. CapacityError says what would fit.
    """
    layout = demand.layout
    most = min(layout.model.context, most or layout.model.context)
    if asked is not None and not 1 <= asked <= most:
        raise UserError(f"--max-model-len {asked} is out of range; this model takes 1 to {most} tokens")
    least = asked or min(LEAST_CONTEXT, most)
    while fewer and demand.sequences > 1 and not demand.fits(asked or most):
        demand = replace(demand, sequences=demand.sequences // 2)
    if not demand.fits(least):
        raise CapacityError(_refusal(demand, least))
    wanted = asked or most
    context = _last(demand.fits, least, wanted)
    bound: Bound = "memory" if context < wanted else "flag" if asked else "model"
    return Room(context, bound, demand.sequences, _pages(demand, context))


def _pages(demand: Demand, context: int) -> tuple[int, ...]:
    """As many pages as there is room for, up to all sequences at their longest; at least one of them."""
    layout, limit = demand.layout, demand.cache
    if limit is None and demand.device == "cpu" and demand.memory is None:
        limit = CACHE_BYTES // layout.mesh.tp

    def holds(kept: int) -> bool:
        taken = max(layout.kv_bytes(rank, demand.pages(context, kept)) for rank in range(layout.mesh.size))
        return (limit is None or taken <= limit) and demand.fits(context, kept)

    if demand.cache is not None and not holds(context):
        need = max(layout.kv_bytes(rank, demand.pages(context, context)) for rank in range(layout.mesh.size))
        raise CapacityError(
            f"--kv-cache-memory allows {mib(demand.cache)}, and one sequence of {context} tokens takes {mib(need)} of a rank: "
            "give it more, or use a smaller --max-model-len"
        )
    return demand.pages(context, _last(holds, context, context * demand.sequences))


def _rounded_bytes(tokens: int, inputs: int, linear: Linear, layout: Layout) -> int:
    """Activations rounded to 8 bits with their scales and sums, in room that grows by halves; torch's class, where nothing is
    compiled, rounds them as floats, thrice there meanwhile, and spreads weights out. For dense weights of 16 bits, three parts
    of some rows."""
    if isinstance(linear.format, Grouped):
        floats = 4 * tokens * inputs
        return 3 * tokens * inputs if layout.activations is not None else max(3 * floats, floats + SPREAD_BYTES)
    return 0 if layout.activations is None else 6 * min(tokens, SLAB_ROWS) * inputs


def _attention_bytes(layout: Layout, attention: Attention, rank: int, tokens: int, context: int, gathered: int) -> int:
    """Gathered keys and values of one layer, once more where each query head gets its own copy, and the mask: as booleans,
    and as numbers, which torch makes of them. Bent scores are all held at once, in float32, while they are made anew.

    Compiled kernels read pages in place: there are only the results, and parts of those where few queries read many keys."""
    at, item = layout.mesh.coords(rank), BITS[layout.compute_dtype] // 8
    queries, kv = layout.heads(attention, at)
    if layout.activations is not None:
        results = 4 * tokens * len(queries) * attention.dim
        return 2 * results + min(PARTS_BYTES, 2 * results * -(-context // SPLIT_TOKENS))
    copies = len(kv) + (0 if layout.even_groups(attention, at) else len(queries))
    reach = context if attention.window is None else min(context, attention.window + tokens + 2 * PAGE_TOKENS)
    scores = 0 if attention.softcap is None and not attention.sinks else 2 * 4 * tokens * len(queries)
    return gathered * 2 * copies * attention.dim * (item + _widened(layout)) + reach * (tokens * (1 + item) + scores)


def _latent_bytes(layout: Layout, attention: MLA, rank: int, tokens: int, context: int, gathered: int) -> int:
    """Gathered latents of one layer and the mask, as above; the chunk's queries in the space of the latents: made, joined
    with their turned part, put into rows, and what they read. For 16-bit numbers torch's CPU kernel packs keys and values
    anew for each head that reads them."""
    item, [width] = BITS[layout.compute_dtype] // 8, attention.kept.dims
    heads = len(layout.heads(attention, layout.mesh.coords(rank))[0])
    packed = 2 * heads if item < 4 else 0
    mask = context * tokens * (1 + item)
    return gathered * width * ((2 + packed) * item + _widened(layout)) + mask + 5 * tokens * heads * width * item


def _widened(layout: Layout) -> int:
    """Bytes that a gathered number takes a second time, as it is kept, while it becomes what activations are."""
    return 0 if layout.kv_dtype == layout.compute_dtype else BITS[layout.kv_dtype] // 8


def _last(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The largest n from low to high for which `holds`, which it does for `low`."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def _refusal(demand: Demand, context: int) -> str:
    """Why it does not fit, and the smallest change that would."""
    layout = demand.layout
    worst = max(range(layout.mesh.size), key=lambda rank: demand.rank_bytes(rank, context, context))
    parts = (
        f"{mib(layout.arena_bytes(worst))} weights + {mib(layout.kv_bytes(worst, demand.pages(context, context)))} cache of "
        f"{context} tokens + {mib(demand.activation_bytes(worst, context, context))} activations + "
        f"{mib(RANK_BYTES[demand.device])} process"
    )
    return (
        f"rank {worst} of {layout.mesh.tp} needs {mib(demand.rank_bytes(worst, context, context))} ({parts}), and "
        f"{'--memory allows' if demand.memory else 'there are'} {mib(demand.budget)}: {_remedy(demand, context)}"
    )


def _remedy(demand: Demand, context: int) -> str:
    """The smallest change that fits: a shorter context, fewer sequences, even shares, more ranks; or that none does."""
    layout, device = demand.layout, demand.device
    least = min(LEAST_CONTEXT, layout.model.context)
    if context > least and demand.fits(least):
        return f"use --max-model-len {_last(demand.fits, least, context)} or less"
    if demand.sequences > 1 and replace(demand, sequences=1).fits(context):
        fewer = _last(lambda n: replace(demand, sequences=n).fits(context), 1, demand.sequences)
        return f"use --max-num-seqs {fewer} or less"
    tp = layout.mesh.tp
    if replace(demand, layout=replace(layout, shares=Shares.even(tp))).fits(context):
        return f"use even shares (leave out --tensor-split) at -tp {tp}"
    most = layout.model.heads if device == "cpu" else min(layout.model.heads, gpus())
    for degree in range(tp + 1, most + 1):
        wider = replace(layout, mesh=Mesh(tp=degree), shares=Shares.even(degree))
        if replace(demand, layout=wider).fits(context):
            return f"use -tp {degree}"
    return f"no degree up to {most} fits; give each rank more memory, or use a smaller model"


def mib(size: int) -> str:
    """Bytes as people read them."""
    if size < 2**20:
        return f"{size / 2**10:.0f} KiB" if size >= 2**10 else f"{size} bytes"
    return f"{size / 2**20:.0f} MiB" if size < 10 * 2**30 else f"{size / 2**30:.1f} GiB"
