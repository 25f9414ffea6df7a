"""An engine: ranks in place, a core loop on a thread of its own, and requests from any thread. It knows ids, not text."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import count
from queue import SimpleQueue
from types import TracebackType
from typing import Literal, Self

from shardwise import env
from shardwise.engine.admit import admit
from shardwise.engine.alarm import Alarm
from shardwise.engine.core import Core
from shardwise.engine.gate import Gate
from shardwise.engine.grammar import Grammars
from shardwise.engine.incident import Incident
from shardwise.engine.journal import Entry, Sink
from shardwise.engine.process_ranks import ProcessRanks
from shardwise.engine.profile import Bounds, Profiler, Told, Traces, recorded
from shardwise.engine.ranks import Formed, Progress, Ranks
from shardwise.engine.reshard import TellSetup, recut_by
from shardwise.engine.setup import Setup, recut
from shardwise.engine.status import Status, awaited, gather, rank_statuses
from shardwise.errors import Conflict, RequestError, ShardwiseError
from shardwise.sched.events import Emitted, Ended, Event
from shardwise.sched.pooling import PoolingParams
from shardwise.sched.request import SEEDS, SamplingParams
from shardwise.sched.written import NEW, Written
from shardwise.telemetry import log

CLOSED = "the engine was closed"


class Engine:
    """Ready for requests once made. A context manager: leaving it ends every request and every rank.

    `ranks`: "processes" on this host, "threads" in this process, or a started group. `queue` bounds the requests that wait,
    and `queue_tokens` their prompts; None bounds nothing.
    """

    def __init__(
        self,
        setup: Setup,
        ranks: Literal["processes", "threads"] | Ranks = "processes",
        progress: Progress | None = None,
        *,
        queue: int | None = None,
        queue_tokens: int | None = None,
    ) -> None:
        self.setup = setup
        self.turned: Callable[[], None] = lambda: None
        """Called on the engine's thread when it is about to wait, after all events of a step. It must not wait or raise."""
        self.crashed: Callable[[BaseException], None] = lambda _: None
        """Called on the engine's thread with what nobody foresaw, before anybody is told that the engine has ended."""
        self.changed: Callable[[], None] = lambda: None
        """Called on the engine's thread when ranks were lost, or go on; `mending` and `incidents` say more. As `turned`."""
        self.gate = Gate(queue, queue_tokens, time.monotonic)
        if ranks == "processes":
            self.ranks: Ranks = ProcessRanks(setup, progress)
        elif ranks == "threads":
            # Here and not above: it imports torch.
            from shardwise.engine.thread_ranks import ThreadRanks

            self.ranks = ThreadRanks(setup, progress)
        else:
            self.ranks = ranks
        if isinstance(self.ranks, ProcessRanks):  # at its start the group may have come to fewer ranks than were asked for
            setup = self.setup = self.ranks.setup
        self.core = Core(setup, self.ranks, time.monotonic, self._begun, self._gone)
        self.grammars = Grammars(setup.folder, setup.layout.model.vocab)
        self._compiler = ThreadPoolExecutor(1, "grammars")  # which starts its thread when it has something to do
        self._alarm = Alarm()
        self._profiler = self._new_profiler()
        self._resharded: list[TellSetup] = []
        self._noticed: tuple[Incident | None, tuple[Incident, ...]] = (None, ())
        self._statuses = rank_statuses(setup, self.ranks.ready)
        self._numbers = count(1)
        self._orders: deque[Callable[[], None]] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()
        self._ended: ShardwiseError | None = None
        self._thread = threading.Thread(target=self._run, daemon=True, name="engine")
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # --- from any thread ----------------------------------------------------------------------------------------------

    def submit(
        self,
        prompt: Sequence[int],
        params: SamplingParams | PoolingParams,
        sink: Sink,
        *,
        ends: Sequence[int] = (),
        bad: Sequence[Sequence[int]] = (),
        priority: int = 0,
        tenant: str = "",
        timeout_s: float | None = None,
        key: str = "",
        written: Written | None = None,
        began: Callable[[int, int], None] | None = None,
    ) -> int:
        """The number of a request that now runs, or waits to. `ends` are the ids that end it (none with `ignore_eos`), `bad`
        the sequences of ids that it must not write; `tenant` keeps its cache apart. `timeout_s` from now it fails with TIME_UP.
        `key` is what it is known by when it comes again after QueueFull. With PoolingParams nothing is drawn: the prompt's
        hidden states are wanted. Structured outputs are compiled on a thread of their own, in limits of their own, and what
        does not compile fails the request; to have strangers' grammars refused, and tried where they do no harm, is the front's
        part (`Front.check`). `written`: an engine that is gone had taken it in, and given it that; so it is not too many.
        `began` is as in `Entry`.

        `sink` gets its events on the engine's thread and must not wait. RequestError where the request can never run;
        QueueFull where too many wait; ShardwiseError, the cause, where the engine has ended.
        """
        limit = admit(self.setup, prompt, params)
        seed = params.seed if isinstance(params, SamplingParams) else 0
        seed = secrets.randbelow(SEEDS) if seed is None else seed
        # A checkpoint's end ids may lie beyond its logits; such a one is never drawn.
        vocab = self.setup.layout.model.vocab
        kept = tuple(sorted({i for i in ends if 0 <= i < vocab}))
        words = tuple(tuple(word) for word in bad if word and all(0 <= i < vocab for i in word))
        now, given = time.monotonic(), tuple(prompt)
        until = None if timeout_s is None else now + timeout_s
        before = NEW if written is None else written
        number = next(self._numbers)
        entry = Entry(number, given, params, seed, limit, sink, kept, words, priority, tenant, now, until, None, before, began)
        request = self.core.request(entry)
        self.core.scheduler.check(request)
        before.check(request, vocab)
        take = self.core.add if entry.structured is None else self.core.expect
        with self._lock:
            if self._ended is not None:
                raise self._ended
            if written is None:
                self.gate.enter(number, len(given), key or (tenant, hash(given)))
            elif before.began is None:
                self.gate.let_in(number, len(given))
            self._orders.append(lambda: take(entry))
            os.eventfd_write(self._wake, 1)
        if entry.structured is not None:
            if until is not None:  # which passes while its grammar, or another's, is compiled
                self._alarm.at(until, partial(self._expire, number))
            with suppress(RuntimeError):  # closed meanwhile, which ends what is expected
                self._compiler.submit(self._compile, entry)
        return number

    def _expire(self, request: int) -> None:
        self._order(lambda: self.core.expire(request), late=True)

    def _compile(self, entry: Entry) -> None:
        """Lets a request begin that waits for its grammar."""
        wanted = entry.structured
        assert wanted is not None
        if entry.ended:  # aborted while others' were compiled
            return
        try:
            entry.grammar = self.grammars.compile(wanted)
        except BaseException as failure:  # whatever it is, a panic of the library too, it is this request's alone
            error = str(failure) if isinstance(failure, ShardwiseError) else f"{wanted.said} failed: {failure!r}"
            asked = isinstance(failure, RequestError)
            self._order(lambda: self.core.abort(entry.number, error, asked=asked), late=True)
        else:
            self._order(lambda: self.core.begin(entry), late=True)

    def knock(self, key: str, tokens: int) -> None:
        """QueueFull where `submit` would raise it now for a request of about so many prompt tokens, known by `key`."""
        with self._lock:
            self.gate.knock(tokens, key)

    async def room(self, key: str, tokens: int) -> None:
        """As `knock`."""
        self.knock(key, tokens)

    async def admitted(self, request: int) -> None:
        """Nothing is left to wait for: what `submit` returned was taken in."""

    def gather(self, told: Callable[[Status | None], None]) -> None:
        """Has `told` called on the engine's thread with its status; at once with None where the engine has ended."""
        try:
            self._order(lambda: told(gather(self.core, self.gate, self._statuses, time.monotonic())))
        except ShardwiseError:
            told(None)

    async def status(self) -> Status:
        """What it is doing. Unavailable where it has ended."""
        return await awaited(self)

    def record(self, bounds: Bounds | None, told: Told) -> None:
        """Has what the ranks do recorded from now on; without bounds, ends that and has `told` called on the engine's thread
        with the files. Ranks that are no processes of their own are not recorded: a Conflict, as where it is recorded already
        or is not."""
        if (profiler := self._profiler) is None:
            told(Conflict("only ranks that are processes can be recorded; these are none"))
            return
        try:
            self._order(lambda: profiler.obey(bounds, told))
        except ShardwiseError as error:
            told(error)

    async def profile(self, bounds: Bounds | None) -> Traces:
        """As `record`: the files."""
        return await recorded(self, bounds)

    async def recut(self, shares: tuple[float, ...]) -> None:
        """As `ServingEngine.recut`."""
        await recut_by(self, shares)

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        """Has `call` called on the engine's thread after so long."""
        self._alarm.at(time.monotonic() + seconds, lambda: self._order(call, late=True))

    @property
    def lost(self) -> str | None:
        """Why it takes no requests any more; None while it does."""
        return None if self._ended is None else str(self._ended)

    @property
    def cause(self) -> ShardwiseError | None:
        """The same as the error it was."""
        return self._ended

    @property
    def away(self) -> str | None:
        """It is here, or lost."""
        return None

    @property
    def mending(self) -> Incident | None:
        """The loss for which nothing is computed now; None while the ranks are whole."""
        return self.ranks.mending if isinstance(self.ranks, ProcessRanks) else None

    @property
    def incidents(self) -> tuple[Incident, ...]:
        """The last losses that were mended, in order."""
        return tuple(self.ranks.incidents) if isinstance(self.ranks, ProcessRanks) else ()

    def reshard(self, shares: tuple[float, ...], told: TellSetup) -> None:
        """Has the model cut anew, into so many shares, and has `told` called on the engine's thread with what runs then, or
        with why it does not. Open requests go on."""
        try:
            self._order(lambda: self._recut(shares, told))
        except ShardwiseError as error:
            told(error)

    def _recut(self, shares: tuple[float, ...], told: TellSetup) -> None:
        if not isinstance(self.ranks, ProcessRanks):
            told(Conflict("only ranks that are processes can be cut anew; these are none"))
        elif not self.ranks.whole or self._resharded:
            told(Conflict("the ranks are forming a group already; ask again when they serve"))
        else:
            try:
                setup = recut(self.setup, shares)
            except ShardwiseError as error:
                told(error)
            else:
                self._resharded.append(told)
                self.ranks.reform(setup)

    def abort(self, request: int) -> None:
        """Ends a request wherever it is; one that has ended is ignored."""
        self._order(lambda: self.core.abort(request), late=True)

    def finish(self, request: int, choice: int) -> None:
        """Ends one continuation, whose text is complete; one that has ended is ignored."""
        self._order(lambda: self.core.finish(request, choice), late=True)

    def generate(self, prompt: Sequence[int], params: SamplingParams, ends: Sequence[int] = ()) -> Iterator[Emitted]:
        """The tokens of one request as they come, of all its choices. Closing the iterator ends it. Raises the cause where
        the request or the engine fails."""
        events: SimpleQueue[Event] = SimpleQueue()
        ends = () if params.ignore_eos else ends
        number = self.submit(prompt, params, events.put, ends=ends)
        try:
            while not isinstance(event := events.get(), Ended):
                if isinstance(event, Emitted):
                    yield event
        finally:
            self.abort(number)
        if event.error:
            raise self._ended if self._ended and event.error == str(self._ended) else ShardwiseError(event.error)

    def close(self) -> None:
        """Ends every open request with an error, then all ranks. Twice is once."""
        self._end(ShardwiseError(CLOSED))
        self._compiler.shutdown(wait=False, cancel_futures=True)
        self._alarm.close()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _end(self, cause: ShardwiseError) -> None:
        with self._lock:
            if self._ended is None:
                self._ended = cause
                os.eventfd_write(self._wake, 1)

    def _begun(self, request: int) -> None:
        if (began := self.core.journal.entries[request].began) is not None:
            began(*self.core.scheduler.began[request])
        with self._lock:
            self.gate.start(request)

    def _gone(self, request: int) -> None:
        with self._lock:
            self.gate.leave(request)

    def _order(self, order: Callable[[], None], *, late: bool = False) -> None:
        """Hands something to the engine's thread. `late`: it is no error if the engine has ended."""
        with self._lock:
            if self._ended is None:
                self._orders.append(order)
                os.eventfd_write(self._wake, 1)
            elif not late:
                raise self._ended

    # --- the engine's thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._obey():
                if self.ranks.whole:
                    self.core.issue()
                self.turned()
                found = self.ranks.wait(self._wake)
                if isinstance(found, Formed):
                    self._formed(found)
                elif found:
                    self.core.apply(*found)
                self._notice()
        except BaseException as error:
            if env.debug():
                log.trace(error)
            if not isinstance(error, ShardwiseError):
                self.crashed(error)
            self._end(error if isinstance(error, ShardwiseError) else ShardwiseError(f"the engine failed: {error!r}"))
        finally:
            # Nothing is ordered any more. What is here still comes in, to be ended with the rest.
            while self._orders:
                with suppress(Exception):
                    self._orders.popleft()()
            self.core.journal.fail(str(self._ended))
            assert self._ended is not None
            if self._profiler is not None:
                self._profiler.fail(self._ended)
            for each in self._resharded:
                each(self._ended)
            self.turned()
            self.ranks.close()
            os.close(self._wake)

    def _formed(self, formed: Formed) -> None:
        """Goes on with ranks that know nothing of what was computed, and may be others than before."""
        self.setup = formed.setup
        self._statuses = rank_statuses(formed.setup, formed.ready)
        self.core.resume(self.ranks, formed.setup, formed.failed)
        if self._profiler is not None:
            self._profiler.fail(Conflict("ranks were lost while they recorded"))
            self._profiler = self._new_profiler()
        told, self._resharded = self._resharded, []
        for each in told:
            each(formed.setup)

    def _notice(self) -> None:
        """Says so where ranks were lost, or go on."""
        if (state := (self.mending, self.incidents)) != self._noticed:
            self._noticed = state
            self.changed()

    def _new_profiler(self) -> Profiler | None:
        if not isinstance(self.ranks, ProcessRanks):
            return None
        profiler = Profiler(len(self.ranks.ready), self.ranks.record, self._later)
        self.ranks.recorded = profiler.took
        return profiler

    def _obey(self) -> bool:
        """Does what other threads asked for so far. False when the engine is to end."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        for _ in range(len(self._orders)):
            self._orders.popleft()()
        return self._ended is None
