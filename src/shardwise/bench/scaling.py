"""What more ranks bring: speed-up, efficiency, and the part of a step that communication takes, by degree.

Every rank has as many threads as any other run's: more ranks are more cores, until there are no more.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

from shardwise import env, native
from shardwise.bench import comm_sweep
from shardwise.bench.cases import Case
from shardwise.bench.chart import Chart
from shardwise.bench.model_runs import CASE, SPREAD
from shardwise.bench.progress import Told, untold
from shardwise.bench.report import Column, Report
from shardwise.bench.speed import decode, room, spread
from shardwise.engine.setup import Options, Setup, resolve
from shardwise.errors import UserError
from shardwise.spec import traffic

COLUMNS = (
    *CASE,
    *SPREAD,
    Column("speedup", "speed-up", ".2f"),
    Column("efficiency", "efficiency", ".2f"),
    Column("comm_calls", "sums a step"),
    Column("comm_share", "part of the step", ".3f"),
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """The model of `options` at each of `degrees`, with `threads` threads a rank, `batch` sequences of `context` tokens."""

    options: Options
    degrees: tuple[int, ...]
    threads: int = 1
    batch: int = 1
    context: int = 64
    steps: int = 24
    rounds: int = 3

    def __post_init__(self) -> None:
        if 1 not in self.degrees:
            raise UserError(f"-tp {','.join(map(str, self.degrees))}: what it is to be held against is missing; begin with 1")
        for degree in self.degrees:
            resolve(self.case(degree).options)

    def case(self, degree: int) -> Case:
        """The model at a degree."""
        return Case(replace(self.options, tp=degree, threads=self.threads))

    @property
    def parts(self) -> int:
        """How often progress is told of."""
        return (self.rounds + 1) * len(self.degrees) - 1


def scaling(wanted: Wanted, told: Told = untold) -> Report:
    """All degrees by turns, each speed against that of one rank in the same round."""
    steps: dict[int, list[float]] = defaultdict(list)
    for _ in range(wanted.rounds):
        for degree in wanted.degrees:
            told(f"tp {degree}: decode")
            case = wanted.case(degree)
            most = room(wanted.batch, wanted.context, wanted.steps, resolve(case.options).limits.tokens)
            with case.engine(most, wanted.batch) as engine:
                found = decode(engine, wanted.batch, wanted.context, wanted.steps)
                steps[degree].append(statistics.median(found))
    rows = [_row(wanted, degree, steps, told) for degree in wanted.degrees]
    lines = {
        "measured": [(row["tp"], row["speedup"]) for row in rows],
        "one for each rank": [(degree, float(degree)) for degree in wanted.degrees],
    }
    notes = (
        f"communication is what its sums take alone, over {_backend()}, at their number and size, over the time of a step; "
        "what ranks wait for one another comes on top",
    )
    chart = Chart("Speed-up by tensor-parallel degree", "ranks", "times the speed of one rank", lines)
    return Report("scaling", f"Scaling of {resolve(wanted.options).name}", COLUMNS, tuple(rows), notes, chart)


def _row(wanted: Wanted, degree: int, steps: dict[int, list[float]], told: Told) -> dict[str, Any]:
    case, seconds = wanted.case(degree), steps[degree]
    found = resolve(case.options)
    rates = spread([wanted.batch / each for each in seconds], 3)
    gain = spread([alone / each for alone, each in zip(steps[1], seconds, strict=True)], 4)
    row = {
        **case.told(found), "batch": wanted.batch, "context": wanted.context,
        "tokens_per_s": rates["median"], "min": rates["min"], "max": rates["max"],
        "speedup": gain["median"], "speedup_min": gain["min"], "speedup_max": gain["max"],
        "efficiency": round(gain["median"] / degree, 4), "comm_calls": 0, "comm_us": 0.0, "comm_share": 0.0,
    }  # fmt: skip
    if degree == 1:
        return row
    told(f"tp {degree}: communication")
    calls, us = _communication(found, wanted.batch)
    share = us / 1e6 / statistics.median(seconds)
    return {**row, "comm_calls": calls, "comm_us": round(us, 2), "comm_share": round(share, 4)}


def _communication(setup: Setup, batch: int) -> tuple[int, float]:
    """How many sums over ranks a step has, and the microseconds that they take one after another with nothing between."""
    layout = setup.layout
    calls = [call for call in traffic.of(layout.model, layout, batch, traffic.Rows()) if call.op == "all_reduce"]
    # Float32 at least is what is summed on a CPU with compiled kernels; a 16-bit sum costs no less.
    sizes = [max(4 * math.prod(call.shape), call.bytes) for call in calls]
    wanted = comm_sweep.Wanted((layout.mesh.tp,), tuple(sorted(set(sizes))), (_backend(),), 100)
    us = {row["bytes"]: row["median_us"] for row in comm_sweep.comm_sweep(wanted).rows}
    return len(calls), sum(us[size] for size in sizes)


def _backend() -> str:
    """What the ranks of an engine on this host speak by."""
    return env.collectives() or ("shm" if native.available() else "gloo")
