"""An engine in another process, as a front has it: what is asked goes out over a socket, events come in on the event loop.

It starts nothing. Where another engine takes the place of one that is gone, open requests go on there after what they were
given. Whoever calls it on another thread than the loop's is served by the loop all the same.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from itertools import count
from typing import cast

from shardwise.engine import bridge
from shardwise.engine.admit import admit
from shardwise.engine.asked import Asked
from shardwise.engine.incident import Incident
from shardwise.engine.pending import Pending
from shardwise.engine.profile import Bounds, Traces
from shardwise.engine.setup import Setup
from shardwise.engine.status import Status
from shardwise.errors import QueueFull, RequestError, ShardwiseError, Unavailable
from shardwise.sched.events import Ended, Event
from shardwise.sched.pooling import PoolingParams
from shardwise.sched.request import SEEDS, SamplingParams
from shardwise.sched.scheduler import Scheduler
from shardwise.sched.sequence import Request

CLOSED = "the engine was closed"

Why = Callable[[float], str | None]
"""Waits for so many seconds at most for the engine's process to end: how it did, None where it has not."""

Again = Callable[[], Awaitable[socket.socket]]
"""Waits for an engine in the place of the one whose connection is gone: a connection to it. ShardwiseError, the cause, where
none comes."""

AWAY = "the connection to the engine was lost, and is being made anew"

AWAY_S = 2
"""When to come again, where too many wait for an engine."""

WAITING = 4
"""So many requests are kept at most for each sequence that can run at once, while there is no engine to take them in."""

WHY_S = 5.0
"""How long requests wait for a reason once the connection is gone. The process may well live: it cuts off who does not read."""


KEPT = 1024
"""How many refusals are kept for those who ask for them later: whoever does not ask leaves them behind."""


class RemoteEngine(asyncio.Protocol):
    """One connection to an engine's process, on one event loop. Sinks are called on the loop's thread."""

    def __init__(self, setup: Setup, why: Why | None = None, again: Again | None = None) -> None:
        """To be made by `open`."""
        self.setup = self._first = setup
        self._why, self._again = why, again
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._transport: asyncio.Transport | None = None
        self._frames = bridge.Frames()
        self._numbers = count(1)
        self._open: dict[int, Pending] = {}
        self._refused: OrderedDict[int, ShardwiseError] = OrderedDict()
        self._knocks: dict[int, asyncio.Future[None]] = {}
        self._knocking = bytearray()
        self._full = False
        self._asked = Asked(self._loop, self._send)
        self.mending: Incident | None = None
        self.incidents: tuple[Incident, ...] = ()
        self._lost: str | None = None
        self._away: str | None = None
        self._gone: asyncio.Future[str] = self._loop.create_future()
        self._learning: asyncio.Task[None] | None = None
        self._scheduler = _check_of(setup)

    @staticmethod
    async def open(sock: socket.socket, setup: Setup, why: Why | None = None, again: Again | None = None) -> RemoteEngine:
        """The engine at the other end of `sock`, as `CoreProcess.connect` gives it. Once that is gone, `again` is asked for
        another one. `why` is asked, on another thread, how it came to its end where it could not say so itself:
        `CoreProcess.wait` knows, and `CoreKeeper.why`."""
        loop = asyncio.get_running_loop()
        _, engine = await loop.create_unix_connection(lambda: RemoteEngine(setup, why, again), sock=sock)
        return engine

    # --- requests: from any thread ------------------------------------------------------------------------------------

    def submit(
        self,
        prompt: Sequence[int],
        params: SamplingParams | PoolingParams,
        sink: Callable[[Event], None],
        *,
        ends: Sequence[int] = (),
        bad: Sequence[Sequence[int]] = (),
        priority: int = 0,
        tenant: str = "",
        timeout_s: float | None = None,
        key: str = "",
    ) -> int:
        """The number of a request that was sent. RequestError where it can never run, Unavailable where the engine is gone;
        whether it was taken in, `admitted` says."""
        if self._lost is not None:
            raise Unavailable(self._lost)
        limit = admit(self.setup, prompt, params)
        number, given = next(self._numbers), tuple(prompt)
        if isinstance(params, SamplingParams) and params.seed is None and params.temperature:
            # As another engine would not draw the same one.
            params = params.seeded(secrets.randbelow(SEEDS))
        sampling, pooling = (params, None) if isinstance(params, SamplingParams) else (None, params)
        self._scheduler.check(Request(number, given, limit, n=sampling.n if sampling else 1))
        vocab = self.setup.layout.model.vocab
        kept = tuple(i for i in ends if 0 <= i < vocab)
        words = tuple(tuple(word) for word in bad if word and all(0 <= i < vocab for i in word))
        asked = bridge.Submit(number, given, sampling, pooling, kept, words, priority, tenant, timeout_s, key)
        data = bridge.frame(asked)
        self._open[number] = Pending(asked, sink, time.monotonic())
        self._call(self._begin, number, data)
        return number

    def abort(self, request: int) -> None:
        """Ends a request wherever it is; one that has ended is ignored."""
        if request in self._open:
            self._call(self._abort, request)

    def finish(self, request: int, choice: int) -> None:
        """Ends one continuation, whose text is complete; one that has ended is ignored."""
        if request in self._open:
            self._call(self._finish, request, choice)

    @property
    def lost(self) -> str | None:
        """Why it takes no requests any more; None while it does."""
        return self._lost

    @property
    def away(self) -> str | None:
        """As `ServingEngine.away`: what became of the engine, while another one is awaited."""
        return self._away

    def close(self) -> None:
        """Closes the connection: every open request ends with an error, here and there."""
        self._call(self._end, CLOSED)

    def _call(self, call: Callable[..., None], *values: object) -> None:
        """On the loop's thread: now, if this is it."""
        if threading.get_ident() == self._thread:
            call(*values)
        else:
            with suppress(RuntimeError):  # the loop is closed, and the connection with it
                self._loop.call_soon_threadsafe(call, *values)

    # --- on the loop --------------------------------------------------------------------------------------------------

    async def room(self, key: str, tokens: int) -> None:
        """As `ServingEngine.room`. The engine is asked only while the last thing that it said of its queue was that it is full:
        otherwise nearly every request is taken in, and need not wait for one more answer."""
        if self._away is not None and self._lost is None:
            # What was taken in comes back as well, and has its places there already.
            if sum(not found.taken for found in self._open.values()) >= WAITING * self.setup.limits.sequences:
                raise QueueFull(f"{self._away}; many requests wait for it: come back in {AWAY_S} s", AWAY_S)
            return
        if not self._full or self._lost is not None:
            return
        number, answer = next(self._numbers), self._loop.create_future()
        self._knocks[number] = answer
        # All that come in one round of the loop go out at once: when many are refused, system calls are what they cost.
        if not self._knocking:
            self._loop.call_soon(self._send_knocks)
        self._knocking += bridge.frame(bridge.Knock(number, key, tokens))
        try:
            await answer
        finally:
            self._knocks.pop(number, None)
            del answer  # it holds the error whose traceback holds this frame: a cycle, with all of a request in it

    def _send_knocks(self) -> None:
        data, self._knocking = self._knocking, bytearray()
        self._send(data)

    async def admitted(self, request: int) -> None:
        """As `ServingEngine.admitted`."""
        if (error := self._refused.pop(request, None)) is not None:
            raise error
        found = self._open.get(request)
        if found is None or found.taken:
            return
        if found.answer is None:
            found.answer = self._loop.create_future()
        try:
            await found.answer
        finally:
            del found  # as in `room`

    async def status(self) -> Status:
        """What the engine is doing. Unavailable where it is gone, or away."""
        self._reachable()
        return cast(Status, await self._asked.ask(bridge.Ask))

    async def profile(self, bounds: Bounds | None) -> Traces:
        """As `ServingEngine.profile`."""
        self._reachable()
        return cast(Traces, await self._asked.ask(lambda number: bridge.Profile(number, bounds)))

    async def recut(self, shares: tuple[float, ...]) -> None:
        """As `ServingEngine.recut`."""
        self._reachable()
        await self._asked.ask(lambda number: bridge.Reshard(number, shares))

    async def gone(self) -> str:
        """Waits until the engine is lost, or closed: why."""
        return await asyncio.shield(self._gone)

    def _reachable(self) -> None:
        if (reason := self._lost or self._away) is not None:
            raise Unavailable(reason)

    def _abort(self, number: int) -> None:
        if (found := self._open.get(number)) is None:
            return
        found.over = True
        if self._away is None:
            self._send(bridge.frame(bridge.Abort(number)))
        else:
            self._tell(number, found, found.end(number))

    def _finish(self, number: int, choice: int) -> None:
        if (found := self._open.get(number)) is None:
            return
        found.finish(choice)
        if self._away is None:
            self._send(bridge.frame(bridge.FinishChoice(number, choice)))
        elif found.over:
            self._tell(number, found, found.end(number))

    def _begin(self, number: int, data: bytes) -> None:
        if self._lost is None:
            self._send(data)  # to nobody while there is none: it is sent with the others once there is
        else:  # meanwhile, as seen from another thread
            self._refuse(number, Unavailable(self._lost))

    def _send(self, data: bytes | bytearray) -> None:
        if self._transport is not None and self._lost is None and self._away is None:
            self._transport.write(data)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._lost is not None:  # closed while it was made anew
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._frames.feed(data):
                self._take(message)
        except bridge.BridgeError as error:
            self._end(f"the connection to the engine failed: {error}")

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if self._lost is None:
            self._learning = self._loop.create_task(self._learn() if self._again is None else self._return(self._again))

    async def _return(self, again: Again) -> None:
        """The engine is gone, and may come back: then all that is open goes on."""
        self._leave(AWAY)
        learning = self._loop.create_task(self._learn_why())
        try:
            sock = await again()
            if self._lost is not None:
                sock.close()
                return
            await self._loop.create_unix_connection(lambda: self, sock=sock)
        except (ShardwiseError, OSError) as error:
            self._end(str(error))
            return
        finally:
            learning.cancel()
        if self._lost is None and self._transport is not None:  # else it was lost again
            self._away = None
            self._resume()

    async def _learn_why(self) -> None:
        if self._why is not None and (why := await asyncio.to_thread(self._why, WHY_S)) is not None:
            self._away = f"{why}; another one is started"

    def _leave(self, reason: str) -> None:
        """Nothing is computed for a while. What is over has ended; what was asked of the engine itself is not answered."""
        self._away, self._full, self.mending = reason, False, None
        self._frames = bridge.Frames()
        self.setup, self._scheduler = self._first, _check_of(self._first)  # with which every engine begins
        for answer in self._knocks.values():
            if not answer.done():
                answer.set_result(None)
        self._asked.fail(Unavailable(reason))
        for number, found in list(self._open.items()):
            if found.over:
                self._tell(number, found, found.end(number))

    def _resume(self) -> None:
        """Those that were taken in first: the others have to find a place beside them."""
        now = time.monotonic()
        for number, found in sorted(self._open.items(), key=lambda item: (not item[1].taken, item[0])):
            try:
                self._send(bridge.frame(found.again(now)))
            except bridge.BridgeError as error:
                self._tell(number, found, Ended(number, str(error)))

    async def _learn(self) -> None:
        """The engine is gone and did not say why."""
        why = None if self._why is None else await asyncio.to_thread(self._why, WHY_S)
        self._end(why or "the connection to the engine's process was lost")

    def _take(self, message: bridge.Message) -> None:
        if isinstance(message, bridge.Events):
            for packed in message.events:
                if (found := self._open.get(packed.request)) is not None:
                    self._happened(found, packed)
        elif isinstance(message, bridge.Admitted):
            self._full = False
            if (found := self._open.get(message.number)) is not None:
                found.admit()
            elif message.number in self._knocks:
                self._answer_knock(message.number, None)
        elif isinstance(message, bridge.Refused):
            self._full = self._full or message.kind == "full"
            tell = self._answer_knock if message.number in self._knocks else self._refuse
            tell(message.number, _error(message))
        elif isinstance(message, bridge.Answer | bridge.Profiled | bridge.Resharded):
            self._asked.take(message)
        elif isinstance(message, bridge.Noticed | bridge.Recut):
            self._take_changed(message)
        elif isinstance(message, bridge.Gone):
            self._end(message.reason)
        else:
            raise bridge.BridgeError(f"an engine does not send {type(message).__name__}")

    def _take_changed(self, message: bridge.Noticed | bridge.Recut) -> None:
        if isinstance(message, bridge.Noticed):
            self.mending, self.incidents = message.mending, message.incidents
        else:
            self.setup = message.boot.setup()
            self._scheduler = _check_of(self.setup)

    def _happened(self, found: Pending, packed: bridge.Packed) -> None:
        if not found.taken:
            found.admit()
        if isinstance(packed, bridge.Began):
            found.began = packed.prefilled, packed.cached
        else:
            self._tell(packed.request, found, bridge.unpack(packed))

    def _answer_knock(self, number: int, error: ShardwiseError | None) -> None:
        answer = self._knocks[number]
        if answer.done():  # whoever waited was cancelled
            return
        if error is None:
            answer.set_result(None)
        else:
            answer.set_exception(error)

    def _tell(self, number: int, found: Pending, event: Event) -> None:
        found.note(event)
        if isinstance(event, Ended):
            del self._open[number]
            found.admit()  # whoever waits for that hears of the end as well
        try:
            found.sink(event)
        except Exception as error:
            # It is this request's sink that failed; the others' are well.
            self.abort(number)
            self._loop.call_exception_handler({"message": f"the sink of request {number} failed", "exception": error})

    def _refuse(self, number: int, error: ShardwiseError) -> None:
        """Ends a request that was not taken in. Whoever waits in `admitted` hears it there alone."""
        if (found := self._open.get(number)) is None:
            return
        if found.answer is not None and not found.taken:
            del self._open[number]
            if not found.answer.done():
                found.answer.set_exception(error)
            return
        if found.taken:  # by an engine before this one
            self._tell(number, found, Ended(number, str(error)))
            return
        self._refused[number] = error
        while len(self._refused) > KEPT:
            self._refused.popitem(last=False)
        self._tell(number, found, Ended(number, str(error)))

    def _end(self, reason: str) -> None:
        """The engine is lost: everything that is open ends with the cause."""
        if self._lost is not None:
            return
        self._lost = reason
        for number, found in list(self._open.items()):
            if found.taken:
                self._tell(number, found, Ended(number, reason))
            else:
                self._refuse(number, Unavailable(reason))
        self._asked.fail(Unavailable(reason))
        for answer in self._knocks.values():
            if not answer.done():
                answer.set_exception(Unavailable(reason))
        if not self._gone.done():
            self._gone.set_result(reason)
        if self._transport is not None:
            self._transport.close()


def _check_of(setup: Setup) -> Scheduler:
    """To be asked for its check alone: whether a request could ever run is the same here as there."""
    windows = [group.window for group in setup.layout.cache]
    return Scheduler(setup.pages, windows, setup.limits, lambda: 0.0)


def _error(refused: bridge.Refused) -> ShardwiseError:
    if refused.kind == "full":
        return QueueFull(refused.message, refused.retry_after_s)
    return RequestError(refused.message) if refused.kind == "request" else Unavailable(refused.message)
