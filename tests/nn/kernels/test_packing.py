"""Weights of 8 and 4 bits: how they are rounded, how they lie, and that nothing is lost on the way."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shardwise.nn.kernels import packing
from shardwise.nn.kernels.packing import Packed

kinds = st.sampled_from(["int8", "int4"])
sizes = st.sampled_from([16, 32, 64, 128])


@settings(deadline=None, max_examples=60)
@given(kind=kinds, group=sizes, rows=st.integers(1, 70), columns=st.integers(1, 300), seed=st.integers(0, 2**32))
def test_unpacked_is_what_was_packed(kind: str, group: int, rows: int, columns: int, seed: int) -> None:
    make = torch.Generator().manual_seed(seed)
    low, high = (-127, 128) if kind == "int8" else (-8, 8)
    q = torch.randint(low, high, (rows, columns), generator=make).to(torch.int8)
    scale = torch.randn(rows, -(-columns // group), generator=make).half()
    weight, scales = packing.pack(q, scale, kind, group)
    assert (weight.shape, scales.shape) == packing.packed_shapes(kind, rows, columns, group)
    packed = Packed(kind, weight, scales, rows, columns, group)
    found, found_scale = packing.unpack(packed)
    assert torch.equal(found, q) and torch.equal(found_scale, scale)
    wide = torch.tensor([[float(q[r, c]) * float(scale[r, c // group]) for c in range(columns)] for r in range(min(rows, 2))])
    assert torch.equal(packing.dequantise(packed)[:2], wide)
    ids = torch.randint(0, rows, (9,), generator=make)
    assert torch.equal(packing.rows_of(packed, ids), packing.dequantise(packed)[ids])


@settings(deadline=None, max_examples=60)
@given(
    kind=kinds,
    group=sizes,
    parts=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    columns=st.integers(1, 200),
    order=st.randoms(use_true_random=False),
)
def test_parts_in_any_order_make_the_whole(kind: str, group: int, parts: list[int], columns: int, order: object) -> None:
    """Rows arrive from several sources: each part writes its own, and the last row the rest of its tile."""
    values = torch.randn(sum(parts), columns, generator=torch.Generator().manual_seed(columns)).bfloat16()
    wanted = Packed(kind, *packing.pack(*packing.quantise(values, kind, group), kind, group), sum(parts), columns, group)
    found = packing.empty(kind, sum(parts), columns, group)
    found.weight.fill_(0xEE), found.scale.fill_(torch.nan)
    starts = [sum(parts[:i]) for i in range(len(parts))]
    places = list(zip(starts, parts, strict=True))
    order.shuffle(places)  # type: ignore[attr-defined]
    for start, count in places:
        packing.pack_into(values[start : start + count], found, start)
    assert torch.equal(found.weight, wanted.weight) and torch.equal(found.scale, wanted.scale)


@pytest.mark.parametrize(("kind", "bound"), [("int8", 0.007), ("int4", 0.09)])
def test_how_far_rounding_goes(kind: str, bound: float) -> None:
    values = torch.randn(64, 1024, generator=torch.Generator().manual_seed(1)) * 0.02
    packed = packing.empty(kind, 64, 1024, 32)
    packing.pack_into(values, packed)
    assert (packing.dequantise(packed) - values).norm() / values.norm() < bound


def test_a_group_that_is_not_finite_says_so() -> None:
    values = torch.ones(4, 64)
    values[1, 3], values[2, 40], values[3] = torch.nan, torch.inf, 0.0
    packed = packing.empty("int4", 4, 64, 32)
    packing.pack_into(values, packed)
    bad = packing.dequantise(packed).isfinite().logical_not()
    assert bad[1, :32].all() and bad[2, 32:].all() and bad.sum() == 64
    assert torch.equal(packing.dequantise(packed)[3], torch.zeros(64))
