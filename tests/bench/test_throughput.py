"""A replay: requests at their times, what fails counted, percentiles of what was waited for."""

from __future__ import annotations

import time

from shardwise.bench.throughput import Timed, of_engine, replay, row, throughput
from shardwise.bench.trace import Arrival


def test_a_replay_against_an_engine(fake):
    engine = fake(lambda *_: 7)
    arrivals = [Arrival(0.0, 5, 3), Arrival(0.05, 2000, 3), Arrival(0.1, 8, 4)]
    told: list[str] = []
    begun = time.perf_counter()
    found = replay(arrivals, of_engine(engine), 100, told.append)
    assert [len(timed.stamps) for timed in found] == [3, 0, 4]
    assert found[1].error is not None and "1023" in found[1].error
    assert found[1].submitted >= begun + 0.05 and found[2].submitted >= begun + 0.1
    assert [len(prompt) for prompt, _ in engine.submitted] == [5, 8]
    assert told[-1] == "request 3 of 3"
    shown = row("fake", arrivals, found)
    assert (shown["requests"], shown["failed"], shown["prompt_tokens"], shown["tokens"]) == (3, 1, 13, 7)
    assert any("1 requests failed" in note for note in throughput("t", [shown], found, 0).notes)


def test_figures():
    found = [
        Timed(10.0, [10.1, 10.2, 10.4], 10.5),
        Timed(10.0, [10.3], 11.0, tokens=4),
        Timed(10.0, [], 10.1, "too long"),
        Timed(10.0, [], 10.1),  # which said nothing and did not fail: it is not served
    ]
    shown = row("x", [Arrival(0, 10, 3)] * 4, found)
    assert (shown["failed"], shown["tokens"], shown["seconds"]) == (2, 7, 1.0)
    assert (shown["ttft_p50_ms"], shown["ttft_p99_ms"]) == (300.0, 300.0)
    assert (shown["itl_p50_ms"], shown["itl_p90_ms"]) == (200.0, 200.0)
    assert row("x", [Arrival(0, 1, 1)], [Timed(1.0, [], 2.0, "no")])["ttft_p50_ms"] is None
