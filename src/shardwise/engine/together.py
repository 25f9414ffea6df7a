"""Many requests of one call: all are started, and the caller's thread waits for all. None outlives the call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from queue import SimpleQueue
from typing import Protocol, TypeVar

from shardwise.engine.contract import TokenEngine
from shardwise.engine.progress import Progress, progress
from shardwise.errors import RequestError
from shardwise.sched.events import Event


class Asked(Protocol):
    """A request under way, whatever is wanted of it: `Running` or `Pooling`."""

    number: int

    @property
    def ended(self) -> bool: ...

    @property
    def tokens(self) -> int: ...

    def feed(self, event: Event) -> None: ...

    def check(self, name: str | None = None) -> None: ...

    def abort(self) -> None: ...


T = TypeVar("T", bound=Asked)


def together(core: TokenEngine, count: int, start: Callable[[int, Callable[[Event], None]], T], shows: bool) -> list[T]:
    """Starts so many requests by `start(n, sink)`; they are returned when all have ended. `shows` a bar on a terminal.

    RequestError, which names the prompt, where one can never run; ShardwiseError where one fails. Errors and Ctrl-C abort all.
    """
    box = _Box(core)
    running: list[T] = []
    try:
        with progress(count, shows) as bar:
            for n in range(count):
                try:
                    running.append(start(n, partial(box.put, n)))
                except RequestError as error:
                    raise RequestError(f"prompt {n}: {error}") from None
            _drain(box, running, bar)
    except BaseException:
        box.close()
        for request in running:
            request.abort()
        raise
    return running


class _Box:
    """The events of all requests of one call, on their way from the engine's thread to the caller's."""

    def __init__(self, core: TokenEngine) -> None:
        self._core = core
        self._closed = False
        self.events: SimpleQueue[tuple[int, Event]] = SimpleQueue()

    def put(self, index: int, event: Event) -> None:
        """On the engine's thread. A request that began just as the call was interrupted has nobody else to abort it."""
        if self._closed:
            self._core.abort(event.request)
        else:
            self.events.put((index, event))

    def close(self) -> None:
        self._closed = True


def _drain(box: _Box, running: Sequence[Asked], bar: Progress) -> None:
    """Reads events until every request has ended; ShardwiseError for the first that failed."""
    left = len(running)
    while left:
        index, event = box.events.get()
        request = running[index]
        before = request.tokens
        request.feed(event)
        request.check(f"prompt {index}")
        left -= request.ended
        bar.add(request.tokens - before, done=request.ended)
