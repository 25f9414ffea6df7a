"""The pool: every piece is computed, by whichever thread comes."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from shardwise.nn.kernels.pool import Pool
from shardwise.nn.kernels.step import NativeStep
from tests.nn.kernels.paths import needs_compiled

pytestmark = needs_compiled


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_every_piece_is_computed(threads: int) -> None:
    """More threads than cores, and thousands of calls one after another: a late thread takes nothing of a later call."""
    step, x, weight = NativeStep(Pool(threads)), torch.randn(64, 1024), torch.ones(1024)
    wanted = NativeStep(Pool(1)).rms_norm(x, weight, 1e-5, 0.0)
    for turn in range(2000):
        found = step.rms_norm(x * 2.0 ** (turn % 5), weight, 1e-5 * 4.0 ** (turn % 5), 0.0)
        assert torch.equal(found, wanted), turn


def test_its_threads_end_with_it() -> None:
    before = threads_of_the_process()
    pools = [Pool(4) for _ in range(5)]
    assert threads_of_the_process() == before + 15
    del pools
    assert threads_of_the_process() == before


def test_one_pool_a_rank() -> None:
    """Ranks that are threads of one process have a pool each, and compute at once."""
    x, weight = torch.randn(64, 1024), torch.randn(1024)
    wanted = NativeStep(Pool(1)).rms_norm(x, weight, 1e-5, 0.0)
    wrong: list[int] = []

    def rank(number: int) -> None:
        step = NativeStep(Pool(2))
        wrong.extend(number for _ in range(300) if not torch.equal(step.rms_norm(x, weight, 1e-5, 0.0), wanted))

    ranks = [threading.Thread(target=rank, args=(number,)) for number in range(3)]
    for each in ranks:
        each.start()
    for each in ranks:
        each.join()
    assert wrong == []


def threads_of_the_process() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Threads:"))
