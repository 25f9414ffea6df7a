"""Decode speed of a 1.04 B-parameter Llama with random weights: one rank with all cores, and one rank a core over gloo.

    python bench/decode.py [--tp 1,2] [--dtype bfloat16] [--tokens 32] [--rounds 3] [--json FILE]

The configurations take turns, round by round, so that a drift of the machine's speed touches them alike; medians are quoted.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from about import commit, machine

from shardwise.engine.engine import Engine
from shardwise.engine.setup import Options, Setup, resolve
from shardwise.sched.request import SamplingParams

HERE = Path(__file__).parent
PROMPT = list(range(100, 164))


def measure(setup: Setup, tokens: int) -> dict[str, float]:
    """Seconds to ready and to the first token, and tokens a second after it."""
    began = time.perf_counter()
    with Engine(setup) as engine:
        ready = time.perf_counter()
        stamps = []
        for _ in engine.generate(PROMPT, SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)):
            stamps.append(time.perf_counter())
    # The first decode step still warms up; it is left out.
    steps = [b - a for a, b in itertools.pairwise(stamps)]
    return {
        "ready_s": ready - began,
        "first_token_s": stamps[0] - ready,
        "decode_tokens_per_s": 1 / statistics.median(steps),
        "prefill_tokens_per_s": len(PROMPT) / (stamps[0] - ready),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tp", default="1,2")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        shutil.copy(HERE / "models" / "llama-1b.json", Path(name) / "config.json")
        setups = {
            tp: resolve(Options(name, tp=tp, dtype=args.dtype, load_format="dummy", device="cpu", max_model_len=512))
            for tp in map(int, args.tp.split(","))
        }
        result = {"commit": commit(), "machine": machine(), "dtype": args.dtype, "tokens": args.tokens}
        runs: dict[int, list[dict[str, float]]] = {tp: [] for tp in setups}
        for _ in range(args.rounds):
            for tp, setup in setups.items():
                runs[tp].append(measure(setup, args.tokens))
    for tp, found in runs.items():
        medians = {key: round(statistics.median(run[key] for run in found), 3) for key in found[0]}
        result[f"tp{tp}"] = {"threads_per_rank": setups[tp].threads, **medians}
        shown = "  ".join(f"{key} {value:g}" for key, value in medians.items())
        print(f"tp {tp} ({setups[tp].threads} threads a rank)  {shown}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
