"""--lenient: what is refused otherwise is left out, each field named in a header, and all else is as without it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from shardwise.engine.setup import Setup
from shardwise.server.routes import ROUTES
from tests.server.drive import Served, serving
from tests.server.engines import ServingFake

CHAT, TEXT, RESPONSES, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"
TOOLS = [{"type": "function", "function": {"name": "f"}}]
BASES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1},
    TEXT: {"prompt": "Once", "max_tokens": 1},
    RESPONSES: {"input": "hi", "max_output_tokens": 1},
}
LEFT_OUT: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, {"logit_bias": {"foo": 0, "9": 1}}, "logit_bias"),
    (CHAT, {"max_tokens": 0, "max_completion_tokens": 0}, "max_tokens, max_completion_tokens"),
    (CHAT, {"tools": TOOLS, "functions": [{"name": "f"}], "function_call": "none"}, "functions, function_call"),
    (TEXT, {"logit_bias": {"9" * 5000: 1, "-1": 1, "4096": 1}}, "logit_bias"),
    (TEXT, {"suffix": "the end"}, "suffix"),
    (RESPONSES, {"previous_response_id": "resp_1"}, "previous_response_id"),
    (RESPONSES, {"conversation": "c", "prompt": {"id": "p"}}, "conversation, prompt"),
]


@pytest.fixture(scope="module", params=[True, False], ids=["lenient", "careful"])
def served(request: pytest.FixtureRequest, setup: Setup) -> Iterator[Served]:
    with ServingFake(setup) as engine, serving(engine, ROUTES, lenient=request.param) as made:
        yield made


def test_what_is_left_out_is_named(served: Served):
    for path, fields, names in LEFT_OUT:
        answer = served.post(path, {**BASES[path], **fields})
        if served.service.settings.lenient:
            assert (answer.status, answer.headers.get("x-ignored")) == (200, names), (fields, answer.body)
        else:
            assert answer.status in (400, 404) and "x-ignored" not in answer.headers, (fields, answer.body)


def test_what_is_there_is_not_left_out(served: Served):
    first = served.post(RESPONSES, BASES[RESPONSES]).json
    then = served.post(RESPONSES, {**BASES[RESPONSES], "previous_response_id": first["id"]})
    assert then.status == 200 and then.json["previous_response_id"] == first["id"] and "x-ignored" not in then.headers
    plain = served.post(CHAT, {**BASES[CHAT], "logit_bias": {"9": 1}, "tools": TOOLS, "stream": True})
    assert plain.status == 200 and "x-ignored" not in plain.headers
    assert served.post(CHAT, {**BASES[CHAT], "temperature": -1}).status == 400


def test_answers_are_of_the_published_schema(served: Served):
    """No null among log-probabilities, and embeddings are lists, for clients that validate strictly."""
    echoed = served.post(TEXT, {**BASES[TEXT], "echo": True, "logprobs": 1})
    told = served.post(EMBEDDINGS, {"input": "a", "encoding_format": "base64"})
    if served.service.settings.lenient:
        assert echoed.json["choices"][0]["logprobs"] is None and echoed.headers["x-ignored"] == "logprobs"
        assert isinstance(told.json["data"][0]["embedding"], list) and told.headers["x-ignored"] == "encoding_format"
    else:
        assert echoed.json["choices"][0]["logprobs"]["token_logprobs"][0] is None
        assert isinstance(told.json["data"][0]["embedding"], str)


def test_a_best_of_none_and_a_negative_seed_are_openais(served: Served):
    """Its API description allows both, so both are always taken."""
    asked = {**BASES[TEXT], "max_tokens": 4, "temperature": 1, "best_of": 0, "seed": -9007199254740991}
    one, two = (served.post(TEXT, asked) for _ in range(2))
    assert one.status == 200 and one.json["choices"] == two.json["choices"]
