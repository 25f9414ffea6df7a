"""What a server logs of requests: at INFO one line each, and never what was asked."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import shardwise
from tests.server import live
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


def records(lines: Sequence[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines]


def test_every_process_of_a_server_logs_json(tmp_path: Path):
    """From a file of options, of two fronts and with the loss of a rank: no line is anything else."""
    options = tmp_path / "serve.toml"
    options.write_text('log_format = "json"\napi_workers = 2\nstats = true\non_rank_loss = "exit"\n')
    with live.serving("--config", options, ready='"message": "try ', SHARDWISE_MAX_QUEU="1") as server:
        start = records(server.lines)
        assert [record["message"].split()[0] for record in start] == ["plan", "ready", "API", "try"]
        assert all((record["level"], record["logger"]) == ("INFO", "shardwise") for record in start)

        def both() -> bool:
            """Whether both fronts were asked, and have said so."""
            server.ask("/nope")
            return len({record["pid"] for record in records(server.said) if "request_id" in record}) == 2

        wait_for(both, "both fronts log a request")
        rank = server.ask("/server_info")[1]["ranks"][0]["pid"]
        os.kill(rank, signal.SIGKILL)
        assert server.wait() == 1
        said = records(server.said)
    assert said[0]["message"].startswith("SHARDWISE_MAX_QUEU is no option") and said[0]["level"] == "WARNING"
    asked = [record for record in said if "/nope" in record["message"]]
    assert len({record["pid"] for record in asked}) == 2
    assert all(record["message"].startswith(f"{record['request_id']} GET '/nope': 404 ") for record in asked)
    assert said[-1]["level"] == "ERROR" and "rank 0 was lost" in said[-1]["message"]


@pytest.mark.parametrize(
    ("flag", "value", "mend"),
    [("--log-format", "xml", "choose one of text, json"), ("--profiler-dir", "/nowhere/there", "make it first")],
)
def test_what_cannot_be_is_said_before_anything_starts(flag: str, value: str, mend: str):
    done = shardwise("serve", flag, value)
    assert done.code == 2 and flag in done.err and value in done.err and mend in done.err
