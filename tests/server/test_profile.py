"""Profiles of the ranks: begun, ended and refused over a fake engine; of a real server, files that can be read."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from shardwise.engine.profile import Bounds, Profiler, Trace
from shardwise.errors import Conflict, ShardwiseError
from shardwise.runtime import wire
from shardwise.server.routes import ROUTES
from tests.server import live
from tests.server.drive import serving, wait_for
from tests.server.engines import ServingFake

START, STOP = "/start_profile", "/stop_profile"
ASKED = {"prompt": "Once", "max_tokens": 5, "ignore_eos": True}


def code(answer: Any) -> tuple[int, str]:
    return answer.status, answer.json["error"]["code"]


@pytest.mark.parametrize("path", [START, STOP])
def test_without_a_folder_it_is_off_and_says_how_to_have_it(engine: ServingFake, path: str):
    with serving(engine, ROUTES) as served:
        answer = served.ask("POST", path)
    assert code(answer) == (404, "profiling_off") and "--profiler-dir DIR" in answer.json["error"]["message"]


def test_it_begins_once_and_ends_once(engine: ServingFake, tmp_path: Path):
    with serving(engine, ROUTES, profiler_dir=str(tmp_path), max_profile_steps=3, api_keys=("k",)) as served:
        key = {"x-api-key": "k"}
        assert [served.ask("POST", path).status for path in (START, STOP)] == [401, 401]
        assert code(served.ask("POST", STOP, headers=key)) == (409, "profiling")
        begun = served.ask("POST", START, headers=key)
        assert begun.json == {"folder": str(tmp_path), "max_steps": 3, "max_seconds": 60.0, "status": "recording"}
        assert code(served.ask("POST", START, headers=key)) == (409, "profiling")
        assert served.post("/v1/completions", ASKED, **key).status == 200
        ended = served.ask("POST", STOP, headers=key)
        (trace,) = ended.json["traces"]
        assert (ended.json["status"], trace["rank"], trace["steps"]) == ("written", 0, 3)
        assert re.fullmatch(rf"{tmp_path}/rank0-\d{{8}}T\d{{6}}\.\d{{3}}Z\.trace\.json", trace["path"])
        assert code(served.ask("POST", STOP, headers=key)) == (409, "profiling")
        assert served.ask("POST", START, headers=key).status == 200


class Ranks:
    """What ranks are told, and a clock that is moved by hand."""

    def __init__(self, count: int) -> None:
        self.orders: list[wire.Record | wire.EndRecord] = []
        self.late: list[tuple[float, Any]] = []
        self.said: list[tuple[Trace, ...] | ShardwiseError] = []
        self.profiler = Profiler(count, self.orders.append, lambda seconds, call: self.late.append((seconds, call)))

    def ask(self, bounds: Bounds | None) -> None:
        self.profiler.obey(bounds, self.said.append)

    def took(self, rank: int, steps: int, error: str | None = None) -> None:
        self.profiler.took(rank, wire.Recorded("" if error else f"r{rank}", 7, steps, error))

    @property
    def ends(self) -> int:
        return self.orders.count(wire.EndRecord())


BOUNDS = Bounds("/there", 4, 2.5)


def test_an_answer_waits_for_all_ranks_and_tells_what_failed():
    ranks = Ranks(2)
    ranks.ask(BOUNDS)
    assert ranks.said.pop() == () and isinstance(order := ranks.orders[0], wire.Record)
    assert (order.folder, order.steps) == ("/there", 4)
    ranks.ask(None)
    ranks.took(1, 2, "the disk is full")
    ranks.ask(None)
    ranks.ask(BOUNDS)
    assert [type(said) for said in ranks.said] == [Conflict, Conflict] and ranks.ends == 1
    ranks.took(0, 2)
    assert ranks.said[2] == (Trace(0, "r0", 7, 2), Trace(1, "", 7, 2, "the disk is full"))


def test_its_time_ends_it_and_what_was_recorded_is_kept_for_who_asks():
    ranks = Ranks(2)
    ranks.ask(BOUNDS)
    ((seconds, late),) = ranks.late
    late()
    assert seconds == 2.5 and ranks.ends == 1
    ranks.took(0, 3)
    ranks.took(1, 3)
    ranks.ask(None)
    late()
    assert ranks.ends == 1 and ranks.said[1] == (Trace(0, "r0", 7, 3), Trace(1, "r1", 7, 3))
    # The time of the one before is none of the next one's, and what nobody asks for is let go.
    ranks.ask(BOUNDS)
    late()
    assert ranks.ends == 1
    ranks.took(0, 4)
    ranks.took(1, 4)
    ranks.ask(BOUNDS)
    assert ranks.said[2:] == [(), ()] and ranks.ends == 1


def test_the_end_of_the_engine_is_told_to_who_waits():
    ranks = Ranks(1)
    ranks.ask(BOUNDS)
    ranks.ask(None)
    ranks.profiler.fail(gone := ShardwiseError("gone"))
    assert ranks.said == [(), gone]


def events(path: str) -> list[str]:
    """The names of the events of a trace."""
    data = gzip.decompress(Path(path).read_bytes()) if path.endswith(".gz") else Path(path).read_bytes()
    return [event.get("name", "") for event in json.loads(data)["traceEvents"]]


def test_ranks_of_a_server_write_what_they_did(tmp_path: Path):
    """Ended when asked, then by the number of steps, then with a folder that is gone: each rank its file, and the server
    goes on."""
    folder = tmp_path / "traces"
    folder.mkdir()
    with live.serving("-tp", "2", "--profiler-dir", folder, "--max-profile-steps", "6") as server:
        assert [server.ask(path, {})[0] for path in (STOP, START, START)] == [409, 200, 409]
        assert server.ask("/v1/completions", {**ASKED, "max_tokens": 3})[0] == 200
        status, ended = server.ask(STOP, {})
        assert (status, [trace["rank"] for trace in ended["traces"]]) == (200, [0, 1])
        for trace in ended["traces"]:
            names = events(trace["path"])
            steps = {name for name in names if re.fullmatch(r"step \d+ (forward|sample)", name)}
            assert len(steps) == 2 * trace["steps"] == 6 and "aten::embedding" in names
            assert Path(trace["path"]).stat().st_size == trace["bytes"] and Path(trace["path"]).parent == folder

        assert server.ask(START, {})[0] == 200
        assert server.ask("/v1/completions", {**ASKED, "max_tokens": 20})[0] == 200
        wait_for(lambda: server.ask(START, {})[0] == 200, "the one before ends by itself")
        assert len(list(folder.iterdir())) == 4
        folder.rename(tmp_path / "elsewhere")
        assert server.ask("/v1/completions", {**ASKED, "max_tokens": 3})[0] == 200
        status, refused = server.ask(STOP, {})
        assert status == 500 and "rank 0: " in refused["error"]["message"] and str(folder) in refused["error"]["message"]
        assert server.ask("/v1/completions", ASKED)[0] == 200
        (tmp_path / "elsewhere").rename(folder)

        assert server.ask(START, {})[0] == 200
        idle = server.ask(STOP, {})[1]["traces"]
        assert [(trace["path"], trace["steps"]) for trace in idle] == [(None, 0)] * 2
    assert not [line for line in server.said if "profiler" in line or "USDT" in line]
