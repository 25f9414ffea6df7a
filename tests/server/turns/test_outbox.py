"""Events become frames in their order, the long ones elsewhere; one that is cut off there loses none."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from shardwise.server.logprobs import TokenLogprob
from shardwise.server.portions import PORTION
from shardwise.server.responses.outbox import Outbox
from shardwise.server.responses.output import CallDelta, ItemEvent, OutputMessage, OutputText, frame

SCORED = [TokenLogprob("a", -1.0, [97], [])] * PORTION
LONG = ItemEvent("response.output_item.done", 1, 0, OutputMessage(id="m", content=[OutputText(text="a", logprobs=SCORED)]))
SHORT = [CallDelta("x.delta", number, "c", 0, "{") for number in range(3)]


@pytest.mark.parametrize("cut", [False, True])
def test_long_events_become_bytes_elsewhere(cut: bool) -> None:
    where: list[str] = []

    async def elsewhere(work: Callable[[], list[bytes]]) -> list[bytes]:
        def there() -> list[bytes]:
            where.append(threading.current_thread().name)
            return work()

        if cut:
            raise asyncio.CancelledError
        return await asyncio.to_thread(there)

    async def run() -> list[bytes]:
        out = Outbox(elsewhere)
        out.put(SHORT[0])
        await out.seal()
        assert not where, "not worth a thread"
        out.put(LONG)
        try:
            await out.seal()
        except asyncio.CancelledError:
            assert cut
        out.put(SHORT[1])
        first = out.take()
        out.put(SHORT[2])
        return [*first, *out.take(), *out.take()]

    made = asyncio.run(run())
    assert made == [frame(event) for event in (SHORT[0], LONG, *SHORT[1:])]
    assert len(where) == (not cut) and "MainThread" not in where
