"""What mixtures of experts share: the stacks of their linears, in the two ways in which checkpoints hold them."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from shardwise.spec.axes import Axis, Fused, unit_grain
from shardwise.spec.blocks import MLP, Linear
from shardwise.spec.models.decoder import Shape, gated_mlp
from shardwise.spec.models.fields import Fields
from shardwise.spec.moe import Groups

Stacks = tuple[Linear, Linear, Linear]
"""gate, up and down of all experts."""


def expert_axis(count: int) -> Axis:
    """The experts of a layer."""
    return Axis(count, "expert")


def moe_axis(width: int) -> Axis:
    """The inner elements of every expert."""
    return Axis(width, "moe", unit_grain(width))


def stored_apart(experts: int, hidden: int, width: int, parts: tuple[str, str, str], pair: str, down: str) -> Stacks:
    """A tensor for each expert and linear, as the hub's checkpoints have them; `parts` are gate, up and down, with a `*` where
    the expert's number stands. Or all in two tensors `pair` [experts, 2 · width, hidden] and `down`, as transformers 5 holds
    them in memory, and writes them where it is told not to keep to the original names."""
    count, inner, outer = expert_axis(experts), moe_axis(width), Axis(hidden)
    gate, up, last = parts
    return (
        Linear(gate, inner, outer, fused=Fused(pair, 0, width, width), experts=count),
        Linear(up, inner, outer, fused=Fused(pair, width, width, width), experts=count),
        Linear(last, outer, inner, fused=Fused(down, 0, hidden, hidden), partial=True, experts=count),
    )


def stored_together(
    experts: int,
    hidden: int,
    width: int,
    pair: str,
    down: str,
    *,
    bias: bool = False,
    transposed: bool = False,
    in_turn: bool = False,
) -> Stacks:
    """All experts in two tensors, `pair` [experts, 2 · width, hidden] and `down` [experts, hidden, width]. `transposed`: their
    last two axes are swapped. Gate rows come before up rows, or a gate row and an up row `in_turn`."""
    count, inner, outer = expert_axis(experts), moe_axis(width), Axis(hidden)
    first, second = (Fused(pair, i, 1, 2) if in_turn else Fused(pair, i * width, width, width) for i in (0, 1))
    whole = Fused(down, 0, hidden, hidden)
    return (
        Linear("experts.gate_proj", inner, outer, bias, fused=first, transposed=transposed, experts=count),
        Linear("experts.up_proj", inner, outer, bias, fused=second, transposed=transposed, experts=count),
        Linear("experts.down_proj", outer, inner, bias, fused=whole, transposed=transposed, partial=True, experts=count),
    )


def shared_expert(fields: Fields, shape: Shape, name: str, width: int) -> MLP:
    """An MLP for every token, whose sum over ranks is taken with the experts'."""
    mlp = gated_mlp(fields, shape, bias=False, inner=width, name=name)
    return replace(mlp, down=replace(mlp.down, partial=True))


def experts_of(fields: Fields, key: str, default: int) -> int:
    """How many experts a layer has: under the family's own `key`, or under transformers' common one."""
    count = fields.integer(key, fields.integer("num_local_experts", default, most=2**16), most=2**16)
    if fields.integer("num_local_experts", count) != count:
        raise fields.wrong("num_local_experts", f"but {key} is {count}; give one of them, or both alike")
    return count


def top_of(fields: Fields, experts: int, default: int) -> int:
    """How many experts a token goes to."""
    top = fields.integer("num_experts_per_tok", default)
    if top > experts:
        raise fields.wrong("num_experts_per_tok", f"there are {experts} experts; up to that many work")
    return top


def groups_of(fields: Fields, experts: int, by: Literal["max", "top2"], *, count: int = 1, top: int = 1) -> Groups | None:
    """DeepSeek's `n_group` and `topk_group`, `count` and `top` where they are absent; None where every group may be chosen.

    Raises ConfigError unless groups are equal, have two experts where two are summed, and those that may be chosen hold as
    many as a token visits.
    """
    count = fields.integer("n_group", count, most=experts)
    top = fields.integer("topk_group", top, most=count)
    size = experts // count
    if experts % count or (by == "top2" and size < 2):
        raise fields.wrong("n_group", f"{experts} experts must fall into equal groups{' of two or more' * (by == 'top2')}")
    if top * size < fields.integer("num_experts_per_tok", 1):
        raise fields.wrong("topk_group", f"groups of {size} experts hold too few for num_experts_per_tok")
    return None if top == count else Groups(count, top, by)
