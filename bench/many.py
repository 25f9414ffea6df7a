"""Many requests at once on a 1.04 B-parameter Llama with random weights: decode by batch size, what of a step the ranks do not
work, and 64 mixed requests together against one by one.

    python bench/many.py [--tp 1,2] [--dtype bfloat16] [--batches 1,4,16,32] [--steps 24] [--mixed 64] [--json FILE]

Run it alone on the machine: absolute times of a shared one mean little, ratios within one run mean something.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue

from shardwise.bench.about import commit, machine
from shardwise.engine.engine import Engine
from shardwise.engine.ranks import ProcessRanks
from shardwise.engine.setup import Options, resolve
from shardwise.sched.events import Emitted, Ended, Event
from shardwise.sched.request import SamplingParams

HERE = Path(__file__).parent
PROMPT = 32
WARM = 3
"""Steps after the prompts that are not counted."""


def decode(engine: Engine, batch: int, steps: int) -> dict[str, float]:
    """Tokens a second while `batch` sequences decode, and the share of a step during which the lead rank did not work."""
    stamps: SimpleQueue[tuple[float, float]] = SimpleQueue()
    ended: SimpleQueue[Event] = SimpleQueue()
    ranks = engine.ranks
    assert isinstance(ranks, ProcessRanks)
    params = SamplingParams(temperature=0, max_tokens=steps + WARM + 1, ignore_eos=True)

    def first(event: Event) -> None:
        # The engine's thread is here once a step: the first sequence stands for all.
        if isinstance(event, Emitted):
            stamps.put((time.perf_counter(), ranks.busy_s))
        elif isinstance(event, Ended):
            ended.put(event)

    for index in range(batch):
        sink = first if index == 0 else (lambda event: ended.put(event) if isinstance(event, Ended) else None)
        engine.submit([100 + index] * PROMPT, params, sink)
    for _ in range(batch):
        assert ended.get().error is None  # type: ignore[union-attr]
    seen = [stamps.get() for _ in range(stamps.qsize())][WARM:]
    walls = [b[0] - a[0] for a, b in pairwise(seen)]
    busy = [b[1] - a[1] for a, b in pairwise(seen)]
    wall = statistics.median(walls)
    return {
        "tokens_per_s": round(batch / wall, 2),
        "step_ms": round(1000 * wall, 1),
        "outside_ranks_percent": round(100 * (1 - sum(busy) / sum(walls)), 2),
    }


def mixed(engine: Engine, count: int, together: bool) -> dict[str, float]:
    """Requests of mixed lengths, all at once or one after another."""
    chance = random.Random(0)
    ended: SimpleQueue[Event] = SimpleQueue()
    began, made = time.perf_counter(), 0
    for index in range(count):
        tokens = chance.choice((4, 8, 12))
        made += tokens
        prompt = [chance.randrange(3, 30000) for _ in range(chance.choice((8, 24, 64)))]
        params = SamplingParams(temperature=0.8, seed=index, max_tokens=tokens, ignore_eos=True)
        engine.submit(prompt, params, lambda event: ended.put(event) if isinstance(event, Ended) else None)
        if not together:
            ended.get()
    for _ in range(count if together else 0):
        ended.get()
    taken = time.perf_counter() - began
    return {"s": round(taken, 1), "tokens_per_s": round(made / taken, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tp", default="1,2")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--batches", default="1,4,16,32")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--mixed", type=int, default=64, help="requests of the mixed run; 0 leaves it out")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    result: dict[str, object] = {"commit": commit(), "machine": machine(), "dtype": args.dtype}
    with tempfile.TemporaryDirectory() as name:
        shutil.copy(HERE / "models" / "llama-1b.json", Path(name) / "config.json")
        for tp in map(int, args.tp.split(",")):
            options = Options(name, tp=tp, dtype=args.dtype, load_format="dummy", device="cpu", max_model_len=512)
            found: dict[str, object] = {}
            with Engine(resolve(options)) as engine:
                for batch in map(int, args.batches.split(",")):
                    found[f"batch {batch}"] = decode(engine, batch, args.steps)
                    print(f"tp {tp}  batch {batch:3}  {found[f'batch {batch}']}", flush=True)
                if args.mixed:
                    for label, together in (("together", True), ("one by one", False)):
                        found[label] = mixed(engine, args.mixed, together)
                        print(f"tp {tp}  {args.mixed} mixed, {label:10}  {found[label]}", flush=True)
            result[f"tp {tp}"] = found
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
