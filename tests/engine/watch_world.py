"""Ranks that are simulated from tick to tick in a time of their own, so that the watch can be shown what takes minutes.

A plan says what they compute, how processors and disks are given to them, when somebody looks, and what goes wrong.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from shardwise.comm.ticking import CHOOSING, HEAD
from shardwise.engine.watch import Finding, Vital
from shardwise.runtime.pulse import State, Where

DT_S = 0.01
EPOCH = 3


class Looks(Protocol):
    """What the world shows itself to."""

    def look(self, now: float, busy: bool, wheres: Sequence[Where], vitals: Sequence[Vital]) -> Finding | None: ...


@dataclass(frozen=True)
class Fault:
    """From `at_s` on, rank `seat` does this: "stop", "sleep", "spin" or "end" (its main thread), in the middle of anything."""

    seat: int
    kind: str
    at_s: float


@dataclass(frozen=True)
class Plan:
    """`tick_s`: what a layer takes at least; `token_s`: what a token of it takes. `speeds`: by how much each rank is slower.
    `think_s`: what the engine takes between steps. `post_s`: what a rank does in a collective before it waits for the others.
    `apart`: so many layers have one between them.
    `shares`: (from, seat, share of a processor). `disks`, `naps`: (from, seat, seconds) without progress, for good reasons.
    `asleep`: (at, seconds) in which the whole machine is not there. `gaps`: between looks, over and over."""

    layers: int
    tokens: tuple[int, ...]
    tick_s: float
    token_s: float
    choosing_s: float
    speeds: tuple[float, ...]
    think_s: float = 0.0
    post_s: float = 0.0005
    apart: int = 1
    shares: tuple[tuple[float, int, float], ...] = ()
    disks: tuple[tuple[float, int, float], ...] = ()
    naps: tuple[tuple[float, int, float], ...] = ()
    asleep: tuple[tuple[float, float], ...] = ()
    gaps: tuple[float, ...] = (0.1,)
    fault: Fault | None = None
    until_s: float = 60.0


def healthy(chance: random.Random) -> Plan:
    """Anything that may happen to ranks which do what they should."""
    ranks, until = chance.randint(1, 4), 40.0
    tick = chance.choice((0.0005, 0.01, 0.05, 0.3))

    def times(most: int, longest: float) -> tuple[tuple[float, int, float], ...]:
        spots = [chance.uniform(0, until) for _ in range(chance.randint(0, most))]
        return tuple((at, chance.randrange(ranks), chance.uniform(0.1, longest)) for at in sorted(spots))

    starved = [(chance.uniform(0, until), chance.randrange(ranks)) for _ in range(chance.randint(0, 6))]
    return Plan(
        layers=chance.randint(1, 5),
        tokens=tuple(chance.choice((1, 1, 1, 2, 16, 300)) for _ in range(chance.randint(1, 6))),
        tick_s=tick,
        token_s=min(0.01, tick * chance.choice((0.0, 0.02, 0.3))),
        choosing_s=tick * chance.uniform(0.1, 5),
        speeds=tuple(chance.choice((1.0, 1.0, 2.0, 4.0)) for _ in range(ranks)),
        think_s=chance.choice((0.0, 0.0, 0.05, 3.0)),
        shares=tuple((at, seat, chance.choice((0.0, 0.05, 0.3, 1.0, 1.0))) for at, seat in sorted(starved)),
        disks=times(2, 12.0),
        naps=times(2, 1.5),
        asleep=tuple((at, length * 20) for at, _, length in times(1, 3.0)),
        gaps=tuple(chance.choice((0.1, 0.1, 0.1, 0.05, 0.4, 1.2)) for _ in range(7)),
        until_s=until,
    )


def faulty(chance: random.Random) -> Plan:
    """The same with a fault once the ranks run, where ticks are short enough for the least limit."""
    plan = healthy(chance)
    kind = chance.choice(("stop", "sleep", "spin", "end"))
    return replace(
        plan,
        tick_s=0.002,
        token_s=chance.choice((0.0, 0.00002)),
        choosing_s=0.005,
        think_s=chance.choice((0.0, 0.05, 0.3)),
        shares=(),
        disks=(),
        naps=(),
        asleep=(),
        gaps=tuple(chance.choice((0.1, 0.1, 0.12, 0.25)) for _ in range(5)),
        fault=Fault(chance.randrange(len(plan.speeds)), kind, chance.uniform(6.0, 9.0)),
        until_s=16.0,
    )


@dataclass
class Rank:
    """One simulated rank: what it says of itself, and what the kernel would."""

    seat: int
    world: World
    where: Where = field(default_factory=lambda: Where(EPOCH, state=State.IDLE))
    state: str = "S"
    waited_s: float = 0.0
    ran_s: float = 0.0
    share: float = 1.0
    posted: int = 0
    needs_s: float = 0.0
    away: tuple[str, float] = ("", 0.0)

    def __post_init__(self) -> None:
        self.program = self._steps()

    def tick(self, state: State, **changes: int) -> None:
        self.where = replace(self.where, state=state, tick_ns=int(self.world.now * 1e9), **changes)

    def _steps(self) -> Iterator[Callable[[], bool] | float]:
        """What it does: seconds of a processor that it needs, or what it waits for."""
        plan, number = self.world.plan, 0
        while True:
            yield partial(self._told, number)
            tokens = plan.tokens[number % len(plan.tokens)]
            work = max(plan.tick_s, plan.token_s * tokens) * plan.speeds[self.seat]
            self.tick(State.COMPUTING, step=number, layer=-1, tokens=tokens)
            yield work * 0.1
            for layer in range(plan.layers):
                self.tick(State.COMPUTING, layer=layer)
                yield work
                if layer % plan.apart == 0:
                    yield from self._meet()
                    yield work
                    yield from self._meet()
            self.tick(State.COMPUTING, layer=HEAD)
            yield work
            self.tick(State.IDLE)
            yield 0.001
            self.tick(State.COMPUTING, layer=CHOOSING)
            yield plan.choosing_s * plan.speeds[self.seat]
            yield from self._meet()
            self.tick(State.IDLE)
            number += 1
            if self.seat == 0:
                self.world.done = number

    def _told(self, number: int) -> bool:
        return self.world.sent > number

    def _meet(self) -> Iterator[Callable[[], bool] | float]:
        # Around a collective the clock does not tick.
        self.where = replace(self.where, state=State.IN_COLLECTIVE, calls=self.where.calls + 1)
        yield self.world.plan.post_s
        self.posted += 1
        mine = self.posted
        yield lambda: all(rank.posted >= mine for rank in self.world.ranks)
        yield 0.0005
        self.where = replace(self.where, state=State.COMPUTING)

    waits: Callable[[], bool] | None = None

    def run(self, left_s: float) -> None:
        """What it does in so many seconds."""
        fault = self.world.plan.fault
        if fault and fault.seat == self.seat and self.world.now >= fault.at_s:
            self.state = {"stop": "T", "sleep": "S", "spin": "R", "end": "Z"}[fault.kind]
            if fault.kind == "spin":
                self._use(left_s, left_s)
            return
        kind, away_s = self.away
        if away_s > 0:
            self.state, self.away = kind, (kind, away_s - left_s)
            return
        while left_s > 1e-9:
            if self.needs_s > 0:
                self.state = "R"
                left_s -= self._use(left_s, self.needs_s)
                continue
            if self.waits is not None and not self.waits():
                self.state = "S"
                self.ran_s += 1e-6 * (self.where.state == State.IN_COLLECTIVE)  # it looks around
                return
            self.waits = None
            following = next(self.program)
            if isinstance(following, float):
                self.needs_s = following
            else:
                self.waits = following

    def _use(self, most_s: float, needs_s: float) -> float:
        """Takes what it gets of a processor; how long that took."""
        used_s = min(needs_s, most_s * self.share)
        took_s = most_s if used_s < needs_s or not self.share else used_s / self.share
        self.ran_s, self.waited_s, self.needs_s = self.ran_s + used_s, self.waited_s + took_s - used_s, needs_s - used_s
        return took_s

    @property
    def vital(self) -> Vital:
        return Vital(self.seat, 1000 + self.seat, self.state, self.waited_s, self.ran_s)


class World:
    """All ranks of a plan, and the engine that tells them what to do."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.now, self.sent, self.done = plan, 100.0, 0, 0
        self.ranks = [Rank(seat, self) for seat in range(len(plan.speeds))]
        self._begin = self.now
        if plan.fault:
            self.plan = replace(plan, fault=replace(plan.fault, at_s=plan.fault.at_s + self.now))

    def run(self, watch: Looks) -> tuple[float, Finding] | None:
        """(when, what) the watch found first."""
        events = sorted(
            [(at, 0, seat, share) for at, seat, share in self.plan.shares]
            + [(at, 1, seat, length) for at, seat, length in self.plan.disks]
            + [(at, 2, seat, length) for at, seat, length in self.plan.naps]
            + [(at, 3, 0, length) for at, length in self.plan.asleep]
        )
        looks, next_look, think_until = 0, self.now, self.now
        while self.now - self._begin < self.plan.until_s:
            while events and events[0][0] <= self.now - self._begin:
                _, what, seat, value = events.pop(0)
                if what == 0:
                    self.ranks[seat].share = value
                elif what == 3:
                    self.now += value
                    self._begin += value
                else:
                    self.ranks[seat].away = ("D" if what == 1 else "S", value)
            if self.done < self.sent:
                think_until = self.now + self.plan.think_s
            elif self.now >= think_until:
                self.sent += 1
            for rank in self.ranks:
                rank.run(DT_S)
            self.now += DT_S
            if self.now >= next_look:
                wheres, vitals = [rank.where for rank in self.ranks], [rank.vital for rank in self.ranks]
                found = watch.look(self.now, self.sent > self.done, wheres, vitals)
                if found is not None:
                    return self.now - self._begin, found
                next_look = self.now + self.plan.gaps[looks % len(self.plan.gaps)]
                looks += 1
        return None


def wrong(plan: Plan, watch: Looks) -> str | None:
    """What a watch says wrongly of a plan, or does not say."""
    found = World(plan).run(watch)
    if plan.fault is None:
        return None if found is None else f"false alarm at {found[0]:.2f} s: {found[1].seat} {found[1].reason}"
    if found is None:
        return f"missed: {plan.fault}"
    at, finding = found
    late_s = at - plan.fault.at_s
    if finding.seat != plan.fault.seat:
        return f"blamed {finding.seat} ({finding.reason}) for {plan.fault}"
    most_s = 1.0 if plan.fault.kind in ("stop", "end") else 3.2
    return None if 0 < late_s < most_s else f"{plan.fault} was named after {late_s:.2f} s"
