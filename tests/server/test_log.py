"""What a server logs of requests: at INFO one line each, and never what was asked."""

from __future__ import annotations

import logging

import pytest

from tests.server.demo import DEMO
from tests.server.drive import serving, wait_for
from tests.server.engines import ServingFake


def test_one_line_a_request_without_what_was_asked(engine: ServingFake, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "shardwise.server")
    with serving(engine, DEMO, api_keys=("geheim",)) as served:
        key = {"x-api-key": "geheim"}
        served.post("/v1/demo", {"prompt": "verraten"}, **key, **{"x-request-id": "mine"})
        served.get("/nope?q=verraten", **key)
        served.get("/v1/demo")
        wait_for(lambda: len(caplog.records) == 3, "three lines")
    first, second, third = (record.getMessage() for record in caplog.records)
    assert first.startswith("mine POST '/v1/demo': 200 after 0.")
    assert " GET '/nope': 404 after " in second and " GET '/v1/demo': 401 after " in third
    assert "verraten" not in caplog.text and "geheim" not in caplog.text


def test_a_path_cannot_forge_a_line(engine: ServingFake, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "shardwise.server")
    with serving(engine, DEMO) as served:
        served.get("/a%0AERROR%20b%1b[31m")
        wait_for(lambda: caplog.records, "a line")
    [line] = (record.getMessage() for record in caplog.records)
    assert "\n" not in line and "\x1b" not in line
