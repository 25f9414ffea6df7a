"""Rank processes for the gloo and shared memory tests: started once, then given scenarios, each in a new group."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[2]
WORKER = [sys.executable, "-m", "tests.comm.comm_worker"]
ORDERS = {"deadline_s": 10.0, "epoch": 0, "checked": False, "host": "127.0.0.1", "one_file": False, "memory": ""}


class Processes:
    """As a context: ends every process it started, whatever happens."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        self.processes += [self._start() for _ in range(self.size)]
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            self._stop(process)

    def kill(self, rank: int) -> None:
        """Ends a process with SIGKILL and puts a new one in its place, for the scenarios to come."""
        self._stop(self.processes[rank])
        self.processes[rank] = self._start()

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(WORKER, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def _stop(self, process: subprocess.Popen[str]) -> None:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()

    def order(self, folder: Path, scenario: str, **orders: Any) -> None:
        """Starts a scenario in a new private folder; an order given as a tuple has a value for each rank."""
        folder.mkdir(mode=0o700, exist_ok=True)
        for rank in range(self.size):
            own = {name: value[rank] if isinstance(value, tuple) else value for name, value in orders.items()}
            given = {**ORDERS, "folder": str(folder), "rank": rank, "size": self.size, "scenario": scenario, **own}
            self.say(rank, json.dumps(given))

    def play(self, folder: Path, scenario: str, **orders: Any) -> list[dict[str, Any]]:
        """The answers of a scenario that needs no help from the test."""
        self.order(folder, scenario, **orders)
        return [self.hear(rank) for rank in range(self.size)]

    def say(self, rank: int, line: str) -> None:
        """A line to one process."""
        stdin = self.processes[rank].stdin
        assert stdin is not None
        stdin.write(line + "\n")
        stdin.flush()

    def hear(self, rank: int) -> Any:
        """The next line of one process."""
        process = self.processes[rank]
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"rank {rank} ended with {process.wait()} and said nothing"
        return json.loads(line)

    def end(self) -> list[int]:
        """Lets the processes end by themselves; their exit codes."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.close()
        return [process.wait(timeout=20) for process in self.processes]
