"""Days of traffic in seconds: a seed decides who comes, who leaves, what is lost and how the clock jumps.

    python -m tests.sched.simulation [--requests 1000000] [--seed 0]

Each day has another machine: other cache groups, limits and habits. One day in ten is checked to the last key.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from shardwise.errors import RequestError
from shardwise.sched.limits import Limits
from shardwise.sched.scheduler import Scheduler
from shardwise.sched.sequence import Request
from shardwise.sched.step import Pool
from tests.sched.fakes import VOCABULARY, need
from tests.sched.world import World

DAY = 1000
"""Requests of one day."""


@dataclass
class Report:
    """What came of some days. `wait` is the longest that a request waited, in parts of what it may."""

    ended: Counter[str] = field(default_factory=Counter)
    steps: int = 0
    preempted: int = 0
    raised: int = 0
    wait: float = 0.0
    trace: int = 0

    def add(self, day: Day) -> None:
        world = day.world
        self.ended += world.ended
        self.steps += world.steps
        self.preempted += world.preempted
        self.raised += world.raised
        self.wait = max(self.wait, day.wait)
        self.trace = hash((self.trace, world.trace))


class Day:
    """One day: `run` returns when every request has ended."""

    def __init__(self, seed: int, build: Callable[..., Scheduler] = Scheduler, checked: bool = False) -> None:
        self.random = draw = random.Random(seed)
        self.checked = checked
        windows = [draw.choice([None, None, 20, 33]) for _ in range(draw.choice([1, 1, 2]))]
        turns: tuple[int, ...] = draw.choice([(), (), (), (24,), (40,), (20, 50)])
        tight = draw.random() < 0.5
        limits = Limits(
            tokens=draw.choice([1, 5, 16, 40] if tight else [16, 64, 256]),
            sequences=draw.choice([1, 3, 6] if tight else [4, 16, 32]),
            flight=draw.randint(1, 3),
            ahead=draw.randint(0, 2),
            preemptions=draw.choice([1, 3, 3]),
            turns=turns,
            shared=None if turns else draw.choice([None, None, None, 32]),
            prefixes=draw.random() < 0.8,
        )
        pages = [draw.choice([6, 8, 10] if tight else [14, 40, 120]) for _ in windows]
        self.world = World(pages, windows, limits, self._guess if draw.random() < 0.3 else None, build, checked)
        self.rate = draw.choice([0.1, 0.3, 0.6])
        self.poison = draw.choice([0.0, 0.0, 0.0, 0.02, 0.1])
        self.whole = pages, limits
        self.count = 0
        self.documents: list[tuple[int, ...]] = [()] * 3
        self.wait = 0.0
        self._born: dict[int, tuple[int, int, int]] = {}
        self._work = Counter[int]()
        self._lost = 0

    def run(self, requests: int) -> Day:
        world, draw = self.world, self.random
        turn = 0
        while self.count < requests or world.scheduler.requests:
            turn += 1
            while self.count < requests and len(world.clients) < 60 and draw.random() < self.rate:
                self._arrive()
            if draw.random() < 0.1:
                self._happen()
            if (draw.random() < 0.1 or world.step() is None) and world.flight:
                raised, issued = world.raised, sum(sequence.issued for sequence in world.scheduler.running)
                world.apply(draw.randrange(9) if draw.random() < 0.002 else None)
                # Suspects compute it by themselves, and again when they give way to the next one.
                self._lost += 2 * issued * (world.raised - raised)
            if self.checked or turn % 256 == 0:
                world.check()
            if turn % 64 == 0:
                self._patience()
        world.drain()
        return self

    def _arrive(self) -> None:
        draw, world = self.random, self.world
        self.count += 1
        # Numbers come again as soon as they are free.
        free = [number for number in world.flying if number not in world.clients]
        number = free[0] if free else next(n for n in iter(lambda: draw.randint(1, 99), 0) if n not in world.clients)
        if draw.random() < 0.12:
            self.documents[draw.randrange(3)] = tuple(draw.choices(range(VOCABULARY), k=64))
        prompt = draw.choice(self.documents)[: draw.choice([16, 32, 48, draw.randint(1, 64)])]
        if not prompt or draw.random() < 0.8:
            prompt += tuple(draw.choices(range(VOCABULARY), k=draw.randint(1, 8)))
        pooled: Pool = draw.choice(["mean", "last"]) if draw.random() < 0.1 else ""
        request = Request(
            number,
            prompt,
            limit=0 if pooled else draw.choice([0, 1, 4, 12, 40]),
            n=1 if pooled else min(draw.choice([1, 1, 1, 1, 2, 4]), world.limits.sequences),
            ends=draw.choice([frozenset[int](), frozenset((3,))]),
            least=draw.choice([0, 2]),
            scored=not pooled and draw.random() < 0.1,
            pooled=pooled,
            priority=draw.choice([0, 0, 0, 0, 1, 2]),
            salt=draw.choice([0, 0, 0, 1]),
            deadline=world.now + draw.randint(1, 400) if draw.random() < 0.05 else None,
        )
        others = [client.request for client in world.clients.values() if client.request.priority <= request.priority]
        ahead = work(request) + sum(map(work, others))
        self._born[request.number] = (world.steps, ahead, self._before(request.priority))
        self._work[request.priority] += work(request)
        try:
            world.add(request, draw.randrange(len(prompt) + 8) if draw.random() < self.poison else None)
        except RequestError:
            del world.clients[request.number]
            world.ended["refused"] += 1

    def _happen(self) -> None:
        """Something else than work."""
        draw, world = self.random, self.world
        world.now += draw.choice([1, 1, 1, 5, 50, -20])
        what = draw.random()
        if what < 0.1 and world.clients:
            world.abort(draw.choice(list(world.clients)))
        elif what < 0.2 and world.clients:
            number = draw.choice(list(world.clients))
            world.finish(number, draw.randrange(world.clients[number].request.n))
        elif what < 0.35 and world.flight:
            index = draw.randrange(len(world.flight))
            self._lost += sum(step.tokens for step in list(world.flight)[index:])
            world.drop(index, draw.choice([0, 0, 1, 2, 3]))
        elif what < 0.37:
            self._lost += sum(sequence.issued for sequence in world.scheduler.running)
            world.forget()
        elif what < 0.39:
            self._lost += sum(sequence.issued for sequence in world.scheduler.running)
            self._recut()
        elif what < 0.41:
            self._lost += 2 * sum(sequence.issued for sequence in world.scheduler.running)
            world.accuse()
        elif what < 0.42:
            self._lost += sum(sequence.issued for sequence in world.scheduler.running)
            world.replace()

    def _recut(self) -> None:
        """Fewer ranks, or all of them again."""
        draw, (pages, limits) = self.random, self.whole
        if draw.random() < 0.5:
            pages = [draw.randint(4, count) for count in pages]
            limits = replace(limits, sequences=draw.randint(1, limits.sequences))
        self.world.recut(pages, limits, shorter=draw.random() < 0.5)

    def _guess(self, tokens: Sequence[int], most: int) -> list[int]:
        """What comes next, now and then with a mistake."""
        count = len(tokens)
        for client in self.world.clients.values():
            for story in client.stories:
                if count > len(client.request.prompt) and story.tokens[:count] == tokens:
                    story.reach(count + most)
                    right = story.tokens[count : count + min(most, count % 4)]
                    return [*right[: count % 3], *([VOCABULARY] * (count % 5 == 0))]
        return []

    def _before(self, priority: int) -> int:
        """Tokens of all who ever came with less than `priority`, and go first; and all that was lost."""
        return sum(self._work[p] for p in range(priority)) + self._lost

    def _patience(self) -> None:
        """Nobody waits for its first token for more steps than there are tokens to compute before it, as often as anybody may
        start over: those of who was there before it, of who came since and goes first, and its own. Several steps in flight
        are one for a sequence whose next token is not known."""
        limits = self.world.limits
        again = (1 + limits.preemptions + len(limits.turns)) * limits.flight
        for number, client in self.world.clients.items():
            if client.request.limit and not any(client.told):
                born, ahead, before = self._born[number]
                most = 100 + again * (ahead + self._before(client.request.priority) - before)
                waited = self.world.steps - born
                need(waited <= most, f"request {number} waits for {waited} steps of at most {most}")
                self.wait = max(self.wait, waited / most)


def work(request: Request) -> int:
    """The tokens that are computed for a request, if nothing is computed twice."""
    return request.n * (len(request.prompt) + request.limit)


def simulate(seed: int, requests: int, build: Callable[..., Scheduler] = Scheduler) -> Report:
    """Days until there were so many requests."""
    report = Report()
    for day in range(-(-requests // DAY)):
        report.add(Day(hash((seed, day)), build, checked=day % 10 == 0).run(min(DAY, requests - day * DAY)))
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    began = time.perf_counter()
    report = simulate(asked.seed, asked.requests)
    print(report, f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
