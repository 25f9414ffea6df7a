"""Lives of an engine whose ranks die, stop, fail and are late: a seed decides everything, and tells the same life again.

python -m tests.engine.recovery.simulation [--seeds 10000] [--seed 0]
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from dataclasses import dataclass, field
from random import Random

from shardwise.engine.journal import Entry
from shardwise.engine.supervise import OnLoss, Policy
from shardwise.sched.limits import Limits
from shardwise.sched.request import SamplingParams
from tests.engine.recovery.cluster import Cluster, Plan
from tests.engine.recovery.worker import POISON
from tests.engine.recovery.world import Machine, Parts, World

KINDS = (
    ("die",),
    ("die", "stop"),
    ("die", "raise"),
    ("raise",),
    ("stop", "pause"),
    ("die", "stop", "raise", "pause", "slip"),
    ("die", "slip"),
)


@dataclass
class Report:
    """What came of some lives."""

    lives: int = 0
    steps: int = 0
    faults: int = 0
    losses: int = 0
    served: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    trace: int = 0

    def add(self, world: World) -> None:
        self.lives += 1
        self.steps += world.steps
        self.faults += world.cluster.faults
        self.losses += world.judged
        self.served += world.over is None
        self.ends["over: " + type(world.over).__name__] += world.over is not None
        for client in world.clients.values():
            error = client.ended.error if client.ended else None
            self.ends["left" if client.left else "complete" if error is None else "failed"] += 1
        self.trace = hash((self.trace, world.cluster.trace))


def live(seed: int, parts: Parts | None = None) -> World:
    """One life. Broken, or another AssertionError, where something does not hold."""
    draw = Random(seed)
    size = draw.choice([1, 2, 2, 3, 3, 4])
    limits = Limits(tokens=draw.choice([6, 16, 64]), sequences=draw.choice([2, 4, 8]), flight=2, ahead=draw.choice([0, 1, 1]))
    shrinks = draw.random() < 0.3
    pages = {n: 24 if not shrinks else 4 + 5 * n for n in range(1, 6)}
    machine = Machine(size, pages, draw.choice([1, 1, 1, 2, size]), limits, context=100)
    on_loss: OnLoss = draw.choice(["restart", "restart", "restart", "shrink", "exit"])
    policy = Policy(on_loss, draw.choice([1, 3, 5, 20]), draw.choice([60.0, 60.0, 0.4]), draw.choice([0, 1, 1, 2]))
    until = draw.choice([0.5, 1.0, 2.0, 4.0])
    rates = {place: draw.choice([0.0, 0.02, 0.1]) for place in ("form", "step", "collective")}
    jumps = (until * draw.random(),) if draw.random() < 0.1 else ()
    at_times = tuple(until * draw.random() for _ in range(draw.choice([0, 1, 2])))
    plan = Plan(
        faults=draw.choice([0, 1, 1, 2, 3, 6]) + len(at_times),
        until=until,
        rates=rates,
        kinds=draw.choice(KINDS),
        pairs=draw.choice([0.0, 0.0, 0.5]),
        at_times=at_times,
        stillborn=draw.choice([0.0, 0.0, 0.1, 0.7]),
        deadline_s=None if jumps else draw.choice([None, 0.7]),
        jumps=jumps,
        delay_s=draw.choice([2e-4, 1e-2]),
        notice_s=draw.choice([0.05, 0.002]),
        late=draw.choice([0.0, 0.03]),
        cursed=draw.choice([0.0, 0.0, 0.0, 0.1, 0.5]),
    )
    cluster = Cluster(draw, plan)
    world = World(machine, policy, cluster, parts or Parts())
    documents = [tuple(draw.randrange(POISON) for _ in range(40)) for _ in range(2)]
    for number in range(1, draw.choice([2, 4, 7])):
        entry = _entry(draw, number, documents)
        cluster.after(until * draw.random(), lambda entry=entry: cluster.order(lambda: world.submit(entry, cluster.some(1e-3))))
        if draw.random() < 0.1:
            cluster.after(until * draw.random(), lambda n=number: cluster.order(lambda: world.abort(n)))
    for _ in range(draw.choice([0, 0, 0, 1, 2])):
        to = draw.randint(1, 4)
        cluster.after(until * draw.random(), lambda to=to: cluster.order(lambda: world.reshard(to)))
    for _ in range(draw.choice([0, 30])):
        cluster.after((until + 0.5) * draw.random(), lambda: cluster.order(lambda: None))
    world.run()
    return world


def _entry(draw: Random, number: int, documents: list[tuple[int, ...]]) -> Entry:
    prompt = draw.choice(documents)[: draw.choice([0, 16, 20, 33])] + tuple(
        draw.randrange(POISON) for _ in range(draw.randint(1, 6))
    )
    if draw.random() < 0.08:
        prompt += (POISON,)
    limit = draw.choice([1, 6, 12, 24])
    params = SamplingParams(
        n=draw.choice([1, 1, 1, 2]),
        max_tokens=limit,
        min_tokens=draw.choice([0, 0, min(3, limit)]),
        presence_penalty=draw.choice([0.0, 0.0, 0.5]),
        prompt_logprobs=0 if draw.random() < 0.15 else None,
    )
    ends = tuple(range(draw.choice([0, 0, 4])))
    seed = draw.randrange(2**32)
    return Entry(number, prompt, params, seed, limit, sink=lambda _: None, ends=ends, priority=draw.choice([0, 0, 1]))


def simulate(first: int, seeds: int, parts: Parts | None = None) -> Report:
    """Lives of as many seeds. What is broken names its seed."""
    report = Report()
    for seed in range(first, first + seeds):
        try:
            report.add(live(seed, parts))
        except Exception as error:
            error.add_note(f"in the life of seed {seed}")
            raise
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    began = time.perf_counter()
    report = simulate(asked.seed, asked.seeds)
    print(report, f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
