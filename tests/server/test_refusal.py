"""What clients are told: the field at fault by its name, and nothing of what was not meant for them."""

from __future__ import annotations

import pytest

from shardwise.errors import QueueFull, RequestError, Unavailable
from shardwise.sched.request import SamplingParams
from shardwise.server.refusal import BROKEN, Refusal


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"top_p": 3}, "top_p"),
        ({"n": 0}, "n"),
        ({"stop": [""]}, "stop"),
        ({"logit_bias": {-1: 1}}, "logit_bias"),
        ({"min_tokens": 2, "max_tokens": 1}, "min_tokens"),
        ({"logit_bias": {1: 1000}}, "logit_bias"),
        ({"structured_outputs": {"regexp": "a"}}, "structured_outputs"),
    ],
)
def test_the_field_at_fault_is_named(given: dict[str, object], param: str | None):
    with pytest.raises(RequestError) as raised:
        SamplingParams(**given)
    found = Refusal.of(raised.value)
    assert (found.status, found.param, found.message) == (400, param, str(raised.value))


@pytest.mark.parametrize(
    ("text", "param"),
    [
        ("the conversation: messages[0].content is missing", "messages"),
        ("the conversation: messages is empty", "messages"),
        ("guided_json: structured_outputs.json is not JSON", "guided_json"),
        ("logit_bias: token id 9 is not in this model's vocabulary", "logit_bias"),
        ("structured_outputs says nothing", "structured_outputs"),
        ("prompt[1] is empty", "prompt"),
        ("unknown field 'max_token', nearest: max_tokens", "max_token"),
    ],
)
def test_a_message_of_many_parts_names_the_field_too(text: str, param: str):
    assert Refusal.of(RequestError(text)).param == param


@pytest.mark.parametrize("text", ["the prompt has 5 tokens", "prompt 0 is empty", "no tools are offered", "an odd thing"])
def test_where_no_field_is_at_fault_none_is_named(text: str):
    assert Refusal.of(RequestError(text)).param is None


def test_what_was_not_meant_for_clients_is_not_told():
    assert Refusal.of(ValueError("/a/path and a prompt")).message == BROKEN
    assert Refusal.of(Unavailable("it drains")).status == 503
    full = Refusal.of(QueueFull("full", retry_after_s=7))
    assert (full.status, full.headers) == (429, {"retry-after": "7"})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"top_p": None}, "top_p is null; it takes a number above 0 to 1"),
        ({"n": True}, "n is true; it takes a whole number from 1 to 128"),
        ({"ignore_eos": 1}, "ignore_eos is 1; it takes true or false"),
        ({"stop": ["x", None]}, "stop[1] is null; it takes a string of at least one character"),
        ({"stop": ["None", ""]}, "stop[1] is ''; it takes a string of at least one character"),
    ],
)
def test_values_are_told_as_json_has_them(given: dict[str, object], said: str):
    with pytest.raises(RequestError) as raised:
        SamplingParams(**given)
    assert Refusal.of(raised.value).message == said
