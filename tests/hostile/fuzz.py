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

import psutil

from bench.about import commit, machine
from tests.hostile.access import tried
from tests.hostile.campaign import Found, Target, exchanged, run
from tests.hostile.described import described
from tests.hostile.wire import case
from tests.server.live import Live, serving

PATIENCE_S = 2.0
KEY = "sesame-7f3a"
LIMITS = ("--max-model-len", "128", "--max-choices", "4", "--max-prompts", "8", "--threads", "1")
TIMES = ("--head-timeout", "2s", "--body-stall", "2s", "--idle-timeout", "2s")
"""So that every answer is short, and what never comes is given up on soon."""


def held(live: Live) -> dict[str, Any]:
    """What the server holds now: requests, pages, connections, descriptors, threads, processes, memory."""
    _, about = live.ask("/server_info")
    _, slots = live.ask("/slots")
    processes = [psutil.Process(live.process.pid), *psutil.Process(live.process.pid).children(recursive=True)]
    port = live.url.rpartition(":")[2]
    mine = [each for process in processes for each in process.net_connections("tcp") if each.laddr.port == int(port)]
    return {
        "slots": len(slots),
        "running": about["counters"]["running"],
        "waiting": about["counters"]["waiting"],
        "pages_held": sum(group["total"] - group["free"] for group in about["pages"]),
        "connections": sum(each.status != psutil.CONN_LISTEN for each in mine),
        "descriptors": sum(process.num_fds() for process in processes),
        "threads": sum(process.num_threads() for process in processes),
        "processes": len(processes),
        "resident_mib": round(sum(process.memory_info().rss for process in processes) / 2**20),
    }


def settled(live: Live, wanted: dict[str, Any], within_s: float = 20) -> tuple[dict[str, Any], float]:
    """(what is held once it is what was `wanted` to be zero, or after so long; after how many seconds)."""
    began = time.monotonic()
    while True:
        now = held(live)
        took_s = time.monotonic() - began
        if took_s > within_s or all(now[name] <= most for name, most in wanted.items()):
            return now, took_s
        time.sleep(0.1)


PLACES = {"p50": 0.5, "p99": 0.99, "max": 1.0}
ZERO = {"slots": 0, "running": 0, "waiting": 0, "pages_held": 0, "connections": 0}


def malformed(seed: int, count: int) -> dict[str, Any]:
    """The campaign, and what is left of it."""
    with serving(*LIMITS, *TIMES) as live:
        run(live.url, PATIENCE_S, ((n, case(seed + 1, n)) for n in range(200)))  # all that a server makes once is there
        before, _ = settled(live, ZERO)
        began = time.monotonic()
        found = run(live.url, PATIENCE_S, told((n, case(seed, n)) for n in range(count)), 32)
        took_s = time.monotonic() - began
        after, zero_s = settled(live, {**ZERO, "descriptors": before["descriptors"]})
        status, answer = live.ask("/v1/completions", {"prompt": "Once", "max_tokens": 4})
        assert status == 200, answer
        log = [line for line in live.said if not line.startswith("shardwise: no GPU")]
    leaks = [f"{name}: {after[name]}" for name in ZERO if after[name]]
    leaks += [name for name in ("descriptors", "processes") if after[name] > before[name]]
    return {**figures(found), "seconds": round(took_s), "before": before, "after": after, "left": leaks,
            "zero_after_s": round(zero_s, 2), "log_lines": len(log), "log": log[:20]}  # fmt: skip


def told(cases: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    for number, each in cases:
        if number % 1000 == 0:
            print(f"{number} ...", file=sys.stderr, flush=True)
        yield number, each


def figures(found: Found) -> dict[str, Any]:
    health = sorted(found.health_s) or [0.0]
    return {
        "requests": found.kinds.total(),
        "kinds": dict(found.kinds.most_common()),
        "statuses": dict(sorted(found.statuses.items())),
        "good_streams": found.good,
        "good_streams_begun_again": found.late,
        "fetched_urls": found.baited,
        "slow_among_others": len(found.slow),
        "health_ms": {name: round(1000 * health[int(at * (len(health) - 1))]) for name, at in PLACES.items()},
        "faults": [list(each) for each in found.faults[:50]],
    }  # fmt: skip


def keyless(seed: int, count: int) -> dict[str, Any]:
    """Requests without a key, of a server that has one."""
    with serving(*LIMITS, *TIMES, "--api-key", KEY) as live:
        target = Target(int(live.url.rpartition(":")[2]), PATIENCE_S)
        statuses, through = asyncio.run(tried(target, seed, count))
    return {"requests": count, "statuses": dict(sorted(statuses.items())), "through": through[:50]}


def by_description(seed: int, examples: int) -> dict[str, Any]:
    """What schemathesis finds by the description that the server gives of itself."""
    with serving(*LIMITS, "--api-key", KEY) as live:
        return described(live.url, KEY, seed, examples)


def replay(name: str) -> None:
    seed, number = (int(part) for part in name.split("/"))
    again = case(seed, number)
    print(asdict(again))
    with serving(*LIMITS, *TIMES) as live, contextlib.suppress(TimeoutError):
        target = Target(int(live.url.rpartition(":")[2]), PATIENCE_S)
        print(asyncio.run(exchanged(target, again, 1)))
        print(live.said, held(live))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--keyless", type=int, default=5_000)
    parser.add_argument("--examples", type=int, default=80, help="of each endpoint, for schemathesis; 0 leaves it out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--replay", metavar="SEED/NUMBER")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if asked.replay:
        replay(asked.replay)
        return 0
    result: dict[str, Any] = {"commit": commit(), "machine": machine(), "seed": asked.seed}
    result["malformed"] = malformed(asked.seed, asked.requests)
    result["keyless"] = keyless(asked.seed, asked.keyless)
    if asked.examples:
        result["description"] = by_description(asked.seed, asked.examples)
    text = json.dumps(result, indent=1)
    print(text)
    if asked.out:
        asked.out.write_text(text + "\n", encoding="utf-8")
    bad = result["malformed"]["faults"] or result["malformed"]["left"] or result["keyless"]["through"]
    return int(bool(bad or result["malformed"]["fetched_urls"] or result.get("description", {}).get("failures")))


if __name__ == "__main__":
    sys.exit(main())
