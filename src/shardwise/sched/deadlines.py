"""By when requests must be complete. It knows numbers alone: whether a request is still here is the scheduler's to say."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush


class Deadlines:
    """Times, soonest first. A request is told from a later one of the same number by when it arrived."""

    def __init__(self) -> None:
        self._times: list[tuple[float, int, int]] = []

    def add(self, time: float, number: int, arrival: int) -> None:
        """Request `number`, which came as `arrival`, is given until `time`."""
        heappush(self._times, (time, number, arrival))

    def passed(self, now: float) -> Iterator[tuple[int, int]]:
        """(number, arrival) of each whose time is up; once."""
        while self._times and now > self._times[0][0]:
            _, number, arrival = heappop(self._times)
            yield number, arrival
