"""A hundred thousand requests under random losses: each ends once, with its own tokens, in time, and every page comes back."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.sched.simulation import simulate

ROOT = Path(__file__).parents[2]
REQUESTS, PARTS = 100_000, 4


@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", range(PARTS))
def test_days_of_traffic(part: int, figures: Callable[..., None]) -> None:
    report = simulate(part, REQUESTS // PARTS)
    assert report.ended.total() == REQUESTS // PARTS
    assert report.ended["complete"] > report.ended.total() / 2, "most of them are told all of their tokens"
    assert report.preempted > 0
    figures(
        "simulated scheduler", requests=report.ended.total(), steps=report.steps, preempted=report.preempted, wait=report.wait
    )


def test_the_same_seed_is_the_same_day():
    first, again, other = (simulate(seed, 300) for seed in (7, 7, 8))
    assert first == again
    assert first.trace != other.trace


def test_the_same_seed_is_the_same_day_in_another_process():
    code = "from tests.sched.simulation import simulate; print(simulate(7, 300).trace)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) == simulate(7, 300).trace
