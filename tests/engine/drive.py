"""A core driven step by step in the test's own thread: who arrives before which step is decided by a seed, not by a clock."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from shardwise.engine.admit import admit
from shardwise.engine.core import Core
from shardwise.engine.grammar import Grammars
from shardwise.engine.journal import Entry
from shardwise.engine.ranks import Ranks
from shardwise.engine.setup import Setup
from shardwise.engine.thread_ranks import ThreadRanks
from shardwise.sched.events import Emitted, Ended, Event, Pooled, Scored
from shardwise.sched.pooling import PoolingParams
from shardwise.sched.request import SamplingParams
from shardwise.sched.step import Chosen


@dataclass
class Told:
    """All that became of one request."""

    events: list[Event] = field(default_factory=list)

    @property
    def ended(self) -> list[Ended]:
        return [event for event in self.events if isinstance(event, Ended)]

    @property
    def scores(self) -> list[Chosen]:
        return [chosen for event in self.events if isinstance(event, Scored) for chosen in event.scores]

    @property
    def pooled(self) -> list[Pooled]:
        return [event for event in self.events if isinstance(event, Pooled)]

    def tokens(self, choice: int = 0) -> list[int]:
        return [e.chosen.token for e in self.events if isinstance(e, Emitted) and e.choice == choice]


@dataclass(frozen=True)
class Ask:
    """A request of a test, before it is numbered."""

    prompt: tuple[int, ...]
    params: SamplingParams | PoolingParams
    ends: tuple[int, ...] = ()
    priority: int = 0
    tenant: str = ""


class Drive:
    """A context manager: ranks as threads, a core, and what became of every request by its number."""

    def __init__(self, setup: Setup, ranks: Callable[[Setup], Ranks] = ThreadRanks) -> None:
        self.setup = setup
        self._start = ranks
        self.ranks = ranks(setup)
        self.grammars = Grammars(setup.folder, setup.layout.model.vocab)
        self.now = 0.0
        self.core = Core(setup, self.ranks, lambda: self.now)
        self.told: dict[int, Told] = {}
        self.entries: dict[int, Entry] = {}
        self.steps = self.dropped = self.preempted = 0
        self._never = os.eventfd(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.ranks.close()
        os.close(self._never)

    def add(self, ask: Ask, seed: int = 0) -> int:
        number = len(self.told) + 1
        told = self.told[number] = Told()
        limit = admit(self.setup, ask.prompt, ask.params)
        own = ask.params.seed if isinstance(ask.params, SamplingParams) else None
        seed = seed if own is None else own
        entry = Entry(number, ask.prompt, ask.params, seed, limit, told.events.append, ask.ends, (), ask.priority, ask.tenant)
        if entry.structured is not None:
            entry.grammar = self.grammars.compile(entry.structured)
        self.entries[number] = entry
        self.core.add(entry)
        return number

    def turn(self) -> None:
        """Issues what can be, then takes the oldest step's results in."""
        self.core.issue()
        if self.core.in_flight:
            done = self.ranks.wait(self._never)
            assert done is not None
            self.steps += 1
            self.core.apply(*done)

    def lose(self) -> None:
        """Lets all steps in flight be computed, and loses what they made: they are done again."""
        self.core.issue()
        flying = self.core.in_flight
        if not flying or self.core.unsampled:
            return
        first = None
        for _ in range(flying):
            done = self.ranks.wait(self._never)
            assert done is not None
            first = done[0] if first is None else first
        assert first is not None
        self.core.scheduler.drop(first)
        self.dropped += flying

    def restart(self, setup: Setup | None = None, failed: str | None = None) -> None:
        """New ranks, whose caches are empty: of another `setup`, or because one `failed`."""
        self.ranks.close()
        self.setup = setup or self.setup
        self.ranks = self._start(self.setup)
        self.core.resume(self.ranks, setup, failed)

    def finish(self) -> None:
        """Until nothing is left to do."""
        while self.core.scheduler.requests:
            self.turn()

    def alone(self, ask: Ask, seed: int = 0) -> Told:
        """What becomes of a request that has the ranks to itself."""
        number = self.add(ask, seed)
        self.finish()
        return self.told[number]

    def arriving(self, asks: Sequence[Ask], chance: random.Random, *, lossy: bool = False) -> list[int]:
        """All requests, a few before each step; where `lossy`, some steps are lost. Their numbers, when all have ended."""
        waiting, numbers = list(enumerate(asks)), []
        while waiting or self.core.scheduler.requests:
            for _ in range(min(len(waiting), chance.choice((0, 0, 1, 1, 2, 5)))):
                index, ask = waiting.pop(0)
                numbers.append(self.add(ask, index))
            if lossy and chance.random() < 0.1:
                self.lose()
            self.turn()
        self.preempted = sum(ended.preempted for number in numbers for ended in self.told[number].ended)
        return numbers
