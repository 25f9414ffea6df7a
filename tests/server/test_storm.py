"""Clients that leave at any byte, in any way, beside ones that stay: nothing is left of the first, nothing is missing for the
others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import psutil
import pytest

from tests.server.live import Live, serving
from tests.server.storm import Answer, ask, asked, drops, until

GOOD = 4
WORDS = [f"The {name} said:" for name in ("dog", "cat", "bird", "fish")]


async def good(live: Live, words: str, tokens: int, done: asyncio.Event) -> list[Answer]:
    """One client that stays, again and again until `done`."""
    found: list[Answer] = []
    while not done.is_set():
        found.append(await ask(live.url, asked(words, tokens, stream=True)))
    return found


async def weather(live: Live, count: int, within_s: float) -> dict[str, object]:
    """A storm of `count` clients; how long it took until nothing was left of it, in seconds."""
    front = psutil.Process(live.process.pid)
    alone = {words: (await ask(live.url, asked(words, 60, stream=False))).text for words in WORDS}
    # What is made once, with the first requests, is no leak.
    await drops(live.url, 30, seed=99)
    assert await until(lambda: idle(live), 30) is not None, live.ask("/server_info")[1]["counters"]
    descriptors = front.num_fds()
    done = asyncio.Event()
    stays = [asyncio.create_task(good(live, words, 60, done)) for words in WORDS]
    await drops(live.url, count, seed=1)
    gone_s = await until(lambda: counters(live)["running"] + counters(live)["waiting"] <= GOOD, within_s)
    done.set()
    answers = [answer for each in await asyncio.gather(*stays) for answer in each]
    idle_s = await until(lambda: idle(live), within_s)
    closed_s = await until(lambda: front.num_fds() <= descriptors, within_s)
    told = live.ask("/server_info")[1]
    assert None not in (gone_s, idle_s, closed_s), (gone_s, idle_s, closed_s, told["counters"], front.num_fds(), descriptors)
    assert all(answer.complete for answer in answers), [answer for answer in answers if not answer.complete]
    assert {answer.text for answer in answers} == set(alone.values())
    assert live.process.poll() is None and not [line for line in live.said if "Traceback" in line or "ERROR" in line]
    return {"drops": count, "good": len(answers), "gone_s": gone_s, "idle_s": idle_s, "closed_s": closed_s}


def counters(live: Live) -> dict[str, int]:
    return dict(live.ask("/server_info")[1]["counters"])


def idle(live: Live) -> bool:
    """Nothing runs or waits, and nobody holds a page."""
    told = live.ask("/server_info")[1]
    return told["counters"]["running"] + told["counters"]["waiting"] == 0 and all(
        pages["free"] == pages["total"] for pages in told["pages"]
    )


def test_a_hundred_that_leave(figures: Callable[..., None]) -> None:
    with serving() as live:
        figures("100 disconnects", **asyncio.run(weather(live, 100, within_s=10)))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("flags", [(), ("-tp", "2", "--api-workers", "2")], ids=["one front", "two"])
def test_two_thousand_that_leave(figures: Callable[..., None], flags: tuple[str, ...]) -> None:
    with serving(*flags) as live:
        figures("2000 disconnects", **asyncio.run(weather(live, 2000, within_s=1.0)))
