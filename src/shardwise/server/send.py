"""One exchange over ASGI: a reply becomes bytes, a stream stays alive and ends in order, and a client that left is noticed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from shardwise.server.refusal import Refusal
from shardwise.server.reply import ALIVE, DONE, ENCODER, Events, Json, Text, sse

Send = Callable[[Any], Awaitable[None]]
Receive = Callable[[], Awaitable[Any]]

JSON = "application/json"
STREAM = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", "x-accel-buffering": "no"}
"""The last is for nginx, which would collect a stream otherwise."""


class Deadline:
    """The end of the time that a request may take. Made on its loop."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s, self._at = limit_s, asyncio.get_running_loop().time() + limit_s

    @asynccontextmanager
    async def within(self) -> AsyncIterator[None]:
        """Refusal 504 where it passes within this."""
        try:
            async with asyncio.timeout_at(self._at) as scope:
                yield
        except TimeoutError:
            if not scope.expired():
                raise
            raise Refusal(504, f"the request took longer than {self._limit_s:g} s", code="timeout") from None


class Exchange:
    """Where the answer to one request goes. `headers` are on every answer; `name` is the request's in the log."""

    def __init__(self, receive: Receive, send: Send, headers: Mapping[str, str], name: str) -> None:
        self.receive, self._send = receive, send
        self.headers, self.name = dict(headers), name
        self.started = False
        self.status = 0
        self.gone = False
        self._quiet_since = 0.0
        self._sending = False

    # --- whole answers ------------------------------------------------------------------------------------------------

    async def whole(self, reply: Json | Text, encoded: Callable[[object, bytes], Awaitable[bytes]]) -> None:
        """Sends what is complete. JSON, which `encoded(value, end)` makes, ends with a line end, for those who read it in a
        terminal."""
        if isinstance(reply, Json):
            data = await encoded(reply.value, b"\n")
            await self._complete(reply.status, JSON, data, reply.headers)
        else:
            await self._complete(reply.status, reply.media, reply.text.encode(), reply.headers)

    async def refuse(self, refusal: Refusal, body: object) -> None:
        await self._complete(refusal.status, JSON, ENCODER.encode(body) + b"\n", refusal.headers)

    async def empty(self, headers: Mapping[str, str]) -> None:
        """204."""
        await self._start(204, headers)
        await self._send({"type": "http.response.body", "body": b""})

    async def _complete(self, status: int, media: str, body: bytes, headers: Mapping[str, str]) -> None:
        await self._start(status, {"content-type": media, "content-length": str(len(body)), **headers})
        await self._send({"type": "http.response.body", "body": body})

    async def _start(self, status: int, headers: Mapping[str, str]) -> None:
        self.started, self.status = True, status
        merged = {**self.headers, **headers}
        encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in merged.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": encoded})

    # --- streams ------------------------------------------------------------------------------------------------------

    async def stream(self, events: Events, keep_alive_s: float, deadline: Deadline) -> None:
        """Sends the headers at once, then the frames as they come, until `deadline`.

        Whatever ends it, the generator was started and is closed, so that its request is aborted.
        """
        await self._start(200, {**STREAM, **events.headers})
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        self._quiet_since = loop.time()
        beat = asyncio.ensure_future(self._beat(keep_alive_s))
        try:
            async with deadline.within():
                if self.gone:
                    # An async generator that never started cannot be closed: let it start, and end where it first waits.
                    task.cancel()
                async for frame in events.frames:
                    self._sending = True
                    await self._send({"type": "http.response.body", "body": frame, "more_body": True})
                    self._sending = False
                    self._quiet_since = loop.time()
        finally:
            beat.cancel()
            await events.frames.aclose()

    async def _beat(self, every_s: float) -> None:
        """Comments while no frame comes, so that nobody on the way takes the connection for dead."""
        loop = asyncio.get_running_loop()
        while True:
            left = self._quiet_since + every_s - loop.time()
            if left > 0 or self._sending:
                await asyncio.sleep(max(left, every_s / 4))
                continue
            self._quiet_since = loop.time()
            await self._send({"type": "http.response.body", "body": ALIVE, "more_body": True})

    async def end(self, last: bytes = b"") -> None:
        """Ends a stream, with a last frame where there is one."""
        await self._send({"type": "http.response.body", "body": last})

    # --- the client ---------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Within it, the task is cancelled as soon as the client closes its connection; `gone` is set then. The body must
        have been read."""
        task = asyncio.current_task()
        assert task is not None

        async def watch() -> None:
            while (await self.receive())["type"] != "http.disconnect":
                pass
            self.gone = True
            task.cancel()

        watcher = asyncio.ensure_future(watch())
        try:
            yield
        finally:
            watcher.cancel()


def last_frames(refusal: Refusal, events: Events, body: dict[str, object] | None) -> bytes:
    """How a stream tells that it has failed: in its API's way, as an event `error` with `body`, or as OpenAI does."""
    if events.failed is not None:
        return events.failed(refusal)
    return sse(refusal.openai()) + DONE if body is None else sse(body, "error")
