"""What the kernel says of the ranks' processes: whether they may run, and how long they waited for a processor.

Files of /proc, opened once a process: a look costs some microseconds a rank, and another process that got the same number is
never taken for the rank. Draws no conclusions.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from shardwise.engine.watch import Vital

_RENEW = 50
"""After so many looks, a process's threads are listed anew."""


@dataclass(slots=True)
class _Process:
    """The open files of one, and what was read last."""

    pid: int
    stat: int
    threads: dict[str, int]
    looks: int = 0
    waited_s: float = 0.0
    pending_s: float = 0.0
    main: bytes = b""


class Vitals:
    """Of the processes `pids`, in the order of their seats. To be made while they have not been waited for, so that their
    numbers are theirs. Where the kernel does not tell how long threads wait (no CONFIG_SCHED_INFO), they never do."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._processes = [_Process(pid, _opened(f"/proc/{pid}/stat"), {}) for pid in pids]
        self._at: float | None = None

    def look(self, now: float) -> tuple[Vital, ...]:
        """As they are at `now`, in seconds. State "X": there is no such process any more."""
        gap_s, self._at = now - (now if self._at is None else self._at), now
        return tuple(self._of(seat, process, gap_s) for seat, process in enumerate(self._processes))

    def _of(self, seat: int, process: _Process, gap_s: float) -> Vital:
        if process.looks % _RENEW == 0:
            self._list(process)
        process.looks += 1
        try:
            # pid (name) state parent ...: the name may hold anything, the last bracket ends it.
            state = chr(os.pread(process.stat, 512, 0).rpartition(b")")[2][1])
        except (OSError, IndexError):
            return Vital(seat, process.pid, "X", process.waited_s)
        ran_ns = waited_ns = 0
        for thread, fd in list(process.threads.items()):
            try:
                read = os.pread(fd, 64, 0)
            except OSError:  # it has ended
                os.close(process.threads.pop(thread))
                continue
            ran, waited, _ = read.split()
            ran_ns, waited_ns = ran_ns + int(ran), waited_ns + int(waited)
            if thread == str(process.pid):
                self._wait(process, state, read, gap_s)
        process.waited_s = max(process.waited_s, waited_ns / 1e9 + process.pending_s)
        return Vital(seat, process.pid, state, process.waited_s, ran_ns / 1e9)

    @staticmethod
    def _wait(process: _Process, state: str, read: bytes, gap_s: float) -> None:
        """The kernel counts a wait when it is over. One that lasts is seen by a main thread that could run, and did not."""
        stands = state == "R" and read == process.main
        process.pending_s = process.pending_s + gap_s if stands else 0.0
        process.main = read

    @staticmethod
    def _list(process: _Process) -> None:
        with suppress(OSError):
            for thread in os.listdir(f"/proc/{process.pid}/task"):  # noqa: PTH208 - half the time
                if thread not in process.threads:
                    fd = _opened(f"/proc/{process.pid}/task/{thread}/schedstat")
                    if fd >= 0:
                        process.threads[thread] = fd

    def close(self) -> None:
        """Closes the files, once."""
        for process in self._processes:
            for fd in (process.stat, *process.threads.values()):
                if fd >= 0:
                    os.close(fd)
        self._processes = []


def _opened(path: str) -> int:
    """-1 where there is none."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1
