"""What the scheduler costs a step: CPU microseconds of `step` and `apply` at 256 running decodes, long ones, and prefill.

    python bench/scheduler.py [--sequences 256] [--steps 300] [--json FILE]

No device and no ranks: results are made up beforehand. Medians are quoted, with the 90th percentile beside them.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from itertools import count
from pathlib import Path

from shardwise.bench.about import commit, machine
from shardwise.sched.limits import Limits
from shardwise.sched.scheduler import Scheduler
from shardwise.sched.sequence import Request
from shardwise.sched.step import Chosen, Result, Step

CASES = {
    "decode": {"context": 128, "mix": 0, "flight": 1},
    "decode, two in flight": {"context": 128, "mix": 0, "flight": 2},
    "decode at 8192 tokens": {"context": 8192, "mix": 0, "flight": 1},
    "decode with prefill": {"context": 128, "mix": 2, "flight": 1},
}


def answers(step: Step) -> list[Result]:
    """One token for each sequence that draws."""
    return [Result(s, (Chosen(7),) if item.drawn else ()) for item in step.items for s in (item.drawn or (item.sequence,))]


def measure(sequences: int, steps: int, context: int, mix: int, flight: int) -> dict[str, float]:
    """Microseconds a step; `mix` requests of 512 tokens come at each step, and leave after their first token."""
    pages = 1 + (sequences + 4 * mix + 4) * (-(-(context + steps + 600) // 16))
    budget = max(sequences + 2048, context)
    scheduler = Scheduler((pages,), (None,), Limits(budget, sequences + 8 * mix + 8, flight=flight), lambda: 0.0)
    numbers = count()
    for _ in range(sequences):
        number = next(numbers)
        scheduler.add(Request(number, (number % 1000, *range(context - 1)), 10**6 if context > pages * 16 else steps + 400))
    waiting: list[Step] = []

    def turn(spent: dict[str, list[float]]) -> None:
        for _ in range(mix):
            number = next(numbers)
            scheduler.add(Request(number, (number, *range(511)), 1))
        began = time.process_time()
        step, _ = scheduler.step()
        spent["step_us"].append((time.process_time() - began) * 1e6)
        assert step is not None
        waiting.append(step)
        if len(waiting) == flight:
            done = waiting.pop(0)
            results = answers(done)
            began = time.process_time()
            scheduler.apply(done.number, results)
            spent["apply_us"].append((time.process_time() - began) * 1e6)

    while scheduler.waiting or any(not s.sources and len(s.tokens) == context for s in scheduler.running):
        turn({"step_us": [], "apply_us": []})
    spent: dict[str, list[float]] = {"step_us": [], "apply_us": []}
    gc.collect()
    for _ in range(steps):
        turn(spent)
    both = [a + b for a, b in zip(spent["step_us"], spent["apply_us"], strict=False)]
    figures = {name: round(statistics.median(values), 1) for name, values in spent.items()}
    return figures | {
        "both_us": round(statistics.median(both), 1),
        "both_p90_us": round(statistics.quantiles(both, n=10)[8], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--sequences", type=int, default=256)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    found: dict[str, object] = {
        "command": f"python bench/scheduler.py --sequences {asked.sequences} --steps {asked.steps}",
        "commit": commit(),
        "machine": machine(),
    }
    for name, case in CASES.items():
        figures = measure(asked.sequences, asked.steps, **case)
        found[name] = figures
        print(f"{name:24}", "  ".join(f"{key} {value:8.1f}" for key, value in figures.items()), flush=True)
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
