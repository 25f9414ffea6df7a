"""Some of the requests of `make fuzz`, to a server in this process: nothing breaks; what is broken on purpose shows."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import msgspec
import pytest

from shardwise.engine.setup import Setup
from shardwise.server.call import Call
from shardwise.server.reply import Json, Reply
from shardwise.server.route import Route
from shardwise.server.routes import ROUTES
from shardwise.server.service import Service
from tests.hostile.access import tried
from tests.hostile.campaign import Target, run
from tests.hostile.described import counted
from tests.hostile.wire import KINDS, case, planted
from tests.server.drive import Served, serving, wait_for
from tests.server.engines import ServingFake

CASES, SEED, PATIENCE_S = 400, 20, 1.0
TIMES: dict[str, Any] = {"head_timeout_s": PATIENCE_S, "body_stall_s": PATIENCE_S, "idle_timeout_s": PATIENCE_S}


class Fraction(msgspec.Struct):
    prompt: str
    divisor: Annotated[float, msgspec.Meta(ge=-100, le=100)]


async def divides(_service: Service, _call: Call, body: Fraction) -> Reply:
    return Json({"said": len(body.prompt) / body.divisor})


FAULT = Route("POST", ("/v1/planted",), divides, "Fails where a number is 0.", "test", body=Fraction)


def told(prompt: Sequence[int], choice: int, place: int) -> int:
    # Slow as long as the good streams last; an answer that fills the context would take seconds on a busy machine.
    if place % 4 == 3 and place < 64:
        time.sleep(0.002)
    return (sum(prompt) + 7 * place + choice) % 500 + 9


@pytest.fixture(scope="module")
def served(setup: Setup) -> Iterator[Served]:
    with ServingFake(setup, told) as engine, serving(engine, (*ROUTES, FAULT), max_choices=4, max_prompts=8, **TIMES) as made:
        yield made


def test_bad_requests_harm_nobody(served: Served):
    def tasks() -> int:
        return int(served.call(lambda: len(asyncio.all_tasks())))

    run(served.url, PATIENCE_S, iter(()))  # whatever a server begins with its first requests is there
    before = tasks()
    found = run(served.url, PATIENCE_S, ((n, case(SEED, n)) for n in range(CASES)))
    assert found.faults == [] and found.streams.faults == [], (found.faults, found.streams.faults)
    assert found.baited == 0
    assert found.streams.good >= 4 and found.kinds.total() == CASES
    assert found.statuses[400] > CASES // 4 and found.statuses[200] > 10, found.statuses
    wait_for(lambda: served.service.drain.count == 0, "no request is open")
    wait_for(lambda: served.service.engine.running == 0, "nothing runs")  # type: ignore[attr-defined]
    wait_for(lambda: tasks() <= before, f"no more than {before} tasks are left")


def test_a_planted_fault_is_found(served: Served):
    good = {"prompt": "Once", "divisor": 3}
    found = run(served.url, PATIENCE_S, ((n, planted("/v1/planted", good, SEED, n)) for n in range(600)))
    assert any("status 500" in what for _, what in found.faults), found.statuses


def test_nothing_is_served_without_a_key(setup: Setup):
    with ServingFake(setup) as engine, serving(engine, ROUTES, api_keys=("sesame",), **TIMES) as served:
        statuses, through = asyncio.run(tried(Target(served.port, PATIENCE_S), SEED, 4 * CASES))
        assert through == [], through[:5]
        assert statuses[200] > 3 and statuses[401] > 50, statuses
    with ServingFake(setup) as engine, serving(engine, ROUTES, **TIMES) as served:
        _, through = asyncio.run(tried(Target(served.port, PATIENCE_S), SEED, CASES))
        assert through, "what is open by mistake shows"


def test_a_case_is_the_same_by_its_number():
    assert [case(3, n) for n in range(300)] == [case(3, n) for n in range(300)]
    assert case(3, 1) != case(4, 1)
    assert len({case(3, n).kind for n in range(2000)}) == len(KINDS)


def test_no_case_is_larger_than_the_server_has_to_refuse():
    sizes = [sum(map(len, case(0, n).parts)) for n in range(260, 280)]  # 270 repeats a list of lists
    assert max(sizes) < 6 * 2**20, sizes


@pytest.mark.parametrize(
    ("status", "code", "effective"),
    [(200, "", 1), (400, "x", 1), (401, "x", 0), (404, "unknown_path", 0), (404, "model_not_found", 1), (405, "x", 0)],
)
def test_a_described_case_counts_where_it_reached_its_endpoint(status: int, code: str, effective: int):
    content = {"$base64": base64.b64encode(json.dumps({"error": {"code": code}}).encode()).decode()}
    recorder = {
        "label": "GET /a",
        "cases": {"1": {}},
        "interactions": {"1": {"response": {"status_code": status, "content": content}}},
    }
    found = counted(json.dumps({"ScenarioFinished": {"recorder": recorder}}))
    assert (found["cases"], found["effective"], found["failures"]) == (1, effective, [])
