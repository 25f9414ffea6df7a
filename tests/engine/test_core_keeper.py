"""Engines that are killed, again and again: another one comes, or it is said why none does, and nothing is left of any."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from shardwise.engine.core_keeper import CoreKeeper
from shardwise.engine.core_process import CoreProcess
from shardwise.engine.host_process import HostProcess
from shardwise.engine.intensity import Intensity, Losses
from shardwise.engine.setup import Setup
from shardwise.errors import Unavailable, UserError
from tests.processes import living

BACK_S, GONE_S = 90.0, 10.0


def test_so_many_in_so_long() -> None:
    losses = Losses(Intensity(2, 10.0))
    assert [losses.note(at) for at in (0, 1, 9, 11.5, 11.6, 30)] == [True, True, False, True, False, True]
    assert losses.reason == "; 2 others came within 10 s, so it is not made good"
    assert not Losses(Intensity(0, 10.0)).note(5) and not Losses(Intensity(0, 10.0)).reason


class Kept:
    """A keeper of engines of one rank, all that was said, and all processes that ever were."""

    def __init__(self, setup: Setup, intensity: Intensity) -> None:
        self.setup = setup
        self.said: list[str] = []
        self.processes: list[psutil.Process] = []
        self.kills = 0
        """So many of the next engines are killed as soon as there is a process."""
        self.starting = threading.Event()
        self.error: Exception | None = None
        first = CoreProcess(setup, host=self.host())
        self.keeper = CoreKeeper(first, self.host, self.start, self.said.append, intensity)

    def host(self) -> HostProcess:
        found = HostProcess(1)
        self.processes.append(psutil.Process(found.process.pid))
        if self.kills:
            self.kills -= 1
            found.process.kill()
        return found

    def start(self, host: HostProcess) -> CoreProcess:
        self.starting.set()
        if self.error is not None:
            host.close()
            raise self.error
        return CoreProcess(self.setup, host=host)

    def kill(self) -> None:
        host = self.processes[-1]
        self.processes += host.children()
        host.kill()

    def until(self, words: str) -> None:
        end = time.monotonic() + BACK_S
        while not any(words in line for line in self.said):
            assert time.monotonic() < end, self.said
            time.sleep(0.01)

    def reached(self) -> bool:
        """Whether an engine can be reached, now or soon."""
        asyncio.run(asyncio.wait_for(self.keeper.connect(again=True), BACK_S)).close()
        return True


@contextmanager
def kept(setup: Setup, most: int) -> Iterator[Kept]:
    found = Kept(setup, Intensity(most, 600.0))
    with found.keeper:
        yield found
    assert living(found.processes, GONE_S) == []


def test_another_one_comes_also_where_one_is_killed_while_it_starts(setup: Setup) -> None:
    with kept(setup, 3) as found:
        assert found.reached() and found.keeper.why(0.0) is None
        found.kills = 2
        first = found.processes[-1].pid
        found.kill()
        assert found.reached()
        found.until("is back")
        assert [line.partition(" was killed")[0] for line in found.said[:1]] == [f"the engine's process {first}"]
        assert len([line for line in found.said if "another one is started" in line]) == 3
        found.kill()
        with pytest.raises(Unavailable, match=r"was killed by SIGKILL .*; 3 others came within 600 s, so it is not made good"):
            found.reached()
        assert found.keeper.lost is not None


def test_none_comes_where_none_is_wanted_or_none_can(setup: Setup) -> None:
    with kept(setup, 0) as found:
        found.kill()
        with pytest.raises(Unavailable, match=r"memory runs out\)$"):
            found.reached()
        assert not found.said
    with kept(setup, 5) as found:
        found.error = UserError("the file is gone")
        found.kill()
        with pytest.raises(Unavailable, match="and another one cannot be started: the file is gone"):
            found.reached()


@pytest.mark.parametrize("how", ["close", "kill"])
def test_it_ends_while_another_one_starts(setup: Setup, how: str) -> None:
    with kept(setup, 5) as found:
        found.kill()
        assert found.starting.wait(BACK_S)
        begun = time.monotonic()
        getattr(found.keeper, how)()
        found.keeper.close()
        assert time.monotonic() - begun < GONE_S
        with pytest.raises(Unavailable):
            found.reached()


def test_what_is_ended_in_order_stays_ended(setup: Setup) -> None:
    with kept(setup, 5) as found:
        (rank,) = [each for each in found.processes[-1].children() if "shardwise.runtime.worker" in each.cmdline()]
        os.kill(rank.pid, signal.SIGKILL)
        # An engine that says itself why it ends has tried what there was to try.
        with pytest.raises(Unavailable, match="rank 0 was lost"):
            while found.reached():
                pass
        assert not found.said
