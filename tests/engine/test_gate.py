"""The bound on those who wait, and whether those who are sent away find room when they come at the time they were told."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardwise.engine.gate import MOST_S, Gate
from shardwise.errors import QueueFull


@dataclass
class World:
    """An engine of `seats` that takes `serve()` seconds a request, behind a gate, with newcomers at `rate` a second until
    `until`. Whoever is refused comes again exactly when it was told to, `late` seconds at most behind."""

    seats: int
    limit: int
    rate: float
    until: float
    serve: Callable[[], float]
    chance: random.Random
    late: float = 0.1
    returns: float = 1.0
    knocks: bool = False
    tokens: int | None = None
    now: float = 0.0
    busy: int = 0
    served: int = 0
    first: int = 0
    retries: int = 0
    refused_again: int = 0
    most_waiting: int = 0
    line: list[int] = field(default_factory=list)
    told: list[int] = field(default_factory=list)

    def run(self) -> None:
        gate = Gate(self.limit, self.tokens, lambda: self.now)
        events: list[tuple[float, int, str, int]] = [(self.chance.expovariate(self.rate), 0, "new", 0)]
        order = 1
        while events:
            self.now, _, kind, number = heapq.heappop(events)
            if kind == "done":
                self.busy -= 1
                self.served += 1
            else:
                if kind == "new" and self.now >= self.until:
                    continue
                if kind == "new":
                    self.first += 1
                    heapq.heappush(events, (self.now + self.chance.expovariate(self.rate), order, "new", order))
                self.retries += kind == "again"
                try:
                    if self.knocks:
                        gate.knock(50, number)
                    gate.enter(number, 10 + number % 90, number)
                    self.line.append(number)
                except QueueFull as full:
                    self.told.append(full.retry_after_s)
                    self.refused_again += kind == "again"
                    if self.chance.random() < self.returns:
                        back = self.now + full.retry_after_s + self.chance.uniform(0, self.late)
                        heapq.heappush(events, (back, order + 1, "again", number))
            self.most_waiting = max(self.most_waiting, gate.waiting)
            while self.line and self.busy < self.seats:
                gate.start(self.line.pop(0))
                self.busy += 1
                heapq.heappush(events, (self.now + self.serve(), order + 2, "done", 0))
            order += 3


@pytest.mark.parametrize("knocks", [False, True])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("load", [1.5, 2, 4])
@pytest.mark.parametrize(("seats", "mean_s"), [(8, 0.4), (16, 2.0), (64, 1.0), (4, 6.0)])
def test_who_comes_back_as_told_finds_room(seats: int, mean_s: float, load: float, seed: int, knocks: bool) -> None:
    """At least 90 of 100; the queue stays bounded, and nobody idles meanwhile."""
    chance = random.Random(seed)
    capacity = seats / mean_s
    # So long that all whom it turns away have a place within the longest time that is told.
    until = min(60.0, 0.45 * MOST_S / (load - 0.7))
    world = World(seats, 4 * seats, load * capacity, until, lambda: chance.lognormvariate(-0.32, 0.8) * mean_s, chance)
    world.knocks = knocks
    world.run()
    assert world.most_waiting <= 4 * seats
    assert (world.retries > 10 or load < 2) and max(world.told, default=1) < MOST_S
    assert world.refused_again <= 0.1 * world.retries, (world.refused_again, world.retries)
    assert world.served == world.first  # all were served in the end
    assert all(1 <= told <= MOST_S and isinstance(told, int) for told in world.told)


@pytest.mark.parametrize("returns", [0.0, 0.3])
def test_places_kept_for_those_who_stay_away_idle_nobody(returns: float) -> None:
    chance = random.Random(5)
    world = World(16, 64, 160.0, 60.0, lambda: chance.expovariate(1.0), chance, returns=returns)
    world.run()
    assert world.served >= 0.9 * 16 * 60


def test_prompt_tokens_are_bounded_too() -> None:
    gate = Gate(10, 100, lambda: 0.0)
    gate.enter(1, 5000, "alone")  # longer than all that may wait, but nobody does
    with pytest.raises(QueueFull):
        gate.enter(2, 10, "b")
    gate.start(1)
    gate.enter(3, 60, "c")
    gate.enter(4, 30, "d")  # ten are kept for who was refused
    with pytest.raises(QueueFull) as refused:
        gate.enter(5, 1, "e")
    assert 1 <= refused.value.retry_after_s <= MOST_S
    assert (gate.waiting, gate.accepted, gate.refused) == (2, 3, 2)


def test_who_knocks_learns_what_entering_would_tell_and_takes_no_place() -> None:
    now = [0.0]
    gate = Gate(1, None, lambda: now[0])
    gate.knock(10, "a")
    gate.knock(10, "b")
    assert (gate.waiting, gate.accepted, gate.refused) == (0, 0, 0)
    gate.enter(1, 10, "a")
    with pytest.raises(QueueFull) as full:
        gate.knock(10, "b")
    assert (gate.waiting, gate.refused) == (1, 1)
    gate.start(1)
    now[0] += full.value.retry_after_s
    gate.knock(10, "b")
    gate.knock(10, "b")  # the promise is kept until it enters
    gate.enter(2, 10, "b")
    with pytest.raises(QueueFull):
        gate.enter(3, 10, "b")


def test_without_a_limit_nobody_is_refused() -> None:
    gate = Gate(None, None, lambda: 0.0)
    for number in range(1000):
        gate.enter(number, 10**6, ())
    assert gate.waiting == gate.accepted == 1000


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(("enter", "start", "leave", "pass")), st.integers(0, 12)), max_size=200))
def test_the_count_is_exact(script: list[tuple[str, int]]) -> None:
    """Whatever comes, in any order: the bound holds, and who waits is who entered and neither started nor left."""
    now = [0.0]
    gate = Gate(4, 200, lambda: now[0])
    waits: set[int] = set()
    for n, (what, number) in enumerate(script):
        if what == "pass":
            now[0] += number
        elif what == "start":
            gate.start(number)
            waits.discard(number)
        elif what == "leave":
            gate.leave(number)
            waits.discard(number)
        elif number not in waits:
            try:
                gate.enter(number, 10 * number, n % 3)
                waits.add(number)
            except QueueFull as full:
                assert 1 <= full.retry_after_s <= MOST_S
        assert gate.waiting == len(waits) <= 4
