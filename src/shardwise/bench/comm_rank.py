"""One rank of a sweep over sizes: joins its group, times sums, and rank 0 tells how long each took.

`python -m shardwise.bench.comm_rank ORDER`, an order as `comm_sweep` writes it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from shardwise.comm.protocol import Comm

SITE = "bench"
WARM = 10
FEWEST = 20
BYTES = 2**27
"""So much is summed of each size at the most, but for the fewest rounds: 16 MiB need not go round hundreds of times."""


def timed(comm: Comm, sizes: Sequence[int], rounds: int) -> list[list[float]]:
    """Seconds of each call of `all_reduce`, for each size in bytes of float32."""
    found = []
    for size in sizes:
        # In place, as a backend likes it best; zeros stay what they are, however often they are summed.
        x = torch.zeros(size // 4)
        count = min(rounds, max(FEWEST, BYTES // size))
        for _ in range(min(WARM, count)):
            comm.all_reduce(x, site=SITE, out=x)
        comm.barrier(site=SITE)
        times = []
        for _ in range(count):
            begun = time.perf_counter()
            comm.all_reduce(x, site=SITE, out=x)
            times.append(time.perf_counter() - begun)
        found.append(times)
    return found


def joined(order: dict[str, Any]) -> Comm:
    """This process's end of the group that the order names."""
    if order["backend"] == "shm":
        from shardwise.comm.shm import shm

        return shm(order["shared"], order["rank"], order["size"])
    from shardwise.comm.torch import file_store, gloo

    store = file_store(Path(order["folder"]), order["size"], 0)
    return gloo(store, order["rank"], order["size"])


def main() -> None:
    """One order, carried out."""
    order = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    comm = joined(order)
    times = timed(comm, order["sizes"], order["rounds"])
    comm.barrier(site=SITE)
    comm.close()
    if order["rank"] == 0:
        sys.stdout.write(json.dumps(times) + "\n")


if __name__ == "__main__":
    main()
