"""The endpoints over a real engine with the bundled model: answers are those of the engine, forms and calls are kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from shardwise.engine.engine import Engine
from shardwise.engine.front import Front
from shardwise.engine.setup import Options, resolve
from shardwise.sched.request import SamplingParams
from shardwise.server.routes import ROUTES
from tests.server.drive import Served, serving
from tests.server.saying import chat_streamed, chat_whole, text_streamed, text_whole

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HI = [{"role": "user", "content": "Tell me a story."}]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    setup = resolve(Options("shardling", tp=2, device="cpu"))
    with Engine(setup, "threads") as engine, serving(engine, ROUTES) as made:
        yield made


def test_it_says_what_the_engine_says(served: Served):
    front = Front(served.service.engine)
    outputs = list(front.stream(front.prompt("Once upon"), SamplingParams(max_tokens=12, temperature=0, logprobs=2)))
    asked = {"prompt": "Once upon", "max_tokens": 12, "temperature": 0, "logprobs": 2, "return_token_ids": True}
    (choice,) = served.post(TEXT, asked).json["choices"]
    assert choice["token_ids"] == [token for output in outputs for token in output.outputs[0].token_ids]
    assert choice["text"] == "".join(output.outputs[0].text for output in outputs)
    places = [place for output in outputs for place in output.outputs[0].logprobs or ()]
    expected = [next(iter(place.values())).logprob for place in places]
    assert choice["logprobs"]["token_logprobs"] == pytest.approx(expected)
    assert all(len(tops) == 2 for tops in choice["logprobs"]["top_logprobs"])


@pytest.mark.parametrize("stream", [False, True])
def test_what_no_answer_can_be_is_the_clients_to_mend(served: Served, stream: bool):
    """Found out when the first token is to be drawn: 400 all the same, and nobody's failure."""
    (only,) = served.post("/tokenize", {"prompt": "a", "add_special_tokens": False}).json["tokens"]
    asked = {"prompt": "Once", "regex": "b+", "allowed_token_ids": [only], "stream": stream}
    answer = served.post(TEXT, asked)
    error = answer.events[-2]["error"] if stream else answer.json["error"]
    assert (answer.status, error["type"]) == (200 if stream else 400, "invalid_request_error")
    assert "what the answer must look like" in error["message"]


def test_a_score_is_that_of_the_drawn(served: Served):
    """Scoring an answer gives the log-probabilities that it was drawn with."""
    asked = {"prompt": "Once upon", "max_tokens": 8, "seed": 3, "temperature": 1, "logprobs": 0, "return_token_ids": True}
    (drawn,) = served.post(TEXT, asked).json["choices"]
    ids = drawn["prompt_token_ids"] + drawn["token_ids"]
    (scored,) = served.post(TEXT, {"prompt": ids, "max_tokens": 0, "echo": True, "logprobs": 0}).json["choices"]
    last = scored["logprobs"]["token_logprobs"][-len(drawn["token_ids"]) :]
    assert last == pytest.approx(drawn["logprobs"]["token_logprobs"], abs=1e-3)


def test_streams_at_once_are_as_alone(served: Served):
    """Twelve clients, half of them streaming: each gets what it gets by itself."""

    def ask(n: int) -> Any:
        body = {"messages": HI, "max_tokens": 24, "seed": n // 2, "temperature": 2, "n": 2, "stream": n % 2 == 0}
        return (chat_streamed if body["stream"] else chat_whole)(served.post(CHAT, body))

    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(ask, range(12)))
    assert together == [ask(n) for n in range(12)]
    assert all(together[n] == together[n + 1] for n in range(0, 12, 2))
    assert len({choice["content"] for answer in together for choice in answer.values()}) > 6


SCHEMA = {
    "type": "object", "properties": {"city": {"type": "string", "maxLength": 9}, "unit": {"enum": ["c", "f"]}},
    "required": ["city", "unit"], "additionalProperties": False,
}  # fmt: skip
TOOL = {"type": "function", "function": {"name": "weather", "description": "Tells the weather.", "parameters": SCHEMA}}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", ["required", "weather"])
def test_calls_hold_to_their_schema(served: Served, choice: str, stream: bool):
    named = {"type": "function", "function": {"name": choice}}
    asked = {
        "messages": HI, "tools": [TOOL], "tool_choice": choice if choice == "required" else named, "temperature": 1, "seed": 1,
        "parallel_tool_calls": False, "stream": stream,
    }  # fmt: skip
    answer = (chat_streamed if stream else chat_whole)(served.post(CHAT, asked))[0]
    ((name, arguments),) = answer["calls"]
    found = json.loads(arguments)
    assert name == "weather" and set(found) == {"city", "unit"} and found["unit"] in ("c", "f") and answer["content"] == ""


def test_forms_are_kept(served: Served):
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}
    answer = chat_whole(served.post(CHAT, {"messages": HI, "response_format": form, "temperature": 1, "n": 3}))
    assert all(json.loads(answer[n]["content"])["unit"] in ("c", "f") for n in range(3))
    choice = text_whole(served.post(TEXT, {"prompt": "Is it?", "guided_choice": ["yes", "no"], "temperature": 1}))[0]
    assert choice["text"] in ("yes", "no") and choice["finish_reason"] == "stop"
    asked = {"inputs": "A year:", "parameters": {"grammar": {"type": "regex", "value": "1[0-9]{3}"}, "do_sample": True}}
    assert served.post("/generate", asked).json["generated_text"][0] == "1"


def test_a_tag_that_begins_in_free_text_holds_to_its_schema(served: Served):
    """Each of n answers, in a stream as at once. Up to " the", which the model says and which must be a tag here, it says what
    it would have said."""
    tag = {"structures": [{"begin": " the", "schema": {"enum": ["up", 5]}, "end": " end"}], "triggers": [" the"]}
    asked = {"messages": HI, "n": 2, "temperature": 1, "seed": 1, "max_tokens": 40, "ignore_eos": True}
    forms = [
        {"response_format": {"type": "structural_tag", **tag}},
        {"structured_outputs": {"structural_tag": json.dumps(tag)}},
    ]
    whole, plain = chat_whole(served.post(CHAT, {**asked, **forms[0]})), chat_whole(served.post(CHAT, asked))
    assert whole == chat_streamed(served.post(CHAT, {**asked, **forms[1], "stream": True}))
    assert whole[0]["content"] != whole[1]["content"]
    for n in range(2):
        free, _, tags = whole[n]["content"].partition(" the")
        assert len(free) > 5 and free == plain[n]["content"].partition(" the")[0]
        assert tags.lstrip().startswith(('"up" end', "5 end"))


def test_prompts_are_found_in_the_cache_of_their_tenant(served: Served):
    asked = {"prompt": "Once upon a time there was " * 20, "max_tokens": 1, "cache_salt": "a"}
    found = [served.post(TEXT, {**asked, "cache_salt": salt}).json["usage"] for salt in ("a", "a", "b")]
    cached = [usage["prompt_tokens_details"]["cached_tokens"] for usage in found]
    assert cached[0] == 0 and cached[1] > 0 and cached[2] == 0


def test_a_stream_of_many_prompts(served: Served):
    asked = {"prompt": ["Once", "There was", [9, 10]], "n": 2, "seed": 1, "temperature": 1, "max_tokens": 9, "echo": True}
    streamed = text_streamed(served.post(TEXT, {**asked, "stream": True}))
    assert streamed == text_whole(served.post(TEXT, asked))
