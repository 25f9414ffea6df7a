"""Time to sample from given logits on one rank, in each way of choosing: by default 64 rows over the vocabulary of Llama 3.

    python bench/sampling.py [--rows 64] [--vocabulary 128256] [--threads 1] [--device cpu] [--spread 3] [--rounds 5]

Logits are seeded normal noise times `--spread`, flatter than a model's: of top_p 0.9 at temperature 0.7 most rows need the
second offer of candidates, and at temperature 1.5 all logits.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch

from shardwise.comm.solo import Solo
from shardwise.nn.batch import Batch, Rank
from shardwise.runtime.parts import Parts
from shardwise.runtime.recent import Recent
from shardwise.runtime.sample import Sampler
from shardwise.sched.step import Draw, Edit, Item, Step
from shardwise.spec.config import read_model
from shardwise.spec.layout import Layout, Shares
from shardwise.spec.mesh import Mesh

WAYS = {
    "greedy": Draw(0, 0.0, 0),
    "temperature": Draw(0, 1.0, 0),
    "min_p 0.1": Draw(0, 1.0, 0, min_p=0.1),
    "top_k 50": Draw(0, 1.0, 0, top_k=50),
    "top_p 0.9 at 0.2": Draw(0, 0.2, 0, top_p=0.9),
    "top_p 0.9 at 0.7": Draw(0, 0.7, 0, top_p=0.9),
    "top_p 0.95 at 1.5": Draw(0, 1.5, 0, top_p=0.95),
    "5 log-probabilities": Draw(0, 0.0, 0, logprobs=5),
    "penalties of 300 ids": Draw(0, 0.0, 0, edit=Edit(1.1, 0.1, 0.1, tuple(range(300)), tuple((i, 2) for i in range(300)))),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--vocabulary", type=int, default=128256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--spread", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = json.loads((Path(__file__).parent / "models" / "llama-1b.json").read_text(encoding="utf-8"))
    config["vocab_size"] = args.vocabulary
    layout, device = Layout(read_model(config), Mesh(), Shares(), "float32", "float32"), torch.device(args.device)
    parts = Parts(Rank(layout, 0, Solo(), device, torch.float32, torch.float32))
    logits = torch.randn(args.rows, parts.vocabulary, generator=torch.Generator().manual_seed(0)).to(device) * args.spread
    none, rows = torch.empty(0, dtype=torch.int64, device=device), torch.arange(args.rows, device=device)
    sampler = Sampler(parts, lambda hidden: hidden, Recent(args.rows, device))
    print(f"{args.rows} rows of {parts.vocabulary} ids")
    for name, draw in WAYS.items():
        draws = [replace(draw, sequence=i, seed=i) for i in range(args.rows)]
        step = Step(1, tuple(Item(i, (0,), 0, 1, (), drawn=(i,)) for i in range(args.rows)))
        times = []
        with torch.inference_mode():
            for _ in range(args.rounds + 1):  # the first warms up
                sampler.take(step, logits, Batch(none, none, none, rows, none, (), ()))
                began = time.perf_counter()
                sampler.sample(1, draws)
                times.append(time.perf_counter() - began)
        left = f"  rows left over by each offer: {sampler.uncertain}" if sampler.uncertain else ""
        print(f"{name:22}{statistics.median(times[1:]) * 1e3:8.1f} ms{left}")


if __name__ == "__main__":
    main()
