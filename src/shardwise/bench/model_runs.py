"""Tables of speeds: decode and prefill by batch and length, for each way to run a model, beside the machine's limit."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from shardwise.bench.cases import Case, step_bytes, stream_limit
from shardwise.bench.chart import Chart
from shardwise.bench.progress import Told, untold
from shardwise.bench.report import Column, Report
from shardwise.bench.speed import decode, prefill, room, spread
from shardwise.engine.setup import resolve
from shardwise.errors import UserError

CASE = (Column("tp", "tp"), Column("dtype", "dtype"), Column("quantization", "quantised"), Column("threads", "threads a rank"))
SPREAD = (
    Column("tokens_per_s", "tok/s", ".2f"),
    Column("min", "least", ".2f"),
    Column("max", "most", ".2f"),
)
BATCH = Column("batch", "batch")
DECODE = (
    *CASE,
    BATCH,
    Column("context", "context"),
    *SPREAD,
    Column("step_ms", "step, ms", ".2f"),
    Column("step_ratio", "over the first step", ".2f"),
    Column("degree_ratio", "speed over the first tp's", ".2f"),
    Column("limit_gb_s", "stream, GB/s", ".1f"),
    Column("share", "share of it", ".2f"),
)
PREFILL = (
    *CASE,
    Column("batch", "prompts"),
    Column("tokens", "tokens each"),
    *SPREAD,
    Column("first_token_s", "all read, s", ".3f"),
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Every case at every batch and length: `steps` decoded steps, in `rounds` rounds in which the cases take turns."""

    cases: tuple[Case, ...]
    batches: tuple[int, ...] = (1, 4, 16)
    lengths: tuple[int, ...] = (64,)
    steps: int = 24
    rounds: int = 3

    def __post_init__(self) -> None:
        if not self.cases:
            raise UserError("nothing is to be measured: give at least one dtype or quantisation")
        for case in self.cases:
            resolve(case.options)  # whatever can be refused is refused before anything has run

    @property
    def parts(self) -> int:
        """How often progress is told of."""
        return self.rounds * len(self.cases) * len(self.batches) * len(self.lengths)

    @property
    def points(self) -> Iterator[tuple[int, int]]:
        """(batch, length), in turn."""
        return ((batch, length) for length in self.lengths for batch in self.batches)


def decode_report(wanted: Wanted, told: Told = untold) -> Report:
    """Tokens a second while so many sequences, with so many tokens before them, get one token each a step."""
    steps: dict[tuple[int, int, int], list[float]] = defaultdict(list)
    limits: dict[int, list[float]] = defaultdict(list)
    ready: dict[int, list[float]] = defaultdict(list)
    for _ in range(wanted.rounds):
        for number, case in enumerate(wanted.cases):
            found = resolve(case.options)
            limits[number].append(stream_limit(found))
            tokens = found.limits.tokens
            most = max(room(batch, length, wanted.steps, tokens) for batch, length in wanted.points)
            begun = time.perf_counter()
            with case.engine(most, max(wanted.batches)) as engine:
                ready[number].append(time.perf_counter() - begun)
                decode(engine, 1, min(wanted.lengths), 1)  # what is slow once
                for batch, length in wanted.points:
                    told(f"{case.name}: decode, batch {batch}, context {length}")
                    steps[number, batch, length].append(statistics.median(decode(engine, batch, length, wanted.steps)))
    rows = []
    for (number, batch, length), seconds in steps.items():
        case = wanted.cases[number]
        found, limit, step = resolve(case.options), max(limits[number]), statistics.median(seconds)
        size = step_bytes(found, batch, length)
        rows.append({
            **case.told(found), "batch": batch, "context": length,
            **_rates(seconds, batch), "step_ms": round(1000 * step, 3), "step_bytes": size,
            **_ratios("step_ratio", seconds, steps[number, *next(wanted.points)]),
            **_ratios("degree_ratio", steps[_first_degree(wanted.cases, number), batch, length], seconds),
            "limit_gb_s": round(limit, 2), "share": round(size / 1e9 / step / limit, 4),
            "ready_s": round(statistics.median(ready[number]), 3),
        })  # fmt: skip
    chart = Chart("Decode by batch", "sequences at once", "tokens a second", _lines(rows, "batch", "context"), x_log=True)
    notes = (
        "the share is what a step reads (weights, keys and values) over its time and the stream limit of as many threads, "
        "measured in the same run; it means little where arithmetic is the limit, in large batches",
        "over the first step: a step's time over that of the case's first batch and context; over the first tp's: the speed "
        "over that of the same weights at the first degree; medians of ratios within a round",
    )
    return Report("decode", f"Decode of {_model(wanted)}", DECODE, tuple(rows), notes, chart)


def prefill_report(wanted: Wanted, told: Told = untold) -> Report:
    """Tokens a second of prompts that are read, so many at once."""
    times: dict[tuple[int, int, int], list[float]] = defaultdict(list)
    for _ in range(wanted.rounds):
        for number, case in enumerate(wanted.cases):
            with case.engine(max(wanted.lengths) + 2, max(wanted.batches)) as engine:
                prefill(engine, 1, min(wanted.lengths))  # the first one also warms up
                for batch, length in wanted.points:
                    told(f"{case.name}: {batch} prompts of {length} tokens")
                    times[number, batch, length].append(prefill(engine, batch, length))
    rows = []
    for (number, batch, length), seconds in times.items():
        case = wanted.cases[number]
        found = resolve(case.options)
        rows.append({
            **case.told(found), "batch": batch, "tokens": length,
            **_rates(seconds, batch * length), "first_token_s": round(statistics.median(seconds), 4),
        })  # fmt: skip
    chart = Chart("Prefill", "tokens of a prompt", "tokens a second", _lines(rows, "tokens", "batch"), x_log=True)
    return Report("prefill", f"Prefill of {_model(wanted)}", PREFILL, tuple(rows), (), chart)


def _rates(seconds: Sequence[float], amount: int) -> dict[str, float]:
    found = spread([amount / each for each in seconds], 3)
    return {"tokens_per_s": found["median"], "min": found["min"], "max": found["max"]}


def _ratios(name: str, over: Sequence[float], under: Sequence[float]) -> dict[str, float]:
    """Ratios of times that belong together, as they were taken in the same rounds."""
    found = spread([a / b for a, b in zip(over, under, strict=True)], 4)
    return {name: found["median"], f"{name}_min": found["min"], f"{name}_max": found["max"]}


def _first_degree(cases: Sequence[Case], number: int) -> int:
    """The first of the cases that differs from this one in its degree at most."""
    wanted = replace(cases[number].options, tp=None)
    return next(i for i, case in enumerate(cases) if replace(case.options, tp=None) == wanted)


def _lines(rows: Sequence[dict[str, Any]], x: str, each: str) -> dict[str, list[tuple[float, float]]]:
    lines: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        kind = row["quantization"] or row["dtype"]
        lines[f"tp {row['tp']} {kind}, {row[each]}"].append((row[x], row["tokens_per_s"]))
    return {name: sorted(points) for name, points in lines.items()}


def _model(wanted: Wanted) -> str:
    return resolve(wanted.cases[0].options).name
