"""Processes that end with the one that started them, whatever ended it, and whatever they do: also while they are stopped.

The kernel kills them (PR_SET_PDEATHSIG, prctl(2)), but already when the *thread* ends that started them. So one thread starts
all of them, and lives as long as its process. What they do themselves is in `bound`.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from queue import SimpleQueue
from subprocess import Popen
from typing import Any


class _Start:
    """A process that another thread is to start: `result` waits for it."""

    def __init__(self, command: Sequence[str], options: dict[str, Any]) -> None:
        self._command, self._options = command, options
        self._done = threading.Event()
        self._process: Popen[bytes] | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._process = Popen(self._command, **self._options)
        except BaseException as error:
            self._error = error
        self._done.set()

    def result(self) -> Popen[bytes]:
        self._done.wait()
        if self._error is not None:
            raise self._error
        assert self._process is not None
        return self._process


class _Starter:
    """The thread that starts the children of process `pid`: a forked process has none of its parent's threads."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._orders: SimpleQueue[_Start] = SimpleQueue()
        threading.Thread(target=self._run, name="children", daemon=True).start()

    def start(self, command: Sequence[str], options: dict[str, Any]) -> Popen[bytes]:
        order = _Start(command, options)
        self._orders.put(order)
        return order.result()

    def _run(self) -> None:
        while True:
            self._orders.get().run()


_starter: _Starter | None = None
_lock = threading.Lock()
os.register_at_fork(after_in_child=lambda: globals().update(_lock=threading.Lock()))


def started(command: Sequence[str], **options: Any) -> Popen[bytes]:
    """A process, as `Popen` starts it, of a command that calls `bound` itself. OSError where it cannot be started."""
    global _starter
    with _lock:
        if _starter is None or _starter.pid != os.getpid():
            _starter = _Starter()
    return _starter.start(command, options)


def module(name: str, *args: str) -> list[str]:
    """The command that runs a module of ours in a process that ends with this one."""
    return [sys.executable, "-m", "shardwise.bound", str(os.getpid()), name, *args]


def end_of(code: int) -> str:
    """How a process ended, by the code that `Popen` gives: what is said after its name."""
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    return f"was killed by {name}{HINTS.get(name, '')}"


HINTS = {
    "SIGKILL": " (the kernel does that when memory runs out)",
    "SIGBUS": " (a file was cut short while it was read, or its disk failed)",
}
"""What a signal that nobody sent means."""
