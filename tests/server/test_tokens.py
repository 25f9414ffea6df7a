"""Models, tokens, rendered prompts, ids in and out; and TGI's endpoints."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from shardwise.engine.setup import Setup
from shardwise.server.routes import ROUTES
from tests.server.drive import Served, serving, wait_for
from tests.server.engines import ServingFake
from tests.server.saying import says, says_texts

HI = [{"role": "user", "content": "hi"}]


@pytest.fixture
def served(engine: ServingFake) -> Iterator[Served]:
    with serving(engine, ROUTES, served_model_name=("org/model", "short")) as made:
        yield made


def test_models(served: Served, engine: ServingFake):
    listed = served.get("/v1/models").json
    assert listed["object"] == "list" and [each["id"] for each in listed["data"]] == ["org/model", "short"]
    one = served.get("/v1/models/org/model").json
    assert one == listed["data"][0] and one["max_model_len"] == engine.setup.context
    assert (one["object"], one["owned_by"], one["root"], one["parent"]) == ("model", "shardwise", "shardling", None)
    missing = served.get("/v1/models/org/other")
    assert missing.status == 404 and missing.json["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "a"}), ("/v1/chat/completions", {"messages": HI}), ("/tokenize", {"prompt": "a"}),
        ("/detokenize", {"tokens": [9]}), ("/inference/v1/generate", {"token_ids": [9]}), ("/apply-template", {"messages": HI}),
    ],
)  # fmt: skip
def test_the_models_name(served: Served, path: str, body: dict[str, Any]):
    for name in (None, "", "org/model", "short"):
        answer = served.post(path, {**body, "model": name})
        assert answer.status == 200
        if "model" in answer.json:
            assert answer.json["model"] == (name or "org/model")
    refused = served.post(path, {**body, "model": "gpt-4"})
    assert refused.status == 404 and "org/model" in refused.json["error"]["message"]


def test_tokens_there_and_back(served: Served):
    encoded = served.post("/tokenize", {"prompt": "Hello you", "return_token_strs": True}).json
    assert encoded["tokens"] == [0, 1447, 380] and encoded["count"] == 3 and encoded["max_model_len"] == 1024
    assert encoded["token_strs"] == ["<|bos|>", "Hello", " you"]
    plain = served.post("/v1/tokenize", {"prompt": "Hello you", "add_special_tokens": False}).json
    assert plain["tokens"] == [1447, 380] and plain["token_strs"] is None
    assert served.post("/tokenize", {"content": "Hello you"}).json["tokens"] == [1447, 380]
    assert served.post("/tokenize", {"content": "Hello you", "add_special": True}).json["tokens"] == [0, 1447, 380]
    decoded = served.post("/detokenize", {"tokens": [0, 1447, 380]}).json
    assert decoded == {"prompt": "<|bos|>Hello you", "content": "<|bos|>Hello you"}
    assert served.post("/detokenize", {"tokens": []}).json["prompt"] == ""


def test_a_conversations_tokens(served: Served, engine: ServingFake):
    """What /tokenize says of a conversation is what a request has as its prompt."""
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    asked = {"messages": HI, "tools": [tool]}
    tokens = served.post("/tokenize", asked).json["tokens"]
    rendered = served.post("/v1/chat/completions/render", asked).json
    served.post("/v1/chat/completions", {**asked, "max_tokens": 1})
    assert tuple(tokens) == tuple(rendered["token_ids"]) == engine.submitted[-1][0]
    assert rendered["prompt"] == served.post("/detokenize", {"tokens": tokens}).json["prompt"]


def test_the_tokenizer(served: Served):
    """What lm-eval's RemoteTokenizer reads."""
    told = served.get("/tokenizer_info").json
    assert (told["eos_token"], told["bos_token"], told["pad_token"]) == ("<|end|>", "<|bos|>", "<|pad|>")
    assert "messages" in told["chat_template"] and told["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert served.post("/tokenize", {"prompt": told["eos_token"], "add_special_tokens": False}).json["tokens"] == [6]


def test_ids_in_and_out(served: Served, engine: ServingFake):
    says(engine, [300, 301], [400])
    asked = {"token_ids": [9, 10], "sampling_params": {"n": 2, "max_tokens": 5, "logprobs": 1}, "request_id": "mine"}
    answer = served.post("/inference/v1/generate", asked).json
    assert answer["request_id"] == "mine" and [each["token_ids"] for each in answer["choices"]] == [[300, 301, 6], [400, 6]]
    assert [len(each["logprobs"]["content"]) for each in answer["choices"]] == [3, 2]
    assert engine.submitted[-1][0] == (9, 10) and not engine.submitted[-1][1].detokenize
    streamed: dict[int, list[int]] = {0: [], 1: []}
    *events, done = served.post("/inference/v1/generate", {**asked, "stream": True}).events
    for event in events:
        for choice in event["choices"]:
            streamed[choice["index"]] += choice["token_ids"]
    assert done == "[DONE]" and streamed == {0: [300, 301, 6], 1: [400, 6]}
    scored = {"token_ids": [9, 10, 11], "sampling_params": {"max_tokens": 1, "prompt_logprobs": 1}}
    assert len(served.post("/inference/v1/generate", scored).json["prompt_logprobs"]) == 3
    stopped = {"token_ids": [9], "sampling_params": {"max_tokens": 5, "stop": ["you"]}}
    says_texts(engine, served.service.front.tokenizer, "Hello you all")
    assert served.post("/inference/v1/generate", stopped).json["choices"][0]["token_ids"] == [1447, 380]


# --- TGI --------------------------------------------------------------------------------------------------------------


def test_tgi(served: Served, engine: ServingFake):
    says_texts(engine, served.service.front.tokenizer, "Hello 日本 you")
    body: dict[str, Any] = {"inputs": "Say", "parameters": {"details": True, "decoder_input_details": True, "seed": 5}}
    answer = served.post("/generate", body).json
    details = answer["details"]
    assert answer["generated_text"] == "Hello 日本 you" and details["finish_reason"] == "eos_token" and details["seed"] == 5
    assert details["prefill"][0]["logprob"] is None and details["prefill"][0]["text"] == "<|bos|>"
    assert details["tokens"][-1] == {"id": 6, "text": "<|end|>", "logprob": -0.5, "special": True}
    assert "".join(token["text"] for token in details["tokens"] if not token["special"]) == answer["generated_text"]
    assert len(details["tokens"]) == details["generated_tokens"]
    assert served.post("/", {"inputs": "Say"}).json == [{"generated_text": "Hello 日本 you", "details": None}]
    full = {"inputs": "Say", "parameters": {"return_full_text": True, "stop": ["本"]}}
    assert served.post("/generate", full).json["generated_text"] == "SayHello 日本"


def test_tgi_tells_of_a_prompt_that_takes_several_steps(setup: Setup):
    text = "Once upon a time there was a little girl"
    wanted = {"decoder_input_details": True, "details": True, "max_new_tokens": 1}
    setup = replace(setup, limits=replace(setup.limits, tokens=4))
    with ServingFake(setup, held=True) as engine, serving(engine, ROUTES) as served, ThreadPoolExecutor(1) as client:
        answer = client.submit(served.post, "/generate", {"inputs": text, "parameters": wanted})
        wait_for(lambda: engine.running, "it runs")
        while engine.running:
            engine.allow(1)
            wait_for(lambda: not (engine.ticks and engine.running), "a step")
            served.call(lambda: asyncio.sleep(0))  # what the step told is read before the next one
        ids = served.service.front.tokenizer.encode(text)
        assert len(ids) > 8 and [token["id"] for token in answer.result().json["details"]["prefill"]] == ids


@pytest.mark.parametrize("path", ["/generate_stream", "/"])
def test_tgi_streams(served: Served, engine: ServingFake, path: str):
    says_texts(engine, served.service.front.tokenizer, "Hello 日本 you")
    body = {"inputs": "Say", "stream": True, "parameters": {"details": True, "top_n_tokens": 2}}
    events = served.post(path, body).events
    assert [event["index"] for event in events] == list(range(1, len(events) + 1))
    assert [event["generated_text"] for event in events[:-1]] == [None] * (len(events) - 1)
    assert "".join(event["token"]["text"] for event in events if not event["token"]["special"]) == "Hello 日本 you"
    assert "�" not in "".join(event["token"]["text"] for event in events)
    last = events[-1]
    assert last["generated_text"] == "Hello 日本 you" and last["details"]["generated_tokens"] == len(events)
    assert last["details"]["finish_reason"] == "eos_token" and len(last["top_tokens"]) == 2


@pytest.mark.parametrize(
    ("asked", "temperature"), [({}, 0.0), ({"do_sample": True}, 1.0), ({"temperature": 0.5}, 0.5), ({"top_p": 0.9}, 1.0)]
)
def test_tgi_draws_where_it_is_asked_to(served: Served, engine: ServingFake, asked: dict[str, Any], temperature: float):
    assert served.post("/generate", {"inputs": "Say", "parameters": {**asked, "max_new_tokens": 1}}).status == 200
    assert engine.submitted[-1][1].temperature == temperature


def test_tgi_best_of(served: Served, engine: ServingFake):
    says(engine, [300], [301])
    body = {"inputs": "Say", "parameters": {"best_of": 2, "do_sample": True, "details": True}}
    details = served.post("/generate", body).json["details"]
    (other,) = details["best_of_sequences"]
    assert {details["tokens"][0]["id"], other["tokens"][0]["id"]} == {300, 301} and other["finish_reason"] == "eos_token"


def test_tgi_fills_what_there_is(served: Served, engine: ServingFake):
    """A hundred tokens where nobody says how many, fewer where there is no room."""
    says(engine, [300] * 2000)
    assert len(served.post("/generate", {"inputs": "a", "parameters": {"details": True}}).json["details"]["tokens"]) == 100
    long = {"inputs": "Once " * 2000, "parameters": {"truncate": 1000, "details": True}}
    assert len(served.post("/generate", long).json["details"]["tokens"]) == 24


def test_tgi_tells_errors_in_its_shape(served: Served, engine: ServingFake):
    for parameters in (
        {"typical_p": 0.5},
        {"watermark": True},
        {"adapter_id": "x"},
        {"best_of": 2},
        {"temperature": -1},
        {"truncate": 2000},
    ):
        answer = served.post("/generate", {"inputs": "Say", "parameters": parameters})
        assert answer.status == 400 and answer.json["error_type"] == "validation"
        assert next(iter(parameters)) in answer.json["error"]
    engine.answer = lambda _prompt, _choice, place: -1 if place == 2 else 300
    events = served.post("/generate_stream", {"inputs": "Say"}).events
    assert events[-1]["error_type"] == "generation" and "token" not in events[-1]


def test_tgi_tells_what_is_served(served: Served, engine: ServingFake):
    told = served.get("/info").json
    assert told["model_id"] == "org/model" and told["max_total_tokens"] == engine.setup.context
    # As many as run at once, where that is fewer than the server gives.
    assert told["max_best_of"] == min(engine.setup.limits.sequences, served.service.settings.max_choices)
    json.dumps(told)
