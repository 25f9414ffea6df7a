"""Sampling fields as JSON has them, by vLLM's and OpenAI's names."""

from __future__ import annotations

import re

import pytest

from shardwise.errors import RequestError
from shardwise.sched.fields import sampling_fields
from shardwise.sched.request import SamplingParams


def params(**given) -> SamplingParams:
    return SamplingParams(**sampling_fields(given))


def test_both_vocabularies():
    assert params(max_completion_tokens=5, top_k=3, stop="a") == SamplingParams(max_tokens=5, top_k=3, stop=["a"])
    assert params(max_tokens=5, max_completion_tokens=5).max_tokens == 5
    assert params(model="m", user="u", stream=False, metadata={}) == SamplingParams()
    assert params(logit_bias={"5": 1, "07": 2}).logit_bias == {5: 1.0, 7: 2.0}


def test_null_is_what_a_field_has_by_itself():
    assert params(temperature=None, stop=None, logit_bias=None, n=None) == SamplingParams()
    assert params(max_tokens=None).max_tokens is None


def test_logprobs_of_chats_and_of_completions():
    assert params(logprobs=True).logprobs == 0
    assert params(logprobs=True, top_logprobs=4).logprobs == 4
    assert params(logprobs=False, top_logprobs=0).logprobs is params(top_logprobs=0).logprobs is None
    assert params(logprobs=False).logprobs is None
    assert params(logprobs=3).logprobs == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temprature": 1}, "unknown field 'temprature', nearest: temperature"),
        ({"output_kind": 1}, "unknown field 'output_kind'"),
        ({"max_tokens": 1, "max_new_tokens": 2}, "max_tokens is given twice, as 1 and as 2"),
        ({"top_logprobs": 2}, "top_logprobs is 2; it needs logprobs to be true"),
        ({"logit_bias": {"5": 1, "05": 1}}, "logit_bias has token id 5 twice"),
        ({"logit_bias": {"five": 1}}, "logit_bias has the key 'five'"),
        ({"logit_bias": {"-5": 1}}, "logit_bias has the key '-5'"),
        ({"logit_bias": [1]}, "logit_bias is [1]; it takes a mapping"),
        ({"logprobs": True, "top_logprobs": 21}, "logprobs is 21"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"max_tokens": 5.0}, "max_tokens is 5.0; it takes a whole number"),
    ],
)
def test_refused(given, message):
    with pytest.raises(RequestError, match=re.escape(message)):
        params(**given)
