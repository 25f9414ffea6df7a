"""Structural tags: what is refused, by the place where it stands, and what the two forms come to."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardwise.errors import RequestError
from shardwise.sched.given_json import MAX_SCHEMA_BYTES, MAX_SCHEMA_DEPTH
from shardwise.sched.structural_tag import (
    MAX_MARK_CHARS,
    MAX_TAGS,
    MAX_TRIGGERS,
    AnyText,
    Exactly,
    Json,
    Row,
    Tag,
    Times,
    Triggered,
    read_tag,
    tag_text,
)

INTEGER: dict[str, Any] = {"type": "integer"}
CONTENT: dict[str, Any] = {"type": "json_schema", "json_schema": INTEGER}
ANY: dict[str, Any] = {"type": "any_text"}
TAG: dict[str, Any] = {"begin": "<f>", "content": CONTENT, "end": "</f>"}
OLD: dict[str, Any] = {"structures": [{"begin": "<f>", "schema": INTEGER, "end": "</f>"}], "triggers": ["<f"]}
TRIGGERED: dict[str, Any] = {"type": "triggered_tags", "triggers": ["<f"], "tags": [TAG]}


def read(value: Any) -> Any:
    return read_tag("t", json.loads(tag_text("t", value)))


def test_both_forms_are_one_tree():
    wanted = Triggered(("<f",), (Tag("<f>", Json(INTEGER), ("</f>",)),))
    as_text = {"structures": [{"begin": "<f>", "schema": json.dumps(INTEGER), "end": "</f>"}], "triggers": ["<f", "<f"]}
    longer = {**OLD, "triggers": ["<f>", "<f"]}  # which never comes up
    newer = {**TRIGGERED, "tags": [{"type": "tag", **TAG, "end": ["</f>"]}], "at_least_one": False, "excludes": None}
    for value in (OLD, json.dumps(OLD), {**OLD, "type": "structural_tag", "format": None}, as_text, longer):
        assert read(value) == wanted
    for value in ({"format": newer}, json.dumps({"format": newer, "type": "structural_tag"})):
        assert read(value) == wanted


def test_formats():
    elements = [
        {"type": "optional", "content": {"type": "const_string", "value": "a"}},
        {"type": "plus", "content": CONTENT},
        ANY,
    ]
    assert read({"format": {"type": "sequence", "elements": elements}}) == Row(
        [Times(Exactly("a"), 0, 1), Times(Json(INTEGER), 1, None), AnyText()]
    )
    assert read({"format": {"type": "json_schema", "json_schema": True, "style": "json", "any_order": False}}) == Json({})


def of(kind: str, **fields: Any) -> dict[str, Any]:
    return {"format": {"type": kind, **fields}}


def deep(levels: int) -> dict[str, Any]:
    found = ANY
    for _ in range(levels):
        found = {"type": "or", "elements": [found]}
    return {"format": found}


REFUSED: list[tuple[Any, str]] = [
    (5, "t is 5; it takes an object with structures and triggers, or with format"),
    ("{", "t is not JSON: "),
    ("[]", "t is []; it takes an object"),
    ({}, "t has no structures; it takes an object with structures and triggers, or with format"),
    ({"structures": OLD["structures"]}, "t has no triggers; it takes"),
    ({**OLD, "type": "json"}, "t.type is not structural_tag; leave it out"),
    ({**OLD, "format": ANY}, "t has 'structures', which is not supported there; it takes format"),
    ({**OLD, "at_least_one": True}, "t has 'at_least_one', which is not supported there; it takes structures, triggers"),
    ({**OLD, "structures": [5]}, "t.structures[0] is 5; it takes an object"),
    ({**OLD, "structures": {}}, "t.structures is {}; it takes a list of structures"),
    (
        {**OLD, "structures": OLD["structures"] * (MAX_TAGS + 1)},
        f"t.structures has {MAX_TAGS + 1} structures; it takes at most",
    ),
    ({**OLD, "structures": [{"begin": "<f", "end": ""}]}, "t.structures[0].schema is None; it takes a JSON schema"),
    (
        {**OLD, "structures": [{"begin": "<f", "end": "", "schema": [1]}]},
        "t.structures[0].schema is [1]; it takes a JSON schema",
    ),
    ({**OLD, "structures": [{"begin": "<f", "schema": {}}]}, "t.structures[0].end is missing; it takes a text"),
    ({**OLD, "structures": [{"begin": 5, "schema": {}, "end": ""}]}, "t.structures[0].begin must be a string, not int"),
    ({**OLD, "triggers": []}, "t.structures[0].begin is '<f>', which begins with none of the triggers"),
    ({"structures": [], "triggers": []}, "t.triggers is empty; name at least one text"),
    ({**OLD, "triggers": [""]}, "it takes a string of at least one character"),
    ({**OLD, "triggers": ["<f", "@"]}, "t.triggers has '@', with which none of structures begins"),
    ({**OLD, "triggers": ["@"] * (MAX_TRIGGERS + 1)}, f"it takes at most {MAX_TRIGGERS}"),
    ({**OLD, "triggers": ["x" * (MAX_MARK_CHARS + 1)]}, f"{MAX_MARK_CHARS}"),
    (
        {"structures": [{"begin": each, "schema": {}, "end": ""} for each in ("f<", "<")], "triggers": ["f<", "<"]},
        "t.triggers has 'f<', in which the trigger '<' comes up first",
    ),
    (of("tag", **{**TAG, "begin": "x" * (MAX_MARK_CHARS + 1)}), f"t.format.begin has {MAX_MARK_CHARS + 1} characters"),
    (of("grammar", grammar="x"), "t.format.type is 'grammar', which is not supported; it takes one of any_text, const_string"),
    (of("token", token=5), "t.format.type is 'token', which is not supported"),
    ({"format": {"type": ["tag"]}}, "t.format.type is ['tag'], which is not supported"),
    ({"format": [ANY]}, "t.format is [{'type': 'any_text'}]; it takes an object"),
    (of("any_text", max_tokens=5), "t.format has 'max_tokens', which is not supported there; it takes type, excludes"),
    (of("any_text", excludes="a"), "t.format.excludes is 'a'; it takes a list of strings"),
    (of("json_schema", json_schema=5), "t.format.json_schema is 5; it takes a JSON schema"),
    (
        of("json_schema", json_schema={}, style="qwen_xml"),
        "t.format.style is 'qwen_xml', which is not supported; it takes json",
    ),
    (of("json_schema", json_schema={}, any_order=True), "t.format.any_order is set, which is not supported"),
    (of("sequence", elements=[]), "t.format.elements is empty; name at least one format"),
    (of("sequence", elements=[ANY, CONTENT]), "t.format.elements[0] is any_text, which has no end here; it can stand last"),
    (of("star", content=TRIGGERED), "t.format.content is triggered_tags, which has no end here; it can stand last, or alone"),
    (of("star"), "t.format.content is None; it takes an object"),
    (of("or", elements=[CONTENT, of("x")["format"]]), "t.format.elements[1].type is 'x', which is not supported"),
    (of("repeat", content=CONTENT, min=2, max=1), "t.format.max is 1, which is less than min, 2; -1 is without limit"),
    (of("repeat", content=CONTENT, min=-1, max=1), "t.format.min is -1; it takes a whole number from 0"),
    (of("repeat", content=CONTENT, min=1), "t.format.max is None; it takes a whole number from -1"),
    (of("tag", begin="a", content=ANY, end=""), "t.format.content is any_text, which has no end here"),
    (of("tag", begin="a", content=ANY, end=[]), "t.format.end is empty; name at least one text"),
    (of("tag", begin={"type": "token", "token": 5}, content=ANY, end="x"), "t.format.begin must be a string, not dict"),
    ({"format": {**TRIGGERED, "tags": []}}, "t.format.tags is empty; name at least one tag"),
    ({"format": {**TRIGGERED, "tags": [{"type": "or", **TAG}]}}, "t.format.tags[0].type is 'or'; it takes tag"),
    ({"format": {**TRIGGERED, "triggers": ["@"]}}, "t.format.triggers has '@', with which none of tags begins"),
    ({"format": {**TRIGGERED, "at_least_one": 5}}, "t.format.at_least_one is 5; it takes True or False"),
    (of("tags_with_separator", tags=[TAG]), "t.format.separator is missing; it takes a text"),
    (of("const_string", value="\ud800"), "a text in t has half a surrogate pair"),
    (of("const_string", value="x" * MAX_SCHEMA_BYTES), "t.format.value has"),
    (of("any_text", excludes=["x" * 4000 + str(n) for n in range(100)]), f"it takes at most {MAX_SCHEMA_BYTES}"),
    (deep(MAX_SCHEMA_DEPTH), f"t is nested more than {MAX_SCHEMA_DEPTH} levels deep"),
]


@pytest.mark.parametrize(("value", "message"), REFUSED, ids=[message[:50] for _, message in REFUSED])
def test_refused(value: Any, message: str):
    with pytest.raises(RequestError, match=re.escape(message)) as raised:
        tag_text("t", value)
    assert len(str(raised.value)) < 450


GOOD: list[dict[str, Any]] = [
    {**OLD, "type": "structural_tag"},
    of("sequence", elements=[{"type": "tag", **TAG}, {**TRIGGERED, "at_least_one": True, "excludes": ["x"]}]),
    of("or", elements=[{"type": "repeat", "min": 0, "max": 2, "content": CONTENT}, {"type": "regex", "pattern": "a"}, ANY]),
    of("tags_with_separator", tags=[TAG], separator=",", at_least_one=True),
]
VALUES = st.sampled_from(
    [None, True, -1, 10**400, 1.5, "", "<f", "\ud800", [], [5], ["a", None], {}, {"type": "any_text"}, {5: 6}]
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Each container within, with each of its keys."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [(value, key) for key in keys] + [each for key in keys for each in places(value[key])]


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(GOOD), st.lists(st.tuples(st.integers(0, 100), VALUES), min_size=1, max_size=3))
def test_whatever_is_sent_is_taken_or_refused(good: dict[str, Any], changes: list[tuple[int, Any]]):
    """What is taken stays as it is when it is read again."""
    assert read(good)
    value = json.loads(json.dumps(good))
    for place, new in changes:
        container, key = (found := places(value))[place % len(found)]
        container[key] = copy.deepcopy(new)
    try:
        text = tag_text("t", value)
    except RequestError as error:
        assert re.match(r"(a text in |a key of )?t[ .]", str(error)), error
    else:
        assert tag_text("t", text) == text
