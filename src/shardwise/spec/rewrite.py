"""A tree of blocks made out of another one, linear by linear: for formats, and for sums that are taken once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

from shardwise.spec.blocks import Block, Linear, Sum


def joined(*branches: Block) -> Sum:
    """The sum of branches, reduced once for all of them: whatever contracts a cut axis leaves that to the sum."""

    def change(_: str, linear: Linear) -> Linear:
        return replace(linear, partial=linear.inp.cut is not None)

    return Sum(tuple(rewrite(branch, change) for branch in branches))


def rewrite(block: Any, change: Callable[[str, Any], Any], prefix: str = "", of: type[Any] = Linear) -> Any:
    """The same tree with every linear, or node of another type, replaced by change(path, node): how formats are put on a
    model."""
    if isinstance(block, of):
        return change(".".join(p for p in (prefix, block.name) if p), block)
    below = ".".join(p for p in (prefix, getattr(block, "name", "")) if p)
    changed = {}
    for f in fields(block):
        value = getattr(block, f.name)
        if isinstance(value, tuple) and value and is_dataclass(value[0]):
            changed[f.name] = tuple(rewrite(v, change, below, of) for v in value)
        elif isinstance(value, Block):
            changed[f.name] = rewrite(value, change, below, of)
    return replace(block, **changed) if changed else block
