"""An engine without a model: every token comes from a function. For tests of whatever stands above the engine.

Its requests end, fail, are aborted and finished as the real engine's, on a thread of its own, one token a choice and tick.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self

from shardwise.engine.admit import admit
from shardwise.engine.gate import Gate
from shardwise.engine.incident import Incident
from shardwise.engine.journal import choices_of
from shardwise.engine.profile import Bounds, Profiler, Told, Traces, recorded
from shardwise.engine.reshard import TellSetup, recut_by
from shardwise.engine.setup import Setup, recut
from shardwise.engine.status import PagesStatus, Slot, Status, awaited
from shardwise.errors import TIME_UP, Conflict, ShardwiseError, Unavailable, UserError
from shardwise.runtime import wire
from shardwise.sched.events import Emitted, Ended, Event, Finish, Pooled, Scored
from shardwise.sched.pooling import PoolingParams, packed
from shardwise.sched.request import SamplingParams
from shardwise.sched.step import Chosen
from shardwise.sched.written import NEW, Written

Answer = Callable[[Sequence[int], int, int], int]
"""The token of (prompt, choice, how many of that choice came before)."""


@dataclass(slots=True)
class _Request:
    prompt: tuple[int, ...]
    params: SamplingParams | PoolingParams
    sink: Callable[[Event], None]
    ends: frozenset[int]
    limit: int
    open: list[int]
    since: float
    until: float
    priority: int
    written: list[int] = field(default_factory=list)
    tenant: str = ""
    scored: int = 1
    """Tokens of the prompt whose scores were told; the first has none."""


class FakeEngine:
    """Tokens from `answer`. With `held`, no tick happens before `allow` is called. At most `queue` requests wait for
    their first tick.

    `submitted`, `aborted` and `finished` record the calls. A token that `answer` gives as a negative number fails the request.
    """

    def __init__(self, setup: Setup, answer: Answer | None = None, *, held: bool = False, queue: int | None = None) -> None:
        self.setup = setup
        self.turned: Callable[[], None] = lambda: None
        self.gate = Gate(queue, None, time.monotonic)
        self.ticked = self.tokens = self.ended = self.failed = 0
        self.mending: Incident | None = None
        self.incidents: tuple[Incident, ...] = ()
        self.changed: Callable[[], None] = lambda: None
        self._lost: str | None = None
        self.submitted: list[tuple[tuple[int, ...], SamplingParams | PoolingParams]] = []
        self.aborted: list[int] = []
        self.finished: list[tuple[int, int]] = []
        self.answer = answer or self._counting
        self._open: dict[int, _Request] = {}
        self._profiler = Profiler(1, self._told, lambda _seconds, _call: None)
        self._recorded, self._since = wire.Record("", "", 0), 0
        self.unfit: str | None = None
        """How all requests end, as if other ranks had no room for them."""
        self.slow_to_form = False
        """Whether `reshard` waits for `form`."""
        self._forming: tuple[Setup, TellSetup] | None = None
        self._ticks = 0
        self._held = held
        # Taken as such and not by way of the condition: a Ctrl-C within that one's `__enter__` would leave it locked for good.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._thread = threading.Thread(target=self._run, name="fake-engine", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def running(self) -> int:
        """How many requests are open."""
        with self._lock:
            return len(self._open)

    def allow(self, ticks: int) -> None:
        """Lets so many ticks happen; each gives one token to every open choice."""
        with self._lock:
            self._ticks += ticks
            self._changed.notify_all()

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
        written: Written | None = None,
        began: Callable[[int, int], None] | None = None,
    ) -> int:
        limit = admit(self.setup, prompt, params)
        with self._lock:
            if self._lost is not None:
                raise Unavailable(self._lost)
            number = len(self.submitted) + 1
            if written is None:
                self.gate.enter(number, len(prompt), key or (tenant, tuple(prompt)))
            elif written.began is None:
                self.gate.let_in(number, len(prompt))
            if began is not None and (written is None or written.began is None):
                began(len(prompt), 0)
            self.submitted.append((tuple(prompt), params))
            now, n = time.monotonic(), choices_of(params)
            until = math.inf if timeout_s is None else now + timeout_s
            before = written or NEW
            left, had = [i for i in range(n) if i not in before.finished], [len(before.tokens(i)) for i in range(n)]
            self._open[number] = _Request(
                tuple(prompt), params, sink, frozenset(ends), limit, left, now, until, priority, had, tenant, 1 + before.scored
            )
            self._changed.notify_all()
            return number

    def knock(self, key: str, tokens: int) -> None:
        with self._lock:
            self.gate.knock(tokens, key)

    async def room(self, key: str, tokens: int) -> None:
        self.knock(key, tokens)

    async def admitted(self, request: int) -> None:
        """Nothing is left to wait for: `submit` says all."""

    async def status(self) -> Status:
        return await awaited(self)

    def gather(self, told: Callable[[Status | None], None]) -> None:
        """Has `told` called with the status; None where it is lost."""
        with self._lock:
            told(None if self._lost is not None else self._status())

    def record(self, bounds: Bounds | None, told: Told) -> None:
        with self._lock:
            if self._lost is None:
                self._profiler.obey(bounds, told)
            else:
                told(Unavailable(self._lost))

    async def profile(self, bounds: Bounds | None) -> Traces:
        return await recorded(self, bounds)

    def reshard(self, shares: tuple[float, ...], told: TellSetup) -> None:
        said: Setup | ShardwiseError
        with self._lock:
            if self._lost is not None:
                said = Unavailable(self._lost)
            elif self._forming is not None:
                said = Conflict("the ranks are being formed already; ask again when that is done")
            else:
                try:
                    said = recut(self.setup, shares)
                except UserError as error:
                    said = error
            if isinstance(said, Setup):
                self._forming = said, told
        if not isinstance(said, Setup):
            told(said)
        elif not self.slow_to_form:
            self.form()

    @property
    def forming(self) -> bool:
        """Whether `reshard` waits."""
        with self._lock:
            return self._forming is not None

    def form(self, context: int | None = None) -> None:
        """Its ranks are as they were last asked to be; with a shorter `context`, as if there were little memory."""
        with self._lock:
            assert self._forming is not None, "nobody asked for other ranks"
            (setup, told), self._forming = self._forming, None
            self.setup = setup if context is None else replace(setup, context=context, bound="memory")
            self.turned()
            told(self.setup)

    async def recut(self, shares: tuple[float, ...]) -> None:
        await recut_by(self, shares)

    def _told(self, order: wire.Record | wire.EndRecord) -> None:
        """What its one rank does that is told to record: the ticks since then, in a file of no bytes that is not there."""
        if isinstance(order, wire.Record):
            self._recorded, self._since = order, self.ticked
            return
        steps = min(self._recorded.steps, self.ticked - self._since)
        self._profiler.took(0, wire.Recorded(f"{self._recorded.folder}/rank0-{self._recorded.stamp}.trace.json", 0, steps))

    @property
    def lost(self) -> str | None:
        return self._lost

    @property
    def away(self) -> str | None:
        return None

    def abort(self, request: int) -> None:
        with self._lock:
            if request in self._open:
                self.aborted.append(request)
                self._end(request, Ended(request))
        self.turned()

    def finish(self, request: int, choice: int) -> None:
        with self._lock:
            self.finished.append((request, choice))
            found = self._open.get(request)
            if found is not None and choice in found.open:
                found.open.remove(choice)
                self._end_if_done(request, found)
        self.turned()

    def fail(self, cause: str) -> None:
        """As if a rank was lost: every request ends with the cause, and no other one is taken in."""
        with self._lock:
            if self._lost is None:
                self._lost = cause
            for number in list(self._open):
                self._end(number, Ended(number, self._lost))
            if self._forming is not None:
                (_, told), self._forming = self._forming, None
                told(Unavailable(self._lost))
            self._changed.notify_all()
        self.turned()

    def close(self) -> None:
        self.fail("the engine was closed")
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _counting(self, prompt: Sequence[int], choice: int, place: int) -> int:
        return (sum(prompt) + 31 * choice + 7 * place) % self.setup.layout.model.vocab

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._due():
                    self._changed.wait(self._left_s())
                if self._lost is not None:
                    return
                for number in [n for n, request in self._open.items() if request.until <= time.monotonic()]:
                    self._end(number, Ended(number, TIME_UP))
                if self._due():
                    self._ticks -= self._held
                    self.ticked += 1
                    for number, request in list(self._open.items()):
                        if number in self._open:  # a sink may abort
                            self.gate.start(number)
                            self._tick(number, request)
            self.turned()

    def _due(self) -> bool:
        """Whether there is something to do, other than to wait for a deadline."""
        return self._lost is not None or bool(self._open and (not self._held or self._ticks))

    def _left_s(self) -> float | None:
        """How long until a request's time is up."""
        until = min((request.until for request in self._open.values()), default=math.inf)
        return None if until == math.inf else max(0.0, until - time.monotonic())

    def _end(self, number: int, ended: Ended) -> None:
        request = self._open.pop(number)
        self.gate.leave(number)
        self.ended += 1
        self.failed += ended.error is not None
        request.sink(ended)

    def _status(self) -> Status:
        now = time.monotonic()
        slots = tuple(
            Slot(
                number,
                0,
                "running" if any(request.written) else "waiting",
                len(request.prompt),
                len(request.prompt) if any(request.written) else 0,
                sum(request.written),
                now - request.since,
                request.priority,
                request.tenant,
            )
            for number, request in self._open.items()
        )
        running = sum(slot.state == "running" for slot in slots)
        return Status(
            running=running,
            waiting=len(slots) - running,
            queue_limit=self.gate.limit,
            accepted=self.gate.accepted,
            refused=self.gate.refused,
            ended=self.ended,
            failed=self.failed,
            pages=tuple(PagesStatus(count - 1, count - 1) for count in self.setup.pages),
            tokens=self.tokens,
            steps=self.ticked,
            slots=slots,
            ranks=(),
        )

    def _tick(self, number: int, request: _Request) -> None:
        """One more token for every open choice, before the first the scores of the prompt; or its hidden states."""
        params = request.params
        if self.unfit is not None:
            self._end(number, Ended(number, self.unfit, unfit=True))
            return
        if isinstance(params, PoolingParams):
            request.sink(self._pooled(number, request.prompt, params))
            self._end_if_done(number, request)
            return
        if params.prompt_logprobs is not None and not any(request.written):
            # As of the engine: with each step those of the tokens that it computes, and then no token before the last of them.
            begin, request.scored = request.scored, request.scored + self.setup.limits.tokens
            told = request.prompt[begin : request.scored]
            request.sink(Scored(number, tuple(self._chosen(token, params.prompt_logprobs) for token in told)))
            if request.scored < len(request.prompt):
                return
        for choice in list(request.open) if request.limit else ():
            place = request.written[choice]
            token = self.answer(request.prompt, choice, place)
            if token < 0:
                self._end(number, Ended(number, f"no finite logits at token {place}"))
                return
            while token in request.ends and place < params.min_tokens:
                token = (token + 1) % self.setup.layout.model.vocab
            request.written[choice] = place + 1
            self.tokens += 1
            finish: Finish | None = "stop" if token in request.ends else "length" if place + 1 == request.limit else None
            if finish:
                request.open.remove(choice)
            request.sink(Emitted(number, choice, self._drawn(token, params), finish))
        self._end_if_done(number, request)

    def _end_if_done(self, number: int, request: _Request) -> None:
        if number in self._open and not (request.open and request.limit):
            self._end(number, Ended(number, prefilled=len(request.prompt)))

    def _pooled(self, number: int, prompt: tuple[int, ...], params: PoolingParams) -> Pooled:
        """Token t stands for a state that is 1 at place t, modulo its width, and at place 0."""
        hidden = self.setup.layout.model.hidden
        tokens = prompt if params.pooling == "mean" else prompt[-1:]
        total = [0.0] * hidden
        for token in tokens:
            total[0] += 1.0
            total[token % hidden] += 1.0
        return Pooled(number, packed(total), len(tokens))

    def _drawn(self, token: int, params: SamplingParams) -> Chosen:
        """With ids that are named less likely by one for each."""
        chosen = self._chosen(token, params.logprobs)
        if params.logprob_token_ids is None:
            return chosen
        return replace(chosen, top=tuple((each, -0.5 - (each - token) % 100) for each in params.logprob_token_ids))

    def _chosen(self, token: int, logprobs: int | None) -> Chosen:
        """The token as the likeliest, the next ids behind it."""
        if logprobs is None:
            return Chosen(token)
        vocab = self.setup.layout.model.vocab
        return Chosen(token, -0.5, 1, tuple(((token + n) % vocab, -0.5 - n) for n in range(logprobs)))
