"""Builds groups over torch's process groups: gloo between processes on CPUs, NCCL between GPUs.

Explicit throughout: no default group, no environment variables, no pickled objects. Where the ranks meet is a store that
the caller has: `file_store` in a private folder needs no port, torchrun hands in its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]

from shardwise.comm.protocol import DEADLINE_S
from shardwise.comm.stores import appeared, file_store, joining_failed, never
from shardwise.errors import CommError

if TYPE_CHECKING:
    from shardwise.comm.gloo import GlooComm
    from shardwise.comm.nccl import NcclComm

__all__ = ["file_store", "gloo", "nccl"]

CONNECT_S = 10.0
"""How long ranks that have all come to the same place may take to connect."""


def gloo(
    store: Store,
    rank: int,
    size: int,
    *,
    deadline_s: float = DEADLINE_S,
    epoch: int = 0,
    device_host: str = "127.0.0.1",
    checked: bool = False,
    accounts: bool = True,
    given_up: Callable[[], bool] = never,
) -> GlooComm:
    """This process's end of a new gloo group; returns when all ranks are connected. Listens on `device_host` only.

    Raises CommError that names the ranks which did not come within the deadline, or before `given_up` said so, or came with
    another epoch. Ranks that have met connect within CONNECT_S, or one of them is gone. `accounts`: the store stays, so that
    ranks that fail can tell each other why.
    """
    from shardwise.comm.gloo import GlooComm

    until = time.monotonic() + deadline_s
    ours = _meet(store, rank, size, epoch, deadline_s, given_up)
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=device_host)]
    options._timeout = timedelta(seconds=max(0.1, min(CONNECT_S, until - time.monotonic())))
    try:
        group = dist.ProcessGroupGloo(PrefixStore("gloo", ours), rank, size, options)
    except RuntimeError as error:
        raise joining_failed(rank, f"could not connect: {error}") from None
    return GlooComm(group, ours if accounts else None, deadline_s=deadline_s, epoch=epoch, checked=checked)


def nccl(
    store: Store,
    rank: int,
    size: int,
    *,
    device: torch.device,
    deadline_s: float = DEADLINE_S,
    epoch: int = 0,
    given_up: Callable[[], bool] = never,
) -> NcclComm:
    """This process's end of a new NCCL group on `device`, one GPU for each rank."""
    if not (dist.is_nccl_available() and torch.cuda.is_available()):
        raise ValueError("NCCL needs a CUDA build of torch and a GPU; on CPUs use gloo")
    from shardwise.comm.nccl import NcclComm, open_group

    ours = _meet(store, rank, size, epoch, deadline_s, given_up)
    try:
        group = open_group(PrefixStore("nccl", ours), rank, size, deadline_s)
    except RuntimeError as error:
        raise joining_failed(rank, f"could not connect: {error}") from None
    return NcclComm(group, device, deadline_s=deadline_s, epoch=epoch)


def _meet(store: Store, rank: int, size: int, epoch: int, deadline_s: float, given_up: Callable[[], bool]) -> Store:
    """Waits until all ranks of this epoch are here. Returns the part of the store that is this epoch's alone."""
    if not 0 <= rank < size or deadline_s <= 0:
        raise ValueError(f"rank {rank} of {size} with a deadline of {deadline_s} s: need 0 <= rank < size and above 0 s")
    ours = PrefixStore(f"epoch/{epoch}", store)
    store.set_timeout(timedelta(seconds=deadline_s))
    try:
        store.set(f"epoch_of/{rank}", str(epoch))
        ours.set(f"here/{rank}", "")
        if appeared(ours, [f"here/{other}" for other in range(size)], deadline_s, given_up):
            return ours
        if given_up():
            raise joining_failed(rank, f"a later epoch than {epoch} is wanted")
        raise _absence(store, ours, rank, size, epoch, deadline_s)
    except RuntimeError as error:
        raise joining_failed(rank, f"the store does not answer: {error}") from None


def _absence(store: Store, ours: Store, rank: int, size: int, epoch: int, deadline_s: float) -> CommError:
    absent = [other for other in range(size) if not ours.check([f"here/{other}"])]
    elsewhere = {r: store.get(f"epoch_of/{r}").decode() for r in absent if store.check([f"epoch_of/{r}"])}
    named = [f"rank {other}" + (f" (of epoch {elsewhere[other]})" if other in elsewhere else "") for other in absent]
    reason = f"{', '.join(named)} did not come to epoch {epoch} within {deadline_s} s"
    return joining_failed(rank, reason, absent[0] if absent else None)
