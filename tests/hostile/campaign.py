"""Sends many bad requests to a server while good streams run on it, and tells everything that should not have been.

Knows a server by its address alone: it may be in this process or any other.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tests.hostile.answers import Reply, Unreadable, faults, first, replies
from tests.hostile.bombs import BAIT
from tests.hostile.wire import Case, post

HANG_S = 2.0
"""An answer that takes longer is looked into: asked again with nothing else on the server, it must come in time."""

WAIT_S = 60.0
"""Nothing is waited for longer, however busy the machine is."""


@dataclass
class Found:
    """What became of the cases. `faults`: (case number, what), which is none where all is well."""

    kinds: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[tuple[int, str]] = field(default_factory=list)
    slow: list[tuple[int, float]] = field(default_factory=list)
    health_s: list[float] = field(default_factory=list)
    good: int = 0
    late: int = 0
    baited: int = 0


@dataclass(frozen=True, slots=True)
class Target:
    """Where the server is, and how long it waits for what does not come: `patience_s`."""

    port: int
    patience_s: float


async def exchanged(target: Target, case: Case, bait: int) -> tuple[bytes, float]:
    """(all that came back, seconds since the last byte was sent). TimeoutError where the server leaves it without an end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", target.port, limit=2**20)
    try:
        sent = asyncio.create_task(_send(writer, case, bait))
        if case.leaves:
            await sent
            return b"", 0.0
        began = time.monotonic()
        data = await asyncio.wait_for(_received(reader, case), WAIT_S)
        return data, time.monotonic() - began - case.pause_s * (len(case.parts) - 1)
    finally:
        sent.cancel()
        writer.transport.abort()


async def _send(writer: asyncio.StreamWriter, case: Case, bait: int) -> None:
    with contextlib.suppress(OSError):  # the server may answer and close before all of it was sent
        for part in case.parts:
            writer.write(part.replace(BAIT, b"%06d" % bait))  # as long as what it replaces: lengths stay right
            await writer.drain()
            await asyncio.sleep(case.pause_s)


async def _received(reader: asyncio.StreamReader, case: Case) -> bytes:
    """Until the connection closes; where the request is whole, until its answer is."""
    data = bytearray()
    while True:
        try:
            part = await reader.read(2**16)
        except OSError:
            return bytes(data)
        data += part
        if not part or (not case.late and first(bytes(data))[0] is not None):
            return bytes(data)


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
    """All cases, so many at once; then those that were slow once more, one by one."""
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
                if number not in {slow for slow, _ in found.slow}:
                    del known[number]

        stop = asyncio.Event()
        watch = asyncio.create_task(_watch(target, found, stop))
        await asyncio.gather(*(work() for _ in range(at_once)))
        stop.set()
        await watch
        for number, before_s in list(found.slow):
            alone_s = await again(target, number, known[number], bait)
            if alone_s > HANG_S:
                found.faults.append((number, f"no answer for {before_s:.1f} s, and alone for {alone_s:.1f} s"))
    found.baited = len(baited)


async def again(target: Target, number: int, case: Case, bait: int) -> float:
    """How long a case takes with nothing else on the server, in seconds of a machine with nothing else to do."""
    least = WAIT_S
    for _ in range(3):
        strain, found = strained(), Found()
        await one(target, number, case, found, bait)
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


# --- good streams -----------------------------------------------------------------------------------------------------

TELL = {"messages": [{"role": "user", "content": "Tell me a story."}], "stream": True, "return_token_ids": True}
WRITE = {"prompt": "Once upon a time", "stream": True, "return_token_ids": True, "ignore_eos": True}
STREAMS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/chat/completions", {**TELL, "max_tokens": 40, "seed": 11, "temperature": 0.8}),
    ("/v1/chat/completions", {**TELL, "max_tokens": 40, "temperature": 0}),
    ("/v1/completions", {**WRITE, "max_tokens": 60, "temperature": 0}),
    ("/v1/completions", {**WRITE, "max_tokens": 60, "n": 2, "seed": 5, "temperature": 1}),
)


class Unanswered(Exception):
    """The server closed a connection without a word, after so many seconds."""


async def streamed(target: Target, path: str, body: dict[str, Any]) -> dict[int, tuple[str, tuple[int, ...]]]:
    """What a good stream says, of each choice its text and its ids: the frames differ with the time that they come at."""
    data, took_s = await exchanged(target, Case("good", (post(path.encode(), json.dumps(body).encode()),)), 0)
    if not data:
        raise Unanswered(took_s)
    (reply,) = replies(data)
    assert reply.status == 200, reply.body
    texts: dict[int, str] = {}
    ids: dict[int, tuple[int, ...]] = {}
    frames = [line[6:] for line in reply.body.decode().split("\n") if line.startswith("data: ")]
    assert frames[-1] == "[DONE]", frames[-1]
    for frame in frames[:-1]:
        for choice in json.loads(frame)["choices"]:
            n = choice["index"]
            texts[n] = texts.get(n, "") + (choice.get("text") or choice.get("delta", {}).get("content") or "")
            ids[n] = ids.get(n, ()) + tuple(choice.get("token_ids") or ())
    return {n: (texts[n], ids[n]) for n in texts}


async def campaign(target: Target, cases: Iterator[tuple[int, Case]], at_once: int) -> Found:
    """Plays the cases with good streams all the while; each must say what it said before, when it was alone."""
    found = Found()
    alone = [await streamed(target, *stream) for stream in STREAMS]
    assert all(text for said in alone for text, _ in said.values()), "the good streams say something"
    stop = asyncio.Event()

    async def repeat(n: int) -> None:
        while not stop.is_set() or not found.good:
            try:
                said = await streamed(target, *STREAMS[n])
            except Unanswered as error:
                if error.args[0] >= target.patience_s:
                    found.late += 1  # on a machine so busy, the limit on heads came first
                    continue
                found.faults.append((-1, f"good stream {n} was closed after {error} s"))
                return
            except (AssertionError, ValueError, KeyError, Unreadable, OSError, TimeoutError) as error:
                found.faults.append((-1, f"good stream {n} failed: {type(error).__name__}: {str(error)[:300]}"))
                return
            found.good += 1
            if said != alone[n]:
                found.faults.append((-1, f"good stream {n} said {said!r}, alone {alone[n]!r}"))

    streams = [asyncio.create_task(repeat(n)) for n in range(len(STREAMS))]
    try:
        await played(target, cases, at_once, found)
    finally:
        stop.set()
        await asyncio.gather(*streams)
    return found


def run(url: str, patience_s: float, cases: Iterator[tuple[int, Case]], at_once: int = 16) -> Found:
    """The campaign against a server that gives up on what does not come after `patience_s`."""
    target = Target(urlsplit(url).port or 80, patience_s)
    with ThreadPoolExecutor(1) as apart:  # whatever loop the caller may have
        return apart.submit(lambda: asyncio.run(campaign(target, cases, at_once))).result()
