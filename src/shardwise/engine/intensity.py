"""How many losses in how short a time are made good: more are a fault that a new process does not mend.

As the restart intensity of Erlang's supervisors. Pure: told the time.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Intensity:
    """At most so many losses within so many seconds are made good."""

    most: int = 5
    within_s: float = 60.0


class Losses:
    """Those that were noted."""

    def __init__(self, intensity: Intensity) -> None:
        self._intensity = intensity
        self._times: deque[float] = deque()

    def note(self, now: float) -> bool:
        """Notes one; whether it is to be made good."""
        self._times.append(now)
        while self._times[0] < now - self._intensity.within_s:
            self._times.popleft()
        return len(self._times) <= self._intensity.most

    @property
    def reason(self) -> str:
        """Why one is not made good, to be put behind what it was."""
        most, within_s = self._intensity.most, self._intensity.within_s
        return f"; {most} others came within {within_s:g} s, so it is not made good" if most else ""
