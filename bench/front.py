"""What a front costs: its CPU time for each streamed token, and how many streams of 20 tokens a second it carries before the
99th percentile of the time between two tokens doubles. The engine is a fake one, so that nothing but fronts is measured.

    python bench/front.py [--streams 40] [--tokens 20000] [--carry 50,100,200,400,...] [--fronts 1,2] [--json FILE]

Run it alone on the machine: clients and the engine compute on it as well.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import uvloop
from fronts import Fronts, Reader, close, fronts, opened

from shardwise.bench.about import commit, machine

RATE = 20
"""Tokens a second of a stream: about as fast as people read."""

BRISK = 50
"""Tokens a second of a stream where only cost is measured."""

LONGEST = 900
"""Tokens of one answer: the model's context is 1024."""

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("chat", {}),
    "chat, logprobs 5": ("chat", {"logprobs": True, "top_logprobs": 5}),
    "completions": ("completions", {}),
    "completions, logprobs 5": ("completions", {"logprobs": 5}),
}


def told(readers: Sequence[Reader]) -> int:
    return sum(reader.tokens for reader in readers)


async def cost(where: Fronts, kind: str, streams: int, tokens: int) -> dict[str, float]:
    """CPU microseconds of the front a token, over at least `tokens` tokens."""
    api, asked = KINDS[kind]
    cpu_s, seen, frames = 0.0, 0, 0
    while seen < tokens:
        readers = await opened(where, api, streams, LONGEST, **asked)
        before_s, before = where.cpu_s(), told(readers)
        frames -= sum(len(reader.times) for reader in readers)
        while not any(reader.ended for reader in readers) and seen + told(readers) - before < tokens:
            await asyncio.sleep(0.1)
        cpu_s += where.cpu_s() - before_s
        seen += told(readers) - before
        frames += sum(len(reader.times) for reader in readers)
        close(readers)
        await asyncio.sleep(0.3)
    return {"cpu_us_per_token": round(1e6 * cpu_s / seen, 1), "tokens": seen, "tokens_per_read": round(seen / frames, 3)}


async def carried(where: Fronts, streams: int, seconds: float) -> dict[str, float]:
    """Times between tokens with so many chats at once, in milliseconds, and what each process computed, in cores."""
    readers = await opened(where, "chat", streams, LONGEST)
    await asyncio.sleep(1.0)
    begun, before_s, core_s = time.perf_counter(), where.cpu_s(), sum(where.core.cpu_times()[:2])
    own_s, before = time.process_time(), told(readers)
    await asyncio.sleep(seconds)
    wall_s = time.perf_counter() - begun
    cores = {
        "front_cores": round((where.cpu_s() - before_s) / wall_s, 2),
        "engine_cores": round((sum(where.core.cpu_times()[:2]) - core_s) / wall_s, 2),
        "client_cores": round((time.process_time() - own_s) / wall_s, 2),
    }
    gaps = sorted(b - a for reader in readers for a, b in pairwise(reader.times) if a >= begun)
    rate = (told(readers) - before) / wall_s / streams
    close(readers)
    await asyncio.sleep(0.5)
    times = {f"p{at}_ms": round(1000 * gaps[min(len(gaps) - 1, len(gaps) * at // 100)], 1) for at in (50, 99)}
    return {**times, "max_ms": round(1000 * gaps[-1], 1), "tokens_per_s_each": round(rate, 2), **cores}


async def most(count: int, steps: Sequence[int], seconds: float) -> dict[str, Any]:
    """More and more streams, until the 99th percentile is twice that of the fewest."""
    found: dict[str, Any] = {}
    carries = 0
    async with fronts(count, 1 / RATE) as where:
        for streams in steps:
            found[f"{streams} streams"] = last = await carried(where, streams, seconds)
            print(f"{count} front(s)  {streams:5} streams  {last}", flush=True)
            first = next(iter(found.values()))
            if last["p99_ms"] > 2 * first["p99_ms"] or last["tokens_per_s_each"] < 0.95 * RATE:
                break
            carries = streams
    return {"carries": carries, **found}


async def run(args: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {"cost": {}, "carried": {}}
    if args.tokens:
        async with fronts(1, 1 / BRISK) as where:
            for kind in KINDS:
                found["cost"][kind] = await cost(where, kind, args.streams, args.tokens)
                print(f"{kind:24} {found['cost'][kind]}", flush=True)
    steps = [int(each) for each in args.carry.split(",") if each]
    for count in map(int, args.fronts.split(",") if steps else ()):
        found["carried"][f"{count} front(s)"] = await most(count, steps, args.seconds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=40, help="streams at once where cost is measured")
    parser.add_argument("--tokens", type=int, default=20_000, help="tokens of each kind; 0 leaves cost out")
    parser.add_argument("--carry", default="20,50,100,200,300,400,500,600,700,800,1000,1200,1400,1600", help="streams at once")
    parser.add_argument("--seconds", type=float, default=8.0, help="for which each number of streams is carried")
    parser.add_argument("--fronts", default="1,2")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    about = {"command": "python bench/front.py", "commit": commit(), "machine": machine()}
    result = {**about, **uvloop.run(run(args))}
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
