"""What a server leaves behind: processes, shared memory, files, sockets. Compared with what there was before it."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from shardwise.chaos.processes import PROC, Herd

SHARED = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class Before:
    """What was there before a server was started. `folder` is its temporary folder, which nobody else uses."""

    folder: Path
    shared: frozenset[str]
    sockets: frozenset[str]

    @classmethod
    def now(cls, folder: Path) -> Before:
        """As it is."""
        return cls(folder, frozenset(_names(SHARED)), frozenset(_sockets()))


def leftovers(before: Before, herd: Herd) -> list[str]:
    """What is there now and was not before, each by a few words. Shared memory and sockets that processes of others have open
    are theirs."""
    living = herd.look()
    found = [f"process {process.pid} ({process.role}, state {process.state})" for process in living]
    fresh = [name for name in _names(SHARED) if name not in before.shared]
    held = _held({process.pid for process in living}) if fresh else set()
    found += [f"/dev/shm/{name}" for name in fresh if str(SHARED / name) not in held]
    found += [f"in the temporary folder: {name}" for name in _names(before.folder)]
    found += [f"unix socket {name}" for name in _sockets() if name not in before.sockets and str(before.folder) in name]
    return found


def _names(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except OSError:
        return []


def _sockets() -> list[str]:
    """Unix sockets with names, abstract ones too."""
    try:
        lines = (PROC / "net" / "unix").read_text().splitlines()[1:]
    except OSError:
        return []
    return [fields[7] for line in lines if len(fields := line.split(None, 7)) > 7]


def _held(mine: set[int]) -> set[str]:
    """Files that processes of others have mapped or open."""
    found: set[str] = set()
    for entry in os.scandir(PROC):
        if not entry.name.isdigit() or int(entry.name) in mine:
            continue
        with suppress(OSError):
            maps = Path(entry.path, "maps").read_text().splitlines()
            found |= {
                fields[5] for line in maps if len(fields := line.split(None, 5)) > 5 and fields[5].startswith("/dev/shm/")
            }
            for link in os.scandir(f"{entry.path}/fd"):
                with suppress(OSError):
                    found.add(str(Path(link.path).readlink()))
    return found
