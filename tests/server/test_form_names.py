"""A form that cannot be kept is refused by the name of the field that the client sent, in the message and as `param`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from shardwise.engine.setup import Setup
from shardwise.server.routes import ROUTES
from tests.server.drive import Served, serving
from tests.server.engines import ServingFake

CHAT, TEXT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
HI = [{"role": "user", "content": "hi"}]
BASES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": HI}, TEXT: {"prompt": "Once"}, RESPONSES: {"input": "hi"}, MESSAGES: {"messages": HI, "max_tokens": 9},
    "/inference/v1/generate": {"token_ids": [9]},
}  # fmt: skip

BAD: dict[str, Any] = {"type": "nothing"}
"""A schema that does not compile."""

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": BAD}}}}
FLAT = {"type": "json_schema", "name": "n", "schema": BAD}

TAG = {"structures": [{"begin": "<f>", "schema": BAD, "end": "</f>"}], "triggers": ["<f>"]}

FORMS: list[tuple[dict[str, Any], str]] = [
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": BAD}}},
     "response_format.json_schema.schema"),
    ({"response_format": FLAT}, "response_format.schema"),
    ({"response_format": {"type": "json_object", "schema": BAD}}, "response_format.schema"),
    ({"response_format": {"type": "regex", "pattern": "("}}, "response_format.pattern"),
    ({"response_format": {"type": "regex"}}, "response_format.pattern"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"structured_outputs": {"json": BAD}}, "structured_outputs.json"),
    ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex"),
    ({"structured_outputs": {"grammar": 'start: a\na[stop="x"]: /b/'}}, "structured_outputs.grammar"),
    ({"structured_outputs": {}}, "structured_outputs"),
    ({"structured_outputs": {"structural_tag": TAG}}, "structured_outputs.structural_tag"),
    ({"structured_outputs": {"structural_tag": {**TAG, "triggers": ["@"]}}}, "structured_outputs.structural_tag.triggers"),
    ({"response_format": {"type": "structural_tag", **TAG}}, "response_format"),
    ({"response_format": {"type": "structural_tag", "format": {"type": "x"}}}, "response_format.format.type"),
    ({"structural_tag": json.dumps(TAG)}, "structural_tag"), ({"structural_tag": "{"}, "structural_tag"),
    ({"guided_json": BAD}, "guided_json"), ({"guided_json": "{"}, "guided_json"),
    ({"guided_regex": "("}, "guided_regex"), ({"guided_regex": "a" * 40_000}, "guided_regex"),
    ({"guided_choice": []}, "guided_choice"), ({"guided_grammar": "x"}, "guided_grammar"),
    ({"json_schema": BAD}, "json_schema"), ({"regex": "a*" * 10_000}, "regex"), ({"ebnf": "root = a"}, "ebnf"),
    ({"grammar": "root ::= b"}, "grammar"),
]  # fmt: skip


@pytest.fixture(scope="module")
def served(setup: Setup) -> Iterator[Served]:
    with ServingFake(setup) as engine, serving(engine, ROUTES) as made:
        yield made


def check(served: Served, path: str, fields: dict[str, Any], name: str) -> None:
    answer = served.post(path, {**BASES[path], **fields})
    assert answer.status == 400, (fields, answer.body)
    error = answer.json["error"]
    assert error["message"].startswith(f"{name} "), (name, error["message"])
    assert ("structured_outputs" in error["message"]) == name.startswith("structured_outputs")
    if path != MESSAGES:
        assert error["param"] == name


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_under_every_name(served: Served, path: str):
    for fields, name in FORMS:
        check(served, path, fields, name)


def test_of_the_other_apis(served: Served):
    check(served, RESPONSES, {"text": {"format": FLAT}}, "text.format.schema")
    check(served, RESPONSES, {"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema")
    check(
        served, MESSAGES, {"output_config": {"format": {"type": "json_schema", "schema": BAD}}}, "output_config.format.schema"
    )
    check(served, "/inference/v1/generate", {"sampling_params": {"guided_regex": "("}}, "guided_regex")
    for kind, value in (("regex", "("), ("json", BAD), ("json_schema", {"schema": BAD})):
        body = {"inputs": "a", "parameters": {"grammar": {"type": kind, "value": value}}}
        answer = served.post("/generate", body)
        assert answer.status == 400 and answer.json["error"].startswith("parameters.grammar.value"), answer.body


def test_of_tools(served: Served):
    check(served, CHAT, {"tools": [TOOL], "tool_choice": "required"}, "tools")
    check(served, CHAT, {"functions": [TOOL["function"]], "function_call": {"name": "f"}}, "functions")
    flat = {"type": "function", **TOOL["function"]}  # type: ignore[dict-item]
    check(served, RESPONSES, {"tools": [flat], "tool_choice": "required"}, "tools")
    schema = TOOL["function"]["parameters"]  # type: ignore[index]
    check(served, MESSAGES, {"tools": [{"name": "f", "input_schema": schema}], "tool_choice": {"type": "any"}}, "tools")
