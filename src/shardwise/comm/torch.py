"""Builds groups over torch's process groups: gloo between processes on CPUs, NCCL between GPUs.

Explicit throughout: no default group, no environment variables, no pickled objects. Where the ranks meet is a store that
the caller has: `file_store` in a private folder needs no port, torchrun hands in its own.
"""

from __future__ import annotations

import stat
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch.distributed import FileStore, PrefixStore, Store  # type: ignore[attr-defined]

from shardwise.comm.protocol import DEADLINE_S
from shardwise.errors import CommError

if TYPE_CHECKING:
    from shardwise.comm.gloo import GlooComm
    from shardwise.comm.nccl import NcclComm

SITE = "joining"
"""The `site` of an error that came while a group was formed."""


def file_store(folder: Path, size: int, epoch: int) -> Store:
    """A store in a folder that only this user can enter; one file for each epoch. The folder is the
    caller's to remove: torch's own removal of the file misses when two ranks leave at once, or one is killed.

    Raises ValueError for a folder that others can enter: whoever can write there can redirect the group.
    """
    mode = folder.stat().st_mode
    if not stat.S_ISDIR(mode) or mode & 0o077:
        raise ValueError(f"{folder} must be a folder of mode 0700, for it says where ranks connect to")
    later = [int(name.suffix[1:]) for name in folder.glob("epoch.*") if name.suffix[1:].isdigit()]
    if any(other > epoch for other in later):
        raise _joining(None, f"this rank is of epoch {epoch}, the group has formed anew as epoch {max(later)}")
    return FileStore(str(folder / f"epoch.{epoch}"), size)


def gloo(
    store: Store,
    rank: int,
    size: int,
    *,
    deadline_s: float = DEADLINE_S,
    epoch: int = 0,
    device_host: str = "127.0.0.1",
    checked: bool = False,
) -> GlooComm:
    """This process's end of a new gloo group; returns when all ranks are connected. Listens on `device_host` only.

    Raises CommError that names the ranks which did not come within the deadline, or came with another epoch.
    """
    from shardwise.comm.gloo import GlooComm

    until = time.monotonic() + deadline_s
    ours = _meet(store, rank, size, epoch, deadline_s)
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=device_host)]
    options._timeout = timedelta(seconds=max(0.1, until - time.monotonic()))
    try:
        group = dist.ProcessGroupGloo(PrefixStore("gloo", ours), rank, size, options)
    except RuntimeError as error:
        raise _joining(rank, f"could not connect: {error}") from None
    return GlooComm(group, ours, deadline_s=deadline_s, epoch=epoch, checked=checked)


def nccl(
    store: Store, rank: int, size: int, *, device: torch.device, deadline_s: float = DEADLINE_S, epoch: int = 0
) -> NcclComm:
    """This process's end of a new NCCL group on `device`, one GPU for each rank."""
    if not (dist.is_nccl_available() and torch.cuda.is_available()):
        raise ValueError("NCCL needs a CUDA build of torch and a GPU; on CPUs use gloo")
    from shardwise.comm.nccl import NcclComm, open_group

    ours = _meet(store, rank, size, epoch, deadline_s)
    try:
        group = open_group(PrefixStore("nccl", ours), rank, size, deadline_s)
    except RuntimeError as error:
        raise _joining(rank, f"could not connect: {error}") from None
    return NcclComm(group, device, deadline_s=deadline_s, epoch=epoch)


def _meet(store: Store, rank: int, size: int, epoch: int, deadline_s: float) -> Store:
    """Waits until all ranks of this epoch are here. Returns the part of the store that is this epoch's alone."""
    if not 0 <= rank < size or deadline_s <= 0:
        raise ValueError(f"rank {rank} of {size} with a deadline of {deadline_s} s: need 0 <= rank < size and above 0 s")
    ours = PrefixStore(f"epoch/{epoch}", store)
    store.set_timeout(timedelta(seconds=deadline_s))
    try:
        store.set(f"epoch_of/{rank}", str(epoch))
        ours.set(f"here/{rank}", "")
        ours.wait([f"here/{other}" for other in range(size)], timedelta(seconds=deadline_s))
    except RuntimeError:
        raise _absence(store, ours, rank, size, epoch, deadline_s) from None
    return ours


def _absence(store: Store, ours: Store, rank: int, size: int, epoch: int, deadline_s: float) -> CommError:
    try:
        absent = [other for other in range(size) if not ours.check([f"here/{other}"])]
        elsewhere = {other: store.get(f"epoch_of/{other}").decode() for other in absent if store.check([f"epoch_of/{other}"])}
    except RuntimeError as error:
        return _joining(rank, f"the store does not answer: {error}")
    named = [f"rank {other}" + (f" (of epoch {elsewhere[other]})" if other in elsewhere else "") for other in absent]
    reason = f"{', '.join(named)} did not come to epoch {epoch} within {deadline_s} s"
    return _joining(rank, reason, absent[0] if absent else None)


def _joining(rank: int | None, reason: str, culprit: int | None = None) -> CommError:
    who = "" if rank is None else f" on rank {rank}"
    return CommError(f"{SITE}{who}: {reason}", rank=-1 if rank is None else rank, site=SITE, culprit=culprit)
