"""The small parts of a step, compiled, against torch: every path that this CPU has, any shape, any number."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shardwise.nn.kernels.pool import Pool
from shardwise.nn.kernels.step import NativeStep, TorchStep
from shardwise.nn.kernels.stored import STORED
from tests.nn.kernels.paths import each_path, needs_compiled

pytestmark = needs_compiled


@each_path
@settings(deadline=None, max_examples=50)
@given(
    rows=st.integers(0, 40),
    size=st.integers(1, 300),
    seed=st.integers(0, 2**32),
    threads=st.integers(1, 3),
    dtype=st.sampled_from(list(STORED)),
    biased=st.booleans(),
)
def test_norms(rows: int, size: int, seed: int, threads: int, dtype: torch.dtype, biased: bool) -> None:
    make = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, size, generator=make) * 100 + 30
    weight, bias = torch.randn(2, size, generator=make).to(dtype)
    compiled, reference = NativeStep(Pool(threads)), TorchStep()
    found = compiled.rms_norm(x, weight, 1e-5, 1.0)
    torch.testing.assert_close(found, reference.rms_norm(x, weight, 1e-5, 1.0), rtol=2e-6, atol=2e-6)
    # Against doubles: in float32 torch loses digits where numbers lie close together.
    found = compiled.layer_norm(x, weight, bias if biased else None, 1e-5)
    wanted = reference.layer_norm(x.double(), weight.double(), bias.double() if biased else None, 1e-5)
    torch.testing.assert_close(found, wanted.float(), rtol=2e-5, atol=2e-5)
    close = 3000 + torch.randn(rows, size, generator=make) / 100
    found = compiled.layer_norm(close, weight, None, 1e-5)
    wanted = reference.layer_norm(close.double(), weight.double(), None, 1e-5)
    torch.testing.assert_close(found, wanted.float(), rtol=2e-5, atol=2e-5)


@each_path
def test_a_row_does_not_know_the_others() -> None:
    """The same bits alone, among many, by one thread or by three; a NaN stays in its row."""
    x, weight = torch.randn(33, 2048), torch.randn(2048)
    x[7, 5] = float("nan")
    for norm in ("rms_norm", "layer_norm"):
        last = 0.0 if norm == "rms_norm" else 1e-5
        given = (1e-5, last) if norm == "rms_norm" else (weight, last)
        whole = getattr(NativeStep(Pool(3)), norm)(x, weight, *given)
        alone = torch.cat([getattr(NativeStep(Pool(1)), norm)(row[None], weight, *given) for row in x])
        assert torch.equal(whole.nan_to_num(9e9), alone.nan_to_num(9e9)) and whole.isnan().any(1).nonzero().tolist() == [[7]]


@each_path
@settings(deadline=None, max_examples=40)
@given(
    count=st.integers(0, 5000),
    seed=st.integers(0, 2**32),
    threads=st.integers(1, 3),
    activation=st.sampled_from(["silu", "gelu"]),
)
def test_a_gate(count: int, seed: int, threads: int, activation: str) -> None:
    gate, up = torch.randn(2, count, generator=torch.Generator().manual_seed(seed)) * 20
    odd = torch.tensor([0.0, -0.0, 89.0, -89.0, 200.0, -200.0, math.inf, -math.inf, math.nan])
    gate, up = torch.cat((gate, odd)), torch.cat((up, odd.roll(1)))
    found = NativeStep(Pool(threads)).gated(activation, gate, up)
    wanted = TorchStep().gated(activation, gate, up)
    torch.testing.assert_close(found, wanted, rtol=2e-6, atol=1e-35, equal_nan=True)
    alone = NativeStep(Pool(1)).gated(activation, gate[3:9], up[3:9])
    assert torch.equal(alone.nan_to_num(9.0), found[3:9].nan_to_num(9.0))


@each_path
@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(0, 5),
    size=st.integers(0, 600),
    seed=st.integers(0, 2**32),
    steps=st.sampled_from([1.0, 0.1, 1e-3]),
    odd=st.sampled_from([0.0, -0.0, torch.nan, torch.inf, -torch.inf]),
)
def test_the_greatest_of_a_row_is_the_first_of_equal_ones(rows: int, size: int, seed: int, steps: float, odd: float) -> None:
    make = torch.Generator().manual_seed(seed)
    x = (torch.randn(rows, size, generator=make) / steps).round() * steps  # many are equal
    if rows and size:
        x[seed % rows, seed % size] = odd
        x[-1] = x[-1].abs() if seed % 2 else -x[-1].abs()
    wanted = TorchStep().best(x)
    assert torch.equal(NativeStep(Pool(2)).best(x).nan_to_num(1e99), wanted.nan_to_num(1e99))
    for row, (top, place) in zip(x, wanted.tolist(), strict=True):
        assert not size or not row.isfinite().all() or (top == row.max() and place == (row == top).nonzero()[0, 0])
