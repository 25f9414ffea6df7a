"""How long a sum over ranks takes, by its size, on every backend that is here: real processes, as a model's ranks are.

One process a rank, but for "threads", which are ranks of one process.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardwise import env, native
from shardwise.bench.chart import Chart
from shardwise.bench.progress import Told, untold
from shardwise.bench.report import Column, Report
from shardwise.comm.memory import anonymous
from shardwise.errors import ShardwiseError, UserError

BACKENDS = ("shm", "gloo", "threads")
SIZES = tuple(4**n * 2**12 for n in range(7))
"""4 KiB to 16 MiB: a token of a small model, to a long prompt of a large one."""

COLUMNS = (
    Column("backend", "backend"),
    Column("ranks", "ranks"),
    Column("bytes", "bytes"),
    Column("median_us", "median us", ".1f"),
    Column("p90_us", "p90 us", ".1f"),
    Column("gb_s", "GB/s", ".2f"),
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Each of `backends` with each number of `ranks` sums each of `sizes` (bytes of float32 a rank), `rounds` times, fewer of
    large ones."""

    ranks: tuple[int, ...] = (2,)
    sizes: tuple[int, ...] = SIZES
    backends: tuple[str, ...] = BACKENDS
    rounds: int = 300

    def __post_init__(self) -> None:
        for name in self.backends:
            if name not in BACKENDS:
                raise UserError(f"--backends {name}: it is one of {', '.join(BACKENDS)}")
            if name not in available():
                raise UserError(f"--backends {name} is not here: {MISSING[name]}; there are {', '.join(available())}")
        if wrong := [size for size in self.sizes if size % 4 or size < 4]:
            raise UserError(f"--sizes {wrong[0]}: it takes bytes of whole float32 numbers, 4 each, as 4KiB")
        if wrong := [ranks for ranks in self.ranks if ranks < 2]:
            raise UserError(f"--ranks {wrong[0]}: a sum takes two ranks or more")

    @property
    def parts(self) -> int:
        """How often progress is told of."""
        return len(self.backends) * len(self.ranks)


MISSING = {"shm": "it needs the compiled library"}
"""Why a backend may not be here."""


def available() -> tuple[str, ...]:
    """The backends that can be measured here."""
    return tuple(name for name in BACKENDS if name != "shm" or native.available())


def comm_sweep(wanted: Wanted, told: Told = untold) -> Report:
    """All of them. ShardwiseError where ranks fail."""
    rows = []
    for ranks in wanted.ranks:
        for backend in wanted.backends:
            told(f"{backend}, {ranks} ranks")
            rows += _rows(backend, ranks, _measured(backend, ranks, wanted), wanted.sizes)
    lines = {
        f"{backend}, {ranks} ranks": [
            (row["bytes"], row["median_us"]) for row in rows if (row["backend"], row["ranks"]) == (backend, ranks)
        ]
        for ranks in wanted.ranks
        for backend in wanted.backends
    }
    chart = Chart("All-reduce in float32, median", "bytes a rank", "microseconds", lines, True, True, True)
    notes = ("times are rank 0's, call after call; GB/s are bytes of one rank over the median",)
    return Report("comm", "All-reduce by size and backend", COLUMNS, tuple(rows), notes, chart)


def _rows(backend: str, ranks: int, times: Sequence[Sequence[float]], sizes: Sequence[int]) -> list[dict[str, Any]]:
    found = []
    for size, each in zip(sizes, times, strict=True):
        median = statistics.median(each)
        p90 = sorted(each)[min(len(each) - 1, 9 * len(each) // 10)]
        us, late = (max(0.001, round(1e6 * value, 3)) for value in (median, p90))
        found.append(
            {
                "backend": backend,
                "ranks": ranks,
                "bytes": size,
                "median_us": us,
                "p90_us": late,
                "gb_s": round(size / us / 1e3, 4),
            }
        )
    return found


def _measured(backend: str, ranks: int, wanted: Wanted) -> list[list[float]]:
    """Seconds of every call on rank 0, for each size."""
    if backend == "threads":
        from shardwise.bench.comm_rank import timed
        from shardwise.comm.threads import run

        return run(ranks, lambda comm: timed(comm, wanted.sizes, wanted.rounds))[0]
    with tempfile.TemporaryDirectory(prefix="shardwise-bench-") as folder:  # 0700, as ranks demand it
        order = {"folder": folder, "backend": backend, "size": ranks, "sizes": wanted.sizes, "rounds": wanted.rounds}
        return _processes(order, ranks, folder)


def _processes(order: dict[str, Any], ranks: int, folder: str) -> list[list[float]]:
    """A process a rank; what rank 0 answers. None of them is left. ShardwiseError with the first complaint where one fails."""
    command = [sys.executable, "-m", "shardwise.bench.comm_rank"]
    errors = Path(folder) / "errors"
    # One thread a rank, or those of torch would be in each other's way.
    surroundings = {**env.of_a_rank(), "OMP_NUM_THREADS": "1"}
    started: list[subprocess.Popen[str]] = []
    try:
        with errors.open("w") as complaints, _shared(order["backend"]) as passed:
            for rank in range(ranks):
                out = subprocess.PIPE if rank == 0 else subprocess.DEVNULL
                own = json.dumps({**order, "rank": rank, "shared": passed[0] if passed else None})
                process = subprocess.Popen(
                    [*command, own],
                    stdin=subprocess.DEVNULL, stdout=out, stderr=complaints, text=True, env=surroundings, pass_fds=passed,
                )  # fmt: skip
                started.append(process)
        answer, _ = started[0].communicate()
        codes = [process.wait() for process in started]
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
                process.wait()
    if any(codes) or not answer:
        said = [text for text in errors.read_text().splitlines() if text.strip()] or ["it said nothing"]
        raise ShardwiseError(f"{order['backend']} with {ranks} ranks failed: {said[-1]}")
    times: list[list[float]] = json.loads(answer)
    return times


@contextmanager
def _shared(backend: str) -> Iterator[tuple[int, ...]]:
    """The descriptor of the memory in which ranks meet that share it."""
    if backend != "shm":
        yield ()
        return
    fd = anonymous()
    try:
        yield (fd,)
    finally:
        os.close(fd)
