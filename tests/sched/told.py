"""A world that keeps what was told, and what the tests that read like promises say often."""

from __future__ import annotations

from shardwise.sched.events import Ended, Event
from shardwise.sched.limits import Limits
from shardwise.sched.step import Item
from tests.sched.world import World

LIMITS = Limits(tokens=64, sequences=8)
LINE = Limits(tokens=64, sequences=8, flight=1)
"""One step after the other."""


class Told(World):
    """A world that keeps what was told."""

    def __init__(self, limits: Limits = LIMITS, pages: int = 40, window: int | None = None, **others: object) -> None:
        self.events: list[Event] = []
        super().__init__((pages,), (window,), limits, **others)  # type: ignore[arg-type]

    def take(self, events: tuple[Event, ...]) -> None:
        self.events += events
        super().take(events)

    def items(self) -> tuple[Item, ...]:
        """The items of the next step."""
        step = self.step()
        assert step is not None
        return step.items

    def turn(self) -> tuple[Item, ...]:
        """A step, and its results."""
        items = self.items()
        self.apply()
        self.check()
        return items

    def end(self, number: int) -> Ended:
        (ended,) = (event for event in self.events if isinstance(event, Ended) and event.request == number)
        return ended


def prompt(length: int, kind: int = 0) -> tuple[int, ...]:
    return tuple((kind + place * place) % 7 for place in range(length))


def counts(items: tuple[Item, ...]) -> list[tuple[int, int]]:
    return [(item.start, item.count) for item in items]
