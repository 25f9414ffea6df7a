"""Where the processes of a group meet: a store in a folder, and waiting on a store of any kind."""

from __future__ import annotations

import stat
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

from torch.distributed import FileStore, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from shardwise.errors import CommError

SITE = "joining"
"""The `site` of an error that came while a group was formed."""

_POLL_S = 0.01


def file_store(folder: Path, size: int, epoch: int) -> Store:
    """A store in a folder that only this user can enter; one file for each epoch. The folder is the
    caller's to remove: torch's own removal of the file misses when two ranks leave at once, or one is killed. Where `folder`
    is a file, it was made for this epoch alone, and the store is in that.

    Raises ValueError for a folder that others can enter: whoever can write there can redirect the group.
    """
    mode = folder.stat().st_mode
    if stat.S_ISREG(mode):
        return FileStore(str(folder), size)
    if not stat.S_ISDIR(mode) or mode & 0o077:
        raise ValueError(f"{folder} must be a folder of mode 0700, for it says where ranks connect to")
    later = [int(name.suffix[1:]) for name in folder.glob("epoch.*") if name.suffix[1:].isdigit()]
    if any(other > epoch for other in later):
        raise joining_failed(None, f"this rank is of epoch {epoch}, the group has formed anew as epoch {max(later)}")
    return FileStore(str(folder / f"epoch.{epoch}"), size)


def tcp_store(host: str, port: int, prefix: str, patience_s: float) -> Store:
    """A client of a store that somebody else serves, torchrun for one; all names stand below `prefix`.

    Raises CommError if nothing answers there.
    """
    patience = timedelta(seconds=patience_s)
    try:
        return PrefixStore(prefix, TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=patience))
    except (RuntimeError, ValueError) as error:
        raise joining_failed(None, f"the store at {host}:{port} does not answer: {error}") from None


def never() -> bool:
    """Nobody ever says that waiting is in vain."""
    return False


def appeared(store: Store, keys: Sequence[str], patience_s: float, given_up: Callable[[], bool] = never) -> bool:
    """Whether all keys were set within that time, and before it was given up. `Store.wait` is not used: a FileStore counts it
    in whole seconds."""
    until = time.monotonic() + patience_s
    while not store.check(list(keys)):
        if time.monotonic() >= until or given_up():
            return False
        time.sleep(_POLL_S)
    return True


def gone(store: Store) -> bool:
    """Whether the store was a file that was removed: each call on it would look for the file for a whole second."""
    while isinstance(store, PrefixStore):
        store = store.underlying_store
    return isinstance(store, FileStore) and not Path(store.path).exists()  # type: ignore[attr-defined]


def joining_failed(rank: int | None, reason: str, culprit: int | None = None) -> CommError:
    """The error of a rank that could not join its group; its rank is -1 where none is known yet."""
    who = "" if rank is None else f" on rank {rank}"
    return CommError(f"{SITE}{who}: {reason}", rank=-1 if rank is None else rank, site=SITE, culprit=culprit)
