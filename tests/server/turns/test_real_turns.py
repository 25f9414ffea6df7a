"""Responses and messages over a real engine with the bundled model: the engine's text, forced calls, forms, a shared cache."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from shardwise.engine.engine import Engine
from shardwise.engine.setup import Setup
from tests.server.drive import Served, serving, wait_for
from tests.server.folds import fold_message, fold_response, without_ids
from tests.server.scripts import ROUTES

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 9}, "unit": {"enum": ["c", "f"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}
STORY = "Tell me a story about a small boat that wanted to see the sea. " * 4
HI = [{"role": "user", "content": STORY}]


@pytest.fixture(scope="module")
def real(setup: Setup) -> Iterator[Served]:
    with Engine(setup, "threads") as engine, serving(engine, ROUTES) as made:
        yield made


def post(real: Served, path: str, **body: Any) -> Any:
    answer = real.post(path, body)
    assert answer.status == 200, answer.body
    if not body.get("stream"):
        return answer.json
    return (fold_response if path == "/v1/responses" else fold_message)(answer.events)


def test_both_say_the_same_streamed_or_whole(real: Served):
    asked = {"temperature": 0.0, "input": STORY, "max_output_tokens": 24, "store": False}
    whole, stream = post(real, "/v1/responses", **asked), post(real, "/v1/responses", **asked, stream=True)
    text = whole["output"][0]["content"][0]["text"]
    assert text and stream["output"][0]["content"][0]["text"] == text
    said = {"temperature": 0.0, "messages": HI, "max_tokens": 24}
    first, then = post(real, "/v1/messages", **said), post(real, "/v1/messages", **said, stream=True)
    assert first["content"] == then["content"] == [{"type": "text", "text": text, "citations": None}]
    details = stream["usage"]["input_tokens_details"]
    assert details["cached_tokens"] > 0
    assert sum(details.values()) == stream["usage"]["input_tokens"] == whole["usage"]["input_tokens"]
    usage = then["usage"]
    assert usage["cache_read_input_tokens"] > 0
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == whole["usage"]["input_tokens"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_calls_that_are_asked_for_hold_to_their_schema(real: Served, named: bool, stream: bool):
    tool = {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": True}
    choice: Any = {"type": "function", "name": "weather"} if named else "required"
    sampled = {"temperature": 1.0, "seed": 5, "parallel_tool_calls": False, "stream": stream}
    made = post(real, "/v1/responses", input="Hi", tools=[tool], tool_choice=choice, max_output_tokens=300, **sampled)
    (call,) = made["output"]
    assert call["type"] == "function_call" and set(json.loads(call["arguments"])) == {"city", "unit"}
    theirs: Any = {"type": "tool", "name": "weather"} if named else {"type": "any"}
    theirs["disable_parallel_tool_use"] = True
    offered = [{"name": "weather", "input_schema": SCHEMA}]
    asked = {"messages": HI, "tools": offered, "tool_choice": theirs, "max_tokens": 300, "temperature": 1.0, "stream": stream}
    got = post(real, "/v1/messages", **asked)
    (use,) = got["content"]
    assert got["stop_reason"] == "tool_use" and set(use["input"]) == {"city", "unit"} and use["input"]["unit"] in ("c", "f")


def test_forms_are_held_to(real: Served):
    form = {"type": "json_schema", "name": "weather", "schema": SCHEMA, "strict": True}
    made = post(real, "/v1/responses", input="Hi", text={"format": form}, temperature=1.0, seed=1)
    assert set(json.loads(made["output"][0]["content"][0]["text"])) == {"city", "unit"}
    config = {"format": {"type": "json_schema", "schema": SCHEMA}}
    got = post(real, "/v1/messages", messages=HI, output_config=config, max_tokens=300, temperature=1.0)
    assert set(json.loads(got["content"][0]["text"])) == {"city", "unit"}


def test_a_background_response_is_that_of_a_client_that_waits(real: Served):
    asked = {"input": STORY, "temperature": 0.0, "max_output_tokens": 16}
    waited = post(real, "/v1/responses", **asked)
    id = post(real, "/v1/responses", **asked, background=True)["id"]
    wait_for(lambda: real.get(f"/v1/responses/{id}").json["status"] != "in_progress", "it is complete")
    got = real.get(f"/v1/responses/{id}").json
    assert got["status"] == waited["status"] and without_ids(got["output"]) == without_ids(waited["output"])
