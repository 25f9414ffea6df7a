"""Boxes against brute force: a box is the set of its points."""

from __future__ import annotations

from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from shardwise.spec.boxes import atoms, intersect, subtract


def points(box) -> set[tuple[int, ...]]:
    return set(product(*box))


RANGE = st.tuples(st.integers(0, 7), st.integers(0, 7)).map(lambda ends: range(min(ends), max(ends)))


def some(dims: int, least: int = 2, most: int = 2):
    return st.lists(st.tuples(*[RANGE] * dims), min_size=least, max_size=most)


@settings(deadline=None)
@given(st.integers(1, 3).flatmap(some))
def test_intersect(pair):
    a, b = pair
    both = intersect(a, b)
    assert points(both) == points(a) & points(b)
    assert bool(points(both)) == all(both)
    assert all(r.start <= r.stop for r in both)


@settings(deadline=None)
@given(st.integers(1, 3).flatmap(some))
def test_subtract(pair):
    a, b = pair
    parts = subtract(a, b)
    assert all(all(part) for part in parts), "no empty part"
    assert sum(len(points(part)) for part in parts) == len(points(a) - points(b)), "disjoint"
    assert set().union(*map(points, parts)) == points(a) - points(b)
    assert len(parts) <= 2 * len(a)


@settings(deadline=None)
@given(st.integers(1, 3).flatmap(lambda dims: some(dims, 0, 4)), st.integers(1, 3))
def test_atoms(boxes, dims):
    dims = len(boxes[0]) if boxes else dims
    whole = (range(7),) * dims
    parts = atoms(whole, boxes)
    assert sum(len(points(part)) for part in parts) == 7**dims, "disjoint"
    assert set().union(*map(points, parts)) == points(whole)
    for part in parts:
        assert all(part)
        for box in boxes:
            assert points(part) <= points(box) or not points(part) & points(box), "no border runs through an atom"


def test_atoms_are_as_coarse_as_the_borders_allow():
    assert atoms((range(6), range(4)), []) == [(range(6), range(4))]
    assert atoms((range(6),), [(range(2),), (range(2, 6),)]) == [(range(2),), (range(2, 6),)]
    # An empty box has no border, wherever it stands.
    assert atoms((range(6), range(4)), [(range(3, 3), range(1, 2))]) == [(range(6), range(4))]
