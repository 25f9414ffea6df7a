"""Responses that clients come back to, in the memory of this front: bounded by number, bytes and age, apart for each tenant."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from shardwise.server.refusal import Refusal


class Tape:
    """The frames of a stream, to be read while it is written, by as many as like, from any place."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.ended = False
        self._more = asyncio.Event()

    def write(self, *frames: bytes) -> None:
        self.frames += frames
        self._wake()

    def end(self) -> None:
        self.ended = True
        self._wake()

    def _wake(self) -> None:
        self._more.set()
        self._more = asyncio.Event()

    async def read(self, start: int = 0) -> AsyncGenerator[bytes, None]:
        """From frame `start` to the end, as they come."""
        while True:
            while start < len(self.frames):
                yield self.frames[start]
                start += 1
            if self.ended:
                return
            await self._more.wait()


@dataclass(slots=True)
class Kept:
    """One response. `context` are the items that it was made from, those of the responses before it among them; `given` of
    these came with its own request. `tape` and `run` are there where it runs without its client."""

    id: str
    response: Any
    context: Sequence[dict[str, Any]]
    given: int
    tape: Tape | None = None
    run: asyncio.Task[None] | None = None
    bytes: int = 0
    made: float = field(default=0.0)

    @property
    def running(self) -> bool:
        return self.run is not None and not self.run.done()


class Store:
    """By tenant and id. Where there is too much, the oldest goes of the tenant that has most; what still runs stays."""

    def __init__(
        self,
        most: int,
        most_bytes: int,
        age_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """At most `most` responses of `most_bytes` in all, each for `age_s` seconds."""
        self.most, self.most_bytes, self.age_s, self._clock = most, most_bytes, age_s, clock
        self._kept: dict[str, OrderedDict[str, Kept]] = {}

    def __len__(self) -> int:
        return sum(len(each) for each in self._kept.values())

    @property
    def bytes(self) -> int:
        """Of all that is kept."""
        return sum(self._bytes(tenant) for tenant in self._kept)

    def keep(self, tenant: str, kept: Kept) -> None:
        """Puts it in; what is too old or too much goes."""
        kept.made = self._clock()
        self._kept.setdefault(tenant, OrderedDict())[kept.id] = kept
        self.shrink()

    def shrink(self) -> None:
        """What is too old or too much goes. To be called after the size of one has changed."""
        self._expire()
        while len(self) > self.most or self.bytes > self.most_bytes:
            if not self._drop_oldest():
                break

    def get(self, tenant: str, id: str) -> Kept:
        """404 for one that is not there, whoever else has it."""
        self._expire()
        mine = self._kept.get(tenant)
        found = None if mine is None else mine.get(id)
        if found is None:
            raise Refusal(
                404,
                f"no response {id[:80]!r} is kept here: they are kept for {self.age_s / 3600:g} h, {self.most} at most, "
                'unless they were made with "store": false or deleted',
                code="response_not_found",
            )
        return found

    def drop(self, tenant: str, id: str) -> None:
        """Keeps it no longer, and ends it if it runs. 404 for one that is not there."""
        self._forget(tenant, self.get(tenant, id))

    def all(self, tenant: str) -> Iterator[Kept]:
        """Those of one tenant, the newest first."""
        self._expire()
        return reversed(self._kept.get(tenant, OrderedDict()).values())

    def close(self) -> None:
        """Ends what runs."""
        for mine in self._kept.values():
            for kept in mine.values():
                if kept.run is not None:
                    kept.run.cancel()

    def _bytes(self, tenant: str) -> int:
        return sum(kept.bytes for kept in self._kept[tenant].values())

    def _expire(self) -> None:
        oldest = self._clock() - self.age_s
        for tenant in list(self._kept):
            for kept in list(self._kept[tenant].values()):
                if kept.made > oldest:
                    break
                if not kept.running:
                    self._forget(tenant, kept)

    def _drop_oldest(self) -> bool:
        for tenant in sorted(self._kept, key=self._bytes, reverse=True):
            for kept in self._kept[tenant].values():
                if not kept.running:
                    self._forget(tenant, kept)
                    return True
        return False

    def _forget(self, tenant: str, kept: Kept) -> None:
        if kept.run is not None:
            kept.run.cancel()
        del self._kept[tenant][kept.id]
        if not self._kept[tenant]:
            del self._kept[tenant]
