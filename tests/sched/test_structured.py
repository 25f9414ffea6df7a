"""What an answer must look like: under all its names, and what is refused."""

from __future__ import annotations

import json
import re

import msgspec
import pytest

from shardwise.errors import RequestError
from shardwise.sched.fields import sampling_fields
from shardwise.sched.given_json import MAX_SCHEMA_BYTES, MAX_SCHEMA_DEPTH
from shardwise.sched.request import SamplingParams
from shardwise.sched.structured import (
    MAX_CHOICES,
    MAX_GRAMMAR_BYTES,
    MAX_REGEX_BYTES,
    StructuredOutputs,
)

SCHEMA = {"type": "object", "properties": {"b": {"type": "string"}, "a": {"enum": ["é", 1, None, True]}}}
AS_JSON, AS_REGEX = StructuredOutputs(json=SCHEMA), StructuredOutputs(regex=r"\d+")
AS_CHOICE, AS_OBJECT = StructuredOutputs(choice=["yes", "no"]), StructuredOutputs(json_object=True)
GBNF = 'root ::= "a"'
AS_GRAMMAR = StructuredOutputs(grammar=GBNF)

TAG = {"structures": [{"begin": "<f>", "schema": SCHEMA, "end": "</f>"}], "triggers": ["<f"]}
NEWER = {"format": {"type": "tag", "begin": "<f>", "content": {"type": "json_schema", "json_schema": SCHEMA}, "end": "</f>"}}
AS_TAG, AS_NEWER = StructuredOutputs(structural_tag=TAG), StructuredOutputs(structural_tag=NEWER)

SPELLINGS = [
    ({"structured_outputs": {"structural_tag": TAG}}, AS_TAG),
    ({"structured_outputs": {"structural_tag": json.dumps({"type": "structural_tag", **TAG})}}, AS_TAG),
    ({"structured_outputs": {"structural_tag": {**NEWER, "type": "structural_tag"}}}, AS_NEWER),
    ({"response_format": {"type": "structural_tag", **TAG}}, AS_TAG),
    ({"response_format": {"type": "structural_tag", **NEWER}}, AS_NEWER),
    ({"structural_tag": TAG}, AS_TAG),
    ({"structural_tag": json.dumps(NEWER), "response_format": {"type": "structural_tag", **NEWER}}, AS_NEWER),
    ({"structured_outputs": {"json": SCHEMA}}, AS_JSON),
    ({"structured_outputs": {"json": json.dumps(SCHEMA), "regex": None, "json_object": False}}, AS_JSON),
    ({"structured_outputs": {"json": SCHEMA, "whitespace_pattern": None, "disable_any_whitespace": False}}, AS_JSON),
    ({"structured_outputs": {"regex": r"\d+"}}, AS_REGEX),
    ({"structured_outputs": {"choice": ["yes", "no", "yes"]}}, AS_CHOICE),
    ({"structured_outputs": {"grammar": GBNF}}, AS_GRAMMAR),
    ({"structured_outputs": {"json_object": True}}, AS_OBJECT),
    ({"structured_outputs": None}, None),
    ({"guided_json": SCHEMA}, AS_JSON),
    ({"guided_json": json.dumps(SCHEMA)}, AS_JSON),
    ({"guided_regex": r"\d+"}, AS_REGEX),
    ({"guided_choice": ["yes", "no"]}, AS_CHOICE),
    ({"guided_grammar": GBNF}, AS_GRAMMAR),
    ({"response_format": {"type": "text"}}, None),
    ({"response_format": None}, None),
    ({"response_format": {"type": "json_object"}}, AS_OBJECT),
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, AS_JSON),
    ({"response_format": {"type": "json_object", "value": SCHEMA}}, AS_JSON),
    ({"response_format": {"type": "json", "value": SCHEMA}}, AS_JSON),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}}, AS_JSON),
    ({"response_format": {"type": "json_schema", "name": "n", "schema": SCHEMA}}, AS_JSON),
    ({"response_format": {"type": "regex", "pattern": r"\d+"}}, AS_REGEX),
    ({"regex": r"\d+"}, AS_REGEX),
    ({"ebnf": GBNF}, AS_GRAMMAR),
    ({"json_schema": json.dumps(SCHEMA)}, AS_JSON),
    ({"json_schema": SCHEMA}, AS_JSON),
    ({"grammar": {"type": "json", "value": SCHEMA}}, AS_JSON),
    ({"grammar": {"type": "json_schema", "value": {"name": "n", "schema": SCHEMA}}}, AS_JSON),
    ({"grammar": {"type": "regex", "value": r"\d+"}}, AS_REGEX),
    ({"grammar": GBNF}, AS_GRAMMAR),
    ({"grammar": "", "json_schema": SCHEMA}, AS_JSON),
    ({"guided_json": SCHEMA, "response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}}, AS_JSON),
    ({"guided_json": SCHEMA, "json_schema": dict(reversed(SCHEMA.items()))}, AS_JSON),
    ({"response_format": {"type": "text"}, "regex": r"\d+"}, AS_REGEX),
]


@pytest.mark.parametrize(
    ("body", "wanted"), SPELLINGS, ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else ""
)
def test_all_spellings_are_one(body, wanted):
    assert SamplingParams(**sampling_fields(body)).structured_outputs == wanted


def test_it_is_a_value_that_travels():
    """Hashable, so that what is compiled can be kept by it; the same after msgpack; a schema's keys in their order."""
    for one in (AS_JSON, AS_REGEX, AS_CHOICE, AS_OBJECT, AS_GRAMMAR, AS_TAG, AS_NEWER):
        params = SamplingParams(structured_outputs=one)
        there = msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=SamplingParams)
        assert there == params and hash(there.structured_outputs) == hash(one)
    assert SamplingParams(structured_outputs={"json": SCHEMA}).structured_outputs == AS_JSON
    called = SamplingParams(**sampling_fields({"guided_json": SCHEMA}))
    there = msgspec.msgpack.decode(msgspec.msgpack.encode(called), type=SamplingParams).structured_outputs
    assert there == AS_JSON and (there.said, AS_JSON.said) == ("guided_json", "structured_outputs.json")
    with pytest.raises(RequestError, match="structured_outputs has no 'name'"):
        SamplingParams(structured_outputs={"json": SCHEMA, "name": "x"})
    assert AS_JSON.json == '{"type":"object","properties":{"b":{"type":"string"},"a":{"enum":["é",1,null,true]}}}'
    assert [one.kind for one in (AS_JSON, AS_OBJECT)] == ["json", "json_object"]


def deep(levels: int) -> dict[str, object]:
    """A schema of so many levels of JSON."""
    found: dict[str, object] = {}
    for _ in range(levels - 1):
        found = {"not": found}
    return found


FORMATS = "response_format.type is 'xml', which is not supported; it takes one of text, json_object, json_schema, regex"
REFUSED = [
    (
        {"structured_outputs": {}},
        "structured_outputs says nothing; it takes exactly one of json, regex, choice, grammar, json_object",
    ),
    (
        {"structured_outputs": {"regex": "a", "choice": ["b"]}},
        "structured_outputs has regex and choice; it takes exactly one of",
    ),
    ({"structured_outputs": {"regexp": "a"}}, "structured_outputs has no 'regexp', nearest: regex"),
    ({"structured_outputs": {"regex": "a", "disable_any_whitespace": True}}, "has no 'disable_any_whitespace'"),
    ({"structured_outputs": "json"}, "structured_outputs is 'json'; it takes an object with one of json"),
    ({"structured_outputs": {"json_object": 1}}, "structured_outputs.json_object is 1; it takes True or False"),
    ({"structured_outputs": {"json": 5}}, "structured_outputs.json is 5; it takes a JSON schema, which is an object"),
    ({"structured_outputs": {"json": "{"}}, "structured_outputs.json is not JSON: "),
    ({"structured_outputs": {"json": "[1]"}}, "structured_outputs.json is [1]; it takes a JSON schema"),
    ({"structured_outputs": {"json": '{"minimum": NaN}'}}, "structured_outputs.json is not JSON: NaN is no number of JSON"),
    ({"structured_outputs": {"json": {"minimum": float("inf")}}}, "structured_outputs.json has inf, which JSON does not"),
    ({"structured_outputs": {"json": {"maximum": 10**30}}}, "whole numbers in it take at most 63 bits"),
    ({"structured_outputs": {"json": {"enum": [{1}]}}}, "structured_outputs.json holds {1}; JSON has objects, lists"),
    ({"structured_outputs": {"json": {"enum": ["\ud800"]}}}, "a text in structured_outputs.json has half a surrogate pair"),
    ({"structured_outputs": {"json": {1: 2}}}, "a key of structured_outputs.json must be a string, not int"),
    ({"structured_outputs": {"json": deep(MAX_SCHEMA_DEPTH + 1)}}, f"is nested more than {MAX_SCHEMA_DEPTH} levels deep"),
    ({"structured_outputs": {"json": "[" * 100_000}}, "structured_outputs.json is nested too deep"),
    ({"structured_outputs": {"json": {"a": "x" * MAX_SCHEMA_BYTES}}}, f"it takes at most {MAX_SCHEMA_BYTES}"),
    ({"structured_outputs": {"json": " " * (MAX_SCHEMA_BYTES + 1)}}, f"has {MAX_SCHEMA_BYTES + 1} bytes; it takes at most"),
    ({"structured_outputs": {"regex": ""}}, "structured_outputs.regex is empty; leave it out to allow any answer"),
    ({"structured_outputs": {"regex": 5}}, "structured_outputs.regex must be a string, not int"),
    ({"structured_outputs": {"regex": "\udc00"}}, "structured_outputs.regex has half a surrogate pair"),
    ({"structured_outputs": {"regex": "é" * (MAX_REGEX_BYTES // 2 + 1)}}, f"has {MAX_REGEX_BYTES + 2} bytes; it takes at most"),
    ({"structured_outputs": {"grammar": "x" * (MAX_GRAMMAR_BYTES + 1)}}, f"it takes at most {MAX_GRAMMAR_BYTES}"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice is empty; name at least one text"),
    ({"structured_outputs": {"choice": "yes"}}, "structured_outputs.choice is 'yes'; it takes a list of strings"),
    ({"structured_outputs": {"choice": ["yes", ""]}}, "it takes a string of at least one character"),
    ({"structured_outputs": {"choice": ["yes", 1]}}, "it takes a string of at least one character"),
    ({"structured_outputs": {"choice": ["a"] * (MAX_CHOICES + 1)}}, f"it takes at most {MAX_CHOICES}"),
    ({"structured_outputs": {"choice": [f"{n:0300}" for n in range(MAX_CHOICES)]}}, "bytes in all; it takes at most"),
    ({"response_format": "json_object"}, "response_format is 'json_object'; it takes an object such as"),
    ({"response_format": {"type": "xml"}}, FORMATS),
    ({"response_format": {"type": "structural_tag"}}, "response_format has no structures; it takes an object with structures"),
    ({"response_format": {"type": "structural_tag", **TAG}, "structural_tag": NEWER}, "response_format and structural_tag ask"),
    ({"response_format": {}}, "response_format.type is None"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema has no schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}}, "response_format.json_schema has no schema"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": 5}}},
        "response_format.json_schema.schema is 5",
    ),
    ({"response_format": {"type": "regex"}}, "response_format.pattern is missing; with the type regex"),
    ({"grammar": {"type": "lark", "value": "x"}}, "grammar.type is 'lark'; it takes json, json_schema or regex"),
    ({"grammar": {"type": "regex"}}, "grammar has no value; it takes an object with type and value"),
    ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_regex and guided_choice ask for different forms of the answer"),
    ({"response_format": {"type": "json_object"}, "json_schema": SCHEMA}, "response_format and json_schema ask for different"),
    ({"guided_jsn": {}}, "unknown field 'guided_jsn', nearest: guided_json"),
    (
        {"regex": "a", "max_tokens": 0, "prompt_logprobs": 0},
        "regex is set, but with max_tokens 0 there is no answer",
    ),
]


@pytest.mark.parametrize(("body", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_refused(body, message):
    with pytest.raises(RequestError, match=re.escape(message)) as raised:
        SamplingParams(**sampling_fields(body))
    assert len(str(raised.value)) < 400


def test_the_largest_are_taken():
    assert StructuredOutputs(json=deep(MAX_SCHEMA_DEPTH)).kind == "json"
    assert StructuredOutputs(regex="a" * MAX_REGEX_BYTES).kind == "regex"
    assert StructuredOutputs(choice=[str(n) for n in range(MAX_CHOICES)]).kind == "choice"
