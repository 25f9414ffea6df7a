"""What this machine can do at most, whatever computes on it: reading and copying memory, products by type of number.

By the compiled kernels where they are there, else by torch. The best of some rounds counts: a limit is what nothing exceeds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from shardwise import native
from shardwise.bench.progress import Told, untold
from shardwise.bench.report import Column, Report
from shardwise.errors import UserError
from shardwise.nn.kernels.pool import Pool
from shardwise.runtime.memory import allocated

STREAM_BYTES = 2**30
"""Read at once: many times what any cache holds."""

SHARE_BYTES = 2**28
"""Read at once where the limit is measured beside other things: several times a large cache, within a tenth of a second."""

SHAPE = (512, 2048, 8192)
"""Rows, inputs and outputs of the products: a prompt's step through a layer of a 1 B model."""

TYPES = ("float32", "bfloat16", "int8")
COLUMNS = (
    Column("what", "limit"),
    Column("type", "type"),
    Column("threads", "threads"),
    Column("best", "best", ".1f"),
    Column("worst", "worst", ".1f"),
    Column("unit", ""),
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """`size` bytes are read and copied, products have the `shape` (rows, inputs, outputs); each `rounds` times."""

    threads: tuple[int, ...]
    size: int = STREAM_BYTES
    types: tuple[str, ...] = TYPES
    shape: tuple[int, int, int] = SHAPE
    rounds: int = 5

    def __post_init__(self) -> None:
        unknown = [each for each in self.types if each not in TYPES]
        if unknown:
            raise UserError(f"--types {unknown[0]}: products are measured in {', '.join(TYPES)}")
        if self.size < 2**16:
            raise UserError(f"--size {self.size}: it takes 64 KiB or more, and more than the caches hold to mean anything")

    @property
    def parts(self) -> int:
        """How often progress is told of."""
        return len(self.threads) * (2 + len(self.types))


def limits(wanted: Wanted, told: Told = untold) -> Report:
    """All of them, for each number of threads."""
    rows = []
    for threads in wanted.threads:
        told(f"reading memory, {threads} threads")
        rows.append(_row("stream read", "float32", threads, "GB/s", stream(threads, wanted.size, wanted.rounds)))
        told(f"copying memory, {threads} threads")
        rows.append(_row("memcpy, read and write", "bytes", threads, "GB/s", copy(threads, wanted.size, wanted.rounds)))
        for kind in wanted.types:
            told(f"products in {kind}, {threads} threads")
            unit = "GOP/s" if kind == "int8" else "GFLOP/s"
            rows.append(_row("product", kind, threads, unit, product(kind, threads, wanted.shape, wanted.rounds)))
    by = f"compiled kernels ({native.path()})" if native.available() else "torch"
    notes = (
        f"memory is read and copied by {by}, {wanted.size} bytes at once",
        f"products are torch's, {' x '.join(map(str, wanted.shape))}, two operations for each multiplication",
    )
    return Report("limits", "What this machine can do", COLUMNS, tuple(rows), notes)


def stream(threads: int, size: int = SHARE_BYTES, rounds: int = 5) -> list[float]:
    """GB/s at which `threads` threads read `size` bytes, in each round."""
    # In such memory as weights lie in: in small pages the limit would be lower than what a step reaches.
    x = allocated(size // 4 * 4, torch.device("cpu")).view(torch.float32).fill_(1.0)
    if native.available():
        pool = Pool(threads)
        read = native.function("sw_stream", native.POINTER, native.POINTER, native.WHOLE, result=native.REAL)
        return _rates(lambda: read(pool.handle, x.data_ptr(), x.numel()), 4 * x.numel() / 1e9, rounds)
    with _Threads(threads):
        return _rates(x.sum, 4 * x.numel() / 1e9, rounds)


def copy(threads: int, size: int = SHARE_BYTES, rounds: int = 5) -> list[float]:
    """GB/s that `threads` threads read and write together while they copy `size` bytes, in each round."""
    x = torch.ones(size // 2, dtype=torch.uint8)
    y = torch.zeros_like(x)
    if native.available():
        pool = Pool(threads)
        move = native.function("sw_copy", native.POINTER, native.POINTER, native.POINTER, native.WHOLE)
        return _rates(lambda: move(pool.handle, x.data_ptr(), y.data_ptr(), x.numel()), 2 * x.numel() / 1e9, rounds)
    with _Threads(threads):
        return _rates(lambda: y.copy_(x), 2 * x.numel() / 1e9, rounds)


def product(kind: str, threads: int, shape: Sequence[int] = SHAPE, rounds: int = 5) -> list[float]:
    """Thousand million operations a second of a product in `kind`, in each round."""
    rows, inputs, outputs = shape
    work = 2 * rows * inputs * outputs / 1e9
    with _Threads(threads):
        if kind == "int8":
            a = torch.randint(-127, 128, (rows, inputs), dtype=torch.int8)
            b = torch.randint(-127, 128, (inputs, outputs), dtype=torch.int8)
            return _rates(lambda: torch._int_mm(a, b), work, rounds)
        x, w = (torch.randn(one, other).to(getattr(torch, kind)) for one, other in ((rows, inputs), (outputs, inputs)))
        return _rates(lambda: x @ w.T, work, rounds)


class _Threads:
    """Torch with so many threads, for a while."""

    def __init__(self, threads: int) -> None:
        self._threads, self._before = threads, torch.get_num_threads()

    def __enter__(self) -> None:
        torch.set_num_threads(self._threads)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self._before)


def _rates(work: Callable[[], object], amount: float, rounds: int) -> list[float]:
    """`amount` over the seconds of each round, after one that only warms up."""
    work()
    found = []
    for _ in range(rounds):
        begun = time.perf_counter()
        work()
        found.append(amount / (time.perf_counter() - begun))
    return found


def _row(what: str, kind: str, threads: int, unit: str, rates: Sequence[float]) -> dict[str, Any]:
    best, worst = (round(found, 2) for found in (max(rates), min(rates)))
    return {"what": what, "type": kind, "threads": threads, "unit": unit, "best": best, "worst": worst}
