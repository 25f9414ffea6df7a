"""/v1/messages over HTTP on a fake engine: streamed as whole, counted, kept alive, refused in Anthropic's shape."""

from __future__ import annotations

import json
from contextlib import closing
from http.client import HTTPConnection
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardwise.errors import QueueFull, Unavailable
from tests.server.drive import Served, serving, wait_for
from tests.server.folds import fold_message, without_ids
from tests.server.scripts import CALL, ROUTES, WEATHER, Scripted, call_text

PATH = "/v1/messages"
TOOL = {"name": "weather", "description": "The weather.", "input_schema": WEATHER}
HI = [{"role": "user", "content": "Hi"}]


def made(served: Served, **body: Any) -> Any:
    answer = served.post(PATH, {"max_tokens": 200, "messages": HI, **body})
    assert answer.status == 200, answer.body
    return answer.json


def streamed(served: Served, **body: Any) -> Any:
    answer = served.post(PATH, {"max_tokens": 200, "messages": HI, **body, "stream": True})
    assert answer.status == 200 and answer.headers["content-type"].startswith("text/event-stream"), answer.body
    names = [line[7:] for line in answer.body.decode().splitlines() if line.startswith("event: ")]
    assert names == [event["type"] for event in answer.events]
    return fold_message(answer.events)


# --- what comes ---------------------------------------------------------------------------------------------------------


def test_thinking_text_and_calls_are_blocks(engine: Scripted, served: Served):
    tokens = engine.say(CALL)
    got = made(served, tools=[TOOL], system="Be brief.", metadata={"user_id": "me"}, model="thinker")
    thought, text, call = got["content"]
    assert thought == {"type": "thinking", "thinking": "Hm.", "signature": ""}
    assert text == {"type": "text", "text": "I look.", "citations": None}
    assert (call["type"], call["name"], call["input"]) == ("tool_use", "weather", {"city": "Zürich"}) and call["id"]
    prompt, _ = engine.submitted[-1]
    assert got["usage"] == {
        "input_tokens": len(prompt), "output_tokens": len(tokens) + 1,
        "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0,
    }  # fmt: skip
    told = {key: got[key] for key in ("type", "role", "model", "stop_reason", "stop_sequence")}
    assert told == {
        "type": "message",
        "role": "assistant",
        "model": "thinker",
        "stop_reason": "tool_use",
        "stop_sequence": None,
    }


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_stream_adds_up_to_what_comes_whole(data: st.DataObject, engine: Scripted, served: Served):
    vocab = engine.setup.layout.model.vocab
    marked = st.sampled_from(["<think>", "</think>", CALL, "stop here"])
    some = st.one_of(
        st.lists(st.integers(8, vocab - 1), max_size=12),
        marked.map(lambda text: engine.tokenizer.encode(text, add_special_tokens=False)),
    )
    engine.script = [token for part in data.draw(st.lists(some, max_size=5)) for token in part]
    body = {
        "max_tokens": data.draw(st.integers(1, 80)),
        "tools": data.draw(st.sampled_from([[], [TOOL]])),
        "stop_sequences": data.draw(st.sampled_from([[], ["stop", "x"]])),
    }
    assert without_ids(streamed(served, **body)) == without_ids(made(served, **body))


@pytest.mark.parametrize(
    ("said", "body", "reason", "stop"),
    [
        ("Hello there", {}, "end_turn", None),
        ("Hello there STOP and on", {"stop_sequences": ["STOP", "x"]}, "stop_sequence", "STOP"),
        ("Hello there my friend", {"max_tokens": 2}, "max_tokens", None),
        ("word " * 2000, {"max_tokens": 10**9}, "model_context_window_exceeded", None),
        (call_text("weather", "{}"), {"tools": [TOOL]}, "tool_use", None),
        (call_text("weather", '{"city": "Zürich"}'), {"tools": [TOOL], "max_tokens": 16}, "max_tokens", None),
    ],
)
def test_why_it_ended(engine: Scripted, served: Served, said: str, body: Any, reason: str, stop: str | None):
    engine.say(said)
    got = made(served, **body)
    assert (got["stop_reason"], got["stop_sequence"]) == (reason, stop)
    again = streamed(served, **body)
    assert without_ids(again) == without_ids(got)


def test_nothing_said_is_no_block(engine: Scripted, served: Served):
    engine.say("")
    assert made(served)["content"] == [] and streamed(served)["content"] == []


# --- what goes in -------------------------------------------------------------------------------------------------------


def test_blocks_become_one_conversation(engine: Scripted, served: Served):
    engine.say("ok")
    messages = [
        {"role": "system", "content": "Rules."},
        {"role": "user", "content": [{"type": "text", "text": "Rain", "cache_control": {"type": "ephemeral"}}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": ""},
                {"type": "redacted_thinking", "data": "xyz"},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Bern"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "wet"}]},
                {"type": "tool_result", "tool_use_id": "t2", "is_error": True},
                {"type": "text", "text": "And now?"},
                {"type": "text", "text": "Say."},
            ],
        },
    ]
    made(served, messages=messages, system=[{"type": "text", "text": "Be"}, {"type": "text", "text": "brief."}])
    assert engine.prompt() == (
        "<|bos|><|system|>Be\n\nbrief.\n\nRules.<|end|><|user|>Rain<|end|><|assistant|><think>Hm.</think>I look."
        '<tool_call>{"name": "weather", "arguments": {"city": "Bern"}}</tool_call><|end|>'
        "<|tool|>wet<|end|><|tool|><|end|><|user|>And now?\n\nSay.<|end|><|assistant|>"
    )


def test_a_last_message_of_the_assistant_is_gone_on_with(engine: Scripted, served: Served):
    engine.say(" of course")
    got = made(served, messages=[*HI, {"role": "assistant", "content": "Yes,"}])
    assert engine.prompt().endswith("<|assistant|>Yes,") and got["content"][0]["text"] == " of course"


def test_choices_of_tools_and_forms_reach_the_engine(engine: Scripted, served: Served):
    engine.say(call_text("weather", '{"city": "a"}') + call_text("weather", '{"city": "b"}'))
    both = made(served, tools=[TOOL])["content"]
    one = made(served, tools=[TOOL], tool_choice={"type": "auto", "disable_parallel_tool_use": True})["content"]
    assert [block["input"]["city"] for block in both] == ["a", "b"] and [block["input"]["city"] for block in one] == ["a"]
    none = made(served, tools=[TOOL], tool_choice={"type": "none"})["content"]
    assert [block["type"] for block in none] == ["text"]
    for choice in ({"type": "any"}, {"type": "tool", "name": "weather"}):
        made(served, tools=[TOOL], tool_choice=choice)
        assert engine.submitted[-1][1].structured_outputs.grammar  # type: ignore[union-attr]
    made(
        served,
        output_config={"format": {"type": "json_schema", "schema": {"type": "object"}}},
        top_k=5,
        top_p=0.5,
        temperature=1,
    )
    _, params = engine.submitted[-1]
    assert params.structured_outputs.json and (params.top_k, params.top_p, params.temperature) == (5, 0.5, 1.0)  # type: ignore[union-attr]


def test_what_clients_send_besides_is_taken_and_counted(engine: Scripted, served: Served):
    engine.say("ok")
    thinking = {"type": "enabled", "budget_tokens": 1024}
    odd = {"context_management": {"edits": []}, "betas": ["x"], "cache_control": {"type": "ephemeral"}}
    tool = {**TOOL, "cache_control": {"type": "ephemeral"}, "eager_input_streaming": True, "type": "custom"}
    answer = served.post(
        f"{PATH}?beta=true",
        {"max_tokens": 32000, "messages": HI, "thinking": thinking, "tools": [tool], **odd},
        **{"anthropic-beta": "a,b", "x-api-key": "none"},
    )
    assert answer.status == 200 and answer.headers["request-id"] == answer.headers["x-request-id"]
    assert all(served.service.unknown[name] >= 1 for name in odd)


def test_the_input_is_counted_as_it_is_used(engine: Scripted, served: Served):
    engine.say("ok")
    for body in ({}, {"system": "Be brief.", "tools": [TOOL]}, {"tools": [TOOL], "tool_choice": {"type": "none"}}):
        before = len(engine.submitted)
        counted = served.post(f"{PATH}/count_tokens", {"messages": HI, **body})
        assert counted.status == 200 and len(engine.submitted) == before
        assert counted.json == {"input_tokens": made(served, **body)["usage"]["input_tokens"]}


# --- streams ------------------------------------------------------------------------------------------------------------


def test_pings_come_while_nothing_else_does(held: Scripted):
    held.say("one two")
    with (
        serving(held, ROUTES, keep_alive_s=0.1) as served,
        closing(HTTPConnection("127.0.0.1", served.port, timeout=30)) as reader,
    ):
        body = json.dumps({"max_tokens": 20, "messages": HI, "stream": True})
        reader.request("POST", PATH, body, {"content-type": "application/json"})
        response = reader.getresponse()
        lines = []
        while lines.count(b"event: ping\n") < 3:
            lines.append(response.readline())
        held.allow(50)
        rest = response.read()
        events = [json.loads(line[6:]) for line in (*lines, *rest.splitlines()) if line.startswith(b"data: ")]
        assert fold_message(events)["content"] == [{"type": "text", "text": "one two", "citations": None}]


def test_a_client_that_leaves_ends_its_message(held: Scripted):
    held.say("one two")
    with serving(held, ROUTES, keep_alive_s=0.05) as served:
        for stream in (True, False):
            connection = HTTPConnection("127.0.0.1", served.port, timeout=30)
            body = json.dumps({"max_tokens": 20, "messages": HI, "stream": stream})
            connection.request("POST", PATH, body, {"content-type": "application/json"})
            wait_for(lambda: held.running == 1, "it runs")
            if stream:  # also in the midst of pings
                response = connection.getresponse()
                while response.readline() != b"event: ping\n":
                    pass
            connection.close()
            wait_for(lambda: held.running == 0, "it ends")


def test_a_failure_within_a_stream_is_an_error_event(engine: Scripted, served: Served):
    engine.script = [20, 21, -1]
    answer = served.post(PATH, {"max_tokens": 9, "messages": HI, "stream": True})
    assert answer.status == 200
    assert answer.events[0]["type"] == "message_start"
    last = answer.events[-1]
    assert last["type"] == "error" and last["error"]["type"] == "api_error" and last["request_id"]
    assert answer.body.rstrip().splitlines()[-2] == b"event: error"
    whole = served.post(PATH, {"max_tokens": 9, "messages": HI})
    assert whole.status == 500 and whole.json["error"]["type"] == "api_error"


# --- what goes wrong ----------------------------------------------------------------------------------------------------

BAD: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": None}, "max_tokens is missing"),
    ({"max_tokens": 0}, "max_tokens is the number 0"),
    ({"messages": None}, "messages is missing"),
    ({"messages": []}, "messages is"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content is missing"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content[0].type is 'image'"),
    ({"messages": [{"role": "user", "content": [{"type": "document", "source": {}}]}]}, "this is a text model"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text is missing"),
    ({"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "a"}]}]}, "which only the assistant makes"),
    ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "messages[0].content[0].tool_use_id is missing"),
    (
        {
            "messages": [
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": [{"type": "image"}]}]}
            ]
        },
        "messages[0].content[0].content[0].type is 'image'",
    ),
    (
        {"messages": [*HI, {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": 3}]}]},
        "input is 3",
    ),
    ({"system": [{"type": "image"}]}, "system[0].type is 'image'"),
    ({"temperature": 1.5}, "temperature is the number 1.5"),
    ({"top_p": 2}, "top_p is the number 2"),
    ({"stop_sequences": [""]}, "stop_sequences[0] is ''"),
    ({"stop_sequences": ["x"] * 17}, "stop_sequences is"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type is 'web_search_20250305'"),
    ({"tools": [{**TOOL, "name": "a b"}]}, "tools[0].name is 'a b'"),
    ({"tools": [TOOL, TOOL]}, "has the name of tools[0]"),
    ({"tool_choice": {"type": "any"}}, "no tools are offered"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice.name is 'g'"),
    ({"tools": [TOOL], "tool_choice": {"type": "maybe"}}, "tool_choice.type is 'maybe'"),
    ({"thinking": {"type": "enabled", "budget_tokens": 5}}, "thinking.budget_tokens is the number 5"),
    ({"thinking": {"type": "deep"}}, "thinking.type"),
    ({"mcp_servers": [{"url": "http://x"}]}, "mcp_servers is not served here"),
    ({"container": "c_1"}, "container is not served here"),
    ({"messages": [{"role": "user", "content": "x " * 3000}]}, "the prompt has"),
    ({"stream": "yes"}, "stream is the string"),
]


@pytest.mark.parametrize(("body", "message"), BAD, ids=[f"{n}" for n in range(len(BAD))])
def test_what_is_wrong_is_refused_by_its_place(served: Served, engine: Scripted, body: dict[str, Any], message: str):
    before = len(engine.submitted)
    answer = served.post(PATH, {"max_tokens": 10, "messages": HI, **body})
    assert answer.status == 400, answer.body
    told = answer.json
    assert set(told) == {"type", "error", "request_id"} and told["type"] == "error"
    assert told["error"]["type"] == "invalid_request_error" and message in told["error"]["message"]
    assert len(engine.submitted) == before


def test_every_refusal_has_the_shape_of_the_api(thinker: Any):
    with Scripted(thinker) as engine, serving(engine, ROUTES, api_keys=("k",), served_model_name=("thinker",)) as served:
        engine.say("x")
        key = {"x-api-key": "k"}
        body = {"max_tokens": 5, "messages": HI}
        engine.refusals = (QueueFull("too many wait", retry_after_s=3), Unavailable("the engine is lost"))
        answers = [
            (401, "authentication_error", served.post(PATH, body)),
            (404, "not_found_error", served.post(PATH, {**body, "model": "claude"}, **key)),
            (405, "invalid_request_error", served.get(PATH, **key)),
            (415, "invalid_request_error", served.ask("POST", PATH, b"x", {**key, "content-type": "text/plain"})),
            (413, "request_too_large", served.ask("POST", PATH, b" " * (5 << 20), {**key, "content-type": "application/json"})),
            (400, "invalid_request_error", served.ask("POST", PATH, b"{", {**key, "content-type": "application/json"})),
            (429, "rate_limit_error", served.post(PATH, body, **key)),
            (503, "overloaded_error", served.post(PATH, body, **key)),
            (401, "authentication_error", served.post(f"{PATH}/count_tokens", body)),
        ]
        for status, kind, answer in answers:
            told = answer.json
            assert (answer.status, told["type"], told["error"]["type"]) == (status, "error", kind)
            assert (
                told["request_id"] == answer.headers["request-id"] == answer.headers["x-request-id"]
                and told["error"]["message"]
            )
        assert answers[6][2].headers["retry-after"] == "3"
        assert served.post(PATH, body, **key).status == 200
