"""Dense products, compiled, against torch in double precision: every path that this CPU has, any shape, any dtype."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shardwise.nn.kernels.dense import NativeDense, TorchDense
from shardwise.nn.kernels.pool import Pool
from shardwise.nn.kernels.stored import STORED
from tests.nn.kernels.paths import each_path, needs_compiled

pytestmark = needs_compiled

DTYPES = st.sampled_from(list(STORED))
SEEDS = st.integers(0, 2**32)


def close(found: torch.Tensor, wanted: torch.Tensor, size: int) -> None:
    """Sums of `size` products of numbers around one, to within what adding them up in float32 may cost."""
    torch.testing.assert_close(found, wanted.float(), rtol=1e-5, atol=2e-6 * (size + 1) ** 0.5)


@each_path
@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(0, 9) | st.integers(30, 40) | st.just(131),
    inputs=st.integers(0, 70) | st.integers(1020, 1060) | st.just(2100),
    outputs=st.integers(0, 23) | st.just(270),
    threads=st.integers(1, 3),
    dtype=DTYPES,
    bias=st.none() | DTYPES,
    seed=SEEDS,
)
def test_linear(
    rows: int, inputs: int, outputs: int, threads: int, dtype: torch.dtype, bias: torch.dtype | None, seed: int
) -> None:
    make = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs, generator=make)
    weight = torch.randn(outputs, inputs, generator=make).to(dtype)
    added = None if bias is None else torch.randn(outputs, generator=make).to(bias)
    found = NativeDense(Pool(threads)).linear(x, weight, added)
    close(found, TorchDense().linear(x.double(), weight, added), inputs)


@each_path
@settings(deadline=None, max_examples=30)
@given(
    rows=st.integers(0, 9) | st.just(131),
    heads=st.integers(1, 3),
    inputs=st.integers(0, 40) | st.just(260),
    outputs=st.integers(0, 90),
    turned=st.booleans(),
    dtype=DTYPES,
    seed=SEEDS,
)
def test_by_head(rows: int, heads: int, inputs: int, outputs: int, turned: bool, dtype: torch.dtype, seed: int) -> None:
    """Weights that lie either way round, each head's after a gap."""
    make = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, heads, inputs, generator=make)
    matrices = torch.randn(heads, 3 + max(inputs, outputs) ** 2, generator=make).to(dtype)[:, 3 : 3 + inputs * outputs]
    weight = matrices.unflatten(1, (inputs, outputs)) if turned else matrices.unflatten(1, (outputs, inputs)).transpose(1, 2)
    close(NativeDense(Pool(2)).by_head(x, weight), TorchDense().by_head(x.double(), weight), inputs)


@each_path
def test_an_element_does_not_know_the_others() -> None:
    """The same bits for a row alone and among any others, by one thread or five, in any range of the outputs; what is not
    finite stays where it belongs."""
    for dtype in STORED:
        x, weight = torch.randn(140, 1500), torch.randn(40, 1500).to(dtype)
        x[7, 5], x[9, 1499], weight[3, 2] = float("nan"), float("inf"), float("inf")
        one, five = NativeDense(Pool(1)), NativeDense(Pool(5))
        whole = one.linear(x, weight, None)
        wanted = TorchDense().linear(x, weight, None)
        assert torch.equal(whole.isnan(), wanted.isnan()) and torch.equal(whole.isinf(), wanted.isinf())
        whole = whole.nan_to_num(9e9)
        for rows in (1, 2, 3, 7, 33, 130):
            assert torch.equal(whole[:rows], one.linear(x[:rows], weight, None).nan_to_num(9e9))
            assert torch.equal(whole[:rows], five.linear(x[:rows], weight, None).nan_to_num(9e9))
        for start, stop in ((0, 1), (1, 8), (37, 40)):
            assert torch.equal(whole[:40, start:stop], five.linear(x[:40], weight[start:stop], None).nan_to_num(9e9))
        assert torch.equal(five.by_head(x[:, None], weight[None].mT)[:, 0].nan_to_num(9e9), whole)
        across = weight.mT.contiguous()[None]
        alone = [one.by_head(row[None, None], across) for row in x[10:14]]
        assert torch.equal(torch.cat(alone), five.by_head(x[:, None], across)[10:14])
