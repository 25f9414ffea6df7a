"""What the server tells about itself, and to whom."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from shardwise.engine.setup import Setup
from shardwise.server.routes import ROUTES
from tests.server.drive import serving, wait_for
from tests.server.engines import ServingFake

HI = [{"role": "user", "content": "hi"}]
ASKED: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 2}),
    ("/v1/completions", {"prompt": "a", "max_tokens": 2, "cache_salt": "x|y"}),
    ("/v1/chat/completions", {"messages": HI, "max_tokens": 2}),
    ("/v1/responses", {"input": "hi", "max_output_tokens": 2}),
    ("/v1/messages", {"messages": HI, "max_tokens": 2}),
    ("/inference/v1/generate", {"token_ids": [9, 10], "sampling_params": {"max_tokens": 2}}),
    ("/generate", {"inputs": "a", "parameters": {"max_new_tokens": 2}}),
    ("/v1/embeddings", {"input": "a"}),
    ("/v1/score", {"text_1": "a", "text_2": "b", "cache_salt": "s"}),
]
"""Something of each API that makes requests of the engine."""


@pytest.mark.parametrize("keys", [("one", "two"), ("one",), ()])
def test_open_requests_are_shown_to_the_key_that_made_them(setup: Setup, keys: tuple[str, ...]):
    headers = {"Authorization": f"Bearer {keys[0]}"} if keys else {}
    with (
        ServingFake(setup, held=True) as engine,
        serving(engine, ROUTES, api_keys=keys) as served,
        ThreadPoolExecutor(len(ASKED)) as pool,
    ):
        answers = [pool.submit(served.ask, "POST", path, body, headers) for path, body in ASKED]
        wait_for(lambda: engine.running == len(ASKED) + 1, "all wait")
        shown = {key: served.get("/slots", Authorization=f"Bearer {key}").json for key in (*keys, *([] if keys else [""]))}
        # What is counted is the whole server's, whoever asks.
        counts = [served.get("/server_info", Authorization=f"Bearer {key}").json["counters"] for key in shown]
        engine.allow(10_000)
        assert [answer.result(30).status for answer in answers] == [200] * len(ASKED)
    own, *others = shown.values()
    assert len({slot["id"] for slot in own}) == len(ASKED) + 1 and {slot["state"] for slot in own} == {"waiting"}
    assert others == [[]] * (len(keys) - 1 if keys else 0)
    assert all(each["waiting"] == each["accepted"] == len(ASKED) + 1 for each in counts)
    assert not any("tenant" in slot for slot in own)


@pytest.mark.parametrize("keys", [("one", "two"), ("one",)])
def test_names_of_unknown_fields_are_not_told_to_other_keys(engine: ServingFake, keys: tuple[str, ...]):
    with serving(engine, ROUTES, api_keys=keys) as served:
        body = {"prompt": "a", "max_tokens": 1, "my secret": 1, "another": 2}
        assert served.post("/v1/completions", body, Authorization="Bearer one").status == 200
        told = served.get("/server_info", Authorization=f"Bearer {keys[-1]}").json
    assert told["unknown_fields"] == ({"others": 2} if len(keys) > 1 else {"my secret": 1, "another": 1})
    assert told["settings"]["api_keys"] == len(keys)
