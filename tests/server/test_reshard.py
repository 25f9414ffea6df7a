"""Other ranks while a server serves: what is answered, refused and told, over a fake engine."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from shardwise.server.routes import ROUTES
from tests.server.drive import Served, serving, wait_for
from tests.server.engines import ServingFake

PATH = "/admin/reshard"


def refused(answer: Any) -> tuple[int, str, str]:
    return answer.status, answer.json["error"]["code"], answer.json["error"]["message"]


@pytest.mark.parametrize(
    ("body", "shares"), [({"tp": 3}, (1, 1, 1)), ({"shares": [3, 1]}, (3, 1)), ({"shares": [3, 1], "tp": 2}, (3, 1))]
)
def test_it_is_answered_with_what_serves(engine: ServingFake, body: dict[str, Any], shares: tuple[float, ...]):
    with serving(engine, ROUTES) as served:
        told = served.post(PATH, body)
        setup = engine.setup
        assert told.status == 200 and told.json == {
            "tp": len(shares),
            "shares": list(shares),
            "max_model_len": setup.context,
            "max_num_seqs": setup.limits.sequences,
            "kv_pages": list(setup.pages),
            "status": "serving",
        }
        assert (setup.layout.mesh.tp, setup.layout.shares.attention) == (len(shares), shares)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "say how many ranks"),
        ({"tp": 0}, "tp"),
        ({"tp": 99}, "the largest that works is"),
        ({"shares": []}, "shares"),
        ({"shares": [1, 0]}, "shares"),
        ({"shares": [1, 1], "tp": 3}, "tp is 3, and there are 2 shares"),
    ],
)
def test_what_cannot_be_is_refused_with_what_would_work(engine: ServingFake, body: dict[str, Any], said: str):
    before = engine.setup
    with serving(engine, ROUTES) as served:
        told = served.post(PATH, body)
    assert told.status == 400 and said in told.json["error"]["message"]
    assert engine.setup is before


def test_it_needs_a_key_where_there_is_one_or_this_machine(engine: ServingFake):
    with serving(engine, ROUTES, api_keys=("k",)) as served:
        assert served.post(PATH, {"tp": 2}).status == 401
        assert served.post(PATH, {"tp": 2}, **{"x-api-key": "k"}).status == 200
    with serving(engine, ROUTES, host="0.0.0.0") as served:
        assert refused(served.post(PATH, {"tp": 1}))[:2] == (403, "no_key")
    assert engine.setup.layout.mesh.tp == 2


def test_it_waits_for_the_ranks_and_there_is_one_at_a_time(engine: ServingFake):
    engine.slow_to_form = True
    answers: list[Any] = []

    def ask(served: Served) -> None:
        answers.append(served.post(PATH, {"tp": 3}))

    with serving(engine, ROUTES) as served:
        asking = threading.Thread(target=ask, args=(served,))
        asking.start()
        wait_for(lambda: engine.forming, "it is being formed")
        status, code, said = refused(served.post(PATH, {"tp": 2}))
        assert (status, code) == (409, "reforming") and "already" in said
        assert not answers, "it was answered before the ranks were there"
        engine.form()
        asking.join(30)
        assert answers[0].json["tp"] == 3


def test_a_request_without_room_is_told_to_come_again_and_its_stream_too(engine: ServingFake):
    asked = {"prompt": "Once", "max_tokens": 5, "ignore_eos": True}
    engine.unfit = "there is less room than when the request came: it needs 9 pages, and there are 8"
    with serving(engine, ROUTES) as served:
        told = served.post("/v1/completions", asked)
        assert refused(told) == (503, "unavailable", engine.unfit) and int(told.headers["retry-after"]) > 0
        stream = served.post("/v1/completions", {**asked, "stream": True})
        (error,) = [event["error"] for event in stream.events if "error" in event]
        assert (error["type"], error["message"]) == ("service_unavailable_error", engine.unfit)
        assert served.post("/v1/embeddings", {"input": "Once"}).status == 503
