"""The events of one response on their way to its client: those that repeat a long answer become bytes beside the loop."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from shardwise.server.responses.output import StreamEvent, frame, is_long

Elsewhere = Callable[[Callable[[], list[bytes]]], Awaitable[list[bytes]]]
"""Does something on another thread."""


class Outbox:
    """Takes events as they happen; gives frames, where `seal` and then `take` is called."""

    def __init__(self, elsewhere: Elsewhere) -> None:
        self._elsewhere = elsewhere
        self._events: list[StreamEvent] = []
        self._frames: list[bytes] = []

    def put(self, event: StreamEvent) -> None:
        """One more. What it tells of must stay as it is until it is taken."""
        self._events.append(event)

    async def seal(self) -> None:
        """Makes frames of what is long. Where that is cancelled, nothing is lost."""
        if any(map(is_long, self._events)):
            events = self._events[:]
            self._frames += await self._elsewhere(lambda: [frame(event) for event in events])
            del self._events[: len(events)]

    def take(self) -> list[bytes]:
        """The frames since the last time; those that are not made yet are made here and now."""
        made = [*self._frames, *map(frame, self._events)]
        self._frames, self._events = [], []
        return made
