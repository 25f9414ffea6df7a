"""/v1/responses that run without their clients: read again, cancelled, deleted, failed; and those whose clients leave."""

from __future__ import annotations

import json
from contextlib import closing
from http.client import HTTPConnection
from typing import Any

import pytest

from tests.server.drive import Served, serving, wait_for
from tests.server.folds import fold_response
from tests.server.scripts import ROUTES, Scripted

PATH = "/v1/responses"


def made(served: Served, **body: Any) -> Any:
    answer = served.post(PATH, body)
    assert answer.status == 200, answer.body
    return answer.json


def test_the_background_goes_on_without_the_client(held: Scripted):
    held.say("one two three four five")
    with serving(held, ROUTES) as served:
        got = made(served, input="Hi", background=True)
        assert got["status"] == "in_progress" and got["background"] is True
        again = served.post(PATH, {"input": "x", "previous_response_id": got["id"]})
        assert again.status == 409 and "still being made" in again.json["error"]["message"]
        with closing(HTTPConnection("127.0.0.1", served.port, timeout=30)) as reader:
            reader.request("GET", f"{PATH}/{got['id']}?stream=true")
            response = reader.getresponse()
            held.allow(2)
            assert response.readline() == b"event: response.created\n"
        held.allow(100)
        wait_for(lambda: served.get(f"{PATH}/{got['id']}").json["status"] == "completed", "it completes")
        whole = served.get(f"{PATH}/{got['id']}").json
        assert whole["output"][0]["content"][0]["text"] == "one two three four five"
        events = served.get(f"{PATH}/{got['id']}?stream=true").events
        assert fold_response(events) == whole
        assert served.get(f"{PATH}/{got['id']}?stream=true&starting_after=3").events == events[4:]
        assert served.post(f"{PATH}/{got['id']}/cancel", {}).json == whole  # too late, and no error


def test_a_stream_of_the_background_outlives_its_reader(held: Scripted):
    held.say("one two three four five")
    with serving(held, ROUTES) as served:
        connection = HTTPConnection("127.0.0.1", served.port, timeout=30)
        asked = json.dumps({"input": "Hi", "background": True, "stream": True})
        connection.request("POST", PATH, asked, {"content-type": "application/json"})
        response = connection.getresponse()
        assert response.readline() == b"event: response.created\n"
        id = json.loads(response.readline()[6:])["response"]["id"]
        connection.close()
        held.allow(100)
        wait_for(lambda: served.get(f"{PATH}/{id}").json["status"] == "completed", "it completes")
        assert served.get(f"{PATH}/{id}").json["output"][0]["content"][0]["text"] == "one two three four five"


def test_the_limits_of_what_is_kept_are_settings(engine: Scripted):
    engine.say("x")
    with serving(engine, ROUTES, max_kept=2) as served:
        ids = [made(served, input="Hi")["id"] for _ in range(3)]
        assert [served.get(f"{PATH}/{id}").status for id in ids] == [404, 200, 200]


@pytest.mark.parametrize("end", ["cancel", "delete"])
def test_a_background_response_ends_when_it_is_told_to(held: Scripted, end: str):
    held.say("one two three four five six seven")
    with serving(held, ROUTES) as served:
        got = made(served, input="Hi", background=True)
        held.allow(3)
        wait_for(lambda: served.get(f"{PATH}/{got['id']}").json["output"], "something is said")
        if end == "cancel":
            answers = [served.post(f"{PATH}/{got['id']}/cancel", {}).json for _ in range(2)]
            assert answers[0] == answers[1] and answers[0]["status"] == "cancelled"
            events = served.get(f"{PATH}/{got['id']}?stream=true").events
            assert fold_response(events) == answers[0]
        else:
            served.ask("DELETE", f"{PATH}/{got['id']}")
            assert served.get(f"{PATH}/{got['id']}").status == 404
        wait_for(lambda: held.running == 0, "it ends in the engine")


def test_a_background_response_says_why_it_failed(engine: Scripted, served: Served, caplog: pytest.LogCaptureFixture):
    engine.script = [20, 21, -1]
    got = served.ask("POST", PATH, {"input": "Hi", "background": True}, {"x-request-id": "mine-1"}).json
    wait_for(lambda: served.get(f"{PATH}/{got['id']}").json["status"] != "in_progress", "it ends")
    whole = served.get(f"{PATH}/{got['id']}").json
    assert whole["status"] == "failed" and whole["error"]["code"] == "server_error"
    assert fold_response(served.get(f"{PATH}/{got['id']}?stream=true").events) == whole
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert "mine-1" in said and got["id"] in said and "no finite logits" in said


def test_a_background_response_has_its_time(held: Scripted):
    with serving(held, ROUTES, request_timeout_s=4.0) as served:
        served.service.front.template.start()  # which takes a while on a busy machine
        got = made(served, input="Hi", background=True)
        wait_for(lambda: served.get(f"{PATH}/{got['id']}").json["status"] == "failed", "its time ends")
        assert "4 s" in served.get(f"{PATH}/{got['id']}").json["error"]["message"]
        wait_for(lambda: held.running == 0, "it ends in the engine")


def test_a_client_that_leaves_ends_its_response(held: Scripted):
    held.say("one two three four five")
    with serving(held, ROUTES) as served:
        for stream in (True, False):
            connection = HTTPConnection("127.0.0.1", served.port, timeout=30)
            body = json.dumps({"input": "Hi", "stream": stream})
            connection.request("POST", PATH, body, {"content-type": "application/json"})
            wait_for(lambda: held.running == 1, "it runs")
            connection.close()
            wait_for(lambda: held.running == 0, "it ends")
