"""A scheduler, the ranks that compute its steps, and what its clients were told: everything that must hold is checked here.

The machine of hypothesis, the simulation and the tests of planted bugs all drive this one world.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from shardwise.sched.events import Emitted, Ended, Event, Pooled, Scored
from shardwise.sched.limits import Limits, peak_pages
from shardwise.sched.scheduler import Guess, Scheduler
from shardwise.sched.sequence import Request
from shardwise.sched.step import SCRATCH, Item, Result, Step
from shardwise.sched.written import Written
from tests.sched.fakes import VOCABULARY, Ranks, Story, need


@dataclass
class Client:
    """One request as its client sees it."""

    request: Request
    stories: list[Story]
    told: list[int] = field(default_factory=list)
    done: list[bool] = field(default_factory=list)
    scored: int = 1
    pooled: bool = False
    left: bool = False
    failed: bool = False
    poison: int | None = None
    """The place of the token at which a rank raises, whichever of its choices it is."""
    accused: bool = False
    unfit: bool = False

    def __post_init__(self) -> None:
        self.told = [0] * self.request.n
        self.done = [False] * self.request.n


@dataclass
class Suspect:
    """A request of a step that failed: by choice, how far it had been issued, and how far it has been computed since."""

    client: Client
    issued: dict[int, int] = field(default_factory=dict)
    computed: dict[int, int] = field(default_factory=dict)

    @property
    def cleared(self) -> bool:
        done = self.client.done
        return all(done[choice] or self.computed.get(choice, 0) >= count for choice, count in self.issued.items())


class World:
    """`build` makes the scheduler; tests of planted bugs make another one. `checked`: whether ranks look at contents."""

    def __init__(
        self,
        pages: Sequence[int],
        windows: Sequence[int | None],
        limits: Limits,
        guess: Guess | None = None,
        build: Callable[..., Scheduler] = Scheduler,
        checked: bool = True,
    ) -> None:
        self.now = 0.0
        self.limits = limits
        self.ranks = Ranks(tuple(pages), tuple(windows), limits, checked)
        self._build = lambda: build(self.ranks.pages, tuple(windows), self.limits, lambda: self.now, guess)
        self.scheduler = self._build()
        self.clients: dict[int, Client] = {}
        self.flight: deque[Step] = deque()
        self.suspects: dict[int, Suspect] = {}
        """Those that have not computed again what they had issued, by request."""
        self.raised = 0
        self.ended = Counter[str]()
        self.preempted = 0
        self.steps = 0
        self.trace = 0

    # --- what happens -------------------------------------------------------------------------------------------------

    def add(self, request: Request, poison: int | None = None) -> None:
        stories = [Story(request, c, self.limits) for c in range(request.n)]
        self.clients[request.number] = Client(request, stories, poison=poison)
        self.take(self.scheduler.add(request))

    def abort(self, number: int) -> None:
        if number in self.clients:
            self.clients[number].left = True
        self.take(self.scheduler.abort(number))
        need(number not in self.clients, f"request {number} was aborted and did not end")

    def finish(self, number: int, choice: int) -> None:
        client = self.clients.get(number)
        if client and client.told[choice]:
            client.done[choice] = True
        self.take(self.scheduler.finish(number, choice))

    def step(self) -> Step | None:
        """Asks for a step, and hands it to the ranks."""
        before = {sequence: sequence.preempted for sequence in self.scheduler.running}
        step, events = self.scheduler.step()
        self.take(events)
        late = [c.request for c in self.clients.values() if c.request.deadline is not None and c.request.deadline < self.now]
        need(not late, "their time is up:", late)
        gave_way = [s for s, preempted in before.items() if s.preempted > preempted and not s.running]
        kept = [s for s in before if s.running and not s.pledged]
        need(all(s.order > other.order for s in gave_way for other in kept), "an older one gave way:", gave_way)
        sequences = (*self.scheduler.running, *self.scheduler.waiting)
        if step is None:
            idle = not self.scheduler.in_flight and self.scheduler.requests
            need(not idle, "nothing is in flight, and nothing runs:", sequences)
        else:
            known = self.ranks.stories
            known |= {s.number: self.clients[s.request.number].stories[s.choice] for s in sequences if s.number not in known}
            self.ranks.submit(step, self.scheduler.running)
            self._apart(step)
            self.flight.append(step)
            self.steps += 1
            self.trace = hash((self.trace, marks(step)))
        self._busy(step)
        return step

    def apply(self, error: int | None = None) -> None:
        """The results of the oldest step come; there is an `error` for one of its sequences. Or a rank raises."""
        if any(self._poisoned(item) for item in self.flight[0].items):
            self.fail()
            return
        step = self.flight.popleft()
        number = step.number
        results = self.ranks.results(number)
        self._note(step, results)
        if error is not None and results:
            results = self._failed(results, error)
        self.take(self.scheduler.apply(number, results))

    def _note(self, step: Step, results: tuple[Result, ...]) -> None:
        """How far suspects have come."""
        guessed = {result.sequence: len(result.tokens) - 1 for result in results if result.tokens}
        for item in step.items if self.suspects else ():
            owner = self.scheduler.owner(item.sequence)
            if owner and (suspect := self.suspects.get(owner[0])):
                kept = item.count - item.drafts + guessed.get(item.sequence, 0)
                suspect.computed[owner[1]] = item.start + kept

    def _failed(self, results: tuple[Result, ...], error: int) -> tuple[Result, ...]:
        """The results, one of them an error instead."""
        failed = results[error % len(results)].sequence
        for client in self.clients.values():
            client.failed |= any(story is self.ranks.stories[failed] for story in client.stories)
        return tuple(Result(r.sequence, error="not a number") if r.sequence == failed else r for r in results)

    def drop(self, index: int, computed: int = 0) -> None:
        """The step in flight at `index` and all later ones are lost, `computed` of all of them after their forward was done."""
        if computed:
            self.ranks.compute(self.flight[min(computed, len(self.flight)) - 1].number)
        number = self.flight[index].number
        self.scheduler.drop(number)
        self.ranks.drop(number)
        while len(self.flight) > index:
            self.flight.pop()

    def forget(self) -> None:
        """New ranks, whose pages are empty."""
        need(not self.scheduler.forget(), "who fitted does not fit as many pages")
        self._begin_anew()

    def recut(self, pages: Sequence[int], limits: Limits, shorter: bool = False) -> None:
        """Other ranks, with other numbers of pages; `shorter`: requests get lower limits, where they have not come to that."""
        most = {}
        for number, client in self.clients.items():
            limit = max(client.told) + 1
            if shorter and not client.request.pooled and limit < client.request.limit and not any(client.done):
                most[number] = limit
                client.request = replace(client.request, limit=limit)
                for story in client.stories:
                    story.request = client.request
                    story.__dict__.pop("told", None)
        self.ranks.pages, self.ranks.limits, self.limits = tuple(pages), limits, limits
        for client in self.clients.values():
            client.unfit = client.request.n > limits.sequences or not self._fits(client.request)
        events = self.scheduler.forget(pages, limits=limits, most=most)
        need(all(isinstance(event, Ended) and event.unfit for event in events), "something else than unfit:", events)
        self.take(events)
        need(not any(client.unfit for client in self.clients.values()), "who does not fit any more is here still")
        self._begin_anew()

    def _fits(self, request: Request) -> bool:
        groups = zip(self.ranks.windows, self.ranks.pages, strict=True)
        return all(peak_pages(window, request.cached) < count for window, count in groups)

    def fail(self) -> None:
        """A rank raises in the oldest step: what an engine makes of it."""
        self.raised += 1
        self._doubt()
        doubted = self.scheduler.in_doubt
        if len(doubted) == 1 and doubted[0] is not None:
            need(self.clients[doubted[0]].poison is not None, "convicted without guilt:", doubted)
            self.clients[doubted[0]].failed = True
            need(not self.scheduler.forget(), "who fitted does not fit as many pages")
            self._begin_anew()
            self.take(self.scheduler.abort(doubted[0], "not a number"))
        else:
            self.accuse()

    def _doubt(self) -> None:
        """In doubt is who steps in flight compute for, and whether they do for anybody who has ended."""
        flying = [self._client(item) for step in self.flight for item in step.items]
        numbers = {client and client.request.number for client in flying}
        need(numbers == set(self.scheduler.in_doubt), "in doubt", self.scheduler.in_doubt, self.flight)

    def accuse(self) -> None:
        """Everybody in flight is a suspect, be it one alone; and the ranks are new ones."""
        suspects = [number for number in self.scheduler.in_doubt if number is not None]
        for number in suspects:
            self.clients[number].accused = True
            if number not in self.suspects or self.suspects[number].cleared:
                self.suspects[number] = Suspect(self.clients[number])
        for item in (item for step in self.flight for item in step.items):
            if client := self._client(item):
                issued, choice = self.suspects[client.request.number].issued, self.ranks.stories[item.sequence].choice
                issued[choice] = max(issued.get(choice, 0), item.start + item.count - item.drafts)
        need(not self.scheduler.forget(suspects=suspects), "who fitted does not fit as many pages")
        self._begin_anew()

    def _begin_anew(self) -> None:
        self.ranks.forget()
        self.flight.clear()
        self._forgive()
        for suspect in self.suspects.values():
            suspect.computed.clear()

    def _forgive(self) -> None:
        here = {number: suspect for number, suspect in self.suspects.items() if self.clients.get(number) is suspect.client}
        self.suspects = {number: suspect for number, suspect in here.items() if not suspect.cleared}

    @property
    def flying(self) -> list[int]:
        """The numbers of the requests in flight, ended ones too."""
        return [self.ranks.stories[item.sequence].request.number for step in self.flight for item in step.items]

    def _client(self, item: Item) -> Client | None:
        """Whose item it is; None where that one has ended."""
        story = self.ranks.stories[item.sequence]
        client = self.clients.get(story.request.number)
        return client if client and any(own is story for own in client.stories) else None

    def _poisoned(self, item: Item) -> bool:
        client = self._client(item)
        return bool(client and client.poison is not None and item.start <= client.poison < item.start + item.count)

    def _apart(self, step: Step) -> None:
        """While there are suspects, there is only one request in flight, and that is one of them."""
        self._forgive()
        if not self.suspects:
            return
        clients = [self._client(item) for each in (*self.flight, step) for item in each.items]
        need(all(client is clients[-1] for client in clients), "beside a suspect:", step, self.suspects)
        need(clients[-1] and clients[-1].accused, "instead of a suspect:", step, self.suspects)

    def replace(self) -> None:
        """Another scheduler and other ranks, which go on with what the clients were told."""
        self.ranks = Ranks(self.ranks.pages, self.ranks.windows, self.limits, self.ranks.checked)
        began, self.scheduler = self.scheduler.began, self._build()
        self.flight.clear()
        self.suspects.clear()  # which it does not know
        for client in self.clients.values():
            told = tuple(tuple(s.told[0][:count]) for s, count in zip(client.stories, client.told, strict=True))
            finished = tuple(choice for choice, done in enumerate(client.done) if done)
            written = Written(told if any(told) else (), finished, client.scored - 1, began.get(client.request.number))
            written.check(client.request, VOCABULARY)
            need(not self.scheduler.add(client.request, written), "ended as it came again", client.request)

    def drain(self) -> None:
        """Runs until every request has ended: in no more steps than all the tokens that can have to be computed, one a step."""
        again = 2 + self.limits.preemptions + len(self.limits.turns)
        work = sum(again * r.n * (len(r.prompt) + r.limit) for r in (client.request for client in self.clients.values()))
        most = 100 + 2 * work * (1 + 2 * sum(client.poison is not None for client in self.clients.values()))
        while self.scheduler.requests:
            if self.step() is None and self.flight:
                self.apply()
            need((most := most - 1) > 0, "requests do not end:", self.scheduler.running, self.scheduler.waiting)
        while self.flight:
            self.apply()
        self.check()
        for pool in self.scheduler.cache.pools:
            need(pool.free == pool.count - 1, "pages are held by nobody")
        known = 0
        nodes = [node for root in self.scheduler.cache._prefixes._roots.values() for node in root.children.values()]
        while nodes:
            node = nodes.pop()
            nodes += node.children.values()
            need(node.attached and (node.children or any(node.pages)), "a node that leads nowhere", node.tokens, node.pages)
            known += sum(page != SCRATCH for page in node.pages)
        need(known == sum(pool.known for pool in self.scheduler.cache.pools), "known pages", known)

    # --- what clients are told ----------------------------------------------------------------------------------------

    def take(self, events: Iterable[Event]) -> None:
        """Events, each of which must be what the client of a request that has not ended waits for."""
        for event in events:
            self.trace = hash((self.trace, event.request, event.chosen.token if isinstance(event, Emitted) else -1))
            need(event.request in self.clients, "of a request that has ended:", event)
            client = self.clients[event.request]
            match event:
                case Emitted():
                    self._emitted(client, event)
                case Scored():
                    for chosen in event.scores:
                        story, place = client.stories[0], client.scored
                        need((chosen.token, chosen.logprob) == (story.tokens[place], story.score(place)), "score", place, event)
                        client.scored += 1
                case Pooled():
                    length = len(client.request.prompt)
                    first = 0 if client.request.pooled == "mean" else length - 1
                    need(not client.pooled and event.count == length - first, "pooled over", event, client.request)
                    need(event.vector == client.stories[0].vector(first, length), "pooled", event, client.request)
                    client.pooled = True
                case Ended():
                    self._ended(client, event)

    def _emitted(self, client: Client, event: Emitted) -> None:
        need(not client.done[event.choice], "after its end:", event)
        wanted, reason = client.stories[event.choice].told
        place = client.told[event.choice]
        need(event.chosen.token == wanted[place], f"token {place} is not {wanted[place]}:", event, client.request)
        client.told[event.choice] += 1
        last = client.told[event.choice] == len(wanted)
        need(event.finish == (reason if last else None), "finish", event, client.request)
        client.done[event.choice] = last

    def _ended(self, client: Client, event: Ended) -> None:
        del self.clients[event.request]
        request = client.request
        self.preempted += event.preempted
        self.ended["left" if client.left else "unfit" if event.unfit else "failed" if event.error else "complete"] += 1
        need(event.preempted <= self.limits.preemptions * request.n, "preempted", event)
        need(event.unfit == client.unfit, "unfit", event, client.request)
        if client.left or client.unfit:
            return
        if event.error:
            late = request.deadline is not None and request.deadline < self.now
            need(client.failed if event.error == "not a number" else late, "failed", event)
            return
        need(all(client.done) or request.limit == 0, "ended early:", event, client.told)
        need(not request.scored or client.scored == len(request.prompt), "scores", client.scored, request)
        need(client.pooled == bool(request.pooled), "pooled", request)
        computed = len(request.prompt) - (request.limit == 0 and not request.pooled)
        need(event.prefilled + event.cached == computed, "prompt", event, computed)

    # --- what holds at any time ---------------------------------------------------------------------------------------

    def check(self) -> None:
        """Pages, places and orders, after whatever happened."""
        scheduler = self.scheduler
        running, waiting = scheduler.running, scheduler.waiting
        self._doubt()
        need(scheduler.requests == len(self.clients), "requests", scheduler.requests)
        need(scheduler.in_flight == len(self.flight) <= self.limits.flight, "steps in flight")
        held = Counter(scheduler.cache.held(running))
        for flight in scheduler._flight:
            for part in flight.parts.values():
                held.update((swap.group, swap.old) for swap in part.swaps)
        for group, pool in enumerate(scheduler.cache.pools):
            holders = [pool.holders(page) for page in range(pool.count)]
            need(holders == [held[group, page] for page in range(pool.count)], "holders", group, holders, held)
            need(pool.free == holders.count(0) - 1 and not holders[SCRATCH], "free pages", group, pool.free)
        owners = {s.number: (s.request.number, s.choice) for s in (*running, *waiting)}
        need(all(scheduler.owner(number) == owner for number, owner in owners.items()), "owners", owners)
        need(bool(self.clients) or not scheduler._owners, "owners of nothing", scheduler._owners)
        need(sum(sequence.slots for sequence in running) <= self.limits.sequences, "places")
        need(all(not table.ids for sequence in waiting for table in sequence.tables), "pages of those who wait")
        for queue in (running, waiting):
            orders = [sequence.order for sequence in queue]
            need(orders == sorted(orders), "order", orders)
        for sequence in running:
            need(sequence.preempted <= self.limits.preemptions, "preempted", sequence)
            need(sequence.computed <= sequence.issued, "computed", sequence)
            need(sequence.guessing or sequence.issued <= sequence.length, "issued", sequence)
            need(len({table.end for table in sequence.tables}) == 1, "tables end at different pages", sequence)
            need(len(sequence.sources) <= self.limits.ahead + 1, "ahead", sequence)

    def _busy(self, step: Step | None) -> None:
        """Whoever waits first, waits for a reason."""
        scheduler = self.scheduler
        full = step is not None and step.tokens >= self.limits.tokens
        if full or (step is None and scheduler.in_flight >= self.limits.flight) or not scheduler.waiting:
            return
        head = scheduler._next()
        if head is None:
            need(scheduler.alone is not None, "nobody is next")
            return
        pledge = head.preempted < self.limits.preemptions or scheduler.cache.can_pledge(head)
        need(head.sources or not pledge or scheduler._room(head) is None, "there is room for", head)


def marks(step: Step) -> int:
    """A hash of all of a step: of numbers alone, so that it is the same in every process."""
    items = [
        (
            i.sequence,
            i.tokens,
            i.start,
            i.known,
            i.pages,
            -1 if i.source is None else i.source,
            i.targets,
            i.drawn,
            i.drafts,
            len(i.pool),
        )
        for i in step.items
    ]
    return hash((step.number, tuple(items), step.copies))
