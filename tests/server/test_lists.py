"""Long lists of prompts in one request: they are handed to the engine bit by bit, and are no reason to refuse anybody."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest

from shardwise.engine.setup import Setup
from shardwise.server.job import TOGETHER
from shardwise.server.routes import ROUTES
from tests.server.drive import Served, serving, wait_for
from tests.server.engines import ServingFake
from tests.server.live import serving as live_server
from tests.server.storm import ask, asked

COUNT = 5 * TOGETHER
LIST = {"prompt": [[9, 10 + n] for n in range(COUNT)], "max_tokens": 2, "return_token_ids": True, "ignore_eos": True}


@pytest.fixture(params=[2, None], ids=["small queue", "no bound"])
def small(request: pytest.FixtureRequest, setup: Setup) -> Iterator[ServingFake]:
    with ServingFake(setup, held=True, queue=request.param) as made:
        yield made


def test_all_are_answered_in_their_order(small: ServingFake) -> None:
    small.answer = lambda prompt, _choice, place: 20 + prompt[1] + place
    most, stop = [0], threading.Event()

    def ticks() -> None:
        while not stop.is_set():
            most[0] = max(most[0], small.running)
            small.allow(1)
            time.sleep(0.0005)

    thread = threading.Thread(target=ticks)
    thread.start()
    with serving(small, ROUTES) as served:
        choices = served.post("/v1/completions", LIST).json["choices"]
        vectors = served.post("/v1/embeddings", {"input": [[9, 10 + n] for n in range(COUNT)]}).json["data"]
    stop.set()
    thread.join()
    assert [choice["token_ids"] for choice in choices] == [[30 + n, 31 + n] for n in range(COUNT)]
    assert [each["index"] for each in vectors] == list(range(COUNT))
    assert 0 < most[0] <= TOGETHER and small.running == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_takes_the_rest_along(small: ServingFake, stream: bool) -> None:
    with serving(small, ROUTES) as served:
        body = {**LIST, "stream": stream}
        thread = threading.Thread(target=lambda: leave(served, body))
        thread.start()
        wait_for(lambda: small.running, "some run")
        thread.join()
        wait_for(lambda: small.running == 0, "none does")
        begun = len(small.submitted)
        small.allow(10)
        assert served.post("/v1/completions", {"prompt": "Once", "max_tokens": 1}).status == 200
        assert len(small.submitted) == begun + 1 < COUNT


def leave(served: Served, body: dict[str, object]) -> None:
    """Asks, and is gone after a moment."""
    with served.connect() as connection:
        data = json.dumps(body).encode()
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n")
        connection.sendall(b"Content-Length: %d\r\n\r\n" % len(data) + data)
        time.sleep(0.3)


WORDS = [f"word {n}" for n in range(200)]
LISTS = {
    "words that must not come": ("/v1/completions", {**LIST, "bad_words": WORDS}),
    "scores": ("/v1/completions", {"prompt": [[9] * 64] * 256, "max_tokens": 1, "echo": True, "logprobs": 20}),
}


@pytest.mark.parametrize("name", LISTS)
def test_others_have_their_turn_meanwhile(engine: ServingFake, name: str) -> None:
    """The loop's own work between two turns, in CPU seconds: so it is the same on a machine with much else to do."""
    spent: list[float] = []

    async def turns() -> None:
        while not over.is_set():
            spent.append(time.thread_time())
            await asyncio.sleep(0.001)

    over = threading.Event()
    path, body = LISTS[name]
    with serving(engine, ROUTES) as served:
        watch = asyncio.run_coroutine_threadsafe(turns(), served.loop)
        gc.disable()  # it has its own time
        try:
            assert served.post(path, body).status == 200
        finally:
            gc.enable()
        over.set()
        watch.result(30)
    assert max(after - before for before, after in pairwise(spent)) < 0.04


def test_one_that_fails_ends_all(engine: ServingFake) -> None:
    engine.answer = lambda prompt, _choice, _place: -1 if prompt[1] == 9 + COUNT else 20
    with serving(engine, ROUTES) as served:
        assert served.post("/v1/completions", LIST).status == 500
        wait_for(lambda: engine.running == 0, "none runs")


def test_a_real_queue_that_is_smaller_than_a_list() -> None:
    """Beside it others are served."""
    with live_server("--max-queue", "16", "--max-num-seqs", "8") as live:

        async def both() -> None:
            long = asyncio.create_task(asyncio.to_thread(live.ask, "/v1/completions", {**LIST, "temperature": 0}))
            others = [await ask(live.url, asked(f"Once {n}", 2, stream=False)) for n in range(20)]
            status, answer = await long
            assert status == 200 and [choice["index"] for choice in answer["choices"]] == list(range(COUNT))
            assert any(other.complete for other in others)
            assert all(other.complete or other.status == 429 for other in others)

        asyncio.run(both())
        counters = live.ask("/server_info")[1]["counters"]
        assert (counters["running"], counters["waiting"]) == (0, 0)
