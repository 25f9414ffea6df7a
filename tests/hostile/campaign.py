"""Sends many bad requests to a server while good streams run on it, and tells everything that should not have been.

Knows a server by its address alone: it may be in this process or any other.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tests.hostile.answers import Reply, Unreadable, faults, replies
from tests.hostile.exchange import WAIT_S, Target, exchanged
from tests.hostile.streams import Streams, beside
from tests.hostile.wire import Case

HANG_S = 2.0
"""An answer that takes longer is looked into: asked again with nothing else on the server, it must come in time."""

FEW = 4
"""So many are asked again at once: most of them only wait for the server to give up on them."""


@dataclass
class Found:
    """What became of the cases. `faults`: (case number, what), which is none where all is well."""

    kinds: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[tuple[int, str]] = field(default_factory=list)
    slow: list[tuple[int, float]] = field(default_factory=list)
    health_s: list[float] = field(default_factory=list)
    streams: Streams = field(default_factory=Streams)
    baited: int = 0


def judged(case: Case, data: bytes, found: Found) -> list[str]:
    """What is wrong with the answers to a case; their statuses are counted."""
    try:
        got: Sequence[Reply] = replies(data, headless=case.parts[0].startswith(b"HEAD "))
    except (Unreadable, ValueError) as error:
        return [str(error)]
    found.statuses.update(reply.status for reply in got)
    wrong = [fault for reply in got for fault in faults(reply)]
    if len(got) > case.most:
        wrong.append(f"{len(got)} answers where {case.most} are the most")
    if case.forbidden and case.forbidden in data:
        wrong.append(f"an answer names {case.forbidden!r}: {data[:300]!r}")
    if not got and not (case.late or case.leaves):
        wrong.append("closed without an answer")
    return wrong


async def one(target: Target, number: int, case: Case, found: Found, bait: int) -> None:
    """Plays a case; the second time alone, where the first took long among all others."""
    found.kinds[case.kind] += 1
    try:
        data, took_s = await exchanged(target, case, bait)
    except TimeoutError:
        found.faults.append((number, f"no end of it within {WAIT_S} s"))
        return
    except OSError as error:
        found.faults.append((number, f"the server is not there: {error}"))
        return
    if not data and took_s >= target.patience_s and not case.late:
        found.slow.append((number, took_s))  # on a machine so busy, the server's own limits may come first
    elif not case.leaves:
        found.faults += [(number, wrong) for wrong in judged(case, data, found)]
        if took_s > HANG_S + (target.patience_s if case.late else 0.0):
            found.slow.append((number, took_s))


async def _watch(target: Target, found: Found, stop: asyncio.Event) -> None:
    """How long the simplest question takes meanwhile: what the event loop is held up by."""
    probe = Case("health", (b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",))
    while not stop.is_set():
        with contextlib.suppress(OSError, TimeoutError):
            found.health_s.append((await exchanged(target, probe, 0))[1])
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), 0.1)


async def played(target: Target, cases: Iterator[tuple[int, Case]], at_once: int, found: Found) -> None:
    """All cases, so many at once; then those that were slow once more, a few at once, and what still is slow one by one."""
    baited: list[object] = []

    async def bite(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        baited.append(writer)
        writer.close()

    async with await asyncio.start_server(bite, "127.0.0.1", 0) as trap:
        bait = trap.sockets[0].getsockname()[1]
        known: dict[int, Case] = {}

        async def work() -> None:
            for number, case in cases:
                known[number] = case
                await one(target, number, case, found, bait)
                if not any(number == slow for slow, _ in reversed(found.slow)):
                    del known[number]

        stop = asyncio.Event()
        watch = asyncio.create_task(_watch(target, found, stop))
        await asyncio.gather(*(work() for _ in range(at_once)))
        stop.set()
        await watch
        few = asyncio.Semaphore(FEW)

        async def among_few(number: int) -> bool:
            async with few:
                return await again(target, number, known[number], bait, found) > HANG_S

        before = dict(found.slow)
        still = await asyncio.gather(*(among_few(number) for number in before))
        for (number, before_s), slow in zip(before.items(), still, strict=True):
            if slow and (alone_s := await again(target, number, known[number], bait, found)) > HANG_S:
                found.faults.append((number, f"no answer for {before_s:.1f} s, and alone for {alone_s:.1f} s"))
    found.baited = len(baited)


async def again(target: Target, number: int, case: Case, bait: int, into: Found) -> float:
    """How long a case takes once the others are done, in seconds of a machine with nothing else to do. What is wrong with its
    answers goes `into` what was found."""
    least = WAIT_S
    for _ in range(3):
        strain, found = strained(), Found()
        await one(target, number, case, found, bait)
        into.faults += found.faults
        took_s = max((took_s for _, took_s in found.slow), default=0.0) - (target.patience_s if case.late else 0.0)
        least = min(least, took_s / max(strain, strained()))
        if least <= HANG_S:
            break
    return least


def strained() -> float:
    """How many times longer than its CPU time something takes now, for all that others do on this machine; at least 1."""
    wall, cpu = time.perf_counter(), time.thread_time()
    while time.thread_time() - cpu < 0.05:
        pass
    return max(1.0, (time.perf_counter() - wall) / 0.05)


async def campaign(target: Target, cases: Iterator[tuple[int, Case]], at_once: int) -> Found:
    """Plays the cases with good streams all the while."""
    found = Found()
    async with beside(target, found.streams):
        await played(target, cases, at_once, found)
    return found


def run(url: str, patience_s: float, cases: Iterator[tuple[int, Case]], at_once: int = 16) -> Found:
    """The campaign against a server that gives up on what does not come after `patience_s`."""
    target = Target(urlsplit(url).port or 80, patience_s)
    with ThreadPoolExecutor(1) as apart:  # whatever loop the caller may have
        return apart.submit(lambda: asyncio.run(campaign(target, cases, at_once))).result()
