"""The ranks of a shared memory group as threads of one process, for tests."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TypeVar

from shardwise.comm.memory import anonymous
from shardwise.comm.shm import ShmComm, shm
from shardwise.errors import CommError

T = TypeVar("T")


def run(size: int, body: Callable[[ShmComm], T], *, deadline_s: float = 20.0) -> list[T]:
    """Runs `body(comm)` on `size` ranks, and returns the results in rank order, or raises what failed first by itself."""
    memory = anonymous()
    results: dict[int, T] = {}
    errors: list[BaseException] = []

    def live(rank: int) -> None:
        try:
            comm = shm(memory, rank, size, deadline_s=deadline_s)
            try:
                results[rank] = body(comm)
            finally:
                comm.close()
        except BaseException as error:
            errors.append(error)

    ranks = [threading.Thread(target=live, args=(rank,), name=f"rank {rank}") for rank in range(size)]
    for each in ranks:
        each.start()
    for each in ranks:
        each.join()
    os.close(memory)
    if errors:
        raise next((error for error in errors if not isinstance(error, CommError)), errors[0])
    return [results[rank] for rank in range(size)]


def failures(size: int, body: Callable[[ShmComm], object], *, deadline_s: float = 20.0) -> dict[int, CommError]:
    """The CommError of each rank that had one."""

    def guarded(comm: ShmComm) -> CommError | None:
        try:
            body(comm)
        except CommError as error:
            return error
        return None

    found = run(size, guarded, deadline_s=deadline_s)
    return {rank: error for rank, error in enumerate(found) if error is not None}
