"""What a layout means, as plain values to show: each rank's part, what is held twice, what travels a token. No drawing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from shardwise.spec import traffic
from shardwise.spec.axes import BITS, Axis
from shardwise.spec.blocks import (
    MLP,
    Attending,
    Attention,
    Block,
    HeadsNorm,
    Linear,
    Norm,
    Sum,
    Table,
    attentions,
    walk,
    weights,
)
from shardwise.spec.formats import Grouped
from shardwise.spec.layout import Layout, Shares
from shardwise.spec.mesh import Mesh
from shardwise.spec.mla import MLA
from shardwise.spec.model import Model, parameters
from shardwise.spec.moe import MoE, Router


@dataclass(frozen=True, slots=True)
class Part:
    """What one rank holds and computes. `shared` are the KV heads of it that another rank holds too. Of a mixture it has the
    rows `expert_rows` of every one of its `experts`."""

    rank: int
    q: range
    kv: range
    shared: tuple[int, ...]
    mlp: range
    experts: range
    expert_rows: range
    vocab: range
    weight_bytes: int
    kv_token_bytes: int


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is cut: the first attention, MLP and mixture of experts of the model stand for all. An absent one has size 0, as KV
    heads where attention is latent."""

    heads: int
    kv_heads: int
    mlp: int
    experts: int
    expert_rows: int
    vocab: int


@dataclass(frozen=True, slots=True)
class Totals:
    """The whole. `whole_bytes` is the model once, `held_bytes` what the ranks hold together; `imbalance` is heaviest / mean.

    `uncut_bytes` are held again because they are not cut (norms), `shared_bytes` because ranks read the same KV heads.
    `collectives` counts (op, site, shape) of one token through the model, `collective_bytes` is their sum.
    """

    parameters: int
    whole_bytes: int
    held_bytes: int
    uncut_bytes: int
    shared_bytes: int
    imbalance: float
    kv_token_bytes: int
    collectives: tuple[tuple[str, str, tuple[int, ...], int], ...]
    collective_bytes: int


@dataclass(frozen=True, slots=True)
class Branch:
    """One line of the tree: a block that has something to show."""

    depth: int
    name: str
    shape: str
    how: str
    collective: str = ""


def sizes(model: Model) -> Sizes:
    attention, mlp, moe = _first(model, Attending), _first(model, MLP), _first(model, MoE)
    return Sizes(
        attention.heads if attention else 0,
        attention.kv_heads if isinstance(attention, Attention) else 0,
        mlp.up.out.size if mlp else 0,
        moe.router.experts if moe else 0,
        moe.up.out.size if moe else 0,
        model.vocab,
    )


def parts(layout: Layout) -> tuple[Part, ...]:
    """Every rank's part, in order."""
    model = layout.model
    attention, mlp, moe = _first(model, Attending), _first(model, MLP), _first(model, MoE)
    ranks = range(layout.mesh.size)
    at = [layout.mesh.coords(rank) for rank in ranks]
    heads = [layout.heads(attention, at[rank]) if attention else (range(0), range(0)) for rank in ranks]
    if isinstance(attention, MLA):
        heads = [(q, range(0)) for q, _ in heads]
    holders = Counter(head for _, kv in heads for head in kv)
    return tuple(
        Part(
            rank,
            heads[rank][0],
            heads[rank][1],
            tuple(head for head in heads[rank][1] if holders[head] > 1),
            layout.span(mlp.up.out, at[rank]) if mlp else range(0),
            layout.span(moe.up.experts, at[rank]) if moe else range(0),
            layout.span(moe.up.out, at[rank]) if moe else range(0),
            layout.span(model.head.linear.out, at[rank]),
            layout.weight_bytes(rank),
            layout.kv_bytes_per_token(rank),
        )
        for rank in ranks
    )


def totals(layout: Layout, ranks: tuple[Part, ...]) -> Totals:
    model, tp = layout.model, layout.mesh.tp
    alone = replace(layout, mesh=Mesh(), shares=Shares.even(1))
    held = [part.weight_bytes for part in ranks]
    uncut = (tp - 1) * sum(count * _uncut_bytes(layout, block) for block, count in _pieces(model))
    moved = traffic.of(model, layout, 1, traffic.Rows(best=1))
    kinds = Counter((c.op, c.site, c.shape) for c in moved)
    return Totals(
        parameters(model),
        alone.weight_bytes(0),
        sum(held),
        uncut,
        sum(held) - alone.weight_bytes(0) - uncut,
        max(held) * len(held) / sum(held),
        alone.kv_bytes_per_token(0),
        tuple((op, site, shape, count) for (op, site, shape), count in kinds.items()),
        sum(c.bytes for c in moved),
    )


def tree(layout: Layout) -> Iterator[Branch]:
    """The model's blocks from embedding to head; equal layers once, with the indices that they stand for."""
    model = layout.model
    yield from _branches(layout, model.embed, 0)
    for (name, block), layers in _kinds(model).items():
        count = f"{len(layers)} equal layers" if len(layers) > 1 else "1 layer"
        yield Branch(0, f"{name}.{_listed(layers)}", count, "")
        yield from _branches(layout, block, 1)
    yield from _branches(layout, model.head, 0)


# --- walking --------------------------------------------------------------------------------------------------------------


def _first(model: Model, kind: type) -> Any:
    """The first block of a kind in any layer, or None."""
    nodes = (node for run in model.runs for _, node in walk(run.block))
    return next((node for node in nodes if isinstance(node, kind)), None)


def uniform(model: Model) -> bool:
    """Whether all attentions have the same heads and all MLPs the same rows, as `parts` shows them."""
    shapes = {(a.heads, a.kv_heads) for run in model.runs for a in attentions(run.block)}
    rows = {node.up.out.size for run in model.runs for _, node in walk(run.block) if isinstance(node, MLP)}
    return len(shapes) < 2 and len(rows) < 2


def precision(model: Model, dtype: str) -> str:
    """How weights are stored: the formats of linears that have one, and the dtype of all else."""
    blocks = [*(run.block for run in model.runs), model.head]
    nodes = (node for block in blocks for _, node in walk(block) if isinstance(node, Linear))
    formats = dict.fromkeys(node.format for node in nodes)
    titles = dict.fromkeys(form.title if isinstance(form, Grouped) else form.name for form in formats)
    stored = [title for title in titles if title != "dense"]
    return " and ".join([*stored, dtype])


def _pieces(model: Model) -> Iterator[tuple[Block, int]]:
    """Every distinct block with its count; a tied head's table counts once, in the embedding."""
    yield model.embed, 1
    yield from ((run.block, run.count) for run in model.runs)
    yield model.head, 1


def _uncut_bytes(layout: Layout, block: Block) -> int:
    """Bytes of the weights that every rank holds whole."""
    found = (w for w in weights(block) if not any(layout.cut(axis) for axis in w.axes))
    whole = ((w, w.held([range(axis.size) for axis in w.axes])) for w in found)
    return sum(prod(shape) * BITS[w.dtype or layout.dtype] // 8 for w, shape in whole)


def _kinds(model: Model) -> dict[tuple[str, Block], list[int]]:
    """Layer indices of each distinct block, in order of the first."""
    found: dict[tuple[str, Block], list[int]] = {}
    for run in model.runs:
        found.setdefault((run.name, run.block), []).extend(range(run.start, run.start + run.count))
    return found


def _listed(numbers: list[int]) -> str:
    """0,1,2,5 as 0-2,5; long lists are cut short."""
    spans: list[list[int]] = []
    for n in numbers:
        if spans and n == spans[-1][1] + 1:
            spans[-1][1] = n
        else:
            spans.append([n, n])
    shown = [f"{a}" if a == b else f"{a}-{b}" for a, b in spans]
    return ",".join(shown if len(shown) < 7 else [*shown[:4], "...", shown[-1]])


def _branches(layout: Layout, block: Block, depth: int) -> Iterator[Branch]:
    shown = _branch(layout, block, depth)
    if shown is not None:
        yield shown
        depth += 1
    for child in block.children():
        yield from _branches(layout, child, depth)


def _branch(layout: Layout, block: Block, depth: int) -> Branch | None:
    """The line of one block; None for those that only hold others together."""
    if isinstance(block, Linear):
        shape = f"{block.inp.size} -> {block.out.size}" + (" + bias" if block.bias else "") + (", tied" if block.tied else "")
        whole = block.experts and layout.expert_parallel
        how = "whole experts" if whole else _how(block.out, block.inp)
        how += f", {block.format.name}" if block.format.name != "dense" else ""
        sums = layout.cut(block.inp) and not block.partial
        reduced = "all-reduce" if sums else "all-gather" if block is layout.model.head.linear else ""
        return Branch(depth, block.name, shape, how, reduced if layout.mesh.tp > 1 else "")
    if isinstance(block, Table):
        cut = layout.cut(block.rows)
        how = f"rows, by {FAMILIES[block.rows.cut or '']}" if block.rows.cut else "whole on every rank"
        return Branch(depth, block.name, f"{block.rows.size} x {block.size}", how, "all-reduce" if cut else "")
    if isinstance(block, Norm):
        return Branch(depth, block.name, f"{block.size}", "whole on every rank")
    if isinstance(block, Sum):
        return Branch(depth, "side by side", "", "", "all-reduce" if any(layout.cut(end.inp) for end in block.ends) else "")
    if isinstance(block, HeadsNorm):
        reduced = "all-reduce" if layout.cut(block.q) else ""
        return Branch(depth, "q_norm, k_norm", f"{block.q.size}, {block.k.size}", "by heads", reduced)
    if isinstance(block, Attention):
        back = "back to a multiple of" if block.chunked else "the last"
        window = f"sees {back} {block.window} tokens" if block.window else ""
        return Branch(depth, block.name, f"{block.heads} heads, {block.kv_heads} KV, of {block.dim}", window)
    if isinstance(block, MLA):
        widths = f"{block.nope_dim} + {block.rope.dim}"
        return Branch(depth, block.name, f"{block.heads} heads of {widths}, one latent of {block.kv_norm.size}", "")
    if isinstance(block, MoE):
        how = "whole experts" if layout.expert_parallel else "a part of every expert" if layout.mesh.tp > 1 else ""
        count, top = block.router.experts, block.router.top
        reduced = "all-reduce" if block.summed(layout.cut) else ""
        return Branch(depth, block.name or "mixture", f"{count} experts, {top} a token", how, reduced)
    if isinstance(block, Router):
        shape = f"{block.hidden} -> {block.experts}" + (" + bias" if block.bias or block.correction else "")
        return Branch(depth, block.name, shape, "whole on every rank")
    if isinstance(block, MLP):
        return Branch(depth, block.name, f"{block.activation}{', gated' if block.gate else ''}", "")
    return None


FAMILIES = {"q": "query heads", "kv": "KV heads", "mlp": "MLP rows", "vocab": "vocabulary", "moe": "expert rows"}


def _how(out: Axis, inp: Axis) -> str:
    if out.cut:
        return f"column, by {FAMILIES[out.cut]}"
    return f"row, by {FAMILIES[inp.cut]}" if inp.cut else "whole on every rank"
