"""The fake engine as a server sees one: it can be lost, and it can be full."""

from __future__ import annotations

from shardwise.engine.fake import FakeEngine


class ServingFake(FakeEngine):
    """`lost` may be set; `refusals` are raised for the next requests, one each, by `admitted`."""

    lost: str | None = None
    refusals: tuple[Exception, ...] = ()

    @property
    def ticks(self) -> int:
        """How many ticks are allowed and have not happened."""
        with self._lock:
            return self._ticks

    async def admitted(self, request: int) -> None:
        if self.refusals:
            first, *rest = self.refusals
            self.refusals = tuple(rest)
            self.abort(request)
            raise first
