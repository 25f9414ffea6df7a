"""Which processors each rank runs on, and what it means where there are fewer than threads.

Memory is taken from the node of the processor that first writes to it: a rank that is kept to processors of one node has
its weights and its cache there. Processors outside of this process's affinity are never given to anybody.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from shardwise.engine.devices import cpus
from shardwise.errors import UserError

Places = tuple[tuple[int, ...], ...]
"""The processors of each rank; empty where all ranks run on any."""

WORDS = ("auto", "none", "nobind", "cores")
FLAG = "--cpu-threads-bind"
SYSTEM = Path("/sys/devices/system")


def bound(asked: str, ranks: int, threads: int | None, system: Path = SYSTEM) -> Places:
    """The processors of each of `ranks` ranks with `threads` threads, or as many as there are for each.

    `asked`: "none"; "cores", each rank on processors of its own; "auto", that only where there are several memory nodes and
    processors for all; or ranges, 0-3|4-7 for each rank or 0-7 for all together. UserError where that cannot be.
    """
    allowed = os.sched_getaffinity(0)
    if asked in ("none", "nobind"):
        return ()
    if asked not in WORDS:
        return _named(asked, ranks, threads, allowed, system)
    each = threads or threads_of((), ranks)
    found = nodes(allowed, system)
    enough = ranks * each <= len(allowed)
    if asked == "cores" and not enough:
        raise UserError(
            f"{FLAG} cores: {ranks} ranks of {each} threads need {ranks * each} processors, and there are {len(allowed)}; use "
            "fewer ranks or --threads, or leave it out"
        )
    return dealt(found, ranks, each) if enough and (asked == "cores" or len(found) > 1) else ()


def threads_of(places: Places, ranks: int) -> int:
    """How many threads a rank has unless told: as many as it has processors, or an equal part of those that are shared."""
    return min([*map(len, places), max(1, shared(places) // ranks)])


def shared(places: Places) -> int:
    """How many processors all ranks use together."""
    return min(cpus(), len({cpu for own in places for cpu in own}) or cpus())


def dealt(found: Sequence[Sequence[int]], ranks: int, threads: int) -> Places:
    """`threads` processors for each rank and none for two, of the nodes `found`: each rank's of one node, where one has so
    many left. There are enough of them."""
    left = [list(node) for node in found]
    places = []
    for _ in range(ranks):
        own: list[int] = []
        while len(own) < threads:
            most = max(left, key=len)
            count = threads - len(own)
            own += most[:count]
            del most[:count]
        places.append(tuple(sorted(own)))
    return tuple(places)


def nodes(allowed: Collection[int], system: Path = SYSTEM) -> list[list[int]]:
    """The allowed processors by memory node, in each first one of every core, then those that share a core with one before."""
    by_node = {path.name: set(parsed(_text(path / "cpulist"))) & set(allowed) for path in system.glob("node/node[0-9]*")}
    groups = [members for members in by_node.values() if members]
    if rest := set(allowed).difference(*groups):
        groups.append(rest)
    return sorted(_cores_first(members, system) for members in groups)


def _cores_first(members: set[int], system: Path) -> list[int]:
    order: list[tuple[int, int]] = []
    for cpu in sorted(members):
        siblings = parsed(_text(system / f"cpu/cpu{cpu}/topology/thread_siblings_list"))
        order.append((sum(other < cpu and other in members for other in siblings), cpu))
    return [cpu for _, cpu in sorted(order)]


def _named(asked: str, ranks: int, threads: int | None, allowed: Collection[int], system: Path) -> Places:
    """What lists of processors say."""
    try:
        lists = [parsed(part, whole=True) for part in asked.split("|")]
    except ValueError:
        raise UserError(
            f"{FLAG} {asked!r}: give auto, none, cores, processors for each rank as 0-3|4-7, or for all together as 0-7"
        ) from None
    if outside := sorted({cpu for part in lists for cpu in part} - set(allowed)):
        raise UserError(f"{FLAG} {asked}: this process may not run on {_ranges(outside)}; it may on {_ranges(sorted(allowed))}")
    if len(lists) == ranks:
        return tuple(map(tuple, lists))
    if len(lists) > 1:
        raise UserError(f"{FLAG} {asked}: these are {len(lists)} lists for {ranks} ranks; give one a rank, or one for all")
    each = threads or max(1, len(lists[0]) // ranks)
    if ranks * each > len(lists[0]):
        return tuple(tuple(lists[0]) for _ in range(ranks))  # they take turns on these
    return dealt(nodes(lists[0], system), ranks, each)


def parsed(text: str, *, whole: bool = False) -> list[int]:
    """0-2,5 as numbers in order. `whole`: ValueError where it is anything else."""
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,6})(?:-(\d{1,6}))?\s*", part)
        if match is not None and int(match[1]) <= int(match[2] or match[1]):
            found.update(range(int(match[1]), int(match[2] or match[1]) + 1))
        elif whole:
            raise ValueError(text)
    return sorted(found)


def crowded(ranks: int, threads: int, cores: int | None = None) -> str | None:
    """A warning where threads outnumber the processors that there are."""
    cores = cores or cpus()
    if ranks * threads <= cores:
        return None
    what = f"{ranks} ranks" + (f" of {threads} threads" if threads > 1 else "")
    part = f"{cores / (ranks * threads):.2g}"
    return (
        f"{what} on {cores} core{'s' * (cores > 1)} take turns: expect {part} of the speed that as many cores would have, or "
        f"less; here {cores} in all {'are' if cores > 1 else 'is'} fastest"
    )


def _ranges(cpus: Sequence[int]) -> str:
    """Numbers in order as 0-2,5."""
    runs: list[list[int]] = []
    for cpu in cpus:
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
