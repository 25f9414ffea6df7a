"""/v1/responses over HTTP on a fake engine: streamed as whole, kept, gone on from, refused."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server.drive import Served, serving
from tests.server.folds import fold_response, without_ids
from tests.server.scripts import CALL, FUNCTION, ROUTES, Scripted, call_text

PATH = "/v1/responses"


def made(served: Served, **body: Any) -> Any:
    answer = served.post(PATH, body)
    assert answer.status == 200, answer.body
    return answer.json


def streamed(served: Served, **body: Any) -> Any:
    answer = served.post(PATH, {**body, "stream": True})
    assert answer.status == 200 and answer.headers["content-type"].startswith("text/event-stream"), answer.body
    return fold_response(answer.events)


def kinds(response: Any) -> list[str]:
    return [item["type"] for item in response["output"]]


# --- what comes ---------------------------------------------------------------------------------------------------------


def test_reasoning_text_and_calls_are_items_and_all_is_told(engine: Scripted, served: Served):
    tokens = engine.say(CALL)
    got = made(served, input="Hi", tools=[FUNCTION], instructions="Be brief.", metadata={"a": "b"}, user="me")
    assert kinds(got) == ["reasoning", "message", "function_call"]
    thought, message, call = got["output"]
    assert thought["content"] == [{"type": "reasoning_text", "text": "Hm."}] and thought["encrypted_content"] is None
    assert message["content"] == [{"type": "output_text", "text": "I look.", "annotations": [], "logprobs": []}]
    assert (call["name"], call["arguments"]) == ("weather", '{"city": "Zürich"}')
    assert got["status"] == "completed" and got["error"] is None and got["incomplete_details"] is None
    usage = got["usage"]
    prompt, _ = engine.submitted[-1]
    assert usage["input_tokens"] == len(prompt) and usage["output_tokens"] == len(tokens) + 1
    assert usage["input_tokens_details"] == {"cached_tokens": 0, "cache_write_tokens": len(prompt)}
    assert 0 < usage["output_tokens_details"]["reasoning_tokens"] < usage["output_tokens"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    asked = {"instructions": "Be brief.", "metadata": {"a": "b"}, "user": "me", "tools": [FUNCTION], "object": "response"}
    assert {key: got[key] for key in asked} == asked
    assert "Be brief." in engine.prompt() and "<|user|>Hi<|end|>" in engine.prompt()


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_stream_adds_up_to_what_comes_whole(data: st.DataObject, engine: Scripted, served: Served):
    vocab = engine.setup.layout.model.vocab
    special = {"think": "<think>", "/think": "</think>", "call": CALL}
    some = st.one_of(
        st.lists(st.integers(8, vocab - 1), max_size=12),
        st.sampled_from(sorted(special)).map(lambda name: engine.tokenizer.encode(special[name], add_special_tokens=False)),
    )
    engine.script = [token for part in data.draw(st.lists(some, max_size=5)) for token in part]
    body = {
        "input": "Hi",
        "max_output_tokens": data.draw(st.integers(1, 80)),
        "tools": data.draw(st.sampled_from([[], [FUNCTION]])),
        "top_logprobs": data.draw(st.sampled_from([0, 2])),
        "include": data.draw(st.sampled_from([[], ["message.output_text.logprobs", "reasoning.encrypted_content"]])),
        "store": False,
    }
    whole = made(served, **body)
    assert without_ids(streamed(served, **body)) == without_ids(whole)
    texts = [part for item in whole["output"] if item["type"] == "message" for part in item["content"]]
    if body["include"] or body["top_logprobs"]:
        scored = [each for part in texts for each in part["logprobs"]]
        assert all(len(each["top_logprobs"]) == body["top_logprobs"] for each in scored)
        if len(whole["output"]) == 1 and texts:
            assert len(scored) == whole["usage"]["output_tokens"]
    else:
        assert not any(part["logprobs"] for part in texts)


def test_without_input_there_is_a_response(engine: Scripted, served: Served):
    engine.say("Hello")
    for body in ({}, {"input": ""}, {"input": []}, {"input": None, "model": "thinker"}, {"instructions": "Be brief."}):
        got = made(served, **body)
        assert got["output"][0]["content"][0]["text"] == "Hello" and got["model"] == "thinker"


def test_an_answer_that_is_cut_is_incomplete(engine: Scripted, served: Served):
    engine.say("<think>one two three four five six")
    got = made(served, input="Hi", max_output_tokens=4)
    assert got["status"] == "incomplete" and got["incomplete_details"] == {"reason": "max_output_tokens"}
    assert got["completed_at"] is None and got["output"][0]["status"] == "incomplete"


# --- what goes in -------------------------------------------------------------------------------------------------------


def test_items_become_one_conversation(engine: Scripted, served: Served):
    sealed = "plain:" + base64.b64encode(b"Deep.").decode()
    items = [
        {"role": "developer", "content": "Rules."},
        {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}],
        },
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": sealed},
        {"type": "message", "role": "assistant", "id": "m", "content": [{"type": "output_text", "text": "I look."}]},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Bern"}'},
        {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "rain"}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Summed."}]},
        {"type": "custom_tool_call", "call_id": "c2", "name": "patch", "input": "+ä"},
        {"type": "custom_tool_call_output", "call_id": "c2", "output": "done"},
    ]
    engine.say("ok")
    made(served, input=items, instructions="Be brief.")
    assert engine.prompt() == (
        "<|bos|><|system|>Be brief.\n\nRules.<|end|><|user|>ab<|end|><|assistant|><think>Deep.</think>I look."
        '<tool_call>{"name": "weather", "arguments": {"city": "Bern"}}</tool_call><|end|><|tool|>rain<|end|>'
        '<|assistant|><think>Summed.</think><tool_call>{"name": "patch", "arguments": {"input": "+ä"}}</tool_call><|end|>'
        "<|tool|>done<|end|><|assistant|>"
    )


def test_custom_tools_and_namespaces_are_functions_to_the_model(engine: Scripted, served: Served):
    grammar = {"type": "grammar", "syntax": "lark", "definition": "start: /x+/"}
    tools = [
        {"type": "custom", "name": "apply_patch", "description": "Patches.", "format": grammar},
        {"type": "namespace", "name": "files", "description": "", "tools": [{**FUNCTION, "name": "read"}]},
        {"type": "web_search"},
        {"type": "local_shell"},
    ]
    engine.say(call_text("apply_patch", '{"input": "*** Begin"}') + call_text("files__read", '{"city": "x"}'))
    answer = served.post(PATH, {"input": "Hi", "tools": tools})
    patch, read = answer.json["output"]
    assert (patch["type"], patch["name"], patch["input"]) == ("custom_tool_call", "apply_patch", "*** Begin")
    assert (read["type"], read["namespace"], read["name"]) == ("function_call", "files", "read")
    assert answer.headers["x-ignored-tools"] == "web_search, local_shell"
    assert [tool["type"] for tool in answer.json["tools"]] == ["custom", "namespace"]
    assert "start: /x+/" in engine.prompt() and "web_search" not in engine.prompt()
    assert without_ids(streamed(served, input="Hi", tools=tools)) == without_ids(answer.json)


def test_one_call_where_one_is_wanted_and_none_where_none_is(engine: Scripted, served: Served):
    engine.say(call_text("weather", '{"city": "a"}') + call_text("weather", '{"city": "b"}'))
    calls = [item for item in made(served, tools=[FUNCTION], parallel_tool_calls=False)["output"] if "arguments" in item]
    assert [call["arguments"] for call in calls] == ['{"city": "a"}']
    assert kinds(made(served, tools=[FUNCTION], tool_choice="none")) == ["message"]
    assert "weather" not in engine.prompt()


def test_the_form_of_the_text_and_the_choice_of_a_tool_reach_the_engine(engine: Scripted, served: Served):
    engine.say("{}")
    form = {"type": "json_schema", "name": "x", "strict": True, "schema": {"type": "object"}}
    got = made(served, input="Hi", text={"format": form}, temperature=0.5, top_p=0.9, seed=3, stop=["end"], max_output_tokens=9)
    _, params = engine.submitted[-1]
    assert params.structured_outputs is not None and json.loads(str(params.structured_outputs.json)) == {"type": "object"}
    assert (params.temperature, params.top_p, params.seed, params.stop, params.max_tokens) == (0.5, 0.9, 3, ("end",), 9)
    assert got["text"]["format"] == form and got["temperature"] == 0.5 and got["max_output_tokens"] == 9
    made(served, input="Hi", text={"format": {"type": "json_object"}})
    assert engine.submitted[-1][1].structured_outputs.json_object  # type: ignore[union-attr]
    made(served, input="Hi", tools=[FUNCTION], tool_choice={"type": "function", "name": "weather"})
    assert engine.submitted[-1][1].structured_outputs.grammar  # type: ignore[union-attr]


def test_a_call_that_is_asked_for_and_cut_before_its_arguments_is_an_incomplete_item(engine: Scripted, served: Served):
    named = len(engine.say('<tool_call>{"name": "weather", '))
    engine.say(call_text("weather", '{"city": "a"}'))
    asked = {"input": "Hi", "tools": [FUNCTION], "tool_choice": "required", "max_output_tokens": named}
    got = made(served, **asked)
    (call,) = got["output"]
    assert (call["name"], call["arguments"], call["status"], got["status"]) == ("weather", "", "incomplete", "incomplete")
    assert without_ids(streamed(served, **asked)) == without_ids(got)


def test_the_input_is_counted_as_it_is_used(engine: Scripted, served: Served):
    engine.say("ok")
    body = {"input": "How are you?", "instructions": "Be brief.", "tools": [FUNCTION]}
    counted = served.post(f"{PATH}/input_tokens", body).json
    assert counted == {"input_tokens": made(served, **body)["usage"]["input_tokens"], "object": "response.input_tokens"}


# --- what is kept -------------------------------------------------------------------------------------------------------


def test_a_conversation_goes_on_from_what_is_kept(engine: Scripted, served: Served):
    engine.say(CALL)
    first = made(served, input="Weather?", tools=[FUNCTION], instructions="Be brief.")
    engine.say("Rain.")
    output = {"type": "function_call_output", "call_id": first["output"][-1]["call_id"], "output": "rain"}
    then = streamed(served, input=[output], tools=[FUNCTION], previous_response_id=first["id"])
    assert then["previous_response_id"] == first["id"]
    tail = engine.prompt().partition("<|user|>")[2]
    assert tail == (
        'Weather?<|end|><|assistant|><think>Hm.</think>I look.<tool_call>{"name": "weather", "arguments": '
        '{"city": "Zürich"}}</tool_call><|end|><|tool|>rain<|end|><|assistant|>'
    )
    assert "Be brief." not in engine.prompt()  # instructions are not carried over
    items = served.get(f"{PATH}/{then['id']}/input_items?order=asc").json
    assert [item["type"] for item in items["data"]] == [
        "message",
        "reasoning",
        "message",
        "function_call",
        "function_call_output",
    ]
    assert items["has_more"] is False and items["first_id"] == items["data"][0]["id"]
    page = served.get(f"{PATH}/{then['id']}/input_items?limit=2").json
    assert page["data"] == items["data"][:2:-1] and page["has_more"] is True
    rest = served.get(f"{PATH}/{then['id']}/input_items?after={page['last_id']}").json
    assert rest["data"] == items["data"][2::-1]
    assert served.get(f"{PATH}/{first['id']}").json == first
    assert served.ask("DELETE", f"{PATH}/{first['id']}").json == {"id": first["id"], "object": "response", "deleted": True}
    assert served.get(f"{PATH}/{first['id']}").status == 404
    assert made(served, input="And now?", previous_response_id=then["id"])["status"] == "completed"
    assert "Weather?" in engine.prompt()  # what is kept knows all before it


def test_items_that_are_kept_are_found_by_their_ids(engine: Scripted, served: Served):
    engine.say("I am seven.")
    first = made(served, input="How old?")
    reference = {"type": "item_reference", "id": first["output"][0]["id"]}
    made(served, input=[reference, {"role": "user", "content": "Sure?"}])
    assert engine.prompt() == "<|bos|><|assistant|>I am seven.<|end|><|user|>Sure?<|end|><|assistant|>"
    answer = served.post(PATH, {"input": [{"id": "msg_unknown"}]})
    assert answer.status == 400 and "refers to item 'msg_unknown', which is not kept here" in answer.json["error"]["message"]


def test_a_kept_response_is_streamed_again(engine: Scripted, served: Served):
    engine.say(CALL)
    got = made(served, input="Hi", tools=[FUNCTION])
    answer = served.get(f"{PATH}/{got['id']}?stream=true")
    assert fold_response(answer.events) == got
    later = served.get(f"{PATH}/{got['id']}?stream=true&starting_after=4").events
    assert later == answer.events[5:]


def test_what_is_not_to_be_kept_is_not(engine: Scripted, served: Served):
    engine.say("x")
    for body in ({"store": False}, {"store": False, "stream": True}):
        answer = served.post(PATH, {"input": "Hi", **body})
        got = answer.events[-1]["response"] if "stream" in body else answer.json
        assert got["store"] is False and served.get(f"{PATH}/{got['id']}").status == 404


def test_keys_keep_responses_apart(engine: Scripted):
    engine.say("secret")
    with serving(engine, ROUTES, api_keys=("one", "two")) as served:
        mine, other = {"authorization": "Bearer one"}, {"authorization": "Bearer two"}
        got = served.post(PATH, {"input": "Hi"}, **mine).json
        item = got["output"][0]["id"]
        assert served.get(f"{PATH}/{got['id']}", **mine).json == got
        for method, path in (
            ("GET", ""),
            ("DELETE", ""),
            ("POST", "/cancel"),
            ("GET", "/input_items"),
            ("GET", "?stream=true"),
        ):
            assert served.ask(method, f"{PATH}/{got['id']}{path}", headers=other).status == 404
        assert served.post(PATH, {"previous_response_id": got["id"]}, **other).status == 404
        assert served.post(PATH, {"input": [{"type": "item_reference", "id": item}]}, **other).status == 400
        assert served.get(f"{PATH}/{got['id']}").status == 401


def test_a_server_that_keeps_nothing_says_so(engine: Scripted):
    engine.say("x")
    with serving(engine, ROUTES, stores=False) as served:
        got = made(served, input="Hi", store=True)
        assert got["store"] is False
        for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")):
            answer = served.ask(method, f"{PATH}/{got['id']}{path}")
            assert answer.status == 404 and "--no-response-store" in answer.json["error"]["message"]
        assert served.post(PATH, {"previous_response_id": got["id"]}).status == 404
        answer = served.post(PATH, {"background": True})
        assert answer.status == 400 and "nothing is kept by this server" in answer.json["error"]["message"]


# --- what goes wrong ----------------------------------------------------------------------------------------------------


def test_a_failure_within_a_stream_is_its_last_event(engine: Scripted, served: Served):
    engine.script = [20, 21, -1]
    answer = served.post(PATH, {"input": "Hi", "stream": True})
    whole = fold_response(answer.events)
    assert whole["status"] == "failed" and answer.events[-1]["type"] == "response.failed"
    assert served.post(PATH, {"input": "Hi"}).status == 500


BAD: list[tuple[dict[str, Any], str]] = [
    ({"input": 3}, "input is the number 3"),
    ({"input": ["text"]}, "input[0] is"),
    ({"input": [{"type": "message", "role": "king", "content": "x"}]}, "input[0]"),
    ({"input": [{"type": "message", "role": "user"}]}, "input[0].content is missing"),
    ({"input": [{"content": "x"}]}, "input[0].type is null; items of these types are taken: message, function_call"),
    ({"input": [{"type": "web_search_call", "id": "x"}]}, "input[0].type is 'web_search_call'"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://x"}]}]}, "this is a text model"),
    ({"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "http://x"}]}]}, "this is a text model"),
    ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text is null; it takes text"),
    ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id is missing"),
    ({"input": [{"role": None}]}, "input[0].role is null; it must be a string"),
    ({"input": [{"role": "robot", "content": "a"}]}, 'input[0].role is the string "robot"; it must be one of "assistant", '),
    ({"input": [{"role": "user", "content": [None]}]}, "input[0].content[0] is null; it must be an object"),
    ({"input": [{"type": "reasoning", "encrypted_content": "plain:%%%"}]}, "input[0].encrypted_content is damaged"),
    ({"temperature": 100.5}, "temperature is the number 100.5"),
    ({"temperature": "hot"}, "temperature is the string"),
    ({"top_p": 0}, "top_p is the number 0"),
    ({"max_output_tokens": 0}, "max_output_tokens is the number 0"),
    ({"max_output_tokens": 10**6}, "max_output_tokens is 1000000"),
    ({"top_logprobs": 21}, "top_logprobs is the number 21"),
    ({"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
    ({"metadata": {"k": "x" * 513}}, "metadata"),
    ({"truncation": "middle"}, 'truncation is the string "middle"'),
    ({"tools": [{"type": "teleport", "name": "x"}]}, "tools[0] is of type 'teleport'; tools of the types function and custom"),
    ({"tools": [{"type": "function"}]}, "tools[0].name is null"),
    ({"tools": [{}]}, "tools[0] is of type null; tools of"),
    ({"tools": [FUNCTION, FUNCTION]}, "has the name of tools[0]"),
    ({"tools": [{**FUNCTION, "parameters": {"type": "string"}}]}, "tools[0].parameters.type"),
    ({"tools": [{"type": "namespace", "name": "x"}]}, "tools[0] is a namespace, which takes a name and a list of tools"),
    ({"tool_choice": "required"}, "no tools are offered"),
    ({"tool_choice": "maybe", "tools": [FUNCTION]}, "tool_choice is 'maybe'"),
    ({"tool_choice": {"type": "function", "name": "g"}, "tools": [FUNCTION]}, "tool_choice.name is 'g'"),
    ({"tool_choice": {"type": "web_search"}, "tools": [{"type": "web_search"}]}, "which this server does not run"),
    ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema is missing"),
    ({"text": {"format": {"type": "yaml"}}}, "text.format.type"),
    ({"text": {"format": {"type": "json_schema", "schema": {"type": 3}}}}, ""),
    ({"reasoning": {"effort": "heroic"}}, "reasoning.effort"),
    ({"conversation": "conv_1"}, "conversation is not served here"),
    ({"prompt": {"id": "x"}}, "prompt is not served here"),
    ({"background": True, "store": False}, "a background response has to be kept"),
    ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs: 'tokenize' cannot be set"),
    ({"input": "x " * 3000}, "the prompt has"),
]


@pytest.mark.parametrize(("body", "message"), BAD, ids=[f"{n}" for n in range(len(BAD))])
def test_what_is_wrong_is_refused_by_its_place(served: Served, engine: Scripted, body: dict[str, Any], message: str):
    before = len(engine.submitted)
    answer = served.post(PATH, body)
    assert answer.status == 400, answer.body
    error = answer.json["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    assert message in error["message"]
    assert len(engine.submitted) == before


def test_what_is_not_there_is_named(served: Served):
    assert "served here: 'thinker'" in served.post(PATH, {"model": "gpt"}).json["error"]["message"]
    unknown = served.post(PATH, {"previous_response_id": "resp_0"})
    assert unknown.status == 404 and unknown.json["error"]["param"] == "previous_response_id"
    for method, path in (("GET", "resp_0"), ("DELETE", "resp_0"), ("POST", "resp_0/cancel"), ("GET", "resp_0/input_items")):
        answer = served.ask(method, f"{PATH}/{path}")
        assert answer.status == 404 and answer.json["error"]["code"] == "response_not_found"


def test_parameters_of_the_query_are_checked(engine: Scripted, served: Served):
    engine.say("x")
    id = made(served, input="Hi")["id"]
    for query, message in (
        ("?stream=maybe", "stream is 'maybe'"),
        ("?starting_after=-1", "starting_after is '-1'"),
        ("/input_items?limit=101", "limit is '101'; it takes a whole number from 1 to 100"),
        ("/input_items?limit=0", "limit is '0'; it takes a whole number from 1 to 100"),
        ("/input_items?order=up", "order is 'up'; it takes desc or asc"),
        ("/input_items?after=msg_0", "after is 'msg_0', which is no item"),
    ):
        answer = served.get(f"{PATH}/{id}{query}")
        assert answer.status == 400 and message in answer.json["error"]["message"]
    answer = served.post(f"{PATH}/{id}/cancel", {})
    assert answer.status == 400 and "not made in the background" in answer.json["error"]["message"]


def test_a_call_that_was_cut_is_gone_on_from(engine: Scripted, served: Served):
    """Its arguments are no JSON, and the template gets them as they are."""
    tokens = engine.say(CALL)
    first = made(served, input="Hi", tools=[FUNCTION], max_output_tokens=len(tokens) - 8)
    call = first["output"][-1]
    assert (call["type"], call["status"]) == ("function_call", "incomplete") and not call["arguments"].endswith("}")
    engine.say("Well.")
    made(served, input="And?", previous_response_id=first["id"], tools=[FUNCTION])
    assert f'"arguments": {json.dumps(call["arguments"], ensure_ascii=False)}}}</tool_call>' in engine.prompt()
