"""The processes of a server, found from outside: by a mark in their environment, by their parents, and kept once seen.

Linux's /proc alone. It knows titles by which servers name their processes, not what they do.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")

MARK = "CHAOS_RUN"
"""A variable that everything of one run inherits. A process may overwrite its environment by a title: parents tell then."""

ROLES = (
    ("rank", r"shardwise\.runtime\.worker|VLLM::Worker|sglang::scheduler"),
    ("engine", r"shardwise\.engine\.host|VLLM::EngineCore|sglang::detokenizer"),
    ("front", r"shardwise\.server\.worker|VLLM::ApiServer"),
)
"""What titles tell; the one that was started is the parent, and everything else another."""


@dataclass(frozen=True, slots=True)
class Process:
    """One process; `since` tells it from a later one of the same number. `state` as in proc(5)."""

    pid: int
    since: int
    parent: int
    state: str
    role: str
    title: str

    @property
    def ended(self) -> bool:
        """It runs no more; reaping it is its parent's business."""
        return self.state in "ZX"


class Herd:
    """All processes of one server, from its start on: whoever was seen once is known for ever."""

    def __init__(self, mark: str, ranks: str | None = None) -> None:
        """`ranks` finds the titles of ranks, for servers of other people."""
        self._needle = f"{MARK}={mark}".encode()
        self._roles = ([("rank", ranks)] if ranks else []) + list(ROLES)
        self._known: set[tuple[int, int]] = set()
        self.root: int | None = None

    def look(self) -> tuple[Process, ...]:
        """Those that live now, by their numbers."""
        every = {process.pid: process for process in map(self._read, _numbers()) if process is not None}
        mine: set[int] = set()
        for process in every.values():
            if (process.pid, process.since) in self._known or process.pid == self.root or self._marked(process.pid):
                mine.add(process.pid)
        grown = True
        while grown:
            more = {pid for pid, process in every.items() if pid not in mine and process.parent in mine}
            mine |= more
            grown = bool(more)
        self._known |= {(pid, every[pid].since) for pid in mine}
        return tuple(every[pid] for pid in sorted(mine) if not every[pid].ended)

    def of(self, role: str) -> list[Process]:
        """Those of one role."""
        return [process for process in self.look() if process.role == role]

    def kill(self) -> None:
        """Every one, until none is left: some may start others meanwhile."""
        for _ in range(50):
            if not (left := self.look()):
                return
            for process in left:
                send(process.pid, signal.SIGKILL)

    def _marked(self, pid: int) -> bool:
        with suppress(OSError):
            return self._needle in (PROC / str(pid) / "environ").read_bytes().split(b"\0")
        return False

    def _read(self, pid: int) -> Process | None:
        try:
            stat = (PROC / str(pid) / "stat").read_text()
            title = (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
        except OSError:
            return None
        fields = stat.rpartition(")")[2].split()
        role = next((name for name, words in self._roles if re.search(words, title)), "other")
        return Process(pid, int(fields[19]), int(fields[1]), fields[0], "parent" if pid == self.root else role, title)


def _numbers() -> Iterator[int]:
    return (int(entry.name) for entry in os.scandir(PROC) if entry.name.isdigit())


def send(pid: int, number: int) -> bool:
    """A signal; False where there is nobody any more."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def descriptors(pid: int) -> int | None:
    """How many files a process has open; None where it is gone. Not those of /proc: how many of them an engine needs to look
    after its ranks goes by their threads, which come and go."""
    count = 0
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208 - names are enough
            with suppress(FileNotFoundError):  # closed meanwhile
                count += not os.readlink(f"/proc/{pid}/fd/{fd}").startswith("/proc/")  # noqa: PTH115
    except OSError:
        return None
    return count


def sleeps(pid: int) -> bool:
    """Whether its main thread sleeps on a futex: in the middle of a step, a rank does so where it waits for others."""
    try:
        words = (PROC / str(pid) / "wchan").read_text()
    except OSError:
        return False
    return words.startswith("futex")


def holder(port: int, pids: Iterator[int] | list[int]) -> int | None:
    """Which of them has the connection whose other end is `port` of this machine."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in (PROC / "net" / table).read_text().splitlines()[1:]:
                fields = line.split()
                if int(fields[2].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    for pid in pids:
        with suppress(OSError):
            for entry in (PROC / str(pid) / "fd").iterdir():
                with suppress(OSError):
                    if str(entry.readlink()) in inodes:
                        return pid
    return None


def worked_s(pid: int) -> float:
    """The processor time that a process has had; 0 where there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
