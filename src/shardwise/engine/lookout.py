"""The eyes of whoever answers for rank processes: looks at their pulses and at what the kernel says of them, ever so often."""

from __future__ import annotations

from collections.abc import Sequence

from shardwise.engine.vitals import Vitals
from shardwise.engine.watch import Finding, Watch
from shardwise.runtime.pulse import control, describe, read_pulse

BUSY_S, IDLE_S = 0.1, 0.25
"""From one look to the next."""


class Lookout:
    """Over the ranks that share the memory behind `fd`, one group after the other."""

    def __init__(self, fd: int) -> None:
        self._words = control(fd)
        self._watch = Watch()
        self._vitals: Vitals | None = None
        self._size = 0
        self._next = 0.0

    def begin(self, epoch: int, pids: Sequence[int], now: float) -> None:
        """From now on it looks at the group of `epoch`, in processes `pids` by seat."""
        self.close()
        self._watch.begin(epoch)
        self._vitals, self._size, self._next = Vitals(pids), len(pids), now

    def left_s(self, now: float, busy: bool) -> float:
        """How long until the next look."""
        return max(0.0, min(self._next - now, BUSY_S if busy else IDLE_S))

    def look(self, now: float, busy: bool) -> Finding | None:
        """Who is at fault, if it is time to look and somebody is. `busy`: answers are awaited."""
        if self._vitals is None or now < self._next:
            return None
        self._next = now + (BUSY_S if busy else IDLE_S)
        wheres = [read_pulse(self._words, seat) for seat in range(self._size)]
        return self._watch.look(now, busy, wheres, self._vitals.look(now))

    def where(self, seat: int) -> str:
        """Where a rank of the group stands, or stood last."""
        return describe(read_pulse(self._words, seat)) if seat < self._size else ""

    def close(self) -> None:
        """It looks at nobody any more. Twice is once."""
        if self._vitals is not None:
            self._vitals.close()
            self._vitals = None
