"""The small parts of a step, compiled, against torch: every path that this CPU has, any shape, any number."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shardwise.nn.kernels.pool import Pool
from shardwise.nn.kernels.step import NativeStep, TorchStep
from tests.nn.kernels.paths import each_path, needs_compiled

pytestmark = needs_compiled


@each_path
@settings(deadline=None, max_examples=50)
@given(rows=st.integers(0, 40), size=st.integers(1, 300), seed=st.integers(0, 2**32), threads=st.integers(1, 3))
def test_rms_norm(rows: int, size: int, seed: int, threads: int) -> None:
    make = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(rows, size, generator=make) * 100, torch.randn(size, generator=make)
    found = NativeStep(Pool(threads)).rms_norm(x, weight, 1e-5, 1.0)
    torch.testing.assert_close(found, TorchStep().rms_norm(x, weight, 1e-5, 1.0), rtol=2e-6, atol=2e-6)


@each_path
def test_a_row_does_not_know_the_others() -> None:
    """The same bits alone, among many, by one thread or by three; a NaN stays in its row."""
    x, weight = torch.randn(33, 2048), torch.randn(2048)
    x[7, 5] = float("nan")
    whole = NativeStep(Pool(3)).rms_norm(x, weight, 1e-5, 0.0)
    alone = torch.cat([NativeStep(Pool(1)).rms_norm(row[None], weight, 1e-5, 0.0) for row in x])
    assert torch.equal(whole.nan_to_num(9e9), alone.nan_to_num(9e9)) and whole.isnan().any(1).nonzero().tolist() == [[7]]
