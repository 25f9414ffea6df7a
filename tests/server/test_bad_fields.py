"""Fields that cannot be used are refused by their names, in the shape of the API, before anything runs; nothing breaks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from shardwise.engine.setup import Setup
from shardwise.server.routes import ROUTES
from tests.server.drive import Answer, Served, serving
from tests.server.engines import ServingFake

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HI = [{"role": "user", "content": "hi"}]
GOES_ON = {"continue_final_message": True, "add_generation_prompt": False}
BASES: dict[str, dict[str, Any]] = {CHAT: {"messages": HI, "max_tokens": 1}, TEXT: {"prompt": "Once", "max_tokens": 1}}

RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 100), "min_p": (0, 1), "presence_penalty": (-2, 2), "frequency_penalty": (-2, 2), "n": (1, 128),
    "top_k": (-1, 2**31 - 1), "seed": (1 - 2**63, 2**63 - 1), "min_tokens": (0, 1), "prompt_logprobs": (0, 20),
    "priority": (-(2**31) + 1, 2**31 - 1),
}  # fmt: skip
FLAGS = ("ignore_eos", "include_stop_str_in_output", "skip_special_tokens", "stream", "echo", "return_token_ids")


@pytest.fixture(scope="module")
def served(setup: Setup) -> Iterator[Served]:
    with ServingFake(running(setup, 128)) as engine, serving(engine, ROUTES) as made:
        yield made


def running(setup: Setup, sequences: int) -> Setup:
    """The same with so many sequences at once."""
    return replace(setup, limits=replace(setup.limits, sequences=sequences))


def refused(answer: Answer, *words: str, status: int = 400) -> dict[str, Any]:
    """The error; it says the `words`, and nothing of the server's inside."""
    assert answer.status == status, answer.body
    error = answer.json["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    for word in words:
        assert word in error["message"], (word, error["message"])
    assert not any(word in error["message"] for word in ("Traceback", "shardwise.", "msgspec", "object at 0x"))
    return dict(error)


@pytest.mark.parametrize("path", BASES)
def test_the_ends_of_ranges(served: Served, path: str):
    for name, (low, high) in RANGES.items():
        for good in (low, high):
            answer = served.post(path, {**BASES[path], name: good})
            assert answer.status == 200, (name, good, answer.body)
        for bad in (low - 1, high + 1, "1", True, [], {}):
            refused(served.post(path, {**BASES[path], name: bad}), name)
    for name, bad in (("top_p", 0), ("top_p", 1.01), ("repetition_penalty", 0), ("max_tokens", -1), ("max_tokens", 1.5)):
        refused(served.post(path, {**BASES[path], name: bad}), name)
    for name in FLAGS:
        for bad in (0, "true", []):
            refused(served.post(path, {**BASES[path], name: bad}), name)


@pytest.mark.parametrize(("most", "sequences", "words"), [(128, 3, "but at most 3"), (3, 128, "gives at most 3")])
def test_more_answers_than_there_may_be(setup: Setup, most: int, sequences: int, words: str):
    """Whether the server is told so or cannot run them; by the name that the client said."""
    with ServingFake(running(setup, sequences)) as engine, serving(engine, ROUTES, max_choices=most) as served:
        for name in ("n", "best_of"):
            assert refused(served.post(TEXT, {**BASES[TEXT], name: 4}), f"{name} is 4", words)["param"] == name
            assert served.post(TEXT, {**BASES[TEXT], name: 3}).status == 200
        answer = served.post("/generate", {"inputs": "a", "parameters": {"best_of": 4, "do_sample": True}})
        assert answer.status == 400 and "parameters.best_of is 4" in answer.json["error"] and words in answer.json["error"]


@pytest.mark.parametrize("path", BASES)
def test_null_is_not_given_and_unknown_is_counted(served: Served, path: str):
    names = [
        name for name in (*RANGES, *FLAGS, "stop", "logit_bias", "stream_options", "response_format", "seed") if name != "echo"
    ]
    plain = served.post(path, BASES[path]).json
    answer = served.post(path, {**BASES[path], **dict.fromkeys(n for n in names if n != "priority"), "best_off": 3})
    assert answer.status == 200, answer.body
    assert [strip(choice) for choice in answer.json["choices"]] == [strip(choice) for choice in plain["choices"]]
    assert served.service.unknown["best_off"] >= 1


def strip(choice: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in choice.items() if key != "id"}


def test_the_field_at_fault_and_what_to_do_are_told(served: Served):
    """By their names in the API that was asked; a prompt that is too long has its code, whatever else is wrong too has none."""
    long, code = {"prompt": "a " * 2000}, "context_length_exceeded"
    for path, fields, param, told, words in (
        (TEXT, {"stop_token_ids": [9999], "max_tokens": 5000}, "stop_token_ids", "bad_request", "token id 9999"),
        (TEXT, {"logit_bias": {"x": 1}}, "logit_bias", "bad_request", "logit_bias has the key 'x'"),
        (
            TEXT,
            {"logit_bias": {"5": None}},
            "logit_bias",
            "invalid_value",
            "a value of logit_bias is null; it must be a number",
        ),
        (TEXT, {"prompt": [9999]}, "prompt", "bad_request", "token id 9999"),
        (TEXT, {"min_tokens": 9}, "min_tokens", "bad_request", "min_tokens is 9, above max_tokens"),
        (TEXT, long, "prompt", code, "tokens"),
        (TEXT, {"max_tokens": 5000}, "prompt", code, "max_tokens is 5000"),
        (TEXT, {"response_format": {"type": None}}, "response_format.type", "bad_request", "type is null, which"),
        (CHAT, {"max_tokens": None, "max_completion_tokens": 5000}, "messages", code, "max_completion_tokens is 5000"),
        (CHAT, {"max_tokens": None, "max_completion_tokens": 0}, "max_completion_tokens", "bad_request", "is 0"),
        (CHAT, {"max_tokens": 5000}, "messages", code, "and max_tokens is 5000"),
        ("/v1/responses", {"input": "a", "max_output_tokens": 5000}, "input", code, "max_output_tokens is 5000"),
        ("/v1/responses", {"max_output_tokens": 2**40}, "max_output_tokens", "bad_request", f"is {2**40}"),
        (CHAT, {"chat_template_kwargs": {"messages": 1}}, "chat_template_kwargs", "bad_request", "'messages' cannot be set"),
        ("/v1/responses", {"input": "a", "chat_template_kwargs": {"a": []}}, "chat_template_kwargs", "bad_request", "'a'"),
        ("/v1/detokenize", {"tokens": [9999]}, "tokens", "bad_request", "tokens: token id 9999"),
        ("/v1/embeddings", {"input": [9] * 2000}, "input", code, "input: the prompt has 2000"),
        ("/v1/embeddings", {"input": ["a", "a " * 2000]}, "input", code, "input[1]: the prompt has"),
        ("/v1/rerank", {"query": "a", "documents": ["a " * 2000]}, "documents", code, "documents[0] with the query"),
        ("/v1/score", {"text_1": "a", "text_2": "a " * 2000}, None, code, "pair 0"),
    ):
        answer = served.post(path, {**BASES.get(path, {}), **fields})
        error = answer.json["error"]
        assert (answer.status, error["param"], error["code"]) == (400, param, told), error
        assert words in error["message"], error


SHARED: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"stop": ["a"] * 17}, ("stop", "17", "16")), ({"stop": [""]}, ("stop", "at least one character")),
    ({"stop": 5}, ("stop",)),
    ({"stop": ["a" * 1025]}, ("stop[0]", "1025", "1024")),
    ({"stop_token_ids": [4096]}, ("stop_token_ids", "4096")), ({"stop_token_ids": ["a"]}, ("stop_token_ids",)),
    ({"logit_bias": {"4096": 1}}, ("logit_bias", "4096")), ({"logit_bias": {"9": 101}}, ("logit_bias", "101", "100")),
    ({"logit_bias": {"x": 1}}, ("logit_bias", "x")), ({"logit_bias": {"9": 1, "09": 2}}, ("logit_bias", "twice")),
    ({"logit_bias": [1]}, ("logit_bias",)), ({"logit_bias": {"-1": 1}}, ("logit_bias", "-1")),
    ({"allowed_token_ids": []}, ("allowed_token_ids", "empty")), ({"bad_words": [""]}, ("bad_words",)),
    ({"min_tokens": 5}, ("min_tokens", "5", "max_tokens", "1")),
    ({"stream": True, "prompt_logprobs": 1}, ("prompt_logprobs", "stream")),
    ({"truncate_prompt_tokens": 0}, ("truncate_prompt_tokens",)), ({"truncate_prompt_tokens": -2}, ("truncate_prompt_tokens",)),
    ({"truncate_prompt_tokens": 2000}, ("truncate_prompt_tokens", "2000", "1024")),
    ({"request_id": ""}, ("request_id",)), ({"request_id": "a\nb"}, ("request_id",)),
    ({"request_id": "a" * 129}, ("request_id", "128")),
    ({"response_format": {"type": "xml"}}, ("response_format", "xml", "json_schema")),
    ({"response_format": "json"}, ("response_format",)),
    ({"regex": "(", "max_tokens": 5}, ("regex",)),
    ({"guided_choice": ["a"], "guided_regex": "b"}, ("guided_choice", "guided_regex")),
    ({"structured_outputs": {"jsn": {}}}, ("structured_outputs", "jsn", "json")),
    ({"guided_json": {"type": "nothing"}}, ("json", "nothing")),
    ({"stream_options": {"include_usage": 1}}, ("include_usage",)), ({"stream_options": True}, ("stream_options",)),
    ({"model": 5}, ("model",)),
]  # fmt: skip


@pytest.mark.parametrize("path", BASES)
def test_what_neither_takes(served: Served, path: str):
    for fields, words in SHARED:
        refused(served.post(path, {**BASES[path], **fields}), *words)


TOOL = {"type": "function", "function": {"name": "f"}}
CHATS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"messages": []}, ("messages", "at least one")), ({"messages": "hi"}, ("messages",)), ({"messages": [5]}, ("messages",)),
    ({"messages": None}, ("messages",)), ({"messages": [{"content": "a"}]}, ("messages[0].role", "user")),
    ({"messages": [{"role": "root", "content": "a"}]}, ("messages[0].role", "root", "developer")),
    ({"messages": [{"role": "user"}]}, ("messages[0].content", "missing")),
    ({"messages": [{"role": "user", "content": 5}]}, ("messages[0].content",)),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://a/b"}}]}]},
     ("messages[0].content[0]", "image_url", "text only")),
    ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, ("input_audio", "text only")),
    ({"messages": [{"role": "user", "content": [{"type": "file"}]}]}, ("file", "text only")),
    ({"messages": [{"role": "user", "content": [{"text": "a"}]}]}, ("messages[0].content[0]",)),
    ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": [1]}}]}]}, ("arguments",)),
    ({"logprobs": 1}, ("logprobs",)), ({"top_logprobs": 2}, ("top_logprobs", "logprobs")),
    ({"logprobs": True, "top_logprobs": 21}, ("top_logprobs", "20")),
    ({"max_tokens": 0}, ("max_tokens",)), ({"max_completion_tokens": 2}, ("max_tokens", "twice")),
    ({"tools": [{"type": "web_search"}]}, ("tools[0].type", "web_search", "function")),
    ({"tools": [TOOL] * 2}, ("tools[1]", "'f'")), ({"tools": [TOOL] * 129}, ("tools", "129", "128")),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, ("name", "a b")),
    ({"tool_choice": "required"}, ("tool_choice", "tools")),
    ({"tools": [TOOL], "tool_choice": "maybe"}, ("tool_choice", "maybe")),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, ("tool_choice", "'g'", "f is")),
    ({"tools": [TOOL], "tool_choice": "required", "regex": "a"}, ("tool_choice", "form")),
    ({"tools": [TOOL], "functions": [{"name": "f"}]}, ("functions", "tools")),
    ({"parallel_tool_calls": "yes"}, ("parallel_tool_calls",)),
    ({"chat_template": "{{ 1 }}"}, ("chat_template", "--trust-request-chat-template")),
    ({"chat_template_kwargs": {"messages": 1}}, ("messages", "cannot be set")),
    ({"chat_template_kwargs": {"tokenize": True}}, ("tokenize", "cannot be set")),
    ({"chat_template_kwargs": {"enable_thinking": {}}}, ("enable_thinking",)),
    ({"reasoning_effort": "huge"}, ("reasoning_effort", "huge")), ({"thinking_token_budget": -2}, ("thinking_token_budget",)),
    ({"modalities": ["audio"]}, ("modalities", "audio")), ({"documents": [5]}, ("documents",)),
    ({"add_generation_prompt": True, "continue_final_message": True}, ("add_generation_prompt", "continue_final_message")),
]  # fmt: skip


def test_what_chat_does_not_take(served: Served):
    for fields, words in CHATS:
        refused(served.post(CHAT, {**BASES[CHAT], **fields}), *words)


def test_tools_that_no_grammar_holds(served: Served):
    """They are what the client sent, and no grammar is."""
    parameters = {"type": "object", "properties": {"a": {"type": "odd"}}}
    odd = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    error = refused(served.post(CHAT, {"messages": HI, "max_tokens": 5, "tools": [odd], "tool_choice": "required"}), "odd")
    assert error["param"] == "tools" and "structured_outputs" not in error["message"]


TEXTS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"prompt": None}, ("prompt",)), ({"prompt": 5}, ("prompt",)), ({"prompt": []}, ("prompt is an empty list",)),
    ({"prompt": [""], "add_special_tokens": False}, ("empty",)), ({"prompt": [[]]}, ("empty",)),
    ({"prompt": [9, "a"]}, ("prompt",)),
    ({"prompt": [9.5]}, ("prompt",)), ({"prompt": [4096]}, ("4096", "4095")), ({"prompt": [-1]}, ("-1",)),
    ({"prompt": ["a", 5]}, ("prompt[1]", "5")), ({"prompt": ["a"] * 2049}, ("2049", "2048")),
    ({"prompt": {"prompt": "a"}}, ("prompt",)),
    ({"suffix": "b"}, ("suffix",)), ({"logprobs": True}, ("logprobs",)), ({"logprobs": 21}, ("logprobs", "20")),
    ({"max_tokens": 0}, ("max_tokens", "0")), ({"best_of": -1}, ("best_of",)), ({"best_of": 2, "n": 3}, ("best_of", "n")),
    ({"best_of": 2, "stream": True}, ("best_of", "stream")), ({"max_tokens": 0, "echo": True, "n": 2}, ("n is 2",)),
]  # fmt: skip


def test_what_completions_do_not_take(served: Served):
    for fields, words in TEXTS:
        refused(served.post(TEXT, {**BASES[TEXT], **fields}), *words)
    refused(served.post(TEXT, {}), "prompt")
    refused(served.post(CHAT, {}), "messages")


def test_what_is_too_long(served: Served):
    """Both numbers, and the code by which clients shorten their prompts."""
    long = "Once " * 1500
    for path, body, param, words in (
        (TEXT, {"prompt": long}, "prompt", "prompt is too long"),
        (TEXT, {"prompt": ["a", long]}, "prompt", "prompt is too long"),
        (TEXT, {"prompt": "a", "max_tokens": 2000}, "prompt", "ask for at most"),
        (CHAT, {"messages": [{"role": "user", "content": long}]}, "messages", "prompt is too long"),
        (CHAT, {"messages": HI, "max_tokens": 2000}, "messages", "ask for at most"),
        ("/v1/responses", {"input": long}, "input", "prompt is too long"),
    ):  # fmt: skip
        error = refused(served.post(path, body), "tokens", "102", words, "his model's maximum context length is 1024 tokens")
        assert ("too long" in error["message"]) == ("too long" in words)
        assert error["code"] == "context_length_exceeded" and error["param"] == param


OTHERS: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("/tokenize", {}, ("prompt", "messages", "none")), ("/tokenize", {"prompt": "a", "messages": HI}, ("prompt and messages",)),
    ("/tokenize", {"prompt": 5}, ("prompt",)),
    ("/tokenize", {"messages": [{"role": "user", "content": [{"type": "image"}]}]}, ("image",)),
    ("/tokenize", {"messages": HI, "chat_template": "a"}, ("chat_template",)),
    ("/detokenize", {"tokens": [4096]}, ("4096",)), ("/detokenize", {"tokens": ["a"]}, ("tokens",)),
    ("/detokenize", {}, ("tokens",)),
    ("/apply-template", {"messages": []}, ("messages",)),
    ("/inference/v1/generate", {"token_ids": []}, ("token_ids", "empty")),
    ("/inference/v1/generate", {"token_ids": "a"}, ("token_ids",)),
    ("/inference/v1/generate", {"token_ids": [9], "sampling_params": {"temprature": 1}}, ("temprature", "temperature")),
    ("/inference/v1/generate", {"token_ids": [9], "sampling_params": {"n": 0}}, ("n is 0",)),
    ("/inference/v1/generate", {"token_ids": [9] * 2000}, ("2000", "1023")),
    ("/inference/v1/generate", {"token_ids": [5000]}, ("5000",)),
]  # fmt: skip


def test_what_others_do_not_take(served: Served):
    for path, body, words in OTHERS:
        refused(served.post(path, body), *words)
    for path in ("/generate", "/generate_stream", "/"):
        for body in ({}, {"inputs": 5}, {"inputs": "a", "parameters": {"max_new_tokens": 0}}, {"inputs": "Once " * 2000}):
            answer = served.post(path, body)
            assert answer.status == 400 and set(answer.json) == {"error", "error_type"}, answer.body


@pytest.mark.parametrize("path", BASES)
def test_ids_that_are_named(served: Served, path: str):
    asked = {**BASES[path], "logprobs": True if path == CHAT else 0}
    for bad in ([4096], [-1], [1.5], ["1"], [True], "1", {}, list(range(129))):
        error = refused(served.post(path, {**asked, "logprob_token_ids": bad}), "logprob_token_ids")
        assert error["param"].startswith("logprob_token_ids")
    assert (
        refused(served.post(path, {**BASES[path], "logprob_token_ids": [1]}), "needs logprobs")["param"] == "logprob_token_ids"
    )
    echoed = {"prompt": "a", "echo": True, "max_tokens": 0, "logprobs": 1, "logprob_token_ids": [1]}
    assert refused(served.post(TEXT, echoed), "of an answer")["param"] == "logprob_token_ids"
    for good in (None, [], [4095], list(range(128))):
        assert served.post(path, {**asked, "logprob_token_ids": good}).status == 200, good


def test_nothing_of_all_this_ran(served: Served):
    engine = served.service.engine
    assert isinstance(engine, ServingFake) and engine.running == 0
    assert served.post(TEXT, BASES[TEXT]).status == 200
    json.dumps(served.service.unknown)


TOLD_AGAIN: list[tuple[str, dict[str, Any], str, int]] = [
    (TEXT, {"prompt": "a" * 20, "echo": True}, "n", 20),
    (TEXT, {"prompt": ["é" * 5] * 2, "echo": True}, "n", 20),
    (TEXT, {"prompt": [[9, 10]], "return_token_ids": True}, "n", 16),
    (TEXT, {"prompt": [9], "echo": True, "logprobs": 1}, "n", 64 + 1),
    (TEXT, {"prompt": [9], "prompt_logprobs": 0}, "n", 32),
    (TEXT, {"prompt": "a" * 20, "echo": True}, "best_of", 20),
    (CHAT, {"messages": [*HI, {"role": "assistant", "content": "a" * 20}], "echo": True, **GOES_ON}, "n", 20),
]


@pytest.mark.parametrize(("path", "body", "choices", "each"), TOLD_AGAIN)
def test_what_choices_repeat_of_their_prompt_is_bounded(
    setup: Setup, path: str, body: dict[str, Any], choices: str, each: int
) -> None:
    most = 3 * each + 1
    with ServingFake(running(setup, 8)) as engine, serving(engine, ROUTES, max_repeated_bytes=most) as served:
        asked = {"max_tokens": 1, **body}
        said = f"{choices} is 4, and each choice would repeat {each} bytes of the prompt, {4 * each} in all; {most} are"
        for stream in {False, choices == "n" and "prompt_logprobs" not in body}:
            assert refused(served.post(path, {**asked, choices: 4, "stream": stream}), said, "3 at once")["param"] == choices
        assert served.post(path, {**asked, choices: 3}).status == 200
        assert served.post(path, {**asked, "prompt": ["a" * 200], "echo": True}).status == 200, "one may be as long as it is"
        assert engine.running == 0


def test_what_is_derendered_repeats_no_more_either(setup: Setup) -> None:
    asked = {"messages": [*HI, {"role": "assistant", "content": "a" * 20}], "echo": True, **GOES_ON}
    with ServingFake(setup) as engine, serving(engine, ROUTES, max_repeated_bytes=61) as served:
        for count, status in ((3, 200), (4, 400)):
            choices = [{"index": n, "token_ids": [9]} for n in range(count)]
            body = {"generate_response": {"choices": choices}, "chat_request": asked}
            answer = served.post("/v1/chat/completions/derender", body)
            assert answer.status == status and (b"would repeat 20 bytes" in answer.body) == (status == 400), answer.body


def test_tgi_repeats_no_more_either(setup: Setup) -> None:
    wanted = {"max_new_tokens": 1, "do_sample": True, "return_full_text": True}
    with ServingFake(setup) as engine, serving(engine, ROUTES, max_repeated_bytes=60) as served:
        many = served.post("/generate", {"inputs": "a" * 30, "parameters": {**wanted, "best_of": 3}})
        assert many.status == 400 and "would repeat 30 bytes of the prompt, 90 in all; 60 are the most" in many.json["error"]
        assert served.post("/generate", {"inputs": "a" * 30, "parameters": {**wanted, "best_of": 2}}).status == 200


def test_more_choices_than_the_server_gives(setup: Setup):
    with ServingFake(setup) as engine, serving(engine, ROUTES, max_choices=2, max_prompts=2) as served:
        refused(served.post(TEXT, {"prompt": "a", "n": 3}), "n is 3", "2")
        many = ["a"] * 3
        for path, body in (
            (TEXT, {"prompt": many}), ("/v1/embeddings", {"input": many}), ("/v1/score", {"text_1": "a", "text_2": many}),
            ("/v1/rerank", {"query": "a", "documents": many}),
        ):  # fmt: skip
            refused(served.post(path, body), "has 3 texts; 2 are the most")
        assert served.post(TEXT, {"prompt": ["a"] * 2, "n": 2}).status == 200
