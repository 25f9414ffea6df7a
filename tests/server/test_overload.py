"""Ten times as many requests as can be served: the queue keeps its bound, whoever finds it full learns at once when to come
again, and is taken then; whoever was accepted gets all."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

import psutil
import pytest
import uvloop

from tests.server.live import Live, serving
from tests.server.storm import Answer, Pool, ask, asked

QUEUE, AT_ONCE = 16, 8
TOKENS = 8

# More connections than ten times too many need where answers are slow: it is the queue that is to refuse.
FLAGS = ("--max-queue", str(QUEUE), "--max-num-seqs", str(AT_ONCE), "--max-connections", "8192")


@dataclass
class Overload:
    """What came of it. `retried` are the answers of those who came again when they were told to; `waiting` are samples of the
    queue, `resident` of the bytes that all processes hold, with their times."""

    first: list[Answer] = field(default_factory=list)
    retried: list[Answer] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    resident: list[tuple[float, int]] = field(default_factory=list)
    finished: list[float] = field(default_factory=list)


def request(number: int) -> bytes:
    """No two are alike: a promise is known by what it was given for."""
    return asked(f"Once upon a time {number}", TOKENS, stream=number % 2 == 0)


Ask = Callable[[bytes], Awaitable[Answer]]


async def peak(one_more: Ask, count: int) -> float:
    """Requests a second that are served where there is always one more, over `count` of them."""
    left, ends = iter(range(count + QUEUE)), []

    async def one() -> None:
        for number in left:
            answer = await one_more(request(10**6 + number))
            assert answer.complete, answer
            ends.append(time.monotonic())

    await asyncio.gather(*(one() for _ in range(QUEUE)))
    # Without the beginning, when the first come at once, and the end, when fewer and fewer are left.
    return (count - 1) / (ends[count - 1 + AT_ONCE] - ends[AT_ONCE])


async def overload(live: Live, send: Ask, rate: float, seconds: float, *, retries: int) -> Overload:
    """`rate` requests a second for so long, whatever becomes of them. Every so often one comes again, when it was told to."""
    found, chance, begun = Overload(), random.Random(3), time.monotonic()
    clients: list[asyncio.Task[None]] = []
    turns = iter(range(retries))

    async def one(number: int) -> None:
        answer = await send(request(number))
        found.first.append(answer)
        if answer.status == 200:
            found.finished.append(time.monotonic() - begun)
        elif answer.status == 429 and chance.random() < 0.2:
            wait_s = int(answer.headers["retry-after"])
            if time.monotonic() - begun + wait_s < seconds + 5 and next(turns, None) is not None:
                await asyncio.sleep(wait_s)
                again = await send(request(number))
                found.retried.append(again)
                if again.status == 200:
                    found.finished.append(time.monotonic() - begun)

    async def watch() -> None:
        processes = [psutil.Process(live.process.pid), *psutil.Process(live.process.pid).children(recursive=True)]
        while True:
            told = await asyncio.to_thread(live.ask, "/server_info")
            found.waiting.append(told[1]["counters"]["waiting"])
            resident = sum(process.memory_info().rss for process in processes)
            found.resident.append((time.monotonic() - begun, resident))
            await asyncio.sleep(0.1)

    watcher = asyncio.create_task(watch())
    number, due = 0, begun
    while (now := time.monotonic()) < begun + seconds:
        while due <= now:
            clients.append(asyncio.create_task(one(number)))
            number, due = number + 1, due + chance.expovariate(rate)
        await asyncio.sleep(0.002)
    await asyncio.gather(*clients)
    watcher.cancel()
    return found


def figures_of(found: Overload, capacity: float, seconds: float) -> dict[str, float]:
    """Checks what must hold on any machine, however busy; what depends on it is given back."""
    assert {answer.status for answer in found.first} <= {200, 429}, {answer.status for answer in found.first}
    accepted = [answer for answer in found.first if answer.status == 200]
    refused = sorted(answer.seconds for answer in found.first if answer.status == 429)
    assert accepted and refused
    assert all(answer.complete for answer in accepted)
    assert all(1 <= int(answer.headers["retry-after"]) <= 300 for answer in found.first if answer.status == 429)
    assert max(found.waiting) <= QUEUE
    taken = sum(answer.status == 200 for answer in found.retried)
    half = [size for at, size in found.resident if at > seconds / 2]
    served = sum(seconds * 0.2 <= at <= seconds for at in found.finished) / (0.8 * seconds)
    return {
        "accepted": len(accepted),
        "refused": len(refused),
        "refused_p99_ms": 1000 * refused[len(refused) * 99 // 100],
        "retried": len(found.retried),
        "retried_and_taken": taken,
        "of_peak": served / capacity,
        "growth_mib": (half[-1] - half[0]) / 2**20,
    }


async def ten_times(live: Live, seconds: float, peaks: int, *, keeps: bool) -> dict[str, float]:
    """`keeps`: the clients keep their connections."""
    pool = Pool(live.url)
    send = pool.ask if keeps else partial(ask, live.url)
    capacity = await peak(send, peaks)
    found = await overload(live, send, 10 * capacity, seconds, retries=200)
    pool.close()
    told = live.ask("/server_info")[1]["counters"]
    assert (told["running"], told["waiting"]) == (0, 0)
    assert (await ask(live.url, request(-1))).complete
    return {"peak_per_s": capacity, **figures_of(found, capacity, seconds)}


def test_ten_times_too_many(figures: Callable[..., None]) -> None:
    with serving(*FLAGS) as live:
        found = uvloop.run(ten_times(live, 5, 40, keeps=True))
        figures("overload", **found)
        assert found["retried_and_taken"] >= 0.5 * found["retried"]
        assert found["growth_mib"] < 64


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("more", [(), ("--threads", "1")], ids=["all threads", "one thread"])
@pytest.mark.parametrize("keeps", [True, False])
def test_ten_times_too_many_for_a_minute(keeps: bool, more: tuple[str, ...], figures: Callable[..., None]) -> None:
    """Alone on its machine. The bounds are the aims, which are not met yet: docs/log.md, "Overload, again"."""
    with serving(*FLAGS, *more) as live:
        found = uvloop.run(ten_times(live, 60, 200, keeps=keeps))
        figures(f"overload, connections {'kept' if keeps else 'not kept'} {' '.join(more)}".rstrip(), **found)
        assert found["refused_p99_ms"] <= 50
        assert found["of_peak"] >= 0.9
        assert found["retried"] > 50 and found["retried_and_taken"] >= 0.9 * found["retried"]
        assert found["growth_mib"] < 8
