"""What an all_reduce of float32 costs: median and 90th percentile for each backend and size, rank processes on this machine.

    python bench/comm.py [--ranks 2,4] [--sizes 4KiB,1MiB] [--backends shm,gloo] [--json]

Each rank makes the same calls; what rank 0 measures is reported. Ranks are started anew for each backend.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from shardwise.comm.memory import anonymous
from shardwise.comm.protocol import Comm

SIZES = "4KiB,16KiB,64KiB,256KiB,1MiB,4MiB,16MiB"
UNITS = {"KiB": 2**10, "MiB": 2**20}
SPENT_S = 1.0
"""How long each size is measured for, about."""

Row = dict[str, float | int | str]


def measured(comm: Comm, backend: str, sizes: Sequence[int]) -> list[Row]:
    """A row for each size in bytes; all ranks of the group call this alike."""
    rows: list[Row] = []
    for size in sizes:
        x = torch.ones(size // 4)
        took = _timed(comm, x, 20)
        # As many calls as fit, the same number on every rank: rank 0 says.
        count = torch.tensor([min(5000, max(20, int(SPENT_S / sorted(took)[10])))])
        took = sorted(_timed(comm, x, int(comm.broadcast(count, 0, site="bench"))))
        median, p90 = took[len(took) // 2], took[len(took) * 9 // 10]
        row: Row = {"backend": backend, "ranks": comm.size, "bytes": size, "median_us": round(median * 1e6, 2)}
        rows.append({**row, "p90_us": round(p90 * 1e6, 2), "gb_s": round(size / median / 1e9, 3)})
    return rows


def _timed(comm: Comm, x: torch.Tensor, count: int) -> list[float]:
    took = []
    out = torch.empty_like(x)
    for _ in range(count):
        out.copy_(x)
        began = time.perf_counter()
        comm.all_reduce(out, site="bench", out=out)
        took.append(time.perf_counter() - began)
    return took


def one_rank(backend: str, rank: int, size: int, place: str, sizes: Sequence[int]) -> None:
    """Joins the group, measures, and writes what it has found as a line."""
    torch.set_num_threads(1)
    comm: Comm
    if backend == "shm":
        from shardwise.comm.shm import shm

        comm = shm(int(place), rank, size)
    else:
        from shardwise.comm.torch import file_store, gloo

        comm = gloo(file_store(Path(place), size, 0), rank, size)
    rows = measured(comm, backend, sizes)
    comm.barrier()
    comm.close()
    if rank == 0:
        print(json.dumps(rows), flush=True)


def all_ranks(backend: str, size: int, sizes: str) -> list[Row]:
    """The rows of a group of `size` processes."""
    with tempfile.TemporaryDirectory() as folder:  # mode 0700
        memory = anonymous()
        place = str(memory) if backend == "shm" else folder
        command = [sys.executable, __file__, "--backends", backend, "--ranks", str(size), "--sizes", sizes, "--place", place]
        ranks = [
            subprocess.Popen([*command, "--rank", str(rank)], stdout=subprocess.PIPE, text=True, pass_fds=[memory])
            for rank in range(size)
        ]
        os.close(memory)
        said = [rank.communicate()[0] for rank in ranks]
        if any(rank.returncode for rank in ranks):
            raise SystemExit(f"{backend} with {size} ranks failed")
        rows: list[Row] = json.loads(said[0])
        return rows


def bytes_of(text: str) -> int:
    """4096 for "4KiB"."""
    unit = next((unit for unit in UNITS if text.endswith(unit)), None)
    return int(text.removesuffix(unit)) * UNITS[unit] if unit else int(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--ranks", default="2,4")
    parser.add_argument("--sizes", default=SIZES)
    parser.add_argument("--backends", default="shm,gloo")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--place", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank is not None:
        one_rank(args.backends, args.rank, int(args.ranks), args.place, [bytes_of(size) for size in args.sizes.split(",")])
        return
    groups = [(backend, int(size)) for size in args.ranks.split(",") for backend in args.backends.split(",")]
    rows = [row for backend, size in groups for row in all_ranks(backend, size, args.sizes)]
    if args.json:
        print(json.dumps({"results": rows}))
        return
    for row in rows:
        print("{backend:>5} {ranks} ranks {bytes:>9} bytes  {median_us:>9} us  p90 {p90_us:>9} us  {gb_s} GB/s".format(**row))


if __name__ == "__main__":
    main()
