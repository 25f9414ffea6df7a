"""A dense model with its linears quantised: which of them, in groups of which size, and where cuts may then fall.

Attention, MLPs, experts and the head are; norms, routers, gates of one output and untied tables are not, nor what latent
attention takes apart (`kv_b`). It says nothing of how numbers become fewer bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import lcm

from shardwise.errors import UserError
from shardwise.spec.axes import Axis
from shardwise.spec.blocks import Block, HeadsNorm, Linear, walk
from shardwise.spec.formats import GROUPS, KINDS, TILE_ROWS, Dense, Grouped
from shardwise.spec.mla import MLA
from shardwise.spec.model import Model
from shardwise.spec.moe import MoE
from shardwise.spec.rewrite import rewrite

DEFAULT_GROUPS = {"int8": 64, "int4": 32}
"""Inputs that share a scale where nobody says how many: what costs int8 3 % of its bytes, and keeps int4 usable."""

INNER = ("mlp", "moe")
"""Families whose grain may grow to a group: inner rows have no heads to keep together."""


def requantised(model: Model, kind: str, group: int) -> Model:
    """`model` with every linear that can be in format `kind`, in groups of `group` inputs or, where heads are smaller, of as
    many as divide a head. `left_dense` names the others. The grain of an MLP grows to the group, at every degree alike.

    UserError for a model whose weights are quantised as they are stored.
    """
    assert kind in KINDS and group in GROUPS, (kind, group)
    for path, linear in _linears(model):
        if linear.format != Dense():
            stored = "mxfp4" if isinstance(linear.format, Dense) else linear.format.name
            raise UserError(
                f"--quantization {kind}: this checkpoint is quantised already ({path} is stored as {stored}); leave it out, "
                "or use the model's unquantised checkpoint"
            )
    blocks: dict[int, Block] = {}
    for run in model.runs:
        if id(run.block) not in blocks:
            blocks[id(run.block)] = _rewritten(run.block, kind, group)
    head = replace(model.head, linear=_changed(model.head.linear, kind, group))
    embed = model.embed
    if head.linear.tied:
        embed = replace(embed, tokens=replace(embed.tokens, format=head.linear.format))
    return replace(model, embed=embed, runs=tuple(replace(r, block=blocks[id(r.block)]) for r in model.runs), head=head)


def quantised_as(model: Model, form: Grouped | None) -> Model:
    """The model in the format that was asked for, or as it is where none was."""
    return requantised(model, form.kind, form.size) if form else model


def quantised(model: Model) -> bool:
    """Whether any linear is in a format of shardwise's own."""
    return any(isinstance(linear.format, Grouped) for _, linear in _linears(model))


def alike(model: Model) -> bool:
    """Whether all that ranks sum goes on to be the same float32 at every degree: each sum over a cut axis is one of quantised
    weights, in float64. Otherwise its last bit may decide how an activation is rounded to 8 bits."""
    return quantised(model) and all(linear.wide for _, linear in _linears(model) if linear.inp.cut)


def left_dense(model: Model) -> tuple[str, ...]:
    """The linears of a quantised model that stayed dense though such ones are quantised, by path: of equal layers the first."""
    kept = {id(linear) for run in model.runs for linear in _kept(run.block)}
    return tuple(path for path, linear in _linears(model) if linear.format == Dense() and id(linear) not in kept)


def _linears(model: Model) -> Iterator[tuple[str, Linear]]:
    """(path, linear) of every linear, in the first layer of each run."""
    blocks = [*((f"{run.name}.{run.start}", run.block) for run in model.runs), ("", model.head)]
    for start, block in blocks:
        for path, node in walk(block, start):
            if isinstance(node, Linear):
                yield f"{path}.{node.name}".removeprefix("."), node


def _kept(block: Block) -> Iterator[Linear]:
    """Linears below `block` that are never quantised: modules read their numbers."""
    for _, node in walk(block):
        if isinstance(node, MLA):
            yield node.kv_b
        elif isinstance(node, MoE) and node.shared_gate:
            yield node.shared_gate


def _rewritten(block: Block, kind: str, group: int) -> Block:
    kept = {id(linear) for linear in _kept(block)}

    def change(_: str, linear: Linear) -> Linear:
        return _regrained(linear, group) if id(linear) in kept else _changed(linear, kind, group)

    changed = rewrite(block, change)
    changed = rewrite(changed, lambda _, norm: replace(norm, wide=True), of=HeadsNorm)
    assert isinstance(changed, Block)
    return changed


def _changed(linear: Linear, kind: str, group: int) -> Linear:
    linear = _regrained(linear, group)
    size = _group(linear.inp, group)
    if size is None or min(linear.out.size, linear.inp.size) < TILE_ROWS:
        return linear
    return replace(linear, format=Grouped(kind, size))


def _regrained(linear: Linear, group: int) -> Linear:
    """Linears of an MLP agree on where their inner axis may be cut, so all of them get the grain, dense ones too."""
    return replace(linear, out=_coarser(linear.out, group), inp=_coarser(linear.inp, group))


def _coarser(axis: Axis, group: int) -> Axis:
    return replace(axis, grain=lcm(axis.grain, group)) if axis.cut in INNER else axis


def _group(inp: Axis, group: int) -> int | None:
    """The largest group up to `group` that no cut of `inp` divides; None where there is none."""
    if inp.cut is None:
        return group
    return next((size for size in sorted(GROUPS, reverse=True) if size <= group and inp.grain % size == 0), None)
