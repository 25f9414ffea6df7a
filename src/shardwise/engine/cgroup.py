"""What this process's control groups leave it: processor time and memory, of version 1, version 2 or both.

Which processors it may run on (cpuset) the kernel tells by affinity, and is not read here. Knows no ranks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

MOUNTED = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


@dataclass(frozen=True, slots=True)
class Left:
    """`cpus`: so many processors' time, as 1.5; `memory`: bytes that may still be taken. None where nothing limits it."""

    cpus: float | None
    memory: int | None


def left(mounted: Path = MOUNTED, own: Path = OWN) -> Left:
    """What the tightest of all groups leaves that this process is in: those above its own limit it, too."""
    cpus: list[float] = []
    memory: list[int] = []
    for controllers, path in _memberships(own):
        for folder in _folders(mounted, controllers, path):
            if (quota := _quota(folder)) is not None:
                cpus.append(quota)
            if (free := _memory(folder)) is not None:
                memory.append(free)
    return Left(min(cpus, default=None), min(memory, default=None))


def _memberships(own: Path) -> Iterator[tuple[tuple[str, ...], PurePosixPath]]:
    """(controllers, group) for each line of /proc/self/cgroup; version 2 names no controllers."""
    for line in _text(own).splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if path.startswith("/"):
            yield tuple(filter(None, names.split(","))), PurePosixPath(path)


def _folders(mounted: Path, controllers: tuple[str, ...], path: PurePosixPath) -> Iterator[Path]:
    """The folders of a group and of those above it. In a container its own group is often mounted as the root, while its path
    is still the host's: folders that are not there are passed over, the root remains."""
    if controllers and not {"cpu", "memory"} & set(controllers):
        return
    # Version 2 lies in a folder of its own beside version 1's.
    names = (",".join(controllers), *controllers) if controllers else ("unified", ".")
    roots = [mounted / name for name in names]
    root = next((each for each in roots if each.is_dir()), None)
    if root is None:
        return
    parts = path.parts[1:] if ".." not in path.parts else ()  # a group outside of what is mounted
    for count in range(len(parts), -1, -1):
        folder = root.joinpath(*parts[:count])
        if folder.is_dir():
            yield folder


def _quota(folder: Path) -> float | None:
    """Processors' time a group is given: cpu.max of version 2, a quota and a period of version 1."""
    limit, _, period = _text(folder / "cpu.max").partition(" ")
    if not limit:
        limit, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
    if not (limit.isdigit() and period.isdigit() and int(limit) and int(period)):
        return None  # "max", or -1
    return int(limit) / int(period)


def _memory(folder: Path) -> int | None:
    """Bytes a group may still take: the limit less what is used; cached files count as used, but give way."""
    limits = [_text(folder / name) for name in ("memory.max", "memory.high", "memory.limit_in_bytes")]
    numbers = [int(limit) for limit in limits if limit.isdigit()]
    used = _text(folder / "memory.current") or _text(folder / "memory.usage_in_bytes")
    if not numbers or not used.isdigit():
        return None
    # Version 1 tells of a group alone first, and of those below it with "total_"; version 2 of all of them.
    cached = re.findall(r"^(?:total_)?inactive_file (\d+)", _text(folder / "memory.stat"), re.MULTILINE)
    return max(0, min(numbers) - int(used) + int(max(cached, key=int, default=0)))


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
