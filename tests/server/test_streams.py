"""Answers while they come: clients that leave, read slowly or wait; engines that fail late; and an end that lets all finish."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from shardwise.engine.setup import Setup
from shardwise.errors import QueueFull, ShardwiseError, Unavailable
from shardwise.sched.request import SamplingParams
from shardwise.server.call import Call
from shardwise.server.job import Job
from shardwise.server.refusal import Refusal
from shardwise.server.service import Service
from shardwise.server.settings import Settings
from tests.server.demo import DEMO, closed
from tests.server.drive import Served, serving, until_closed, wait_for
from tests.server.engines import ServingFake


def send(served: Served, body: dict[str, object], path: str = "/v1/demo", rest: int = 0) -> socket.socket:
    """A raw POST whose last `rest` bytes are left out."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    connection = served.connect()
    connection.sendall((head + data)[: len(head + data) - rest])
    return connection


def until(connection: socket.socket, mark: bytes, times: int = 1) -> bytes:
    data, found = bytearray(), 0
    while found < times:
        part = connection.recv(65536)
        assert part, f"closed after {bytes(data[:500])!r}"
        found += (bytes(data[-len(mark) + 1 :]) + part).count(mark)
        data += part
    return bytes(data)


def drop(connection: socket.socket, reset: bool) -> None:
    if reset:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_client_that_leaves_ends_its_request(held: ServingFake, stream: bool, reset: bool):
    """The engine is held, so nothing but the abort ends it."""
    with serving(held, DEMO) as served:
        for tokens in range(4):
            connection = send(served, {"prompt": "Once", "max_tokens": 50, "stream": stream})
            wait_for(lambda: held.running == 1, "it runs")
            held.allow(tokens)
            if stream:
                until(connection, b"data: " if tokens else b"\r\n\r\n")
            drop(connection, reset)
            wait_for(lambda: held.running == 0, "it was aborted", 5)
            wait_for(lambda: served.service.drain.count == 0, "it is no longer open", 5)
        assert len(held.aborted) == 4


def test_a_client_that_leaves_within_its_body_starts_nothing(held: ServingFake):
    with serving(held, DEMO) as served:
        for rest in (1, 10, 40):
            connection = send(served, {"prompt": "Once" * 10}, rest=rest)
            drop(connection, reset=rest == 10)
        assert served.get("/health").status == 200
        wait_for(lambda: served.service.drain.count == 0, "none is open", 5)
        assert held.submitted == []


def test_many_leave_at_random(setup: Setup):
    with ServingFake(setup) as engine, serving(engine, DEMO) as served:

        def one(number: int) -> None:
            rest = 9 if number % 7 > 4 else 0
            connection = send(served, {"prompt": "Once", "max_tokens": 400, "stream": number % 3 > 0}, rest=rest)
            if number % 2 and not rest:
                connection.recv(1 + number * 37)
            drop(connection, reset=number % 4 == 0)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(one, range(1, 201)))
        wait_for(lambda: engine.running == 0 and served.service.drain.count == 0, "all were ended", 10)
        assert served.post("/v1/demo", {"prompt": "Once"}).status == 200


def test_headers_at_once_and_comments_while_nothing_comes(held: ServingFake):
    with serving(held, DEMO, keep_alive_s=0.05) as served:
        connection = send(served, {"prompt": "Once", "max_tokens": 2, "stream": True})
        data = until(connection, b": keep-alive\n\n", 3)
        assert b"HTTP/1.1 200 " in data and b"data: " not in data
        head = data.partition(b"\r\n\r\n")[0].lower()
        for line in (b"content-type: text/event-stream", b"cache-control: no-cache", b"x-accel-buffering: no"):
            assert line in head
        held.allow(2)
        assert b"data: " in until(connection, b"data: [DONE]\n\n")
        connection.close()


def test_a_reader_that_takes_nothing_is_cut_off(engine: ServingFake):
    with serving(engine, DEMO, write_timeout_s=0.3) as served, served.connect() as connection:
        connection.sendall(b"GET /v1/flood HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: taker-of-nothing\r\n\r\n")
        wait_for(lambda: "taker-of-nothing" in closed, "the stream was closed")
        wait_for(lambda: served.service.drain.count == 0, "it is no longer open", 5)
        assert not until_closed(connection).endswith(b"0\r\n\r\n"), "it did not end well"


def test_a_reader_that_takes_all_is_not(engine: ServingFake):
    with serving(engine, DEMO, write_timeout_s=3.0) as served, served.connect() as connection:
        connection.sendall(b"GET /v1/flood HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: taker-of-all\r\n\r\n")
        until(connection, b"data: ", 1000)
        assert "taker-of-all" not in closed
    wait_for(lambda: "taker-of-all" in closed, "the stream was closed")


def test_a_job_that_nobody_reads_is_cut_off(held: ServingFake):
    async def run() -> Refusal:
        service = Service(held, Settings(max_behind=8))
        params = SamplingParams(max_tokens=100, ignore_eos=True, n=2)
        async with Job(service, Call("test", "", 0.0, "/")) as job:
            await job.start([service.front.prompt("Once")], [params])
            held.allow(8)
            news = [output async for output in one_list(job)]
            assert news
            held.allow(50)
            while held.ticks and held.running:  # it is ended as soon as too much waits
                await asyncio.sleep(0.001)
            with pytest.raises(Refusal) as caught:
                await anext(job)
            return caught.value

    async def one_list(job: Job):
        tokens = 0
        while tokens < 16:
            for _, output in await anext(job):
                tokens += len(output.token_ids)
                yield output

    refusal = asyncio.run(run())
    assert refusal.status == 408 and refusal.code == "too_slow" and held.running == 0


@pytest.mark.parametrize("limits", [{"max_behind": 64}, {"max_behind_bytes": 2000}], ids=lambda limits: next(iter(limits)))
def test_a_request_that_nobody_reads_ends_before_its_reader_wakes(held: ServingFake, limits: dict[str, int]):
    async def run() -> None:
        service = Service(held, Settings(**limits))
        async with Job(service, Call("test", "", 0.0, "/")) as job:
            await job.start([service.front.prompt("Once")], [SamplingParams(max_tokens=1000, ignore_eos=True, logprobs=5)])
            held.allow(500)
            until = asyncio.get_running_loop().time() + 20
            while held.running:
                assert asyncio.get_running_loop().time() < until, "it still runs"
                await asyncio.sleep(0.001)
            for _ in range(2):
                with pytest.raises(Refusal, match="waited to be read"):
                    await anext(job)

    asyncio.run(run())


def test_what_came_before_a_failure_is_given_out_first(held: ServingFake):
    """Of two prompts one fails; all happens before anything is read."""
    held.answer = lambda prompt, _choice, place: -1 if len(prompt) > 1 and place == 3 else 20 + place
    prompts = [(9,), (9, 10)]

    async def run() -> dict[int, list[int]]:
        service = Service(held, Settings())
        found: dict[int, list[int]] = {0: [], 1: []}
        async with Job(service, Call("test", "", 0.0, "/")) as job:
            params = SamplingParams(max_tokens=100, ignore_eos=True)
            await job.start([service.front.prompt(list(ids)) for ids in prompts], [params] * 2)
            held.allow(5)
            while held.ticks or held.running > 1:
                await asyncio.sleep(0.001)
            with pytest.raises(ShardwiseError):
                async for news in job:
                    for index, output in news:
                        assert output.finish_reason is None
                        found[index] += output.token_ids
            with pytest.raises(ShardwiseError):  # as long as it is asked
                await anext(job)
        return found

    found = asyncio.run(run())
    assert found[1] == [20, 21, 22] and found[0][:3] == [20, 21, 22] and held.running == 0


SECRET = b"a secret of the prompt"


def test_what_fails_late_is_said_in_the_stream(engine: ServingFake, caplog: pytest.LogCaptureFixture):
    with serving(engine, DEMO) as served, caplog.at_level(logging.INFO):
        openai = served.get("/v1/late", **{"X-Request-Id": "late-1"})
        assert openai.status == 200 and [type(event) for event in openai.events] == [dict, dict, str]
        assert openai.events[1]["error"]["type"] == "server_error" and openai.events[2] == "[DONE]"
        other = served.get("/v1/other/late", **{"X-Request-Id": "late-2"})
        assert other.events[1]["said"] == openai.events[1]["error"]["message"] and b"event: error\n" in other.body
        trace = f"00-{'a' * 32}-{'b' * 16}-01"
        broken = served.get("/v1/breaks", **{"X-Request-Id": "late-3", "traceparent": trace})
        shaped = served.get("/v1/other/breaks", **{"X-Request-Id": "late-4"})
        assert broken.status == shaped.status == 500 and shaped.json["request"] == "late-4"
        assert SECRET not in openai.body + other.body + broken.body + shaped.body
    for number in range(1, 5):
        assert f"late-{number}" in caplog.text
    assert f"request late-3 {trace} failed" in caplog.text
    assert "KeyError" in caplog.text and SECRET.decode() + "'" not in caplog.text


def test_an_engine_that_fails_a_request(setup: Setup):
    with ServingFake(setup, lambda _p, _c, place: -1 if place == 2 else 9) as engine, serving(engine, DEMO) as served:
        assert served.post("/v1/demo", {"prompt": "Once"}).status == 500
        events = served.post("/v1/demo", {"prompt": "Once", "stream": True}).events
        assert events[-1] == "[DONE]" and events[-2]["error"]["code"] == "internal_server_error"
        engine.lost = "rank 1 was lost"
        assert served.post("/v1/demo", {"prompt": "Once"}).status == 503
        assert served.get("/health").status == served.get("/ready").status == 503


def test_a_request_takes_its_time_at_most(held: ServingFake):
    with serving(held, DEMO, request_timeout_s=0.2) as served:
        whole = served.post("/v1/demo", {"prompt": "Once"})
        assert (whole.status, whole.json["error"]["type"]) == (504, "timeout_error")
        stream = served.post("/v1/demo", {"prompt": "Once", "stream": True})
        assert stream.status == 200 and stream.events[0]["error"]["code"] == "timeout" and stream.events[1] == "[DONE]"
        assert held.running == 0 and len(held.aborted) == 2


def test_a_full_queue_says_when_to_come_back(engine: ServingFake):
    with serving(engine, DEMO) as served:
        for stream in (False, True):
            engine.refusals = (QueueFull("256 requests wait already", retry_after_s=7), Unavailable("it starts"))
            full = served.post("/v1/demo", {"prompt": "Once", "stream": stream})
            assert (full.status, full.headers["retry-after"], full.json["error"]["code"]) == (429, "7", "queue_full")
            away = served.post("/v1/demo", {"prompt": "Once", "stream": stream})
            assert away.status == 503 and int(away.headers["retry-after"]) > 0
        assert engine.running == 0


def test_a_full_queue_refuses_before_it_reads(engine: ServingFake):
    """Known by its body, tenant and path: who comes again is told apart from who never came."""
    keys: list[tuple[str, int]] = []

    async def room(key: str, tokens: int) -> None:
        keys.append((key, tokens))
        raise QueueFull("256 requests wait already", retry_after_s=7)

    engine.room = room
    routes = tuple(replace(route, queued=True) for route in DEMO)
    with serving(engine, routes, api_keys=("one", "two")) as served:
        for body in ({"prompt": "Once"}, {"prompt": "Once"}, {"prompt": "Twice"}, {"prompt": 8 * ["no prompt"]}):
            full = served.post("/v1/demo", body, authorization="Bearer one")
            assert (full.status, full.headers["retry-after"], full.json["error"]["code"]) == (429, "7", "queue_full")
        assert served.post("/v1/demo", {"prompt": "Once"}, authorization="Bearer two").status == 429
        assert served.post("/v1/demo", {"prompt": "Once"}).status == 401
    names = [key for key, _ in keys]
    assert len(names) == 5 and names[0] == names[1] and len(set(names)) == 4
    assert keys[3][1] > keys[0][1] > 0 and not engine.submitted


def test_draining_lets_open_requests_finish(held: ServingFake):
    with serving(held, DEMO) as served:
        answers = []
        body = {"prompt": "Once", "max_tokens": 5, "stream": True}
        thread = threading.Thread(target=lambda: answers.append(served.post("/v1/demo", body)))
        thread.start()
        wait_for(lambda: held.running == 1, "it runs")
        assert served.get("/ready").status == 200
        served.call(served.service.drain.begin)
        idle = asyncio.run_coroutine_threadsafe(served.service.drain.idle(), served.loop)
        refused = served.post("/v1/demo", body)
        assert refused.status == 503 and "retry-after" in refused.headers and refused.headers["connection"] == "close"
        assert served.get("/ready").status == 503 and served.get("/health").status == 200
        assert not idle.done()
        held.allow(5)
        idle.result(30)
        thread.join(30)
        assert sum(len(event["ids"]) for event in answers[0].events[:-1]) == 5 and answers[0].events[-1] == "[DONE]"
        assert len(held.submitted) == 1


def test_what_the_end_cuts_off_is_told(held: ServingFake):
    """When draining takes too long, uvicorn cancels what is open."""
    with serving(held, DEMO) as served, ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(served.post, "/v1/demo", {"prompt": "Once", "stream": stream}) for stream in (False, True)]
        wait_for(lambda: held.running == 2, "both run")

        def cancel() -> None:
            for task in asyncio.all_tasks():
                if "run_asgi" in repr(task.get_coro()):
                    task.cancel()

        served.call(cancel)
        whole, stream = (answer.result(30) for answer in answers)
        assert whole.status == 503 and whole.json["error"]["code"] == "draining"
        assert stream.events[0]["error"]["code"] == "draining" and stream.events[1] == "[DONE]"
        assert held.running == 0


def test_unknown_fields_are_counted_and_named_once(engine: ServingFake, caplog: pytest.LogCaptureFixture):
    with serving(engine, DEMO) as served, caplog.at_level(logging.INFO):
        for _ in range(3):
            assert served.post("/v1/demo", {"prompt": "Once", "frob": 1, "x" * 100: 2}).status == 200
        assert served.service.unknown == {"frob": 3, "x" * 64: 3}
    assert caplog.text.count("'frob'") == 1
