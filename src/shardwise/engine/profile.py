"""Recording what the ranks do, each in a file of its own: begun and ended for all of them together, once at a time.

Knows no profiler and opens no file: ranks do. It lives on the engine's thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from shardwise.errors import Conflict, ShardwiseError
from shardwise.runtime import wire


@dataclass(frozen=True, slots=True)
class Bounds:
    """Where a recording goes, and how much of it there is at most: a folder, steps and seconds."""

    folder: str
    steps: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Trace:
    """What one rank recorded: `path` is "" where no step came, or where `error` says why it could not be written."""

    rank: int
    path: str
    bytes: int
    steps: int
    error: str | None = None


Traces = tuple[Trace, ...]
Told = Callable[[Traces | ShardwiseError], None]
"""Takes the traces of a recording that has ended (none of one that begins), or why there are none."""


class Recorder(Protocol):
    """An engine that records, on a thread of its own."""

    def record(self, bounds: Bounds | None, told: Told) -> None: ...


class Profiler:
    """Says who may begin and end. `tell` has all ranks hear something, `at` calls something after so many seconds."""

    def __init__(
        self, ranks: int, tell: Callable[[wire.Record | wire.EndRecord], None], at: Callable[[float, Callable[[], None]], None]
    ) -> None:
        self._ranks, self._tell, self._at = ranks, tell, at
        self._traces: dict[int, Trace] | None = None
        """Of the recording that was begun and not fetched yet, by rank."""
        self._count = 0
        self._ending = False
        self._waiting: Told | None = None

    def obey(self, bounds: Bounds | None, told: Told) -> None:
        """Begins a recording; without bounds, ends the one there is. `told` gets a Conflict where that cannot be."""
        if bounds is None:
            self._end(told)
        else:
            self._begin(bounds, told)

    def _begin(self, bounds: Bounds, told: Told) -> None:
        if self._traces is not None and len(self._traces) < self._ranks:
            told(Conflict("the ranks record already; POST /stop_profile ends it"))
            return
        self._traces, self._ending = {}, False
        self._count += 1
        count = self._count
        self._tell(wire.Record(bounds.folder, stamp(time.time()), bounds.steps))
        self._at(bounds.seconds, lambda: self._late(count))
        told(())

    def _end(self, told: Told) -> None:
        if self._traces is None:
            told(Conflict("nothing is recorded; POST /start_profile begins it"))
        elif self._waiting is not None:
            told(Conflict("the recording is being ended already; whoever asked first is told its files"))
        else:
            self._waiting = told
            self._finish()
            self._settle()

    def _late(self, count: int) -> None:
        """The time of a recording is up, whether it has ended or not."""
        if count == self._count and self._traces is not None:
            self._finish()

    def _finish(self) -> None:
        assert self._traces is not None
        if not self._ending and len(self._traces) < self._ranks:
            self._ending = True
            self._tell(wire.EndRecord())

    def took(self, rank: int, recorded: wire.Recorded) -> None:
        """What a rank has recorded, because it was told to end or had all its steps."""
        if self._traces is not None:
            self._traces[rank] = Trace(rank, recorded.path, recorded.bytes, recorded.steps, recorded.error)
            self._settle()

    def _settle(self) -> None:
        """Tells who waits, once all ranks are done. Where nobody waits, they are kept for who comes next."""
        if self._waiting is not None and self._traces is not None and len(self._traces) == self._ranks:
            told, self._waiting = self._waiting, None
            traces, self._traces = self._traces, None
            told(tuple(traces[rank] for rank in sorted(traces)))

    def fail(self, cause: ShardwiseError) -> None:
        """The engine has ended."""
        if self._waiting is not None:
            told, self._waiting = self._waiting, None
            told(cause)


def stamp(now: float) -> str:
    """A moment as it stands in the name of a file: UTC, to the millisecond."""
    return time.strftime("%Y%m%dT%H%M%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"


async def recorded(engine: Recorder, bounds: Bounds | None) -> Traces:
    """What an engine on another thread tells. Conflict, or Unavailable where it has ended."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[Traces] = loop.create_future()

    def put(said: Traces | ShardwiseError) -> None:
        if not found.done():
            if isinstance(said, ShardwiseError):
                found.set_exception(said)
            else:
                found.set_result(said)

    def told(said: Traces | ShardwiseError) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(put, said)

    engine.record(bounds, told)
    return await found
