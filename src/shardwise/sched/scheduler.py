"""Who runs next: requests in, steps out. One rule for prefill, chunks and decode: up to min(budget, goal - issued) tokens each.

`step` reserves, `apply` commits, `drop` undoes. It knows no device, no text and no wall time: the clock is passed in, and
only ever compared with deadlines.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Many
from dataclasses import replace
from itertools import count

from shardwise.errors import SHRUNK, TIME_UP, RequestError
from shardwise.sched.deadlines import Deadlines
from shardwise.sched.events import Ended, Event, Pooled, Scored
from shardwise.sched.flight import Flight, Part, Swap
from shardwise.sched.holdings import Holdings
from shardwise.sched.limits import Limits
from shardwise.sched.pages import Node
from shardwise.sched.roster import Roster
from shardwise.sched.sequence import Order, Request, Sequence
from shardwise.sched.step import Item, Result, Step
from shardwise.sched.suspects import Suspects, doubted, goals, others
from shardwise.sched.written import NEW, Written

Guess = Callable[[Many[int], int], Many[int]]
"""guess(tokens, most): up to `most` tokens that may come next. Wrong ones cost time and nothing else."""

NOTHING = Result(0)
"""What a step made for a sequence that it neither draws for nor scores."""


class Scheduler:
    """`pages[g]` pages of cache group g, whose page SCRATCH is never given out; `windows[g]` is how far the group looks back.

    Steps are applied, or dropped, in the order in which they were made. What happens to a request is returned as events by
    the call that made it happen.
    """

    def __init__(
        self,
        pages: Many[int],
        windows: Many[int | None],
        limits: Limits,
        clock: Callable[[], float],
        guess: Guess | None = None,
    ) -> None:
        self.limits = limits
        self.cache = Holdings(pages, windows, limits)
        self._clock = clock
        self._guess = guess
        self._requests: dict[int, list[Sequence]] = {}
        self._owners: dict[int, tuple[int, int]] = {}
        self.began: dict[int, tuple[int, int]] = {}
        """How many tokens of a prompt were computed when its request first ran, and how many found."""
        self.begun: list[int] = []
        """The requests that the last call of `step` gave pages to for the first time."""
        self._deadlines = Deadlines()
        self._roster = Roster(limits.sequences)
        self._flight: deque[Flight] = deque()
        self._suspects = Suspects()
        self._numbers, self._arrivals, self._steps = count(1), count(), count(1)

    # --- what is there ------------------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Steps that were made and neither applied nor dropped."""
        return len(self._flight)

    @property
    def running(self) -> tuple[Sequence, ...]:
        """Who may hold pages, first in order first."""
        return tuple(self._roster.running)

    @property
    def waiting(self) -> tuple[Sequence, ...]:
        """Who waits to run, for the first time or again, first in order first."""
        return tuple(self._roster.waiting)

    def owner(self, sequence: int) -> tuple[int, int] | None:
        """(request, choice) of a sequence by its number; None once it has ended."""
        return self._owners.get(sequence)

    @property
    def in_doubt(self) -> tuple[int | None, ...]:
        """The requests that steps in flight compute for, each once: None for one that has ended meanwhile."""
        leads = doubted(self._flight)
        return tuple(number if self._arrived(number) == arrival else None for arrival, number in leads.items())

    @property
    def alone(self) -> int | None:
        """The suspect that nobody else may run beside; None where there is none."""
        return self._suspects.alone

    @property
    def requests(self) -> int:
        """Requests that have not ended."""
        return len(self._requests)

    def sequences(self, request: int) -> tuple[Sequence, ...]:
        """The continuations of a request that has not ended; none of another."""
        return tuple(self._requests.get(request, ()))

    # --- requests come and go -----------------------------------------------------------------------------------------

    def check(self, request: Request) -> None:
        """RequestError if the request can never run, with the number that it needs and the one there is. Any thread may ask."""
        self.cache.check(request)

    def add(self, request: Request, written: Written = NEW) -> tuple[Event, ...]:
        """Takes a request in, with what it was given elsewhere (`Written.check`). RequestError if it can never run."""
        if request.number in self._requests:
            raise RequestError(f"request {request.number} is here already")
        self.check(request)
        if request.limit == 0 and request.cached == 0:
            return (Ended(request.number),)
        first: Order = (request.priority, next(self._arrivals), 0)
        own = [self._sequence(request, (*first[:2], c), tokens, len(request.prompt)) for c, tokens in written.texts(request)]
        for sequence in written.given_to(own):
            self._roster.wait(sequence)
        self.began |= {request.number: written.began} if written.began else {}
        self._requests[request.number] = own
        if request.deadline is not None:
            self._deadlines.add(request.deadline, request.number, first[1])
        return ()

    def _sequence(self, request: Request, order: Order, tokens: list[int], known: int) -> Sequence:
        number, tables = next(self._numbers), self.cache.tables()
        self._owners[number] = request.number, order[2]
        scored = 1 if request.scored and order[2] == 0 else len(request.prompt)
        forked = request.n == 1 or order[2] > 0
        return Sequence(number, request, order[2], order, tokens, tables, known, forked, scored, scored)

    def abort(self, request: int, error: str | None = None, *, unfit: bool = False) -> tuple[Event, ...]:
        """Ends a request that is here, or else nothing; `error` and `unfit` as `Ended` has them."""
        return (self._end(request, error, unfit=unfit),) if request in self._requests else ()

    def finish(self, request: int, choice: int) -> tuple[Event, ...]:
        """Ends one continuation: its text showed that it is complete. One that has no token yet, or has ended, is ignored."""
        for sequence in self._requests.get(request, ()):
            if sequence.choice == choice and not sequence.finished and len(sequence.tokens) > len(sequence.request.prompt):
                return self._finish(sequence)
        return ()

    def _finish(self, sequence: Sequence) -> tuple[Event, ...]:
        self._retire(sequence)
        own = self._requests[sequence.request.number]
        return (self._end(sequence.request.number),) if all(s.finished for s in own) else ()

    def _end(self, number: int, error: str | None = None, *, unfit: bool = False) -> Ended:
        sequences = self._requests.pop(number)
        self._suspects.clear(number)
        for sequence in sequences:
            self._retire(sequence)
        prefilled, cached = self.began.pop(number, (0, 0))
        return Ended(number, error, prefilled, cached, sum(s.preempted for s in sequences), unfit=unfit)

    def _retire(self, sequence: Sequence) -> None:
        """The sequence neither runs nor waits any more, and holds nothing."""
        if sequence.running:
            self._leave(sequence)
        elif not sequence.finished:
            self._roster.remove(sequence)
        sequence.finished = True
        self._owners.pop(sequence.number, None)

    def _leave(self, sequence: Sequence) -> None:
        """Takes it off the running ones; its pages go back."""
        self._roster.stop(sequence)
        self.cache.leave(sequence)
        self.cache.unpledge(sequence)

    def _expire(self) -> Iterator[Event]:
        for number, arrival in self._deadlines.passed(self._clock()):
            # Another one may have taken the number since.
            if self._arrived(number) == arrival:
                yield self._end(number, TIME_UP)

    def _arrived(self, number: int) -> int | None:
        """Which of all arrivals the request is that has the number now."""
        return self._requests[number][0].order[1] if number in self._requests else None

    # --- reserve ------------------------------------------------------------------------------------------------------

    def step(self) -> tuple[Step | None, tuple[Event, ...]]:
        """The next step and what happened besides; no step where nothing can run before something is applied."""
        events = tuple(self._expire())
        self.begun = []
        if len(self._flight) >= self.limits.flight:
            return None, events
        plan = Flight(next(self._steps), self.cache.groups)
        # Single tokens first, so that nobody's next one waits for a long prompt; guesses take what nobody else wants.
        ready = [(sequence, todo) for sequence in self._roster.running if (todo := self._todo(sequence))]
        crowd = self._roster.waiting and self.alone is None
        spare = 0 if crowd else self.limits.tokens - sum(todo for _, todo in ready)
        for sequence, todo in sorted(ready, key=lambda pair: pair[1] > 1):
            wanted = min(todo, self.limits.tokens - plan.tokens)
            # Who was preempted meanwhile is not running any more.
            if wanted and sequence.running:
                spare -= self._issue(sequence, wanted, spare, plan)
        while (left := self.limits.tokens - plan.tokens) > 0 and (admitted := self._admit(plan)):
            self._issue(admitted, min(admitted.goal - admitted.issued, left), 0, plan)
        if not plan.parts:
            return None, events
        self._flight.append(plan)
        return plan.step(), events

    def _todo(self, sequence: Sequence) -> int:
        """Tokens that could be computed now. One that has outgrown the angles of its cached keys starts anew, but not before
        all that it draws is known."""
        if sequence.guessing or len(sequence.sources) > self.limits.ahead:
            return 0
        if self.limits.turns and self.limits.turned(sequence.known, sequence.length):
            if sequence.sources:
                return 0
            self.cache.turn(sequence)
        return sequence.goal - sequence.issued

    def _issue(self, sequence: Sequence, wanted: int, spare: int, plan: Flight) -> int:
        """Puts up to `wanted` tokens of a sequence into the plan, as many as there are pages for, and up to `spare` guesses.
        Who is younger gives way where there is no page at all. How many guesses there are."""
        guesses = self._guesses(sequence, wanted, spare) if self._guess else ()
        swaps: list[Swap] = []
        granted = self.cache.grow(sequence, wanted + len(guesses), swaps)
        while granted == 0 and (victim := self._roster.victim(sequence)):
            self._preempt(victim, plan)
            granted = self.cache.grow(sequence, wanted + len(guesses), swaps)
        if granted == 0:
            return 0
        guessed = max(0, granted - wanted)
        part = Part(sequence, sequence.issued, granted, sequence.life, swaps, sequence.scoring, guessed)
        sequence.issued += granted
        sequence.guessing = guessed > 0
        part.item = self._item(part, guesses[:guessed], plan.number)
        plan.add(part)
        return guessed

    def _guesses(self, sequence: Sequence, wanted: int, most: int) -> tuple[int, ...]:
        """What may come after the last token, if that is the one to be computed."""
        most = min(most, sequence.request.limit - sequence.drawn - 1, self.limits.unturned(len(sequence.tokens)))
        if not self._guess or wanted != 1 or len(sequence.tokens) != sequence.issued + 1 or not sequence.forked or most <= 0:
            return ()
        return tuple(self._guess(sequence.tokens, most))[:most]

    def _item(self, part: Part, guesses: Many[int], number: int) -> Item:
        """The part as the ranks see it. Draws after its last token if all that is known then is computed."""
        sequence, request = part.sequence, part.sequence.request
        stop = part.start + part.count - part.guesses
        targets = sequence.score(part.start, stop) if sequence.scoring < len(request.prompt) else ()
        part.targets = len(targets)
        source = sequence.sources[-1] if part.start >= len(sequence.tokens) else None
        if request.limit and stop == sequence.length:
            part.forked = not sequence.forked
            part.drawn = self._fork(sequence, stop) if part.forked else [sequence]
            for s in part.drawn:
                s.sources.append(number)
        return part.value(source, targets, guesses)

    def _fork(self, lead: Sequence, issued: int) -> list[Sequence]:
        """The n continuations, from here on each by itself: they share the pages of the prompt, and write to copies."""
        own = self._requests[lead.request.number]
        lead.forked = True
        for choice in range(1, lead.request.n):
            child = self._sequence(lead.request, (*lead.order[:2], choice), list(lead.tokens), lead.known)
            child.issued = issued
            self.cache.share(lead, child)
            self._roster.fork(child)
            own.append(child)
        return list(own)

    def _unfork(self, lead: Sequence) -> None:
        own = self._requests[lead.request.number]
        for child in own[1:]:
            self._retire(child)
        del own[1:]
        self._roster.unfork(lead)

    # --- who gives way ------------------------------------------------------------------------------------------------

    def _preempt(self, victim: Sequence, plan: Flight) -> None:
        """Takes all pages of a running sequence, to be computed anew later. What this step was to do for it is undone."""
        if part := plan.remove(victim):
            self._undo(part)
        self._leave(victim)
        victim.preempted += 1
        self._roster.wait(victim)

    def _next(self) -> Sequence | None:
        """The first of those who wait; where one is a suspect, the first of its own, once nobody else is in flight."""
        if (alone := self.alone) is None:
            return self._roster.waiting[0] if self._roster.waiting else None
        own = (sequence for sequence in self._roster.waiting if sequence.request.number == alone)
        return None if others(alone, self._flight) else next(own, None)

    def _admit(self, plan: Flight) -> Sequence | None:
        """Lets the first of the waiting run, if there is room for all that is known of it. Nobody overtakes it, and it takes
        room only from those of less priority."""
        if (sequence := self._next()) is None or sequence.sources:
            return None
        if self.limits.turned(sequence.known, sequence.length):
            self.cache.turn(sequence)
        last = sequence.preempted >= self.limits.preemptions
        if last and not self.cache.can_pledge(sequence):
            return None
        while (path := self._room(sequence)) is None:
            victim = self._roster.victim(sequence)
            if victim is None or victim.order[0] == sequence.order[0]:
                return None
            self._preempt(victim, plan)
        if last:
            self.cache.pledge(sequence)
        self._roster.start(sequence)
        self.cache.enter(sequence, path)
        if sequence.request.number not in self.began:
            self.began[sequence.request.number] = sequence.goal - sequence.issued, sequence.issued
            self.begun.append(sequence.request.number)
        return sequence

    def _room(self, sequence: Sequence) -> list[Node] | None:
        """The known prefix of a waiting sequence, if there is room for all of it; else None."""
        return self.cache.room(sequence) if self._roster.has_slots(sequence) else None

    # --- commit and undo ----------------------------------------------------------------------------------------------

    def apply(self, number: int, results: Many[Result]) -> tuple[Event, ...]:
        """Commits the oldest step in flight, whose number must be `number`."""
        assert self._flight and self._flight[0].number == number, f"step {number} is not the oldest in flight"
        flight = self._flight.popleft()
        made = {result.sequence: result for result in results}
        events: list[Event] = []
        for part in flight.parts.values():
            self.cache.settle(part)
            for drawn in part.drawn:
                del drawn.sources[0]
            if not part.sequence.finished:
                self._apply(part, made, events)
        self._acquit()
        return tuple(events)

    def _apply(self, part: Part, made: dict[int, Result], events: list[Event]) -> None:
        """What a part made: keys, scores, tokens, in this order; tokens may end it, after its pages became known to others."""
        sequence, request = part.sequence, part.sequence.request
        results = [made.get(s.number, NOTHING) for s in (part.drawn or (sequence,))]
        for result in results:
            if result.error:
                self.cache.disown(sequence)
                events.append(self._end(request.number, result.error))
                return
        for s, result in zip(part.drawn, results, strict=False):
            assert result.tokens, f"no token was drawn for request {request.number}"
            s.tokens += [chosen.token for chosen in result.tokens]
        self._advance(part, part.count - part.guesses + max(0, len(results[0].tokens) - 1))
        if part.targets:
            scores = results[0].scores
            assert len(scores) == part.targets, f"request {request.number} lacks scores"
            sequence.scored += len(scores)
            events.append(Scored(request.number, scores))
        for s, result in zip(part.drawn, results, strict=False):
            told = s.told(result.tokens)
            events += told
            if told and told[-1].finish:
                events += self._finish(s)
        if part.item and part.item.pool:
            sequence.sum.add(part.item, results[0].pooled)
        if request.limit == 0 and sequence.computed == sequence.goal:
            if request.pooled:
                events.append(Pooled(request.number, sequence.sum.vector(), sequence.sum.count))
            events.append(self._end(request.number))

    def _advance(self, part: Part, kept: int) -> None:
        """The first `kept` tokens of a part are in the cache."""
        sequence = part.sequence
        if part.guesses:
            sequence.guessing = False
        if part.alive:
            sequence.computed = part.start + kept
            if part.guesses:
                sequence.issued = sequence.computed
            self.cache.commit(sequence)

    def drop(self, number: int) -> None:
        """Undoes a step in flight and all later ones, as if they had never been made; later steps do their work again."""
        assert any(flight.number == number for flight in self._flight), f"step {number} is not in flight"
        while self._flight and self._flight[-1].number >= number:
            for part in reversed(self._flight.pop().parts.values()):
                self._undo(part)
                if part.forked and self._roster.crowded and part.sequence.running:
                    # Somebody has taken a place of its other continuations since.
                    self._leave(part.sequence)
                    self._roster.wait(part.sequence)

    def _undo(self, part: Part) -> None:
        sequence = part.sequence
        self.cache.undo(part)
        for drawn in part.drawn:
            del drawn.sources[-1]
        if part.guesses:
            sequence.guessing = False
        sequence.scoring = part.scoring
        if part.forked and not sequence.finished:
            self._unfork(sequence)

    def forget(
        self,
        pages: Many[int] | None = None,
        suspects: Many[int] = (),
        limits: Limits | None = None,
        most: Mapping[int, int] | None = None,
    ) -> tuple[Event, ...]:
        """The ranks lost their caches: everything in flight is undone, and whoever ran waits to be computed anew.

        Each of `suspects` runs alone, one after the other, until it has computed again all that was issued of it, as do those
        of earlier calls that did not come to that. `pages` and `limits`: those of other ranks; who cannot run there, even
        alone, ends as `unfit`. `most`: lower limits of some requests, by number, above what was drawn."""
        for number in suspects:
            if number in self._requests:
                self._suspects.accuse(number, goals(self._requests[number], self._flight))
        if self._flight:
            self.drop(self._flight[0].number)
        for sequence in reversed(self.running):
            self._leave(sequence)
            self._roster.wait(sequence)
        for number, limit in (most or {}).items():
            for sequence in self._requests.get(number, ()):
                sequence.request = replace(sequence.request, limit=limit)
        if pages is None and limits is None:
            self.cache.forget()
            return ()
        self.limits = limits or self.limits
        self._roster.most = self.limits.sequences
        self.cache = Holdings(pages or [pool.count for pool in self.cache.pools], self.cache.windows, self.limits)
        events: list[Event] = []
        for number, own in list(self._requests.items()):
            try:
                self.check(own[0].request)
            except RequestError as error:
                events.append(self._end(number, f"{SHRUNK}: {error}", unfit=True))
        return tuple(events)

    def _acquit(self) -> None:
        """Whoever has run alone as far as it had come is a suspect no more, and makes room for the next one."""
        if (alone := self.alone) is None or not self._suspects.passed(own := self._requests[alone]):
            return
        self._suspects.clear(alone)
        for sequence in [s for s in own if s.running and self.alone is not None]:
            self._leave(sequence)
            self._roster.wait(sequence)
