"""Formats of texts in JSON schemas: those that the grammar library knows bind, others are remarks, and nothing else goes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shardwise.engine.formats import KNOWN_FORMATS, bound_formats
from shardwise.engine.grammar import Grammars
from shardwise.engine.hub import bundled
from shardwise.engine.text import Tokenizer, open_tokenizer
from shardwise.errors import RequestError
from shardwise.sched.structured import StructuredOutputs

VOCAB = 4096
OTHERS = ("password", "path", "file-path", "int64", "regex", "iri", "uri-reference", "json-pointer", "base64", "", "ö")


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return Grammars(bundled(), VOCAB)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return open_tokenizer(bundled())


def takes(grammars: Grammars, tokenizer: Tokenizer, schema: dict[str, Any], value: object) -> bool:
    """Whether the value, as JSON, is an answer."""
    ids = [i for c in json.dumps(value) for i in tokenizer.encode(c, add_special_tokens=False)]
    one = grammars.compile(StructuredOutputs(json=schema)).matcher((1,))
    one.follow(ids)
    return bool(one.mask()[0] & 2)


EXAMPLES = {
    "date-time": "2024-02-29T12:00:00Z", "time": "12:00:00Z", "date": "2024-02-29", "duration": "P1D", "email": "a@b.org",
    "hostname": "b.org", "ipv4": "127.0.0.1", "ipv6": "::1", "uuid": "123e4567-e89b-12d3-a456-426614174000",
    "uri": "http://b.org/",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(KNOWN_FORMATS))
def test_known_ones_bind(grammars: Grammars, tokenizer: Tokenizer, name: str):
    schema = {"type": "string", "format": name}
    assert bound_formats(schema) == schema
    assert takes(grammars, tokenizer, schema, EXAMPLES[name])
    assert not takes(grammars, tokenizer, schema, "any thing")


@pytest.mark.parametrize("name", OTHERS)
def test_others_are_remarks(grammars: Grammars, tokenizer: Tokenizer, name: str):
    """Whatever else the schema says of the text holds."""
    schema: dict[str, Any] = {"type": "string", "format": name, "maxLength": 9}
    assert takes(grammars, tokenizer, schema, "any thing") and not takes(grammars, tokenizer, schema, "any things")


REMARK = {"type": "string", "format": "path"}
PLAIN = {"type": "string"}
VALUE = {"format": "path"}
KEPT: list[dict[str, Any]] = [
    {"type": "object", "properties": {"format": {"type": "string"}, "properties": {"enum": [VALUE]}}},
    {"enum": [VALUE, "x"]}, {"const": VALUE}, {"default": VALUE, "examples": [VALUE]},
    {"$defs": {"format": {"type": "integer"}}, "$ref": "#/$defs/format"}, {"format": "email"}, {"format": 5},
    {"$ref": "#/no/such"}, {"$ref": "#/anyOf/7", "anyOf": [True]}, {"items": [5], "not": "x", "properties": [VALUE]},
]  # fmt: skip
"""Nothing goes."""

PLACES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({key: REMARK}, {key: PLAIN})
    for key in ("items", "contains", "additionalProperties", "propertyNames", "not", "if", "then", "else")
]
PLACES += [({key: [REMARK, True]}, {key: [PLAIN, True]}) for key in ("allOf", "anyOf", "oneOf", "prefixItems", "items")]
PLACES += [
    ({key: {"format": REMARK}}, {key: {"format": PLAIN}}) for key in ("properties", "patternProperties", "$defs", "definitions")
]
PLACES += [
    (
        {"$ref": "#/x-own/a~1b/1", "x-own": {"a/b": [REMARK, REMARK]}},
        {"$ref": "#/x-own/a~1b/1", "x-own": {"a/b": [REMARK, PLAIN]}},
    )
]


def test_only_real_schemas_are_walked():
    for schema in KEPT:
        assert bound_formats(schema) == schema
    for schema, wanted in PLACES:
        before = json.dumps(schema)
        assert bound_formats({"anyOf": [schema]} if "$ref" not in schema else schema) in (wanted, {"anyOf": [wanted]})
        assert json.dumps(schema) == before
    around = {"$ref": "#/$defs/a", "$defs": {"a": {"properties": {"b": {"$ref": "#"}, "c": REMARK}}}}
    assert bound_formats(around)["$defs"]["a"]["properties"]["c"] == PLAIN


def test_a_schema_of_many_levels_is_walked():
    deep: dict[str, Any] = dict(REMARK)
    for _ in range(400):
        deep = {"not": deep}
    assert "format" not in json.dumps(bound_formats(deep))


def test_other_assertions_are_not_passed_over(grammars: Grammars):
    for schema in ({"type": "array", "uniqueItems": True}, {"type": "string", "format": 5}, {"if": REMARK}):
        with pytest.raises(RequestError, match="does not compile"):
            grammars.compile(StructuredOutputs(json=schema))
