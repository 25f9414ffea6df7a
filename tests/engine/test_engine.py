"""The engine's own thread: whatever happens on it, every request ends exactly once, and nobody waits for ever."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import count, pairwise
from pathlib import Path
from queue import SimpleQueue

import pytest

from shardwise.engine.engine import Engine
from shardwise.engine.ranks import first_readable
from shardwise.engine.setup import Options, resolve
from shardwise.engine.status import Status
from shardwise.errors import RequestError, ShardwiseError
from shardwise.sched.events import Emitted, Ended, Event
from shardwise.sched.request import SamplingParams

PROMPT = (5, 9, 11)
LONG = SamplingParams(temperature=0, max_tokens=100)


def fails_with(_: Event) -> None:
    raise LookupError("this sink fails")


def ended(events: SimpleQueue[Event]) -> Ended:
    """The last of a request's events; there is no other behind it."""
    while not isinstance(event := events.get(timeout=30), Ended):
        pass
    assert events.empty()
    return event


@pytest.fixture
def engine(checkpoint: Callable[[str], Path]) -> Engine:
    return Engine(resolve(Options(str(checkpoint("llama")), tp=1, dtype="float32", device="cpu", threads=1)), "threads")


def test_a_sink_that_fails_takes_nobody_s_end(engine: Engine) -> None:
    """Neither of those who run, nor of those whose order is behind the one that failed, nor of those behind it at the end."""
    entered, go = threading.Event(), threading.Event()
    running: SimpleQueue[Event] = SimpleQueue()
    late: SimpleQueue[Event] = SimpleQueue()

    def holds(event: Event) -> None:
        running.put(event)
        if isinstance(event, Emitted):
            entered.set()
            assert go.wait(30)

    with engine:
        engine.submit(PROMPT, LONG, holds)
        assert entered.wait(30)
        # The engine's thread is in the sink: these orders are all taken together.
        number = engine.submit(PROMPT, LONG, fails_with)
        engine.submit(PROMPT, LONG, fails_with)
        engine.abort(number)
        engine.submit(PROMPT, LONG, late.put)
        go.set()
        for events in (running, late):
            assert ended(events).error == "the engine failed: LookupError('this sink fails')"
        with pytest.raises(ShardwiseError, match="this sink fails"):
            engine.submit(PROMPT, LONG, late.put)


def test_its_status_says_whose_requests_are_open(engine: Engine) -> None:
    events: SimpleQueue[Event] = SimpleQueue()
    statuses: SimpleQueue[Status | None] = SimpleQueue()

    def asks(_: Status | None) -> None:
        # On the engine's thread: both orders are taken together, so that nothing ends between them.
        engine.submit(PROMPT, LONG, events.put, tenant="key|salt", priority=3)
        engine.gather(statuses.put)

    with engine:
        engine.gather(asks)
        status = statuses.get(timeout=30)
        assert status is not None and (status.waiting, status.running) == (1, 0)
        assert [(slot.tenant, slot.prompt, slot.priority) for slot in status.slots] == [("key|salt", len(PROMPT), 3)]
        assert ended(events).error is None
    engine.gather(statuses.put)
    assert statuses.get(timeout=30) is None


def test_closed_within_a_sink_and_by_several_threads(engine: Engine) -> None:
    events: SimpleQueue[Event] = SimpleQueue()

    def closes(event: Event) -> None:
        events.put(event)
        engine.close()

    engine.submit(PROMPT, LONG, closes)
    assert ended(events).error == "the engine was closed"
    closers = [threading.Thread(target=engine.close) for _ in range(4)]
    for closer in closers:
        closer.start()
    for closer in closers:
        closer.join(30)
        assert not closer.is_alive()


def test_descriptors_of_a_busy_process_are_waited_for() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    opened = [os.eventfd(0), os.eventfd(1)]
    try:
        for low in tuple(opened):
            os.dup2(low, low + 1024)
            opened.append(low + 1024)
        assert first_readable(*opened[2:]) == opened[3]
        os.eventfd_write(opened[0], 1)
        assert first_readable(*opened[2:]) == opened[2]
    finally:
        for descriptor in opened:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_admission_knows_the_vocabulary(engine: Engine) -> None:
    """Also of values that come past the front."""
    with engine:
        for prompt, params, name in (
            ((5, 10**6), LONG, "the prompt"),
            (PROMPT, SamplingParams(stop_token_ids=[10**6]), "stop_token_ids"),
            (PROMPT, SamplingParams(allowed_token_ids=[10**6]), "allowed_token_ids"),
            (PROMPT, SamplingParams(logit_bias={10**6: 1.0}), "logit_bias"),
        ):
            with pytest.raises(RequestError, match=f"{name}: token id 1000000 is not in this model's vocabulary of "):
                engine.submit(prompt, params, fails_with)


def test_an_aborted_request_is_gone_within_one_step(engine: Engine) -> None:
    """Beside one that goes on, whose tokens count the steps: it holds no slot and no page any more."""
    leaving, seen, done, tokens = SimpleQueue[Event](), list[Status | None](), threading.Event(), count(1)
    most = SamplingParams(temperature=0, max_tokens=80, ignore_eos=True)
    number = engine.submit(PROMPT, replace(most, n=2), leaving.put)

    def lasts(event: Event) -> None:
        """On the engine's thread: what is ordered here is done, in this order, before the next step is."""
        engine.gather(seen.append)
        if isinstance(event, Ended):
            done.set()
        elif next(tokens) == 40:
            engine.abort(number)

    with engine:
        engine.submit(PROMPT[:1], most, lasts)
        assert ended(leaving).error is None
        assert done.wait(30)
    told = [status for status in seen if status is not None]
    before = next(status for status, later in pairwise(told) if len(status.slots) > len(later.slots))
    after = told[told.index(before) + 1]
    assert after.steps - before.steps <= 1
    assert after.pages[0].free > before.pages[0].free
