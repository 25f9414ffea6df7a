"""Processes found from outside, and what is done to them: on processes of these tests alone."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from shardwise.chaos.leftovers import Before, leftovers
from shardwise.chaos.processes import MARK, Herd, holder
from shardwise.chaos.standing import standing
from shardwise.chaos.strike import spin, state
from shardwise.comm.memory import anonymous
from shardwise.runtime.pulse import open_pulse

TALK = "import time\nwhile True: print(time.monotonic(), flush=True); time.sleep(0.005)"
FORK = "import os, time\npid = os.fork()\ntime.sleep(60)"


@contextmanager
def child(code: str, **environ: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs it, killed at the end."""
    env = {**os.environ, **environ}
    with subprocess.Popen([sys.executable, "-S", "-c", code], stdout=subprocess.PIPE, env=env, bufsize=0) as process:
        try:
            yield process
        finally:
            process.kill()


def until(true: Callable[[], bool], within_s: float = 10.0) -> bool:
    end = time.monotonic() + within_s
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    return true()


def test_orphans_are_known_by_mark_and_by_having_been_seen(tmp_path: Path) -> None:
    before, herd = Before.now(tmp_path), Herd("here")
    with child(FORK, **{MARK: "here"}) as process:
        herd.root = process.pid
        assert until(lambda: len(herd.look()) == 2), herd.look()
        assert [each.role for each in herd.look()].count("parent") == 1
        process.kill()
        process.wait()
        assert len(herd.look()) == 1 and "process" in leftovers(before, herd)[0]
        herd.kill()
        assert until(lambda: not herd.look())
        assert leftovers(before, herd) == []


def test_what_is_left_behind_is_found(tmp_path: Path) -> None:
    before, herd = Before.now(tmp_path), Herd("nobody")
    name = Path("/dev/shm") / f"chaos-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as here:
        here.bind(str(tmp_path / "s"))
        name.touch()
        try:
            found = leftovers(before, herd)
            assert f"/dev/shm/{name.name}" in found and "in the temporary folder: s" in found
            assert f"unix socket {tmp_path / 's'}" in found
            with name.open():  # it is open somewhere else: whoever has it uses it
                assert f"/dev/shm/{name.name}" not in leftovers(before, herd)
        finally:
            name.unlink()


def test_whose_connection_it_is() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        there, _ = server.accept()
        with there, child("import time; time.sleep(60)") as other:
            port = client.getsockname()[1]
            assert holder(port, [other.pid, os.getpid()]) == os.getpid()
            assert holder(port, [other.pid]) is None


def test_a_process_that_spins() -> None:
    with child(TALK) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        spin(process.pid)
        os.set_blocking(process.stdout.fileno(), False)
        until(lambda: process.stdout is not None and process.stdout.read() is None, 1.0)
        begun = _used(process.pid)
        assert until(lambda: _used(process.pid) >= begun + 5), "it takes no time"
        assert process.stdout.read() is None and state(process.pid) == "R"


def _used(pid: int) -> int:
    """Ticks of processor time."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])


def test_where_a_rank_stands() -> None:
    fd = anonymous()
    try:
        pulse = open_pulse(fd, 2, 5)
        pulse.step(12, 3)
        pulse.layer(4)
        with standing(os.getpid(), 2) as where:
            found = where()
            assert found is not None and (found.epoch, found.step, found.layer) == (5, 12, 4)
    finally:
        os.close(fd)
    with child("import signal; signal.pause()") as process, standing(process.pid, 0) as where:
        assert where() is None
        process.send_signal(signal.SIGTERM)
