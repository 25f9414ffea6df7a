"""SIGTERM at any time under load: who was accepted gets all, who comes later is told 503, and nothing is left."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Callable

import pytest

from tests.cli.command import marked
from tests.server.live import Live, serving
from tests.server.storm import Answer, ask, asked, until

OPEN = 8

PATIENT = ("--drain-timeout", "10m")
"""On a machine that does much else, what is open may take its time."""


async def trial(live: Live, seed: int) -> dict[str, float]:
    """Requests before, at and after a SIGTERM at a random time; what became of them."""
    chance = random.Random(seed)

    async def client(number: int) -> Answer:
        await asyncio.sleep(chance.uniform(0, 0.3))
        return await ask(live.url, asked(f"Once {number}", chance.randrange(20, 250), stream=number % 2 == 0))

    async def late(after_s: float) -> Answer:
        await asyncio.sleep(after_s)
        return await ask(live.url, asked("Too late", 5, stream=False))

    early = [asyncio.create_task(client(number)) for number in range(OPEN)]
    await asyncio.sleep(chance.uniform(0, 0.5))
    live.process.send_signal(signal.SIGTERM)
    signalled = time.monotonic()
    later = [asyncio.create_task(late(0.05 * number)) for number in range(8)]
    answers, refused = await asyncio.gather(*early), await asyncio.gather(*later)
    code = await asyncio.to_thread(live.wait, 120)
    ended_s = time.monotonic() - signalled
    assert code == 0, (code, live.said)
    assert await until(lambda: not list(marked(live.mark)), 5) is not None, list(marked(live.mark))
    assert not [line for line in live.said if "Traceback" in line or "ERROR" in line], live.said
    accepted = [answer for answer in answers if answer.status == 200]
    # Where the signal came first, a request is told so, or finds nobody.
    assert all(answer.complete for answer in accepted), [answer for answer in accepted if not answer.complete]
    odd = [answer for answer in (*answers, *refused) if answer.status not in (0, 200, 503)]
    assert not odd, odd
    assert all("retry-after" in answer.headers for answer in (*answers, *refused) if answer.status == 503)
    assert all(answer.complete for answer in refused if answer.status == 200), "accepted before the signal was heard"
    unanswered = [answer for answer in (*answers, *refused) if answer.status == 0 and not answer.refused]
    return {
        "accepted": len(accepted),
        "told_503": sum(answer.status == 503 for answer in (*answers, *refused)),
        "no_connection": sum(answer.refused for answer in (*answers, *refused)),
        "closed_unread": len(unanswered),
        "ended_s": ended_s,
    }


@pytest.mark.parametrize("seed", range(2))
def test_a_drain_under_load(figures: Callable[..., None], seed: int) -> None:
    with serving(*PATIENT) as live:
        figures("drains", trials=1, **asyncio.run(trial(live, seed)))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(100, 200))
def test_drains_at_random_times(figures: Callable[..., None], seed: int) -> None:
    flags = ("--api-workers", "2") if seed % 10 == 0 else ("-tp", "2") if seed % 10 == 1 else ()
    with serving(*PATIENT, *flags) as live:
        figures("drains", trials=1, **asyncio.run(trial(live, seed)))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_second_signals_at_random_times(figures: Callable[..., None], seed: int) -> None:
    chance = random.Random(seed)

    async def clients() -> float:
        open_ones = [asyncio.create_task(ask(live.url, asked(f"Once {n}", 900, stream=True))) for n in range(OPEN)]
        await asyncio.sleep(chance.uniform(0.1, 0.5))
        live.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(chance.uniform(0.0, 0.2))
        sent = time.monotonic()
        live.process.send_signal(signal.SIGTERM)
        code = await asyncio.to_thread(live.process.wait, 30)
        took_s = time.monotonic() - sent
        assert code in (0, 128 + signal.SIGTERM), live.said
        await asyncio.gather(*open_ones)
        return took_s

    with serving() as live:
        took_s = asyncio.run(clients())
        assert took_s <= 1.0
        assert not [line for line in live.said if "Traceback" in line], live.said
        figures("second signals", trials=1, longest_s=took_s)
        left = asyncio.run(until(lambda: not list(marked(live.mark)), 2))
        assert left is not None, list(marked(live.mark))
