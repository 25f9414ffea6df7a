"""One module at a time: on every rank of a group of threads, over seeded noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from shardwise.comm.protocol import Comm
from shardwise.comm.threads import run
from shardwise.nn.batch import Rank
from shardwise.spec.layout import Layout

T = TypeVar("T")
CPU = torch.device("cpu")


def each(layout: Layout, work: Callable[[Rank], T]) -> list[T]:
    """work(rank) on every rank of a group of threads."""

    def body(comm: Comm) -> T:
        return work(Rank(layout, comm.rank, comm, CPU, torch.float32, torch.float32))

    return run(layout.mesh.size, body, deadline_s=20)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))
