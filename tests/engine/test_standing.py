"""Real ranks that stand still are named from outside, by what they said of themselves and what the kernel says of them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from shardwise.comm.memory import anonymous
from shardwise.engine.vitals import Vitals
from shardwise.engine.watch import Finding, Watch
from shardwise.runtime.pulse import State, Where, control, describe, read_pulse
from tests.engine.standing_ranks import LAYER, SIZE, STEP

WITHIN_S = 60.0
"""A bound for a machine that does much else. What it took is in the figures."""


class Pair:
    """Two ranks, one epoch after the other, and the memory where they say where they are."""

    def __init__(self) -> None:
        self.shared, self.epoch, self.pids = anonymous(), 0, list[int]()
        self.words = control(self.shared)
        command = [sys.executable, "-m", "tests.engine.standing_ranks", str(self.shared)]
        self.process = subprocess.Popen(
            command, pass_fds=[self.shared], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def begin(self, work: str, fault: str = "none", seat: int = 0) -> None:
        """Ends the ranks that there are, and starts others, which then run."""
        self.end()
        self.epoch += 1
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{self.epoch} {work} {fault} {seat}\n")
        self.pids = [int(pid) for pid in self.process.stdout.readline().split()]
        assert len(self.pids) == SIZE
        self.reach(lambda where: where.step > 0)

    def wheres(self) -> list[Where]:
        return [read_pulse(self.words, seat) for seat in range(SIZE)]

    def reach(self, ready: Callable[[Where], bool]) -> None:
        """Waits until all ranks are somewhere."""
        until = time.monotonic() + WITHIN_S
        while not all(where.epoch == self.epoch and ready(where) for where in self.wheres()):
            assert time.monotonic() < until, [str(where) for where in self.wheres()]
            time.sleep(0.005)

    def watched(self, for_s: float, watch: Watch, *, busy: bool = True) -> Finding | None:
        """What a watch finds within a time."""
        vitals, until = Vitals(self.pids), time.monotonic() + for_s
        try:
            while (now := time.monotonic()) < until:
                if (found := watch.look(now, busy, self.wheres(), vitals.look(now))) is not None:
                    return found
                time.sleep(0.1)
            return None
        finally:
            vitals.close()

    def end(self) -> None:
        for pid in self.pids:
            os.kill(pid, signal.SIGKILL)
        self.pids = []

    def close(self) -> None:
        self.end()
        self.process.kill()
        self.process.communicate()
        os.close(self.shared)


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


@pytest.mark.parametrize("seat", [0, 1])
@pytest.mark.parametrize("work", ["decode", "prefill", "idle"])
def test_a_stopped_rank_is_named(pair: Pair, work: str, seat: int, figures: Callable[..., None]) -> None:
    pair.begin(work)
    if work == "idle":
        pair.reach(lambda where: where.state == State.IDLE)
    else:
        watch = Watch()
        assert pair.watched(1.0, watch) is None
    os.kill(pair.pids[seat], signal.SIGSTOP)
    stopped = time.monotonic()
    found = pair.watched(WITHIN_S, Watch(), busy=work != "idle")
    figures(f"stopped in {work}", rank=seat, named_s=round(time.monotonic() - stopped, 2))
    assert found is not None
    assert (found.seat, found.reason.split(",")[0]) == (seat, f"is stopped: process {pair.pids[seat]}")
    assert found.where == pair.wheres()[seat]
    said = {
        "idle": r"idle after step 1",
        "decode": r"step \d+.*|idle after step \d+",
        "prefill": r"step \d+.*|idle after step \d+",
    }
    assert re.fullmatch(said[work], describe(found.where))
    assert found.where.tokens == {"idle": 3, "decode": found.where.tokens, "prefill": 495}[work]


@pytest.mark.parametrize(
    ("fault", "seat", "reason"),
    [
        ("spin", 1, r"makes no progress for \d+\.\d s: process \d+ runs"),
        ("sleep", 0, r"makes no progress for \d+\.\d s: process \d+ sleeps"),
        ("deadlock", 1, r"makes no progress for \d+\.\d s: process \d+ sleeps"),
        ("end", 0, r"has lost its main thread: process \d+, state Z, for \d+\.\d s"),
    ],
)
def test_a_rank_that_stands_in_a_layer_is_named(
    pair: Pair, fault: str, seat: int, reason: str, figures: Callable[..., None]
) -> None:
    pair.begin("decode", fault, seat)
    found = pair.watched(WITHIN_S, Watch())
    assert found is not None
    named_s = time.monotonic() - found.where.tick_ns / 1e9
    figures(f"{fault} in a layer", rank=seat, named_s=round(named_s, 2))
    assert found.seat == seat
    assert re.fullmatch(reason, found.reason)
    assert describe(found.where) == f"step {STEP}, layer {LAYER}"
    other = pair.wheres()[1 - seat]
    assert re.fullmatch(rf"step {STEP}, layer \d, all_reduce of \w+", describe(other))


def test_ranks_that_run_are_no_fault(pair: Pair) -> None:
    pair.begin("prefill")
    assert pair.watched(3.0, Watch()) is None
