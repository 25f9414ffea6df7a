"""Weights of 8 and 4 bits: how they are rounded, how they lie, and that nothing is lost on the way."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shardwise.nn.kernels import packing
from shardwise.nn.kernels.packing import Packed
from shardwise.nn.kernels.pool import Pool
from tests.nn.kernels.paths import each_path, needs_compiled

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


parts_of_rows = st.lists(st.integers(1, 40), min_size=1, max_size=4)


@settings(deadline=None, max_examples=30)
@given(kind=kinds, group=sizes, parts=parts_of_rows, columns=st.integers(1, 200), order=st.randoms(use_true_random=False))
def test_parts_in_any_order_make_the_whole(kind: str, group: int, parts: list[int], columns: int, order: Random) -> None:
    """Rows arrive from several sources: each part writes its own, and the last row the rest of its tile."""
    values = awkward(sum(parts), columns)
    found = packed_in_parts(packing.pack_in_torch, values, kind, group, parts, order)
    weight, scale = packing.pack(*packing.quantise(values, kind, group), kind, group)
    assert torch.equal(found.weight, weight) and torch.equal(bits(found.scale), bits(scale))


@needs_compiled
@each_path
@settings(deadline=None, max_examples=30)
@given(kind=kinds, group=sizes, parts=parts_of_rows, columns=st.integers(1, 200), order=st.randoms(use_true_random=False))
def test_compiled_packing_is_the_same(kind: str, group: int, parts: list[int], columns: int, order: Random) -> None:
    """Bit for bit, NaNs and infinities, zeros and tiny numbers among them, of each type, contiguous or not."""
    dtype = order.choice([torch.float32, torch.bfloat16, torch.float16])
    values = awkward(sum(parts), columns + 3).to(dtype)[:, 2:-1]
    pool = Pool(order.choice([1, 3]))
    found = packed_in_parts(partial(packing.pack_into, pool=pool), values, kind, group, parts, order)
    weight, scale = packing.pack(*packing.quantise(values, kind, group), kind, group)
    assert torch.equal(found.weight, weight) and torch.equal(bits(found.scale), bits(scale))


def awkward(rows: int, columns: int) -> torch.Tensor:
    """Rows of all sizes that numbers have, with some values that are none."""
    make = torch.Generator().manual_seed(rows * 1000 + columns)
    values = torch.randn(rows, columns, generator=make) * 10.0 ** torch.randint(-9, 6, (rows, 1), generator=make)
    values[rows // 2, columns // 2] = [torch.nan, torch.inf, -torch.inf, 0.0][rows % 4]
    values[rows // 3] = 0.0
    return values


def packed_in_parts(
    write: Callable[[torch.Tensor, Packed, int], None],
    values: torch.Tensor,
    kind: str,
    group: int,
    parts: list[int],
    order: Random,
) -> Packed:
    found = packing.empty(kind, sum(parts), values.shape[1], group)
    found.weight.fill_(0xEE), found.scale.fill_(7.0)
    places = [(sum(parts[:i]), part) for i, part in enumerate(parts)]
    order.shuffle(places)
    for start, count in places:
        write(values[start : start + count], found, start)
    return found


def bits(scale: torch.Tensor) -> torch.Tensor:
    return scale.view(torch.int16)


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
