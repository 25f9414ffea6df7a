"""How long a rank may take from one tick to the next, learned from what it took lately. Knows neither clocks nor processes.

A tick's length depends on how many tokens the step has; a step of a size that was not seen yet takes at most as long as a
larger one did, or as many times longer than a smaller one as it has more tokens.
"""

from __future__ import annotations

from collections import deque

from shardwise.comm.ticking import CHOOSING, HEAD
from shardwise.runtime.pulse import State, Where

STEPS = 16
"""The longest tick in so many steps of a size is what is expected of the next. Those between two looks do not count."""


class Pace:
    """Of one rank: work and processors are not shared evenly."""

    def __init__(self) -> None:
        self._layers = 1
        self._longest: dict[tuple[bool, int], deque[tuple[int, float]]] = {}
        self._most: dict[tuple[bool, int], float] = {}

    def saw(self, before: Where, after: Where, stood_s: float, gap_s: float) -> None:
        """The rank that was `before` at one look was `after` at the next, `gap_s` later without waiting for processors. Until
        the first of the two it had stood for `stood_s` without a reason."""
        for where in (before, after):
            if 0 <= where.layer < HEAD:
                self._layers = max(self._layers, where.layer + 1)
        if before.state in (State.COMPUTING, State.IN_COLLECTIVE):
            ticks = (after.step - before.step) * (self._layers + 2) + self._done(after) - self._done(before)
            if ticks > 0 and before.tokens == after.tokens:
                # By the rank's own clock, in which the machine may have slept.
                took_s = max(0.0, (after.tick_ns - before.tick_ns) / 1e9)
                self._note(before, min(took_s, stood_s + gap_s) / ticks)
            # Parts of a layer may be quick: they alone do not say what the next part takes.
            if _kind(before) in self._longest:
                self._note(before, stood_s)
        if after.step > before.step and self._done(after):
            # The whole of what is done of the step was done since, its layers in any case.
            self._most[False, _size(after)] = gap_s / self._done(after)

    def _note(self, where: Where, took_s: float) -> None:
        recent = self._longest.setdefault(_kind(where), deque(maxlen=STEPS))
        if recent and recent[-1][0] == where.step:
            took_s = max(took_s, recent.pop()[1])
        recent.append((where.step, took_s))

    def _done(self, where: Where) -> int:
        """How much of its step is done, in ticks: the layers, the head and the choosing."""
        if where.layer < HEAD:
            return max(0, where.layer)
        return self._layers + (where.layer == CHOOSING) + (where.state == State.IDLE)

    def seen_s(self, where: Where) -> float:
        """The longest tick of that kind, of those that were seen; 0 where there is none."""
        return max((took for _, took in self._longest.get(_kind(where), ())), default=0.0)

    def expected_s(self, where: Where) -> float | None:
        """The longest tick that is to be expected there; None where nothing is known that says so."""
        choosing, size = _kind(where)
        known = self._most | {kind: max(took for _, took in seen) for kind, seen in self._longest.items()}
        found = _of_size(size, {s: took for (c, s), took in known.items() if c == choosing})
        if found is None and choosing:
            # On a GPU that waits for the whole of a step.
            found = _of_size(size, {s: took * (self._layers + 2) for (c, s), took in known.items() if not c})
        return found


def _kind(where: Where) -> tuple[bool, int]:
    """Whether it is about choosing, and the power of 2 that the step's tokens do not come up to."""
    return where.layer == CHOOSING, _size(where)


def _size(where: Where) -> int:
    return where.tokens.bit_length()


def _of_size(size: int, known: dict[int, float]) -> float | None:
    """What is expected of a size by what is known of some: what is larger takes no less, and at most in proportion more."""
    if size in known:
        return known[size]
    above = [known[other] for other in known if other > size]
    below = [known[other] * 2 ** (size - other) for other in known if other < size]
    return min([*above, *below], default=None)
