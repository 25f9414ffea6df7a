"""The core loop: steps go out as long as the scheduler makes them, results come in and become events. It knows ids, not text.

The next step is under way before the tokens of the last one are here. One thread works in it; nothing in it waits but for
ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from shardwise.engine.draws import Draws
from shardwise.engine.journal import Entry, Journal
from shardwise.engine.ranks import Ranks
from shardwise.engine.setup import Setup
from shardwise.errors import ALL_BARRED, SHRUNK, TIME_UP, RequestError
from shardwise.sched.events import Emitted, Ended, Event
from shardwise.sched.pooling import PoolingParams
from shardwise.sched.request import SamplingParams
from shardwise.sched.scheduler import Scheduler
from shardwise.sched.sequence import Request
from shardwise.sched.step import Draw, Result, Step


class Core:
    """Requests, scheduler and ranks together. `begun` and `ended` are told the number of each request that first gets pages,
    and of each that ends. `steps`: how many were computed."""

    def __init__(
        self,
        setup: Setup,
        ranks: Ranks,
        clock: Callable[[], float],
        begun: Callable[[int], None] = lambda _: None,
        ended: Callable[[int], None] = lambda _: None,
    ) -> None:
        windows = [group.window for group in setup.layout.cache]
        self.scheduler = Scheduler(setup.pages, windows, setup.limits, clock)
        self.journal = Journal()
        self._ranks = ranks
        self._draws: dict[int, Draws] = {}
        self._unsampled: Step | None = None
        self._context = setup.context
        self._begun, self._ended = begun, ended
        self.steps = 0

    # --- requests -----------------------------------------------------------------------------------------------------

    def request(self, entry: Entry) -> Request:
        """The request as the scheduler knows it."""
        params = entry.params
        if isinstance(params, PoolingParams):
            return Request(
                number=entry.number,
                prompt=entry.prompt,
                limit=entry.limit,
                pooled=params.pooling,
                priority=entry.priority,
                salt=entry.tenant,
                deadline=entry.deadline,
            )
        return Request(
            number=entry.number,
            prompt=entry.prompt,
            limit=entry.limit,
            n=params.n,
            ends=frozenset(entry.ends),
            # A grammar decides when it may end, and then it has ended.
            least=params.min_tokens if entry.grammar is None else 0,
            scored=params.prompt_logprobs is not None,
            top=params.prompt_logprobs or 0,
            priority=entry.priority,
            salt=entry.tenant,
            deadline=entry.deadline,
        )

    def add(self, entry: Entry) -> None:
        """Takes a request in that `scheduler.check` let pass."""
        self.expect(entry)
        self.begin(entry)

    def expect(self, entry: Entry) -> None:
        """Opens a request that cannot run yet: `begin` is to follow, or `abort`."""
        self.journal.open(entry)

    def begin(self, entry: Entry) -> None:
        """Lets a request run that is expected, unless it has ended meanwhile."""
        if entry.number not in self.journal.entries:
            return
        assert (entry.grammar is None) == (entry.structured is None), "a grammar is compiled before it is needed"
        if not self._fit(entry):
            self._note((self._unfit(entry),))
            return
        try:
            events = self.scheduler.add(self.request(entry), entry.written)
        except RequestError as error:  # it fitted when it was checked, and other ranks have taken over since
            events = (Ended(entry.number, f"{SHRUNK}: {error}", unfit=True),)
        if isinstance(entry.params, SamplingParams):
            self._draws[entry.number] = Draws(entry, entry.params)
        self._note(events)

    def expire(self, request: int) -> None:
        """Ends a request whose time is up and that is expected still; of those that have begun the scheduler knows it."""
        if request in self.journal.entries and request not in self._draws:
            self._note((Ended(request, TIME_UP),))

    def abort(self, request: int, error: str | None = None, *, asked: bool = False) -> None:
        """Ends a request, if it is open. One that is expected may end with an error; `asked` as `Ended` has it."""
        self._note(self.scheduler.abort(request))
        if request in self.journal.entries:  # it was expected
            self._note((Ended(request, error, asked=asked),))

    def finish(self, request: int, choice: int) -> None:
        """Ends one continuation, if it has not ended."""
        self._note(self.scheduler.finish(request, choice))

    # --- steps --------------------------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Steps whose results are awaited."""
        return self.scheduler.in_flight

    @property
    def unsampled(self) -> bool:
        """Whether the draws of the last of them depend on tokens that are not here yet."""
        return self._unsampled is not None

    def issue(self) -> None:
        """Sends all steps that can be made now: none before it is said how to draw the tokens of the last one."""
        while self._unsampled is None:
            step, events = self.scheduler.step()
            for request in self.scheduler.begun:
                self._begun(request)
            self._note(events)
            if step is None:
                return
            self._ranks.forward(step)
            self._unsampled = step
            self._sample()

    def apply(self, number: int, results: tuple[Result, ...]) -> None:
        """Takes the results of the oldest step in."""
        self.steps += 1
        self._note(self.scheduler.apply(number, results))
        self._sample()

    def resume(self, ranks: Ranks, setup: Setup | None = None, failed: str | None = None) -> None:
        """Goes on with another group of ranks, whose caches are empty: what was in flight is done again.

        `setup`: theirs, where it is another one. Requests that do not fit it end as `unfit`; one that has no limit of its own
        ends where the context does. `failed`: what an exception in a rank said, whose process lives on. If a step was in
        flight for one request alone, that ends with it; if it was for several, each is tried by itself."""
        doubted = self.scheduler.in_doubt if failed is not None else ()
        guilty = doubted[0] if len(doubted) == 1 else None
        suspects = [] if guilty is not None else [number for number in doubted if number is not None]
        self._ranks = ranks
        self._unsampled = None
        if setup is None:
            events = self.scheduler.forget(suspects=suspects)
        else:
            self._context = setup.context
            known = [entry for entry in self.journal.entries.values() if self.scheduler.sequences(entry.number)]
            limits = {entry.number: entry.limit for entry in known}
            fit = [entry for entry in known if self._fit(entry)]
            most = {entry.number: entry.limit for entry in fit if entry.limit < limits[entry.number]}
            events = self.scheduler.forget(setup.pages, suspects, setup.limits, most)
            for number in limits.keys() - {entry.number for entry in fit}:
                events += self.scheduler.abort(number, self._unfit(self.journal.entries[number]).error, unfit=True)
        self._note(events)
        if guilty is not None:
            self._note(self.scheduler.abort(guilty, failed))

    def _fit(self, entry: Entry) -> bool:
        """Whether a request fits the context, which may have become shorter since it came. One without a limit of its own gets
        a lower one, if it has not come to that yet."""
        room = self._context - len(entry.prompt)
        if entry.limit <= room:
            return True
        longest = max((len(choice.tokens) for choice in entry.choices), default=0)
        if not isinstance(entry.params, SamplingParams) or entry.params.max_tokens is not None or longest >= room:
            return False
        entry.limit = room
        return True

    def _unfit(self, entry: Entry) -> Ended:
        return Ended(
            entry.number,
            f"{SHRUNK}: the prompt has {len(entry.prompt)} tokens and up to {entry.limit} may follow, and the context has "
            f"become {self._context}; shorten the prompt, or lower max_tokens",
            unfit=True,
        )

    def _sample(self) -> None:
        """Says how to draw the tokens of the last step sent, once that is known."""
        step = self._unsampled
        if step is not None and (draws := self._step_draws(step)) is not None:
            self._unsampled = None
            self._ranks.sample(step.number, draws)

    def _step_draws(self, step: Step) -> tuple[Draw, ...] | None:
        """The draws of a step; None where one of them depends on a token that is not here yet."""
        found = []
        for item in step.items:
            for sequence in item.drawn:
                owner = self.scheduler.owner(sequence)
                if owner is None:
                    # It has ended meanwhile: whatever is drawn is nobody's.
                    found.append(Draw(sequence, temperature=0.0, seed=0))
                    continue
                request, choice = owner
                count = item.start + item.count - item.drafts - len(self.journal.entries[request].prompt)
                draws = self._draws[request]
                if not draws.known(choice, count):
                    return None
                found.append(draws.draw(sequence, choice, count))
        return tuple(found)

    def _note(self, events: Iterable[Event]) -> None:
        # What the scheduler cannot know: that a grammar has come to its end. It hears of it after all these events, which it
        # has made already.
        complete: list[tuple[int, int]] = []
        for event in events:
            draws = self._draws.get(event.request)
            if isinstance(event, Ended):
                if event.error and draws and (draws.failed or event.error == ALL_BARRED):
                    event = replace(event, error=draws.failed or ALL_BARRED, asked=True)
                self._draws.pop(event.request, None)
                self._ended(event.request)
            elif isinstance(event, Emitted) and not event.finish and draws and draws.complete(event.choice, event.chosen.token):
                event = replace(event, finish="stop")
                complete.append((event.request, event.choice))
            self.journal.note(event)
        for request, choice in complete:
            self._note(self.scheduler.finish(request, choice))
