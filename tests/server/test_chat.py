"""Chat completions: what a conversation may hold, what comes back, and under which names."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from shardwise.engine.setup import Setup
from shardwise.server.answer.pieces import Argued, Called, Said, Thought
from shardwise.server.chat import deltas
from shardwise.server.chat_body import CallDelta, FunctionDelta
from shardwise.server.routes import ROUTES
from tests.server.drive import Served, serving, wait_for
from tests.server.engines import ServingFake
from tests.server.saying import chat_streamed, chat_whole, says, says_texts

CALL = '<tool_call>{"name": "f", "arguments": {"a": "Zürich"}}</tool_call>'
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "f", "description": "Does f.", "parameters": SCHEMA}}
HI = [{"role": "user", "content": "hi"}]
PATH = "/v1/chat/completions"


@pytest.fixture
def served(engine: ServingFake) -> Iterator[Served]:
    with serving(engine, ROUTES) as made:
        yield made


def prompt_of(served: Served, **body: object) -> str:
    answer = served.post(f"{PATH}/render", body)
    assert answer.status == 200, answer.body
    return str(answer.json["prompt"])


def test_an_answer(served: Served, engine: ServingFake):
    says_texts(engine, served.service.front.tokenizer, "Hello you")
    body = {"messages": HI, "model": "shardling", "logprobs": True, "top_logprobs": 2, "service_tier": "auto"}
    answer = served.post(PATH, body).json
    assert answer["object"] == "chat.completion" and answer["model"] == "shardling" and answer["id"].startswith("chatcmpl-")
    assert answer["system_fingerprint"].startswith("fp_") and answer["service_tier"] == "default"
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Hello you", "refusal": None}
    assert choice["finish_reason"] == "stop" and choice["stop_reason"] is None and choice["index"] == 0
    first = choice["logprobs"]["content"][0]
    assert first["token"] == "Hello" and bytes(first["bytes"]) == b"Hello" and first["logprob"] == -0.5
    assert len(first["top_logprobs"]) == 2 and first["top_logprobs"][0]["token"] == "Hello"
    usage = answer["usage"]
    assert usage["completion_tokens"] == 3 and usage["total_tokens"] == usage["prompt_tokens"] + 3
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0}


def test_without_a_limit_it_goes_to_the_end_of_the_context(served: Served, engine: ServingFake):
    says(engine, [300] * 2000)
    answer = served.post(PATH, {"messages": HI}).json
    assert answer["usage"]["total_tokens"] == engine.setup.context and answer["choices"][0]["finish_reason"] == "length"


def test_text_in_every_form(served: Served):
    """Lists of parts, the developer's role, no content beside calls, results as lists, calls in the older form."""
    plain = prompt_of(served, messages=[{"role": "system", "content": "Be brief."}, *HI])
    parts = [{"type": "text", "text": "hi"}]
    assert plain == prompt_of(
        served, messages=[{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    )
    function = {"name": "f", "arguments": '{"a": "Zürich"}'}
    newer = prompt_of(
        served,
        messages=[
            *HI,
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": function}]},
            {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "warm"}]},
        ],
    )
    assert CALL in newer and "warm" in newer
    older = [{"role": "assistant", "content": None, "function_call": function}, {"role": "function", "content": "warm"}]
    assert newer == prompt_of(served, messages=[*HI, *older])


def test_a_message_goes_on(served: Served, engine: ServingFake):
    says_texts(engine, served.service.front.tokenizer, " there")
    messages = [*HI, {"role": "assistant", "content": "Well, hello"}]
    goes_on = {"messages": messages, "continue_final_message": True}
    assert prompt_of(served, **goes_on).endswith("<|assistant|>Well, hello")
    assert chat_whole(served.post(PATH, {**goes_on, "echo": True}))[0]["content"] == "Well, hello there"
    streamed = chat_streamed(served.post(PATH, {**goes_on, "echo": True, "stream": True}))
    assert streamed[0]["content"] == "Well, hello there"


def test_calls(served: Served, engine: ServingFake):
    says_texts(engine, served.service.front.tokenizer, "Let me see." + CALL + CALL)
    asked = {"messages": HI, "tools": [TOOL]}
    (choice,) = served.post(PATH, asked).json["choices"]
    calls = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] == "Let me see."
    assert [call["type"] for call in calls] == ["function"] * 2 and len({call["id"] for call in calls}) == 2
    assert calls[0]["function"] == {"name": "f", "arguments": '{"a": "Zürich"}'}
    (choice,) = served.post(PATH, {**asked, "parallel_tool_calls": False}).json["choices"]
    assert len(choice["message"]["tool_calls"]) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_the_end_of_an_answer_is_not_lost(served: Served, engine: ServingFake, stream: bool):
    """What might have become a call is content after all; two calls that came at once are two."""
    read = chat_streamed if stream else chat_whole
    asked = {"messages": HI, "tools": [TOOL], "stream": stream}
    says_texts(engine, served.service.front.tokenizer, "less: <tool", CALL + CALL)
    answer = read(served.post(PATH, {**asked, "n": 2}))
    assert answer[0]["content"] == "less: <tool" and answer[0]["finish"] == "stop"
    assert answer[1]["calls"] == [("f", '{"a": "Zürich"}')] * 2 and answer[1]["finish"] == "tool_calls"


def test_pieces_become_few_deltas():
    """None has two calls, and all of a call's arguments that came together are together."""
    pieces = [Thought("a"), Said("b"), Thought("c"), Called(0, "i", "f"), Argued(0, "{"), Argued(0, "}"), Called(1, "j", "g")]
    first, second, third = deltas([*pieces, Said("d"), Argued(1, "{}"), Argued(0, "!")])
    assert (first.reasoning, first.reasoning_content, first.content) == ("ac", "ac", "b")
    assert first.tool_calls == [CallDelta(0, "i", "function", FunctionDelta("f", "{}"))]
    assert second.content == "d" and second.tool_calls == [CallDelta(1, "j", "function", FunctionDelta("g", "{}"))]
    assert third.tool_calls == [CallDelta(0, None, None, FunctionDelta(None, "!"))]


def test_a_call_that_is_cut_short_ends_with_length(served: Served, engine: ServingFake):
    says_texts(engine, served.service.front.tokenizer, CALL)
    answer = chat_whole(served.post(PATH, {"messages": HI, "tools": [TOOL], "max_tokens": 22}))
    assert answer[0]["finish"] == "length"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "f"}}])
def test_of_a_forced_call_that_is_cut_short_nothing_is_content(served: Served, engine: ServingFake, choice: object):
    """Wherever `max_tokens` cuts it: its syntax is no word to the user. Where the model chose to call, all is told."""
    tokenizer = served.service.front.tokenizer
    says_texts(engine, tokenizer, CALL)
    asked = {"messages": HI, "tools": [TOOL], "tool_choice": choice}
    called = []
    for most in range(1, len(tokenizer.encode(CALL, add_special_tokens=False)) + 1):
        whole = chat_whole(served.post(PATH, {**asked, "max_tokens": most}))
        assert chat_streamed(served.post(PATH, {**asked, "max_tokens": most, "stream": True})) == whole
        assert whole[0]["content"] == "" and whole[0]["finish"] == "length"
        begun = tokenizer.decode(tokenizer.encode(CALL, add_special_tokens=False)[:most])
        assert [name for name, _ in whole[0]["calls"]] == ["f"] * ('"f"' in begun), "with its name it is a call"
        called += [arguments for _, arguments in whole[0]["calls"]]
    assert called[-1] == '{"a": "Zürich"}' and all(called[-1].startswith(each.rstrip("\ufffd")) for each in called)
    assert chat_whole(served.post(PATH, {**asked, "tool_choice": "auto", "max_tokens": 2}))[0]["content"]


def test_no_tools_are_shown_that_must_not_be_used(served: Served, engine: ServingFake):
    says_texts(engine, served.service.front.tokenizer, CALL)
    with_tools, without = {"messages": HI, "tools": [TOOL]}, {"messages": HI, "tools": [TOOL], "tool_choice": "none"}
    assert "Does f." in prompt_of(served, **with_tools) and "Does f." not in prompt_of(served, **without)
    assert chat_whole(served.post(PATH, without))[0]["content"] == CALL


@pytest.mark.parametrize(("choice", "finish"), [("required", "tool_calls"), ("f", "stop")])
def test_a_call_that_is_asked_for_is_kept_by_a_grammar(served: Served, engine: ServingFake, choice: str, finish: str):
    """With OpenAI and vLLM, a tool that was named ends with "stop"."""
    says_texts(engine, served.service.front.tokenizer, CALL)
    asked = choice if choice == "required" else {"type": "function", "function": {"name": choice}}
    answer = chat_whole(served.post(PATH, {"messages": HI, "tools": [TOOL], "tool_choice": asked}))
    assert answer[0]["calls"] == [("f", '{"a": "Zürich"}')] and answer[0]["finish"] == finish
    structured = engine.submitted[-1][1].structured_outputs
    assert structured is not None and structured.grammar is not None and "<tool_call>" in structured.grammar


def test_functions_as_they_were(served: Served, engine: ServingFake):
    says_texts(engine, served.service.front.tokenizer, CALL)
    asked = {"messages": HI, "functions": [TOOL["function"]], "function_call": "auto"}
    (choice,) = served.post(PATH, asked).json["choices"]
    assert choice["finish_reason"] == "function_call" and "tool_calls" not in choice["message"]
    assert choice["message"]["function_call"] == {"name": "f", "arguments": '{"a": "Zürich"}'}
    events = served.post(PATH, {**asked, "stream": True}).events[:-1]
    deltas = [event["choices"][0]["delta"].get("function_call", {}) for event in events]
    assert "".join(delta.get("name", "") for delta in deltas) == "f"
    assert "".join(delta.get("arguments", "") for delta in deltas) == '{"a": "Zürich"}'
    assert events[-1]["choices"][0]["finish_reason"] == "function_call"


SPELLINGS = [
    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
    {"structured_outputs": {"json": SCHEMA}}, {"guided_json": SCHEMA}, {"json_schema": json.dumps(SCHEMA)},
]  # fmt: skip


@pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda spelling: next(iter(spelling)))
def test_a_form_under_any_name(served: Served, engine: ServingFake, spelling: dict[str, object]):
    says_texts(engine, served.service.front.tokenizer, '{"a": "b"}')
    assert served.post(PATH, {"messages": HI, **spelling}).status == 200
    structured = engine.submitted[-1][1].structured_outputs
    assert structured is not None and structured.json is not None and json.loads(str(structured.json)) == SCHEMA


def test_a_text_needs_no_form(served: Served, engine: ServingFake):
    says_texts(engine, served.service.front.tokenizer, "hello")
    assert served.post(PATH, {"messages": HI, "response_format": {"type": "text"}}).status == 200
    assert engine.submitted[-1][1].structured_outputs is None


THINKS = (
    "{% for m in messages %}{{ m.role + ':' + m.content + '\n' }}{% endfor %}assistant:{{ '<think>\n' if enable_thinking }}"
)


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning(setup: Setup, stream: bool):
    """Told apart, under both names; left out where it is not wanted; opened by the prompt or by the model."""
    read = chat_streamed if stream else chat_whole
    with ServingFake(setup) as engine, serving(engine, ROUTES, trust_request_chat_template=True) as served:
        tokenizer = served.service.front.tokenizer
        asked = {"messages": HI, "chat_template": THINKS + "{# <think> #}", "stream": stream}
        says_texts(engine, tokenizer, "<think>\nhm, a greeting\n</think>\n\nHello")
        answer = read(served.post(PATH, asked))[0]
        assert (answer["reasoning"], answer["content"]) == ("hm, a greeting", "Hello")
        answer = read(served.post(PATH, {**asked, "include_reasoning": False}))[0]
        assert (answer["reasoning"], answer["content"]) == (None, "Hello")
        says_texts(engine, tokenizer, "hm</think>Hello")
        answer = read(served.post(PATH, {**asked, "chat_template_kwargs": {"enable_thinking": True}}))[0]
        assert (answer["reasoning"], answer["content"]) == ("hm", "Hello")
        answer = read(served.post(PATH, {**asked, "reasoning_effort": "none"}))[0]
        assert (answer["reasoning"], answer["content"]) == (None, "hm</think>Hello")


def test_documents_and_variables(setup: Setup):
    template = "{{ documents[0].title }} {{ enable_thinking }} {{ reasoning_effort }}"
    with ServingFake(setup) as engine, serving(engine, ROUTES, trust_request_chat_template=True) as served:
        prompt = prompt_of(
            served, messages=HI, chat_template=template, documents=[{"title": "Moby"}], reasoning_effort="high",
            chat_template_kwargs={"enable_thinking": False},
        )  # fmt: skip
    assert prompt == "Moby False high"


def test_a_request_brings_a_template_that_does_not_work(setup: Setup):
    """Not the server's, as the model's own would be."""
    with ServingFake(setup) as engine, serving(engine, ROUTES, trust_request_chat_template=True) as served:
        for template in ("{% if %}", "{{ 1 | no_such_filter }}", "{{ 'a' * 10**9 }}"):
            for path in (PATH, "/tokenize"):
                answer = served.post(path, {"messages": HI, "chat_template": template})
                assert answer.status == 400 and "template" in answer.json["error"]["message"], answer.body
        assert served.post(PATH, {"messages": HI, "chat_template": "{% if %}"}).json["error"]["param"] == "chat_template"


def test_prompts_are_told(served: Served, engine: ServingFake):
    says_texts(engine, served.service.front.tokenizer, "hello")
    answer = served.post(PATH, {"messages": HI, "prompt_logprobs": 1, "return_token_ids": True}).json
    assert len(answer["prompt_logprobs"]) == len(answer["prompt_token_ids"]) == answer["usage"]["prompt_tokens"]
    assert answer["prompt_logprobs"][0] is None and answer["choices"][0]["token_ids"][-1] == 6
    cut = served.post(PATH, {"messages": HI, "truncate_prompt_tokens": 2, "return_token_ids": True}).json
    assert cut["prompt_token_ids"] == answer["prompt_token_ids"][-2:]
    first, *rest = served.post(PATH, {"messages": HI, "return_token_ids": True, "stream": True}).events[:-1]
    assert first["prompt_token_ids"] == answer["prompt_token_ids"] and not any("prompt_token_ids" in each for each in rest)


def test_tokens_by_id(served: Served, engine: ServingFake):
    says(engine, [300])
    asked = {"messages": HI, "logprobs": True, "return_tokens_as_token_ids": True, "request_id": "mine"}
    answer = served.post(PATH, asked).json
    assert answer["choices"][0]["logprobs"]["content"][0]["token"] == "token_id:300" and answer["id"] == "chatcmpl-mine"


def test_a_client_that_leaves(held: ServingFake):
    """Its request is aborted, streamed or not."""
    with serving(held, ROUTES) as served:
        for stream in (False, True):
            body = json.dumps({"messages": HI, "stream": stream}).encode()
            with served.connect() as connection:
                head = (
                    f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
                )
                connection.sendall(head.encode() + b"\r\n\r\n" + body)
                wait_for(lambda: held.running == 1, "the request runs")
            wait_for(lambda: held.running == 0, "the request is aborted")
    assert len(held.aborted) == 2


def test_a_failure_in_a_stream_is_told(served: Served, engine: ServingFake):
    engine.answer = lambda _prompt, _choice, place: -1 if place == 3 else 300
    *_, last, done = served.post(PATH, {"messages": HI, "stream": True}).events
    assert done == "[DONE]" and last["error"]["type"] == "server_error"
    assert served.post(PATH, {"messages": HI}).status == 500
