"""The prompts of one HTTP request while they run: accepted all or none, their outputs as deltas, ended with the client."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self

from shardwise.engine.complete import Prompt
from shardwise.engine.front import Running
from shardwise.engine.outputs import RequestOutput
from shardwise.sched.events import Ended, Event
from shardwise.sched.request import RequestOutputKind, SamplingParams
from shardwise.server.refusal import Refusal
from shardwise.server.service import Service


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of all prompts once, of all choices, and of the prompts those that were found in the cache."""

    prompt: int
    completion: int
    cached: int


class Job:
    """An async iterator of lists of (index of the prompt, what is new of it). Each list holds all that has come since the one
    before, so a slow reader gets few large ones; one that stays `max_behind` tokens of each choice behind is cut off.
    `async with` it: leaving aborts what has not ended."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._running: list[Running] = []
        self._prompts: list[Prompt] = []
        self._events: deque[tuple[int, Event]] = deque()
        self._some = asyncio.Event()
        self._limit, self._late = service.settings.max_behind, False
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()

    async def start(self, prompts: Sequence[Prompt], params: Sequence[SamplingParams], priority: int = 0) -> None:
        """Hands all to the engine. RequestError, QueueFull or Unavailable where one is not taken; then none is."""
        self._prompts = list(prompts)
        self._limit = self._service.settings.max_behind * sum(each.n for each in params)
        for index, (prompt, each) in enumerate(zip(prompts, params, strict=True)):
            self._running.append(self._service.front.start(prompt, each, partial(self._put, index), priority=priority))
        for running in self._running:
            await self._service.engine.admitted(running.number)

    def _put(self, index: int, event: Event) -> None:
        """On the engine's thread, or on this loop's."""
        if len(self._events) >= self._limit:
            self._late = True
        if not self._late or isinstance(event, Ended):
            self._events.append((index, event))
        if threading.get_ident() == self._thread:
            self._some.set()
            return
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more, and the engine must not suffer from it
            self._loop.call_soon_threadsafe(self._some.set)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[tuple[int, RequestOutput]]:
        while not all(running.ended for running in self._running) or self._events:
            await self._some.wait()
            self._some.clear()
            if self._late:
                self.abort()
                self._events.clear()
                raise Refusal(408, f"{self._limit} tokens waited to be read; read faster, or ask for less", code="too_slow")
            touched: dict[int, None] = {}
            while self._events:
                index, event = self._events.popleft()
                self._running[index].feed(event)
                touched[index] = None
            for index in touched:
                self._running[index].check()
            if touched:
                return [(index, self._running[index].transcript.output(RequestOutputKind.DELTA)) for index in touched]
        raise StopAsyncIteration

    @property
    def usage(self) -> Usage:
        """So far; `cached` is known at the end of each."""
        ended = [running.transcript.ended for running in self._running]
        return Usage(
            prompt=sum(len(prompt.ids) for prompt in self._prompts),
            completion=sum(running.transcript.tokens for running in self._running),
            cached=sum(end.cached for end in ended if end is not None),
        )

    def abort(self) -> None:
        """Ends all that has not ended."""
        for running in self._running:
            if not running.ended:
                running.abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()
