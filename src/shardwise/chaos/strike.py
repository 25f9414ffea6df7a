"""How a fault is done to processes: signals, a core that is shared with many, an instruction that jumps to itself."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shardwise.chaos.processes import PROC, send
from shardwise.errors import ShardwiseError

LOOPS = {"x86_64": b"\xeb\xfe", "aarch64": b"\x00\x00\x00\x14"}
"""An instruction that jumps to itself, by machine."""

TRIES = 20
CROWD = 6
BUSY = "import time\nuntil = time.monotonic() + 10\nwhile time.monotonic() < until: pass"
"""Processes that take a starved rank's core besides it."""


def spin(pid: int) -> None:
    """The main thread of `pid` goes round at the instruction it is at now, with every lock that it holds: written into its
    memory while it is stopped, as one may for descendants. ShardwiseError where that cannot be done."""
    loop = LOOPS.get(platform.machine())
    if loop is None:
        raise ShardwiseError(f"no rank can be made to spin on {platform.machine()}; leave the fault out")
    why = "it has ended"
    for _ in range(TRIES):
        if not send(pid, signal.SIGSTOP):
            break
        try:
            _until_stopped(pid)
            place = int((PROC / str(pid) / "syscall").read_text().split()[-1], 16)
            with (PROC / str(pid) / "mem").open("r+b", buffering=0) as memory:
                memory.seek(place)
                memory.write(loop)
            return
        except (OSError, ValueError, OverflowError) as error:
            why = str(error)  # it was in the kernel's own page, or just on its way out: again, elsewhere
        finally:
            send(pid, signal.SIGCONT)
        time.sleep(0.001)
    raise ShardwiseError(f"process {pid} could not be made to spin: {why}")


def _until_stopped(pid: int) -> None:
    until = time.monotonic() + 1.0
    while state(pid) != "T" and time.monotonic() < until:
        time.sleep(0.0005)


def state(pid: int) -> str | None:
    """Its state as in proc(5); None where it has ended."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return None


@contextmanager
def starved(pid: int) -> Iterator[None]:
    """Within it, all threads of `pid` have one core, which others keep busy. ShardwiseError where that is not allowed."""
    core = {min(os.sched_getaffinity(0))}
    before: dict[int, set[int]] = {}
    crowd = [
        subprocess.Popen([sys.executable, "-S", "-c", BUSY], stdin=subprocess.DEVNULL, process_group=0) for _ in range(CROWD)
    ]
    try:
        for process in crowd:
            os.sched_setaffinity(process.pid, core)
        for thread in _threads(pid):
            with suppress(ProcessLookupError):
                before[thread] = os.sched_getaffinity(thread)
                os.sched_setaffinity(thread, core)
        yield
    except PermissionError as error:
        raise ShardwiseError(f"process {pid} cannot be moved to one core: {error.strerror}") from None
    finally:
        for thread, cores in before.items():
            with suppress(OSError):
                os.sched_setaffinity(thread, cores)
        for process in crowd:
            process.kill()
            process.wait()


def _threads(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(entry.name) for entry in Path(PROC / str(pid) / "task").iterdir()]
    return []
