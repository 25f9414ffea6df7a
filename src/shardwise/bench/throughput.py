"""A trace replayed against an engine or a server: tokens a second, and what a client waits for the first token and the next."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from shardwise.bench.progress import Told, untold
from shardwise.bench.report import Column, Report
from shardwise.bench.trace import Arrival, tokens
from shardwise.engine.contract import TokenEngine
from shardwise.errors import ShardwiseError
from shardwise.sched.events import Emitted, Ended, Event
from shardwise.sched.request import SamplingParams

PERCENT = (50, 90, 99)
COLUMNS = (
    Column("target", "target"),
    Column("requests", "requests"),
    Column("failed", "failed"),
    Column("seconds", "s", ".1f"),
    Column("tokens_per_s", "tok/s out", ".2f"),
    Column("prompt_tokens_per_s", "tok/s in", ".2f"),
    *(Column(f"ttft_p{at}_ms", f"first p{at}, ms", ".1f") for at in PERCENT),
    *(Column(f"itl_p{at}_ms", f"next p{at}, ms", ".1f") for at in PERCENT),
)


@dataclass(slots=True)
class Timed:
    """What became of one request, told by one thread: the times of its tokens and how it ended. `tokens` is how many there
    were, where several may come at a time."""

    submitted: float = 0.0
    stamps: list[float] = field(default_factory=list)
    ended: float | None = None
    error: str | None = None
    tokens: int | None = None
    over: Callable[[], None] = lambda: None

    def token(self) -> None:
        """One more token came."""
        self.stamps.append(time.perf_counter())

    def end(self, error: str | None = None) -> None:
        """Nothing more comes."""
        self.ended, self.error = time.perf_counter(), error
        self.over()


Target = Callable[[list[int], int, Timed], None]
"""Starts a request: a prompt of ids, the tokens of its answer, and who is told. It must not wait."""


def of_engine(engine: TokenEngine) -> Target:
    """An engine of this process."""

    def ask(prompt: list[int], answer: int, timed: Timed) -> None:
        def sink(event: Event) -> None:
            if isinstance(event, Emitted):
                timed.token()
            elif isinstance(event, Ended):
                timed.end(event.error)

        engine.submit(prompt, SamplingParams(temperature=0, max_tokens=answer, ignore_eos=True), sink)

    return ask


def replay(arrivals: Sequence[Arrival], target: Target, vocabulary: int, told: Told = untold) -> list[Timed]:
    """Every request at its time; returns when all have ended. A refused request is one that failed."""
    left, over = threading.Semaphore(0), list[Timed]()
    made = [tokens(arrival, number, vocabulary) for number, arrival in enumerate(arrivals)]
    begun = time.perf_counter()
    for number, arrival in enumerate(arrivals):
        time.sleep(max(0.0, begun + arrival.at_s - time.perf_counter()))
        told(f"request {number + 1} of {len(arrivals)}")
        timed = Timed(time.perf_counter(), over=left.release)
        over.append(timed)
        try:
            target(made[number], arrival.answer, timed)
        except ShardwiseError as error:
            timed.end(str(error))
    for _ in arrivals:
        left.acquire()
    return over


def row(name: str, arrivals: Sequence[Arrival], found: Sequence[Timed]) -> dict[str, Any]:
    """The figures of one replay."""
    served = [timed for timed in found if timed.error is None and timed.stamps]
    ends = [timed.ended for timed in found if timed.ended is not None]
    seconds = max(ends) - min(timed.submitted for timed in found)
    first = [timed.stamps[0] - timed.submitted for timed in served]
    later = [b - a for timed in served for a, b in pairwise(timed.stamps)]
    made = sum(timed.tokens or len(timed.stamps) for timed in served)
    read = sum(arrival.prompt for arrival, timed in zip(arrivals, found, strict=True) if timed.error is None)
    return {
        "target": name, "requests": len(found), "failed": len(found) - len(served), "seconds": round(seconds, 3),
        "prompt_tokens": read, "tokens": made, "tokens_per_s": round(made / seconds, 3),
        "prompt_tokens_per_s": round(read / seconds, 3), **_percentiles("ttft", first), **_percentiles("itl", later),
    }  # fmt: skip


def throughput(trace: str, rows: Sequence[dict[str, Any]], found: Sequence[Timed], cut: int) -> Report:
    """The report of a replay."""
    notes = [f"{cut} requests were longer than the context, and cut to it"] if cut else []
    if errors := [timed.error for timed in found if timed.error is not None]:
        notes.append(f"{len(errors)} requests failed, the first with: {errors[0]}")
    return Report("throughput", f"Replay of {trace}", COLUMNS, tuple(rows), tuple(notes))


def _percentiles(name: str, seconds: Sequence[float]) -> dict[str, float | None]:
    ordered = sorted(seconds)
    places = {at: min(len(ordered) - 1, at * len(ordered) // 100) for at in PERCENT}
    return {f"{name}_p{at}_ms": round(1000 * ordered[place], 3) if ordered else None for at, place in places.items()}
