"""The prompts of one HTTP request while they run: accepted all or none, their outputs as deltas, ended with the client."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Generic, Self, TypeVar

from shardwise.engine.complete import Prompt
from shardwise.engine.embed import Pooling, start_pooling
from shardwise.engine.front import Running
from shardwise.engine.outputs import CompletionOutput, Logprobs
from shardwise.engine.together import Asked
from shardwise.errors import QueueFull, ShardwiseError
from shardwise.sched.events import Event, Scored
from shardwise.sched.pooling import PoolingParams
from shardwise.sched.request import SamplingParams
from shardwise.server.backlog import LOOSE, Backlog
from shardwise.server.call import Call
from shardwise.server.pace import Pace
from shardwise.server.refusal import Refusal
from shardwise.server.service import Service

T = TypeVar("T", bound=Asked)

TOGETHER = 128
"""So many prompts of one HTTP request are with the engine at once; the others follow as these end. A long list is no reason to
refuse it, and it must not fill the queue for all others."""

LONG_SCORES = 64
"""More scores of a prompt than these are read on another thread: each takes as long as a token of an answer."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of all prompts once, of all choices, and of the prompts those that were found in the cache. `reasoning`: of those
    of the choices, where somebody reads what they are."""

    prompt: int
    completion: int
    cached: int
    reasoning: int | None = None


class Batch(Generic[T]):
    """Requests of the engine that one HTTP request asks for, and what has come of them. `async with` it: leaving aborts what
    has not ended."""

    def __init__(self, service: Service, call: Call) -> None:
        self._service, self._call = service, call
        self._running: list[T] = []
        self._open: set[int] = set()
        """The places in it of those that have not ended, as far as their events were read."""
        self._backlog = self._room(1)
        self._waiter: asyncio.Future[None] | None = None
        self._late = False
        self._left = 0
        self._feeder: asyncio.Task[None] | None = None
        self._freed = asyncio.Event()
        self._failure: ShardwiseError | None = None
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()

    def _room(self, choices: int) -> Backlog:
        settings = self._service.settings
        return Backlog(settings.max_behind * choices, settings.max_behind_bytes, max(LOOSE, 2 * choices))

    async def _begin(self, count: int, start: Callable[[int, Callable[[Event], None]], T]) -> None:
        """Hands so many to the engine, by `start(index, sink)`; returns when as many are taken as there is room for. Raises
        what kept the first one out, or what is wrong with another."""
        self._left, pace = count, Pace()
        while self._left and len(self._running) < TOGETHER:
            try:
                await self._hand(start)
            except QueueFull:
                if not self._running:
                    raise
                break
            await pace.step()
        if self._left:
            self._feeder = asyncio.create_task(self._feed(start))

    async def _hand(self, start: Callable[[int, Callable[[Event], None]], T]) -> None:
        """Hands the next one to the engine; raises where it is not taken."""
        place = len(self._running)
        running = start(place, partial(self._put, place))
        self._running.append(running)
        self._open.add(place)
        try:
            await self._service.engine.admitted(running.number)
        except BaseException:
            running.abort()
            self._running.pop()
            self._open.discard(place)
            raise
        self._left -= 1

    async def _feed(self, start: Callable[[int, Callable[[Event], None]], T]) -> None:
        """Hands over the others, each when one before it has ended, or when the queue has a place for it."""
        most, pace = TOGETHER, Pace()
        try:
            while self._left:
                await pace.step()
                self._freed.clear()
                open_now = len(self._open)
                if open_now >= most:
                    await self._freed.wait()
                    continue
                try:
                    await self._hand(start)
                except QueueFull as full:
                    most = max(1, open_now)
                    if not open_now:
                        await asyncio.sleep(full.retry_after_s)
        except ShardwiseError as error:
            self._failure = self._failure or error
            self._left = 0
            self._wake()

    def _put(self, index: int, event: Event) -> None:
        """On the engine's thread, or on this loop's."""
        self._backlog.put(index, event)
        wake = self._wake
        if self._backlog.full:
            if self._late:
                return
            # Ended now, not when its writer wakes: that one may wait for its reader for long.
            self._late, wake = True, self._cut
        if threading.get_ident() == self._thread and not self._late:
            wake()
            return
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more, and the engine must not suffer from it
            self._loop.call_soon_threadsafe(wake)

    def _cut(self) -> None:
        self.abort()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _some(self) -> None:
        """Waits until something has come. What comes while nobody waits is in the backlog."""
        self._waiter = self._loop.create_future()
        await self._waiter

    async def _news(self) -> list[int]:
        """Which of them have something new, at least one; none where all have ended. Raises what one has failed of, once what
        came before that was given out."""
        if self._failure is not None:
            raise self._failure
        while self._backlog or self._backlog.full or self._left or self._open:
            if self._backlog.full:
                raise self._too_slow()
            # Of what has come, some at a time: others have their turn between, and no piece to be written gets too large.
            await (asyncio.sleep(0) if self._backlog else self._some())
            touched: dict[int, None] = {}
            pace = Pace()
            for index, event in self._backlog.take():
                if isinstance(event, Scored) and len(event.scores) > LONG_SCORES:
                    await self._service.read(self._running[index].feed, event)
                else:
                    self._running[index].feed(event)
                    if isinstance(event, Scored):
                        await pace.step()  # and not for tokens: who waits for them may leave meanwhile, and come again
                touched[index] = None
            for index in touched:
                if self._running[index].ended:
                    self._open.discard(index)
                try:
                    self._running[index].check()
                except ShardwiseError as error:
                    self._failure = self._failure or error
            self._freed.set()
            if touched:
                return list(touched)
        return []

    def _too_slow(self) -> Refusal:
        settings = self._service.settings
        behind = f"{settings.max_behind} tokens of a choice, or {settings.max_behind_bytes} bytes,"
        return Refusal(408, f"more than {behind} waited to be read; read faster, or ask for less", code="too_slow")

    async def ended(self) -> list[T]:
        """All of them once they have ended, in the order of the prompts."""
        while await self._news():
            pass
        return self._running

    def abort(self) -> None:
        """Ends all that has not ended, and hands over no more."""
        if self._feeder is not None:
            self._feeder.cancel()
        for running in self._running:
            if not running.ended:
                running.abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()


class Job(Batch[Running]):
    """An async iterator of lists of (index of the prompt, what is new of one of its choices), the end of each told once. Each
    list holds all that has come since the one before, so a slow reader gets fewer and larger ones; one that is further behind
    than the settings allow is cut off."""

    async def start(self, prompts: Sequence[Prompt], params: Sequence[SamplingParams], priority: int = 0) -> None:
        """Hands all to the engine. RequestError, QueueFull or Unavailable where one is not taken; then none is."""
        self._prompts = list(prompts)
        self._backlog = self._room(sum(each.n for each in params))
        front, key = self._service.front, self._call.key
        await self._begin(len(prompts), lambda n, sink: front.start(prompts[n], params[n], sink, priority=priority, key=key))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[tuple[int, CompletionOutput]]:
        while touched := await self._news():
            if found := [(index, each) for index in touched for each in self._fresh(self._running[index])]:
                return found
        raise StopAsyncIteration

    def _fresh(self, running: Running) -> list[CompletionOutput]:
        """What is new of one; the choices of one that failed have no end, as the failure is told next."""
        fresh, ended = running.transcript.news(), running.transcript.ended
        if ended is None or ended.error is None:
            return fresh
        for each in fresh:
            if each.finish_reason == "abort":
                each.finish_reason = None
        return [each for each in fresh if each.token_ids or each.text or each.finish_reason]

    def scores(self, index: int) -> list[Logprobs | None] | None:
        """The log-probabilities of a prompt: complete with its first token, None where nobody asked."""
        return self._running[index].transcript.scores

    @property
    def usage(self) -> Usage:
        """So far; `cached` is known at the end of each."""
        ended = [running.transcript.ended for running in self._running]
        return Usage(
            prompt=sum(len(prompt.ids) for prompt in self._prompts),
            completion=sum(running.transcript.tokens for running in self._running),
            cached=sum(end.cached for end in ended if end is not None),
        )


class Vectors(Batch[Pooling]):
    """Prompts whose hidden states are wanted."""

    async def start(self, prompts: Sequence[Prompt], params: PoolingParams, priority: int = 0) -> None:
        """As `Job.start`."""
        engine, key = self._service.engine, self._call.key
        await self._begin(
            len(prompts), lambda n, sink: start_pooling(engine, prompts[n], params, sink, priority=priority, key=key)
        )
