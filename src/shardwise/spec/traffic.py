"""What the cut costs in communication: the collectives of one forward, in order, from the model and the layout alone.

A contraction over a cut axis is the only reason to reduce; a head with a cut vocabulary is the only reason to gather. A
test holds this list against what a real forward calls.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from shardwise.spec.axes import BITS
from shardwise.spec.blocks import Block, HeadsNorm, Linear, Sum, Table
from shardwise.spec.layout import Layout
from shardwise.spec.model import Model
from shardwise.spec.moe import MoE

SITES = {"q": "attn_out", "mlp": "mlp_down", "moe": "moe_out", "expert": "moe_out", "vocab": "embed"}
"""The place in the model where the sum over a cut family is taken: the label of its collective."""

HEADS_NORM = "qk_norm"
"""Where a norm over all heads sums its squares."""

BRANCHES = "branches"
"""Where branches that stand side by side are summed over ranks, all at once."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call to a group of ranks, as planned here and as recorded by `comm`: a rank's logical payload, not wire bytes.

    `shape` is the input of all_reduce, reduce_scatter, broadcast and send, and the output of all_gather (the whole
    gathered tensor), all_to_all and recv. `dtype` is a bare name ("bfloat16"). A barrier has shape () and dtype "".
    """

    op: str
    site: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        return prod(self.shape) * BITS[self.dtype] // 8 if self.dtype else 0


@dataclass(frozen=True, slots=True)
class Rows:
    """What a step makes of logits, in the order in which it does, as numbers of rows; by default nothing.

    `targets`: pieces of (rows, likeliest ids wanted) whose next token is given. `peaks`: rows whose largest logit is asked for
    first. `best`: rows whose token is the largest of all. `candidates`: offers of (rows, largest ids that each rank offers).
    `whole`: pieces of rows whose logits are gathered. `asked`: as `targets`, of tokens drawn, with likeliest and
    named ids together.
    """

    targets: tuple[tuple[int, int], ...] = ()
    peaks: int = 0
    best: int = 0
    candidates: tuple[tuple[int, int], ...] = ()
    whole: tuple[int, ...] = ()
    asked: tuple[tuple[int, int], ...] = ()


def of(model: Model, layout: Layout, tokens: int, rows: Rows) -> tuple[Call, ...]:
    """The collectives of a step: a forward over `tokens` tokens, and what is made of its logits."""
    found = [*_reduces(model.embed, layout, tokens)]
    for run in model.runs:
        found += [*_reduces(run.block, layout, tokens)] * run.count
    if layout.cut(model.head.linear.out):
        found += _choices(model.vocab, len(layout.spans(model.head.linear.out)), rows)
    return tuple(found)


def _choices(vocab: int, parts: int, rows: Rows) -> Iterator[Call]:
    """A few numbers of each part's best, and never the logits themselves unless the best are not enough."""
    yield from _scores(parts, rows.targets)
    if rows.peaks:
        yield Call("all_gather", "draw_peaks", (rows.peaks, parts), "float64")
    if rows.best:
        yield Call("all_gather", "draw_best", (rows.best, 2 * parts), "float64")
    for count, offered in rows.candidates:
        yield Call("all_gather", "draw_candidates", (count, (3 * offered + 1) * parts), "int64")
    for count in rows.whole:
        yield Call("all_gather", "draw_whole", (count, vocab), "float32")
        yield Call("broadcast", "draw_decided", (count,), "int64")
    yield from _scores(parts, rows.asked)


def _scores(parts: int, pieces: Sequence[tuple[int, int]]) -> Iterator[Call]:
    for count, top in pieces:
        yield Call("all_gather", "logprobs", (count, (2 + top) * parts), "int64")
        yield Call("all_reduce", "ranks", (count,), "int64")


def _reduces(block: Block, layout: Layout, tokens: int) -> Iterator[Call]:
    """The sums over ranks of a block, those of its children before its own."""
    for child in block.children():
        yield from _reduces(child, layout, tokens)
    if isinstance(block, Table) and layout.cut(block.rows):
        yield Call("all_reduce", SITES[block.rows.cut or ""], (tokens, block.size), layout.compute_dtype)
    elif isinstance(block, Linear) and layout.cut(block.inp) and not block.partial:
        yield Call("all_reduce", SITES[block.inp.cut or ""], (tokens, block.out.size), _summed_in(block, layout))
    elif isinstance(block, HeadsNorm) and layout.cut(block.q):
        yield Call("all_reduce", HEADS_NORM, (tokens, 2), "float64" if block.wide else "float32")
    elif isinstance(block, Sum) and any(layout.cut(end.inp) for end in block.ends):
        yield Call("all_reduce", BRANCHES, (tokens, block.ends[0].out.size), _summed_in(block, layout))
    elif isinstance(block, MoE) and block.summed(layout.cut):
        yield Call("all_reduce", SITES["expert"], (tokens, block.down.out.size), _summed_in(block, layout))


def _summed_in(block: Linear | Sum | MoE, layout: Layout) -> str:
    """The dtype of a sum over ranks."""
    return "float64" if block.wide else layout.compute_dtype
