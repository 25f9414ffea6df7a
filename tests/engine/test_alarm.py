"""Calls come at their times, in their order, and not after the end."""

from __future__ import annotations

import threading
import time

from shardwise.engine.alarm import Alarm


def test_calls_come_in_the_order_of_their_times():
    alarm, told, all_told = Alarm(), list[tuple[str, float]](), threading.Event()
    begun = time.monotonic()

    def tell(name: str) -> None:
        told.append((name, time.monotonic() - begun))
        if len(told) == 3:
            all_told.set()

    alarm.at(begun + 0.3, lambda: tell("last"))
    alarm.at(begun + 600, lambda: tell("never"))
    alarm.at(begun + 0.1, lambda: tell("next"))
    alarm.at(begun - 1, lambda: tell("first"))
    assert all_told.wait(30)
    assert [name for name, _ in told] == ["first", "next", "last"]
    assert all(took >= due for (_, took), due in zip(told, (0, 0.1, 0.3), strict=True))
    alarm.close()
    alarm.close()
    alarm.at(begun, lambda: tell("closed"))
    assert alarm._thread is not None
    alarm._thread.join(30)
    assert not alarm._thread.is_alive() and len(told) == 3
