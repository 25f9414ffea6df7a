"""Boxes: products of ranges, one for each axis of a tensor. Intersection, difference and common refinement."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, product

Box = tuple[range, ...]


def intersect(a: Box, b: Box) -> Box:
    """The elements in both; some range of it is empty where there are none."""
    return tuple(range(max(x.start, y.start), max(x.start, y.start, min(x.stop, y.stop))) for x, y in zip(a, b, strict=True))


def subtract(a: Box, b: Box) -> list[Box]:
    """Disjoint boxes of the elements in `a` and not in `b`."""
    common = intersect(a, b)
    if not all(common):
        return [a] if all(a) else []
    parts: list[Box] = []
    for i, (whole, inner) in enumerate(zip(a, common, strict=True)):
        for side in (range(whole.start, inner.start), range(inner.stop, whole.stop)):
            if side:
                parts.append((*common[:i], side, *a[i + 1 :]))
    return parts


def atoms(whole: Box, boxes: Sequence[Box]) -> list[Box]:
    """The coarsest grid that cuts `whole` along every border of `boxes`."""
    grid = []
    for i, axis in enumerate(whole):
        marks = {axis.start, axis.stop} | {m for box in boxes if all(box) for m in (box[i].start, box[i].stop)}
        grid.append([range(a, b) for a, b in pairwise(sorted(marks))])
    return list(product(*grid))
