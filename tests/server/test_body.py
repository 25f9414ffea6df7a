"""Bodies: what is no strict JSON is refused and said where; what does not fit its struct is named, shown and put right."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardwise.server.body import parse
from shardwise.server.refusal import Refusal
from shardwise.server.settings import Settings
from shardwise.server.strict import DIGITS, PIECE, loads, outside
from tests.server.demo import Ask

BROKEN = [
    (b"", "the body is empty"),
    (b" \n", "the body is empty"),
    (b"\xef\xbb\xbf{}", "byte order mark"),
    (b"{}".decode().encode("utf-16"), "byte order mark"),
    (b'{"a": "\xff"}', "not UTF-8: byte 7 is 0xff"),
    (b'{"a": "\xed\xa0\x80"}', "not UTF-8"),
    (b"[]", "the body is an empty list; send a JSON object"),
    (b"3", "the body is the number 3"),
    (b"null", "the body is null"),
    (b'"' + b"x" * 99 + b'"', 'the string "' + "x" * 60 + '"... of 99 characters'),
    (b'{"a": NaN}', "NaN is no number"),
    (b'{"a": [-Infinity]}', "-Infinity is no number"),
    (b'{"a": 1e400}', "the number 1e400 is too large"),
    (b'{"a": -1e999}', "too large"),
    (b'{"a": ' + b"9" * 5000 + b"}", "beyond 64 bits"),
    (b'{"a": 18446744073709551616}', "18446744073709551616 is beyond 64 bits"),
    (b'{"a": -9223372036854775809}', "beyond 64 bits"),
    (b'{"a": 1, "b": {"c": 1, "c": 2}}', "the field 'c' is there twice"),
    (b'{"a": 1, "\\u0061": 2}', "the field 'a' is there twice"),
    (b'{"a": ["ok", "x\\ud800y"]}', "a[1] has half a character, \\ud800, at 1"),
    (b'{"\\udfff": 1}', "a name has half a character"),
    (b'{"a": "\x00"}', "Invalid control character"),
    (b'{"a": 1,}', "at line 1 column 9"),
    (b'{"a": 01}', "not JSON"),
    (b'{"a": +1}', "not JSON"),
    (b"{'a': 1}", "not JSON"),
    (b'{"a": 1} x', "Extra data"),
    (b'{"a": 1}{"a": 1}', "Extra data"),
    (b'{"a": "\\x41"}', "escape"),
    (b'{"a"', "not JSON"),
    (b"// c\n{}", "not JSON"),
    (b'{"a": ' + b"[" * 32 + b"]" * 32 + b"}", "32 levels are the most"),
    (b'{"a":' * 50_000, "too many objects and lists"),
    (b"[" * 100_000, "too many objects and lists"),
]


@pytest.mark.parametrize(("data", "message"), BROKEN, ids=range(len(BROKEN)))
def test_what_is_no_strict_json_is_refused(data: bytes, message: str):
    with pytest.raises(Refusal) as caught:
        loads(data, Settings())
    assert caught.value.status == 400 and message in caught.value.message
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("before", range(DIGITS + 2))
def test_a_long_number_is_found_wherever_it_stands(before: int):
    data = b'{"a": "%s", "b": 98765432109876543210}' % (b"x" * (PIECE - before - len('{"a": "", "b": ')))
    with pytest.raises(Refusal, match="98765432109876543210 is beyond 64 bits"):
        loads(data, Settings())


def test_what_is_allowed_just_so():
    deep = b'{"a": ' + b"[" * 31 + b"]" * 31 + b"}"
    assert loads(deep, Settings()) == json.loads(deep)
    many = b'{"a": "' + b"[{" * 1000 + b'"}'
    assert loads(many, Settings()) == json.loads(many)
    assert loads(b'{"a": [18446744073709551615, -9223372036854775808, "12345678901234567890123"]}', Settings())
    assert loads(b'{"a": "\\ud83d\\ude00 \\u0000"}', Settings()) == {"a": "\U0001f600 \x00"}


def repeated(unit: bytes, times: int) -> bytes:
    return b'{"a": [' + b",".join([unit] * times) + b"]}"


MANY = [
    (repeated(b"[]", 100_000), "has 100003 objects, lists and names; 100000 are the most together"),
    (repeated(b"{}", 100_000), "objects, lists and names"),
    (repeated(b'{"a":1}', 50_000), "objects, lists and names"),
    (b"{" + b",".join(b'"%d":1' % n for n in range(100_001)) + b"}", "has 100002 objects, lists and names"),
    (repeated(b"1", 1_000_002), "has more than 1000001 values; 1000000 are the most"),
    (repeated(b'""', 1_000_002), "has more than 1000001 values"),
    (b"[" * 4_000_000, "objects, lists and names"),
]


@pytest.mark.parametrize(("data", "message"), MANY, ids=range(len(MANY)))
def test_what_has_too_many_values_is_not_parsed(data: bytes, message: str):
    with pytest.raises(Refusal, match=message) as caught:
        loads(data, Settings())
    assert (caught.value.status, caught.value.code) == (400, "too_many_values")


def test_many_token_ids_and_long_texts_are_taken():
    ids = repeated(b"50256", 650_000)
    assert len(loads(ids, Settings())["a"]) == 650_000
    # A text may hold as many marks as it likes, in any escapes.
    text = '{"a": ["x", {"y": [1, 2]}], "\\\\": "\\"[{:,"}' * 40_000
    assert loads(json.dumps({"text": text}).encode(), Settings()) == {"text": text}


leaf = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
trees = st.recursive(leaf | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=12)


def counted(value: object) -> dict[str, int]:
    """The marks that JSON of a value has outside of its strings."""
    found = dict.fromkeys("{[:,", 0)
    if isinstance(value, dict | list):
        found["{" if isinstance(value, dict) else "["] = 1
        found[":"] = len(value) if isinstance(value, dict) else 0
        found[","] = max(len(value) - 1, 0)
        for each in value.values() if isinstance(value, dict) else value:
            found = {mark: found[mark] + more for mark, more in counted(each).items()}
    return found


@given(st.dictionaries(st.text(), trees))
@settings(max_examples=40, deadline=None)
def test_good_json_is_read_as_by_everybody(value: dict[str, Any]):
    marks = counted(value)
    for ascii_only in (True, False):
        data = json.dumps(value, ensure_ascii=ascii_only).encode()
        assert outside(data) == marks
        assert loads(data, Settings()) == value


GOOD = b'{"prompt": "Once", "max_tokens": 3, "items": [{"role": "user", "content": "a"}], "extra": {"k": [1, 2.5]}, "seed": 7}'


@given(st.integers(0, len(GOOD) - 1), st.binary(min_size=0, max_size=3), st.integers(0, 4))
@settings(max_examples=400, deadline=None)
def test_a_mutated_body_is_read_or_refused(at: int, instead: bytes, drop: int):
    try:
        parse(GOOD[:at] + instead + GOOD[at + drop :], Ask, Settings(), {})
    except Refusal as refusal:
        assert refusal.status == 400 and refusal.message


WRONG: list[tuple[Any, str, str | None]] = [
    ({}, "prompt is missing", "prompt"),
    ({"prompt": None}, "prompt is missing", "prompt"),
    ({"prompt": 3}, "prompt is the number 3; it must be a string", "prompt"),
    ({"prompt": ["a"]}, "prompt is a list of 1; it must be a string", "prompt"),
    ({"prompt": "a", "max_tokens": 0}, "max_tokens is the number 0; it must be an integer >= 1", "max_tokens"),
    ({"prompt": "a", "max_tokens": "7"}, 'max_tokens is the string "7"; it must be an integer', "max_tokens"),
    ({"prompt": "a", "max_tokens": True}, "max_tokens is true; it must be an integer", "max_tokens"),
    ({"prompt": "a", "max_tokens": 1.5}, "max_tokens is the number 1.5; it must be an integer", "max_tokens"),
    ({"prompt": "a", "temperature": 2.1}, "temperature is the number 2.1; it must be a number <= 2", "temperature"),
    ({"prompt": "a", "stream": 1}, "stream is the number 1; it must be true or false", "stream"),
    ({"prompt": "a", "items": {}}, "items is an object; it must be a list", "items"),
    ({"prompt": "a", "items": [{"role": "user"}] * 9}, "items is a list of 9; it must be a list of length <= 8", "items"),
    ({"prompt": "a", "items": [{}]}, "items[0].role is missing", "items[0].role"),
    ({"prompt": "a", "items": [{"role": "user"}, 4]}, "items[1] is the number 4; it must be an object", "items[1]"),
    (
        {"prompt": "a", "items": [{"role": "cat"}]},
        'items[0].role is the string "cat"; it must be one of "system", "user"',
        "items[0].role",
    ),
    ({"prompt": "a", "extra": [1]}, "extra is a list of 1; it must be an object or null", "extra"),
    ({"prompt": "a", "seed": 2**64 - 1, "stream": "x"}, 'stream is the string "x"; it must be true or false', "stream"),
]


@pytest.mark.parametrize(("fields", "message", "param"), WRONG, ids=[message for _, message, _ in WRONG])
def test_what_does_not_fit_is_named_and_put_right(fields: dict[str, Any], message: str, param: str | None):
    with pytest.raises(Refusal) as caught:
        parse(json.dumps(fields).encode(), Ask, Settings(), {})
    assert (caught.value.status, caught.value.message, caught.value.param) == (400, message, param)


def test_null_is_not_given_and_unknown_fields_are_told_apart():
    value, unknown = parse(b'{"prompt": "a", "max_tokens": null, "extra": null, "frob": 1, "Prompt": 2}', Ask, Settings(), {})
    assert value == Ask("a") and unknown == ("frob", "Prompt")
    assert parse(b"{}", Ask, Settings(), {"prompt": "from the path"})[0] == Ask("from the path")
