"""Axes: how units are dealt out, and where logical ranges stand in packed, grouped and fused tensors."""

from __future__ import annotations

from itertools import chain, pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shardwise.spec.axes import BITS, Axis, Fused, Source, Weight, split, unit_grain

WHOLE = st.lists(st.integers(1, 10**6), min_size=1, max_size=16)
REAL = st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=16)
UNITS = st.integers(0, 3000)


@settings(deadline=None)
@given(UNITS, WHOLE | REAL | st.lists(st.floats(5e-324, 1.7e308), min_size=1, max_size=16))
@example(1000, [1e308, 1e308])
@example(7, [5e-324, 1.7e308])
@example(5, [1.7e308, 5e-324])
def test_split_deals_every_unit_once_and_in_order(units, shares):
    parts = split(units, shares)
    assert len(parts) == len(shares)
    assert parts[0].start == 0
    assert parts[-1].stop == units
    assert all(a.stop == b.start for a, b in pairwise(parts))
    assert all(part.start <= part.stop and part.step == 1 for part in parts)


@settings(deadline=None)
@given(UNITS, WHOLE)
def test_split_follows_the_shares(units, shares):
    total, run = sum(shares), 0
    for part, share in zip(split(units, shares), shares, strict=True):
        run += share
        assert abs(len(part) * total - units * share) <= total  # within one unit of the exact share
        assert -total < 2 * (part.stop * total - units * run) <= total  # every end is the nearest one, half rounds up


@settings(deadline=None)
@given(UNITS, WHOLE, st.integers(1, 1000), st.integers(-60, 60))
def test_only_proportions_count(units, shares, factor, power):
    assert split(units, [share * factor for share in shares]) == split(units, shares)
    assert split(units, [share * 2.0**power for share in shares]) == split(units, shares)


@settings(deadline=None)
@given(UNITS, st.integers(1, 16), st.floats(1e-300, 1e300))
@example(5, 10, 0.1)
@example(9, 6, 0.1)
def test_equal_shares_of_any_size_are_even(units, degree, share):
    parts = split(units, [share] * degree)
    assert parts == split(units, [1.0] * degree)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_split_by_example():
    assert split(10, (1, 1, 1)) == (range(3), range(3, 7), range(7, 10))
    assert split(2, (1, 1, 1, 1)) == (range(1), range(1, 1), range(1, 2), range(2, 2))
    assert split(8, (1, 3)) == (range(2), range(2, 8))
    assert split(0, (1, 2)) == (range(0), range(0))
    # Half a unit rounds up, wherever it falls.
    assert [part.stop for part in split(5, (1, 1))] == [3, 5]
    assert [part.stop for part in split(7, (1, 1))] == [4, 7]


@pytest.mark.parametrize("share", [float("nan"), float("inf")])
def test_split_takes_no_share_that_is_not_a_number(share):
    with pytest.raises((ValueError, OverflowError)):
        split(4, (1.0, share))


@settings(deadline=None)
@given(st.integers(0, 500), st.integers(1, 70), st.data())
def test_units_cover_an_axis(size, grain, data):
    axis = Axis(size, "mlp", grain)
    assert (axis.units - 1) * grain < size <= axis.units * grain or axis.units == size == 0
    assert axis.elements(range(axis.units)) == range(size)
    marks = sorted(data.draw(st.lists(st.integers(0, axis.units), max_size=6)))
    parts = [axis.elements(range(a, b)) for a, b in pairwise([0, *marks, axis.units])]
    assert list(chain(*parts)) == list(range(size))
    assert all(part.start % grain == 0 for part in parts if part)


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 40), st.data())
def test_stored_ranges_round_outward(size, per, data):
    weight = Weight("w", (Axis(size), Axis(3)), per=(per, 1))
    start = data.draw(st.integers(0, size))
    stop = data.draw(st.integers(start, size))
    rows, columns = weight.stored((range(start, stop), range(3)))
    assert list(rows) == sorted({i // per for i in range(start, stop)})
    assert columns == range(3)
    assert weight.shape == (len({i // per for i in range(size)}), 3)
    assert weight.elements == size * 3


def test_stored_of_nothing_stands_where_its_neighbours_meet():
    weight = Weight("w", (Axis(64),), per=(8,))
    assert weight.stored((range(16, 16),)) == (range(2, 2),)
    assert weight.stored((range(64, 64),)) == (range(8, 8),)


def test_stored_wants_one_range_for_each_axis():
    with pytest.raises(ValueError):
        Weight("w", (Axis(4), Axis(4))).stored((range(4),))


@settings(deadline=None)
@given(st.integers(0, 50), st.integers(1, 9), st.integers(0, 20), st.integers(1, 6), st.data())
def test_pieces_of_a_fused_tensor(start, block, gap, blocks, data):
    fused = Fused("qkv", start, block, block + gap)
    first = data.draw(st.integers(0, block * blocks))
    last = data.draw(st.integers(first, block * blocks))
    pieces = list(fused.pieces(range(first, last)))
    # The definition: logical row i is row i % block of block i // block.
    assert list(chain(*pieces)) == [start + i // block * (block + gap) + i % block for i in range(first, last)]
    assert all(pieces)
    if last > first:
        # One a block, or one in all where a block is a row: reads are as long as they can be.
        assert len(pieces) == (1 if block == 1 else (last - 1) // block - first // block + 1)


def test_pieces_of_real_tensors():
    # Phi-3's qkv_proj: q, k and v one after the other. GPT-NeoX: per head q, k and v.
    assert list(Fused("qkv", 3072, 1024, 1024).pieces(range(256, 512))) == [range(3328, 3584)]
    assert list(Fused("qkv", 64, 64, 192).pieces(range(64, 192))) == [range(256, 320), range(448, 512)]
    assert list(Fused("qkv", 0, 4, 4).pieces(range(2, 2))) == []


def test_prefixed_moves_name_and_source():
    weight = Weight("q.weight", (Axis(4),), source=Source("qkv.weight", fused=Fused("qkv", 0, 4, 4)))
    moved = weight.prefixed("layers.3")
    assert (moved.name, moved.source and moved.source.tensor) == ("layers.3.q.weight", "layers.3.qkv.weight")
    assert moved.source and moved.source.fused == Fused("qkv", 0, 4, 4)
    assert weight.prefixed("") is weight
    assert Weight("w", ()).prefixed("a").source is None


@settings(deadline=None)
@given(st.integers(1, 10**6), st.integers(1, 512), st.sampled_from([1, 2, 8, 32]))
@example(256 * 32, 256, 32)
@example(256 * 32 - 32, 256, 32)
def test_unit_grain_is_the_largest_that_leaves_enough_units(size, least, most):
    grain = unit_grain(size, least, most)

    def fits(g: int) -> bool:
        return size % g == 0 and size // g >= least

    powers = [g for g in (1, 2, 4, 8, 16, 32) if g <= most]
    assert grain == max([1, *(g for g in powers if fits(g))])


def test_bits_name_torch_dtypes():
    assert BITS["bfloat16"] == 16 and BITS["float8_e4m3fn"] == 8 and BITS["int32"] == 32
    assert "auto" not in BITS
