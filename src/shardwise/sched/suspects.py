"""Who is run alone: after a step has failed, each of its requests in turn, until it is shown to be harmless.

It decides nothing about who goes first, and knows no errors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Many

from shardwise.sched.flight import Flight
from shardwise.sched.sequence import Sequence

Goals = Mapping[int, int]
"""By choice, how many of its tokens must be computed again."""


class Suspects:
    """Requests by number, those accused first first. Only the first of them may run."""

    def __init__(self) -> None:
        self._goals: dict[int, Goals] = {}

    @property
    def alone(self) -> int | None:
        """Who may run, and nobody else; None where all may."""
        return next(iter(self._goals), None)

    def accuse(self, request: int, found: Goals) -> None:
        """One more suspect. Of one that is here already, what it had to compute again stays to be computed."""
        before = self._goals.get(request, {})
        self._goals[request] = {choice: max(found.get(choice, 0), before.get(choice, 0)) for choice in {**before, **found}}

    def clear(self, request: int) -> None:
        """A request is none, or no more."""
        self._goals.pop(request, None)

    def passed(self, own: Many[Sequence]) -> bool:
        """Whether the sequences of the one that runs alone have computed all that they had to, or have ended. One that is to
        begin with a fork which was undone is not there yet."""
        wanted = self._goals[own[0].request.number]
        done = {sequence.choice for sequence in own if sequence.finished or sequence.computed >= wanted.get(sequence.choice, 0)}
        return done.issuperset(wanted)


def goals(own: Iterable[Sequence], flights: Iterable[Flight]) -> Goals:
    """How far the steps in flight would have brought the sequences of a request. Guesses do not count: who knows whether they
    were right. A step of one that was preempted since counts: it was computed, too."""
    parts = [flight.parts for flight in flights]
    found = {}
    for sequence in own:
        stops = [part.start + part.count - part.guesses for each in parts if (part := each.get(sequence.number))]
        if not sequence.finished:
            found[sequence.choice] = max(stops, default=sequence.issued)
    return found


def doubted(flights: Iterable[Flight]) -> dict[int, int]:
    """The requests that steps in flight compute for: their numbers by arrival, as a number may have been taken again."""
    parts = (part for flight in flights for part in flight.parts.values())
    return {part.sequence.order[1]: part.sequence.request.number for part in parts}


def others(alone: int, flights: Iterable[Flight]) -> bool:
    """Whether steps in flight compute for anybody but one."""
    return any(number != alone for number in doubted(flights).values())
