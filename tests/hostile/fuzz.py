"""`make fuzz`: a real server of the bundled model under thousands of bad requests, and what it had left when they were over.

`--replay SEED/NUMBER` shows and sends one of them again. The figures go to a file of JSON; the exit code is 1 where one is bad.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shardwise.bench.about import commit, machine
from tests.hostile.access import tried
from tests.hostile.campaign import Found, run
from tests.hostile.described import described
from tests.hostile.exchange import Target, exchanged
from tests.hostile.held import Watched
from tests.hostile.streams import Streams, beside
from tests.hostile.wire import case
from tests.server.live import Live, serving

PATIENCE_S = 2.0
KEY = "sesame-7f3a"
LIMITS = ("--max-model-len", "128", "--max-choices", "4", "--max-prompts", "8", "--threads", "1")
TIMES = ("--head-timeout", "2s", "--body-stall", "2s", "--idle-timeout", "2s")
"""So that every answer is short, and what never comes is given up on soon."""

AT_ONCE = 32
PLACES = {"p50": 0.5, "p99": 0.99, "max": 1.0}


def malformed(seed: int, count: int) -> dict[str, Any]:
    """The campaign, and what is left of it."""
    with serving(*LIMITS, *TIMES) as live:
        run(live.url, PATIENCE_S, ((n, case(seed + 1, n)) for n in range(200)))  # all that a server makes once is there
        watched = Watched(live)
        found = run(live.url, PATIENCE_S, told(count, seed, watched), AT_ONCE)
        last = range(count - count // 4, count)
        again = watched.leaked(lambda: run(live.url, PATIENCE_S, ((n, case(seed, n)) for n in last), AT_ONCE))
        return {**figures(found), **watched.result(), **again}


def told(count: int, seed: int, watched: Watched) -> Iterator[tuple[int, Any]]:
    """The cases. How far it has come is said; the memory is looked at on the way."""
    for number in range(count):
        if number % max(1, count // 20) == 0:
            print(f"{number} ... {watched.look()} MiB", file=sys.stderr, flush=True)
        yield number, case(seed, number)


def figures(found: Found) -> dict[str, Any]:
    health = sorted(found.health_s) or [0.0]
    return {
        "requests": found.kinds.total(),
        "kinds": dict(found.kinds.most_common()),
        "statuses": dict(sorted(found.statuses.items())),
        "fetched_urls": found.baited,
        "slow_among_others": len(found.slow),
        "health_ms": {name: round(1000 * health[int(at * (len(health) - 1))]) for name, at in PLACES.items()},
        "good_streams": asdict(found.streams),
        "faults": [list(each) for each in found.faults[:50]],
    }


def keyless(seed: int, count: int) -> dict[str, Any]:
    """Requests without a key, of a server that has one."""
    with serving(*LIMITS, *TIMES, "--api-key", KEY) as live:
        target, streams = aimed(live), Streams()

        async def play(watched: Watched | None, number: int) -> tuple[Any, Any]:
            async with beside(target, streams):
                return await tried(target, seed if watched else seed + 1, number)

        asyncio.run(play(None, min(count, 200)))
        watched = Watched(live, KEY)
        statuses, through = asyncio.run(play(watched, count))
        return {"requests": count, "statuses": dict(sorted(statuses.items())), "through": through[:50],
                "good_streams": asdict(streams), **watched.result()}  # fmt: skip


def by_description(seed: int, examples: int) -> dict[str, Any]:
    """What schemathesis finds by the description that the server gives of itself."""
    with serving(*LIMITS, "--api-key", KEY) as live:
        target, streams = aimed(live, patience_s=10.0), Streams()

        async def play() -> dict[str, Any]:
            async with beside(target, streams):
                return await asyncio.to_thread(described, live.url, KEY, seed, examples)

        async def alone() -> None:
            async with beside(target, Streams()):
                pass

        asyncio.run(alone())
        grammar = {"prompt": "A year:", "max_tokens": 1, "regex": "1[0-9]{3}"}
        assert live.ask("/v1/completions", grammar, key=KEY)[0] == 200  # the process that tries grammars begins with the first
        watched = Watched(live, KEY)
        return {**asyncio.run(play()), "good_streams": asdict(streams), **watched.result()}


def aimed(live: Live, patience_s: float = PATIENCE_S) -> Target:
    return Target(int(live.url.rpartition(":")[2]), patience_s, KEY)


def wrong(result: dict[str, Any], effective: int) -> list[str]:
    """What of the figures is not as it has to be."""
    found = []
    for name, part in result.items():
        if isinstance(part, dict) and "left" in part:
            lists = {each: part.get(each) for each in ("faults", "left", "through", "failures", "log")}
            found += [f"{name}: {each}: {value[:3]}" for each, value in lists.items() if value]
            found += [f"{name}: good streams: {each}" for each in part["good_streams"]["faults"][:3]]
            if part["good_streams"]["good"] < 4:
                found.append(f"{name}: only {part['good_streams']['good']} good streams came whole")
            if part.get("leaked"):
                found.append(f"{name}: MiB before and after the same cases once more: {part['played_again_mib']}")
            if part.get("fetched_urls"):
                found.append(f"{name}: the server fetched {part['fetched_urls']} addresses")
    if "description" in result and result["description"]["effective"] < effective:
        found.append(f"description: {result['description']['effective']} cases reached what they were for, not {effective}")
    return found


def replay(name: str) -> None:
    seed, number = (int(part) for part in name.split("/"))
    again = case(seed, number)
    print(asdict(again))
    with serving(*LIMITS, *TIMES) as live, contextlib.suppress(TimeoutError):
        watched = Watched(live)
        print(asyncio.run(exchanged(aimed(live), again, 1)))
        print(live.said, watched.result())


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--keyless", type=int, default=5_000)
    parser.add_argument("--examples", type=int, default=120, help="of each endpoint, for schemathesis; 0 leaves it out")
    parser.add_argument(
        "--effective", type=int, default=2_000, help="so many of schemathesis's cases must get past key and path"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--replay", metavar="SEED/NUMBER")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if asked.replay:
        replay(asked.replay)
        return 0
    command = f"python -m tests.hostile.fuzz --requests {asked.requests} --keyless {asked.keyless} --examples {asked.examples}"
    result: dict[str, Any] = {"command": f"{command} --seed {asked.seed}", "commit": commit(), "machine": machine()}
    stages = {
        "malformed": (asked.requests, malformed),
        "keyless": (asked.keyless, keyless),
        "description": (asked.examples, by_description),
    }
    for name, (count, stage) in stages.items():
        if count:
            began = time.monotonic()
            result[name] = {**stage(asked.seed, count), "seconds": round(time.monotonic() - began)}
            print(json.dumps({name: result[name]}, indent=1), flush=True)
    result["wrong"] = wrong(result, asked.effective)
    print(json.dumps({"wrong": result["wrong"]}, indent=1))
    if asked.out:
        asked.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return int(bool(result["wrong"]))


if __name__ == "__main__":
    sys.exit(main())
