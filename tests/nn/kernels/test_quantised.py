"""Products with weights of 8 and 4 bits, compiled, against torch: every path that this CPU has, any shape, any number."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shardwise.nn.kernels import packing
from shardwise.nn.kernels.packing import Packed
from shardwise.nn.kernels.pool import Pool
from shardwise.nn.kernels.quantised import NativeQuantised, Sums, TorchQuantised
from tests.nn.kernels.paths import each_path, needs_compiled, on, paths

kinds = st.sampled_from(["int8", "int4"])
sizes = st.sampled_from([16, 32, 64, 128])


@needs_compiled
@each_path
@settings(deadline=None, max_examples=40)
@given(
    kind=kinds,
    group=sizes,
    shape=st.tuples(st.integers(0, 50), st.integers(1, 90), st.integers(1, 700)),
    threads=st.integers(1, 3),
    biased=st.booleans(),
    sums=st.sampled_from(Sums),
)
def test_a_product(kind: str, group: int, shape: tuple[int, int, int], threads: int, biased: bool, sums: Sums) -> None:
    m, rows, columns = shape
    packed, make = some(kind, rows, columns, group), torch.Generator().manual_seed(m)
    x = torch.randn(m, columns, generator=make) * 10.0 ** torch.randint(-6, 6, (m, 1), generator=make)
    bias = torch.randn(rows, generator=make) if biased else None
    found = NativeQuantised(Pool(threads)).linear(x, packed, bias, sums)
    wanted = TorchQuantised().linear(x, packed, bias, sums)
    size = (x.abs() @ packing.dequantise(packed).abs().T).amax(1, keepdim=True) if m else 1.0
    rtol, atol = (1e-14, 1e-15) if sums is Sums.WIDE else (1e-6, 2e-7)
    torch.testing.assert_close(found / size, wanted / size, rtol=rtol, atol=atol)


@needs_compiled
@each_path
@settings(deadline=None, max_examples=30)
@given(kind=kinds, group=sizes, rows=st.integers(1, 90), columns=st.integers(1, 300), seed=st.integers(0, 2**32))
def test_rows_of_a_table(kind: str, group: int, rows: int, columns: int, seed: int) -> None:
    packed = some(kind, rows, columns, group)
    ids = torch.randint(0, rows, (seed % 7,), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(NativeQuantised(Pool(1)).rows(packed, ids), TorchQuantised().rows(packed, ids))


@needs_compiled
@pytest.mark.parametrize(("kind", "group"), [("int8", 64), ("int4", 32), ("int8", 16), ("int4", 128)])
@each_path
def test_an_element_does_not_know_the_others(kind: str, group: int) -> None:
    """The same bits alone, in a batch of any size, by one thread or by three, and where a rank has some of the rows only."""
    x, rows, columns = torch.randn(600, 1100), 200, 1100
    weight, x[7, 5], x[50, 1099] = torch.randn(rows, columns), torch.nan, -torch.inf
    whole = packed_of(weight, kind, group)
    wanted = NativeQuantised(Pool(3)).linear(x, whole, None)
    one = NativeQuantised(Pool(1))
    for first, last in ((0, 1), (3, 5), (6, 10), (20, 33), (34, 61), (61, 600)):
        assert same(one.linear(x[first:last], whole, None), wanted[first:last])
    part = packed_of(weight[23:150], kind, group)
    assert same(one.linear(x[:40], part, None), wanted[:40, 23:150])
    assert wanted.isnan().any(1).nonzero().flatten().tolist() == [7, 50] and wanted[7].isnan().all()


@needs_compiled
@pytest.mark.parametrize("rows", [1008, 1001])
@pytest.mark.parametrize("sums", [Sums.NARROW, Sums.WIDE])
@each_path
def test_results_of_many_megabytes(sums: Sums, rows: int) -> None:
    """They are stored past the caches, where lines of memory are whole: the same bits as those that are few."""
    x, packed, bias = torch.randn(600, 100), some("int8", rows, 100, 64), torch.randn(rows)
    kernel = NativeQuantised(Pool(2))
    wanted = torch.cat([kernel.linear(part, packed, bias, sums) for part in x.split(40)])
    assert torch.equal(kernel.linear(x, packed, bias, sums), wanted)


@needs_compiled
@pytest.mark.parametrize(("kind", "group"), [("int8", 64), ("int4", 32), ("int8", 16), ("int4", 128)])
def test_sums_of_doubles_are_the_same_on_every_path(kind: str, group: int) -> None:
    """And for an element alone, and rounded once to floats."""
    x, packed, bias = torch.randn(75, 1100), some(kind, 70, 1100, group), torch.randn(70)
    kernel = NativeQuantised(Pool(2))
    wanted = kernel.linear(x, packed, None, Sums.WIDE)
    for path in paths():
        with on(path):
            assert torch.equal(kernel.linear(x, packed, None, Sums.WIDE), wanted)
            assert torch.equal(kernel.linear(x, packed, bias, Sums.WIDE), wanted + bias)
            assert torch.equal(kernel.linear(x, packed, None, Sums.ROUNDED), wanted.float())
            assert torch.equal(kernel.linear(x, packed, bias, Sums.ROUNDED), wanted.float() + bias)
            for first, last in ((0, 1), (3, 5), (6, 9), (10, 17), (20, 53)):
                assert torch.equal(kernel.linear(x[first:last], packed, None, Sums.WIDE), wanted[first:last])


@needs_compiled
@pytest.mark.parametrize(("kind", "group"), [("int8", 64), ("int4", 32)])
def test_parts_in_doubles_make_the_same_floats_as_the_whole(kind: str, group: int) -> None:
    x, weight = torch.randn(20, 1920), torch.randn(200, 1920)
    kernel = NativeQuantised(Pool(1))
    whole = kernel.linear(x, packed_of(weight, kind, group), None, Sums.ROUNDED)
    for cuts in ((960, 960), (640, 640, 640), (64, 1024, 832)):
        parts = zip(x.split(cuts, 1), weight.split(cuts, 1), strict=True)
        found = sum(kernel.linear(part, packed_of(columns, kind, group), None, Sums.WIDE) for part, columns in parts)
        assert isinstance(found, torch.Tensor) and torch.equal(found.float(), whole)


@needs_compiled
def test_a_bias_is_added_once() -> None:
    packed, x, bias = some("int8", 40, 2000, 64), torch.randn(30, 2000), torch.randn(40)
    kernel = NativeQuantised(Pool(2))
    assert torch.equal(kernel.linear(x, packed, bias), kernel.linear(x, packed, None) + bias)


@pytest.mark.parametrize(("kind", "group", "bound"), [("int8", 64, 0.013), ("int4", 32, 0.1), ("int4", 128, 0.12)])
def test_how_far_from_the_true_product(kind: str, group: int, bound: float) -> None:
    make = torch.Generator().manual_seed(3)
    x, weight = torch.randn(5, 2048, generator=make), torch.randn(100, 2048, generator=make)
    found, true = TorchQuantised().linear(x, packed_of(weight, kind, group), None), x @ weight.T
    assert (found - true).norm() / true.norm() < bound


def some(kind: str, rows: int, columns: int, group: int) -> Packed:
    return packed_of(torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows * 1000 + columns)), kind, group)


def packed_of(values: torch.Tensor, kind: str, group: int) -> Packed:
    packed = packing.empty(kind, *values.shape, group)
    packing.pack_into(values, packed)
    return packed


def same(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return torch.equal(found.nan_to_num(9e9), wanted.nan_to_num(9e9))
