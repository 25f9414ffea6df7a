"""Whatever happens in whatever order: every client gets its own tokens, every page has the holders that it should have.

The machine draws what happens; `World` knows what must hold. Failures shrink to a few lines that can be read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shardwise.errors import RequestError
from shardwise.sched.limits import Limits
from shardwise.sched.sequence import Request
from tests.sched.fakes import VOCABULARY
from tests.sched.world import World

DOCUMENTS = [tuple((kind * 31 + place * place) % VOCABULARY for place in range(40)) for kind in range(2)]
"""What prompts begin with, so that prefixes are shared."""

ids = st.integers(0, VOCABULARY - 1)


@st.composite
def limits(draw: st.DrawFn) -> Limits:
    turns = draw(st.sampled_from([(), (), (20,), (16, 40)]))
    return Limits(
        tokens=draw(st.sampled_from([1, 5, 16, 40])),
        sequences=draw(st.integers(1, 5)),
        flight=draw(st.integers(1, 3)),
        ahead=draw(st.integers(0, 2)),
        preemptions=draw(st.integers(1, 3)),
        turns=turns,
        shared=None if turns else draw(st.sampled_from([None, None, 0, 20, 32])),
        prefixes=draw(st.sampled_from([True, True, False])),
    )


@st.composite
def prompts(draw: st.DrawFn) -> tuple[int, ...]:
    document = draw(st.sampled_from(DOCUMENTS))[: draw(st.integers(0, 40))]
    return (*document, *draw(st.lists(ids, min_size=not document, max_size=4)))


pooled = st.builds(
    Request,
    number=st.just(0),
    prompt=prompts(),
    limit=st.just(0),
    pooled=st.sampled_from(["mean", "mean", "last"]),
    priority=st.sampled_from([0, 0, 1, 2]),
    salt=st.sampled_from([0, 0, 1]),
)

requests = st.builds(
    Request,
    number=st.just(0),
    prompt=prompts(),
    limit=st.integers(0, 24),
    n=st.sampled_from([1, 1, 2, 3, 4]),
    ends=st.sampled_from([frozenset(), frozenset({3}), frozenset({0, 5})]),
    least=st.integers(0, 3),
    scored=st.booleans(),
    priority=st.sampled_from([0, 0, 1, 2]),
    salt=st.sampled_from([0, 0, 1]),
)


def guess(tokens: Sequence[int], most: int) -> list[int]:
    """Now right, now wrong: ids are few."""
    return [(sum(tokens) + place) % VOCABULARY for place in range(min(most, len(tokens) % 4))]


class Machine(RuleBasedStateMachine):
    """`number` counts requests; some numbers are used again as soon as they are free."""

    world: World
    number = 0

    @initialize(
        limits=limits(),
        groups=st.lists(st.tuples(st.integers(4, 8), st.sampled_from([None, None, 5, 16, 17, 30])), min_size=1, max_size=3),
        guessed=st.booleans(),
    )
    def begin(self, limits: Limits, groups: list[tuple[int, int | None]], guessed: bool) -> None:
        pages, windows = zip(*groups, strict=True)
        self.world = World(pages, windows, limits, guess if guessed else None)

    @precondition(lambda self: len(self.world.clients) < 10)
    @rule(
        request=st.one_of(requests, requests, requests, pooled),
        wait=st.sampled_from([None, None, None, 0, 30]),
        again=st.booleans(),
        poison=st.sampled_from([None, None, None, None, 0, 3, 20, 45]),
    )
    def add(self, request: Request, wait: int | None, again: bool, poison: int | None) -> None:
        world = self.world
        if not again or self.number in world.clients:
            self.number = max(self.number, *world.clients, 0) + 1
        deadline = None if wait is None else world.now + wait
        values = {name: getattr(request, name) for name in Request.__slots__}
        values |= {"number": self.number, "deadline": deadline, "n": min(request.n, world.limits.sequences)}
        try:
            world.add(Request(**values), poison)
        except RequestError:
            del world.clients[self.number]

    @rule(place=st.integers(0, 20))
    def abort(self, place: int) -> None:
        if self.world.clients:
            self.world.abort(sorted(self.world.clients)[place % len(self.world.clients)])

    @rule(place=st.integers(0, 20), choice=st.integers(0, 3))
    def finish(self, place: int, choice: int) -> None:
        if self.world.clients:
            number = sorted(self.world.clients)[place % len(self.world.clients)]
            self.world.finish(number, choice % self.world.clients[number].request.n)

    @rule(count=st.integers(1, 4))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.world.step()

    @rule(count=st.integers(1, 12))
    def go_on(self, count: int) -> None:
        """Some steps as an engine takes them: as many in flight as can be."""
        for _ in range(count):
            if self.world.step() is None and self.world.flight:
                self.world.apply()

    @precondition(lambda self: self.world.flight)
    @rule(error=st.sampled_from([None, None, None, None, 0, 1, 2]))
    def apply(self, error: int | None) -> None:
        self.world.apply(error)

    @precondition(lambda self: self.world.flight)
    @rule(place=st.integers(0, 2), computed=st.integers(0, 3))
    def drop(self, place: int, computed: int) -> None:
        self.world.drop(place % len(self.world.flight), computed)

    @rule()
    def forget(self) -> None:
        self.world.forget()

    @rule()
    def accuse(self) -> None:
        self.world.accuse()

    @rule(tokens=st.sampled_from([1, 5, 16, 40]), sequences=st.integers(1, 5), shorter=st.booleans(), data=st.data())
    def recut(self, tokens: int, sequences: int, shorter: bool, data: st.DataObject) -> None:
        pages = [data.draw(st.integers(3, 8)) for _ in self.world.scheduler.cache.pools]
        self.world.recut(pages, replace(self.world.limits, tokens=tokens, sequences=sequences), shorter)

    @rule()
    def another(self) -> None:
        self.world.replace()

    @rule(seconds=st.sampled_from([-5, 1, 20]))
    def clock(self, seconds: int) -> None:
        self.world.now += seconds

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.drain()


Machine.TestCase.settings = settings(
    max_examples=450,
    stateful_step_count=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],
)
TestModel = Machine.TestCase
