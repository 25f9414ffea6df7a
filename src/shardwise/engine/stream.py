"""One request as an async iterator: the engine's thread drops events into an inbox, the event loop makes text of them.

Leaving the iterator, by its end, an error, a cancellation or forgetting it, aborts the request.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

from shardwise.engine.complete import Prompt
from shardwise.engine.contract import TokenEngine
from shardwise.engine.front import Front, Running
from shardwise.engine.outputs import RequestOutput
from shardwise.sched.events import Event
from shardwise.sched.request import RequestOutputKind, SamplingParams


class _Inbox:
    """Events on their way from the engine's thread to a loop. It does not know the stream, so that a forgotten one can go."""

    def __init__(self, core: TokenEngine) -> None:
        self._core = core
        self._loop = asyncio.get_running_loop()
        self._events: deque[Event] = deque()
        self._some = asyncio.Event()
        self._told = False
        self._thread = threading.get_ident()

    def put(self, event: Event) -> None:
        """On the engine's thread, or on the loop's where the engine is elsewhere."""
        self._events.append(event)
        if self._told:
            return
        self._told = True
        if threading.get_ident() == self._thread:
            self._some.set()
            return
        try:
            self._loop.call_soon_threadsafe(self._some.set)
        except RuntimeError:  # the loop is closed: nobody waits any more
            self._core.abort(event.request)

    async def take(self) -> list[Event]:
        """All events so far, at least one."""
        await self._some.wait()
        self._some.clear()
        self._told = False  # before the events are taken: one that comes now is told of again
        return [self._events.popleft() for _ in range(len(self._events))]


class Stream:
    """The outputs of one request as they come; `async for` over it, or `async with` to be sure of its end.

    The request starts with the first step. Each output holds what `params.output_kind` says; the last is `finished`.
    RequestError where it can never run, ShardwiseError where it fails.
    """

    def __init__(
        self, front: Front, prepare: Callable[[], Prompt], params: SamplingParams, priority: int, request_id: str
    ) -> None:
        """`prepare` makes the prompt, on another thread: a long text takes its time."""
        self.request_id = request_id
        self._front, self._prepare, self._params, self._priority = front, prepare, params, priority
        self._running: Running | None = None
        self._inbox: _Inbox | None = None
        self._closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> RequestOutput:
        if self._closed:
            raise StopAsyncIteration
        try:
            running = await self._next()
        except BaseException:
            self.abort()
            raise
        self._closed = running.ended
        return running.transcript.output(self._params.output_kind)

    async def _next(self) -> Running:
        """The request, one output further."""
        if self._running is None or self._inbox is None:
            prompt = await asyncio.to_thread(self._prepare)
            if self._params.structured_outputs is not None:
                await asyncio.to_thread(self._front.check, self._params)
            self._inbox = _Inbox(self._front.core)
            self._running = self._front.start(
                prompt, self._params, self._inbox.put, priority=self._priority, request_id=self.request_id
            )
        running = self._running
        while True:
            before = running.transcript.tokens
            for event in await self._inbox.take():
                running.feed(event)
            running.check(f"request {self.request_id}")
            told = running.transcript.tokens > before and self._params.output_kind is not RequestOutputKind.FINAL_ONLY
            if told or running.ended:
                return running

    @property
    def closed(self) -> bool:
        """Whether nothing more comes of it."""
        return self._closed

    def cancel(self) -> None:
        """Ends the request in the engine; the iteration goes on to its last output, which says "abort"."""
        if self._running is None:
            self._closed = True
        else:
            self._running.abort()

    def abort(self) -> None:
        """Ends the request and the iteration."""
        self._closed = True
        if self._running is not None and not self._running.ended:
            self._running.abort()

    async def aclose(self) -> None:
        """As an async generator's."""
        self.abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def __del__(self) -> None:
        # A loop that was left by `break` keeps no hold of its iterator.
        self.abort()
