"""What an engine is doing, as a value: counts, open requests, ranks. It travels as it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, Protocol

from shardwise.engine.core import Core
from shardwise.engine.gate import Gate
from shardwise.engine.setup import Setup
from shardwise.errors import Unavailable
from shardwise.runtime.wire import Ready

State = Literal["waiting", "running"]


@dataclass(frozen=True, slots=True)
class Slot:
    """One open request, by the number that its front knows it by. `prompt` tokens were given, `computed` are in the cache (of
    its first choice), `written` came of all its choices; `age_s` since it was accepted. `front` 0: this process's own.
    `tenant` is what it was submitted with."""

    number: int
    front: int
    state: State
    prompt: int
    computed: int
    written: int
    age_s: float
    priority: int
    tenant: str


@dataclass(frozen=True, slots=True)
class RankStatus:
    """One rank: where it runs, and what it held when it was ready. `peak_bytes`: the most its process has had resident."""

    rank: int
    pid: int
    host: str
    device: str
    weight_bytes: int
    kv_bytes: int
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class PagesStatus:
    """The pages of one cache group: all, and those that nobody holds."""

    total: int
    free: int


@dataclass(frozen=True, slots=True)
class Status:
    """Requests by what they do now (`waiting` were not given pages yet, or lost them again) and by what became of them;
    `queue_limit` bounds the waiting ones, None where nothing does. `tokens` were written and `steps` computed in all."""

    running: int
    waiting: int
    queue_limit: int | None
    accepted: int
    refused: int
    ended: int
    failed: int
    pages: tuple[PagesStatus, ...]
    tokens: int
    steps: int
    slots: tuple[Slot, ...]
    ranks: tuple[RankStatus, ...]


class Told(Protocol):
    """Whoever can tell its status, on a thread of its own; None where it has ended."""

    @property
    def lost(self) -> str | None: ...

    def gather(self, told: Callable[[Status | None], None]) -> None: ...


async def awaited(engine: Told) -> Status:
    """The status of an engine on other threads. Unavailable where it has ended, or ends before it could tell."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[Status | None] = loop.create_future()

    def put(status: Status | None) -> None:
        if not found.done():
            found.set_result(status)

    def told(status: Status | None) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(put, status)

    engine.gather(told)
    if (status := await found) is None:
        raise Unavailable(engine.lost or "the engine has ended")
    return status


def gather(core: Core, gate: Gate, ranks: Sequence[RankStatus], now: float) -> Status:
    """The status of an engine, on its thread."""
    slots = tuple(_slots(core, now))
    running = sum(slot.state == "running" for slot in slots)
    journal = core.journal
    return Status(
        running=running,
        waiting=len(slots) - running,
        queue_limit=gate.limit,
        accepted=gate.accepted,
        refused=gate.refused,
        ended=journal.ended,
        failed=journal.failed,
        pages=tuple(PagesStatus(pool.count - 1, pool.free) for pool in core.scheduler.cache.pools),
        tokens=journal.tokens,
        steps=core.steps,
        slots=slots,
        ranks=tuple(ranks),
    )


def _slots(core: Core, now: float) -> Iterator[Slot]:
    for number, entry in core.journal.entries.items():
        sequences = core.scheduler.sequences(number)
        yield Slot(
            number=number,
            front=0,
            state="running" if any(sequence.running for sequence in sequences) else "waiting",
            prompt=len(entry.prompt),
            computed=sequences[0].computed if sequences else 0,
            written=sum(len(choice.tokens) for choice in entry.choices),
            age_s=now - entry.since,
            priority=entry.priority,
            tenant=entry.tenant,
        )


def rank_statuses(setup: Setup, ready: Sequence[Ready]) -> tuple[RankStatus, ...]:
    """The ranks, by what they reported. One rank a GPU, by rank."""
    return tuple(
        RankStatus(
            rank=rank,
            pid=each.pid,
            host=each.host,
            device=f"{setup.device}:{rank}" if setup.device == "cuda" else setup.device,
            weight_bytes=each.weight_bytes,
            kv_bytes=each.kv_bytes,
            peak_bytes=each.peak_bytes,
        )
        for rank, each in enumerate(ready)
    )
