"""Calls at times to come, on a thread of their own: for what has to end while everybody waits for something else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count


class Alarm:
    """Safe to share between threads. Its thread starts with the first call that is asked for, and ends with `close`."""

    def __init__(self) -> None:
        self._calls: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()  # calls themselves have no order
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def at(self, when: float, call: Callable[[], None]) -> None:
        """Has `call` called soon after `when`, on the clock of `time.monotonic`. It must neither wait nor raise."""
        with self._changed:
            if self._closed:
                return
            heappush(self._calls, (when, next(self._numbers), call))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True, name="alarm")
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        """Nothing is called any more. Twice is once."""
        with self._changed:
            self._closed = True
            self._calls.clear()
            self._changed.notify()

    def _run(self) -> None:
        while (call := self._next()) is not None:
            call()

    def _next(self) -> Callable[[], None] | None:
        """The next call, once it is its time; None after `close`."""
        with self._changed:
            while not self._closed:
                left = self._calls[0][0] - time.monotonic() if self._calls else None
                if left is not None and left <= 0:
                    return heappop(self._calls)[2]
                self._changed.wait(left)
        return None
