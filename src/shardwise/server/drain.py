"""How many requests are open, and whether new ones are still taken: what a graceful end waits for. Knows no HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Drain:
    """Of one event loop. `begin` refuses new requests from then on; `idle` returns once none is open."""

    def __init__(self) -> None:
        self.draining = False
        self.count = 0
        self._waiting: list[asyncio.Future[None]] = []

    def begin(self) -> None:
        self.draining = True

    @contextmanager
    def open(self) -> Iterator[None]:
        """A request is open within it, whatever ends it."""
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1
            if not self.count:
                for future in self._waiting:
                    if not future.done():
                        future.set_result(None)
                self._waiting.clear()

    async def idle(self) -> None:
        """Returns as soon as no request is open. Give it a deadline with `asyncio.timeout`."""
        while self.count:
            future = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            await future
