"""Stop strings found in text as it comes. Knows no tokens."""

from __future__ import annotations

from collections.abc import Sequence

from shardwise.errors import RequestError
from shardwise.sched.checks import check_text
from shardwise.sched.request import MAX_STOP_CHARS, MAX_STOPS


class StopStrings:
    """Cuts a stream of text at the first stop string, holding back only what may yet turn out to be one.

    The stop that is complete first wins, of several the longest: the same however the text is cut into pieces. The cost per
    character does not grow with the text (Knuth, Morris and Pratt, one state for each stop).
    """

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        """`include`: the stop string itself belongs to the text. Raises RequestError for an empty or unusable stop."""
        stops = [stops] if isinstance(stops, str) else stops
        if len(stops) > MAX_STOPS:
            raise RequestError(f"{len(stops)} stop strings are too many: at most {MAX_STOPS} are taken")
        for index, stop in enumerate(stops):
            check_text(stop, f"stop string {index}")
            if not 0 < len(stop) <= MAX_STOP_CHARS:
                raise RequestError(f"stop string {index} has {len(stop)} characters; 1 to {MAX_STOP_CHARS} are taken")
        self.matched: str | None = None
        self._stops = sorted(dict.fromkeys(stops), key=len, reverse=True)
        self._falls, self._states = [_falls(stop) for stop in self._stops], [0] * len(self._stops)
        self._include, self._held = include, ""

    def push(self, text: str) -> str:
        """The part of the text that is now certain to be wanted. After a match, always empty."""
        if self.matched is not None:
            return ""
        if not self._stops:
            return text
        seen = self._held + text
        for at, character in enumerate(text, start=len(self._held) + 1):
            for n, stop in enumerate(self._stops):
                state = self._states[n]
                while state and stop[state] != character:
                    state = self._falls[n][state]
                state += stop[state] == character
                self._states[n] = state
                if state == len(stop):
                    self.matched, self._held = stop, ""
                    return seen[: at if self._include else at - len(stop)]
        keep = len(seen) - max(self._states, default=0)
        self._held = seen[keep:]
        return seen[:keep]

    def finish(self) -> str:
        """What was held back, once no more text comes."""
        held, self._held = self._held, ""
        return held


def _falls(stop: str) -> list[int]:
    """For each matched length, the length of the longest proper prefix of `stop` that ends there."""
    falls = [0] * (len(stop) + 1)
    state = 0
    for at in range(1, len(stop)):
        while state and stop[state] != stop[at]:
            state = falls[state]
        state += stop[state] == stop[at]
        falls[at + 1] = state
    return falls
