"""The engine's process before it is told anything: its ranks run already; whatever ends the wait, nothing is left of them."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from shardwise.engine import bridge
from shardwise.engine.host_process import HostProcess
from tests.processes import living

START_S, GONE_S = 60.0, 10.0


def family(pid: int, ranks: int) -> list[psutil.Process]:
    """The engine's process `pid` and its ranks, once these are there."""
    process, until = psutil.Process(pid), time.monotonic() + START_S
    while len(found := process.children()) < ranks:
        assert time.monotonic() < until
        time.sleep(0.005)
    assert len(found) == ranks
    return [process, *found]


def folders(pid: int) -> list[Path]:
    """Where the ranks of engine process `pid` were to meet."""
    return list(Path(tempfile.gettempdir()).glob(f"shardwise-{pid}-*"))


@pytest.mark.parametrize("ranks", [1, 3])
def test_it_has_ranks_before_it_is_told_anything_and_takes_them_along(ranks: int) -> None:
    with HostProcess(ranks) as host:
        processes = family(host.process.pid, ranks)
    code = host.process.returncode
    assert code is not None
    host.close()
    # Its ranks end before it does, unless it was killed because it took too long.
    assert living(processes, 0.0 if code >= 0 else GONE_S) == []
    assert not folders(host.process.pid)


def test_what_is_no_boot_is_refused_and_nothing_is_left() -> None:
    with HostProcess(1) as host:
        processes = family(host.process.pid, 1)
        host.control.sendall(bridge.frame(bridge.Ready()))
        frames, messages = bridge.Frames(), []
        while not messages:
            data = host.control.recv(2**16)
            assert data
            messages = frames.feed(data)
        assert messages == [bridge.Failed("a Ready message where a Boot was expected", False)]
        assert host.process.wait(START_S) == 1
        assert living(processes, 0.0) == []


PARENT = """
import sys
from shardwise.engine.host_process import HostProcess
host = HostProcess(2)
print(host.process.pid, flush=True)
sys.stdin.read()
"""


def test_a_killed_parent_leaves_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        processes = family(pid, 2)
        parent.kill()
    assert living(processes, GONE_S) == []
    assert not folders(pid)
