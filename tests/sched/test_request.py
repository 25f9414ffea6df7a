"""Sampling values: every value inside the closed ranges is taken, every other is refused by name, whatever it is."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardwise.errors import RequestError
from shardwise.sched.checks import shown
from shardwise.sched.request import (
    FIELDS,
    FLAGS,
    MAX_ALLOWED_IDS,
    MAX_BAD_WORDS,
    MAX_BIAS,
    MAX_BIASES,
    MAX_CHOICES,
    MAX_LOGPROB_IDS,
    MAX_LOGPROBS,
    MAX_STOP_CHARS,
    MAX_STOP_IDS,
    MAX_STOPS,
    SEEDS,
    RequestOutputKind,
    SamplingParams,
)

REALS = {
    "temperature": (0, 100),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "repetition_penalty": (0, 100),
}
ABOVE = ("top_p", "repetition_penalty")
WHOLES = {
    "top_k": (-1, 2**31 - 1),
    "min_tokens": (0, 2**31 - 1),
    "max_tokens": (1, 2**31 - 1),
    "seed": (0, SEEDS - 1),
    "logprobs": (0, MAX_LOGPROBS),
    "prompt_logprobs": (0, MAX_LOGPROBS),
    "n": (1, MAX_CHOICES),
}
NO_NUMBER = [True, False, "1", b"1", [1], (1,), {}, object(), 1j]


def refuse(message: str = "", **values) -> None:
    with pytest.raises(RequestError, match=re.escape(message)):
        SamplingParams(**values)


def test_defaults_are_valid():
    params = SamplingParams()
    assert (params.temperature, params.top_p, params.top_k, params.min_p, params.max_tokens) == (1.0, 1.0, 0, 0.0, 16)


@pytest.mark.parametrize("name", REALS)
@settings(deadline=None)
@given(value=st.floats(allow_nan=True, allow_infinity=True) | st.floats(-1, 2) | st.integers(-3, 200))
def test_reals(name, value):
    low, high = REALS[name]
    if math.isfinite(value) and low <= value <= high and not (name in ABOVE and value == 0):
        assert getattr(SamplingParams(**{name: value}), name) == value
    else:
        refuse(f"{name} is {value!r}; it takes a number", **{name: value})


@pytest.mark.parametrize("name", REALS)
def test_ends_of_reals(name):
    low, high = REALS[name]
    for value in (high, float(high), 5e-324):
        SamplingParams(**{name: value})
    for value in (math.nextafter(high, math.inf), math.nextafter(low, -math.inf), math.nan, math.inf, -math.inf, 1.7e308):
        refuse(f"{name} is {value!r}", **{name: value})
    if name in ABOVE:
        refuse(f"{name} is 0; it takes a number above 0 to {high}", **{name: 0})
    else:
        SamplingParams(**{name: low})
        SamplingParams(**{name: -0.0})


@pytest.mark.parametrize("name", REALS)
@pytest.mark.parametrize("value", [10**400, -(10**400)], ids=["above", "below"])
def test_whole_numbers_beyond_all_floats_are_no_reals(name, value):
    refuse(f"{name} is ", **{name: value})


@pytest.mark.parametrize("name", WHOLES)
@settings(deadline=None)
@given(value=st.integers() | st.integers(-3, 30) | st.integers(-(10**400), 10**400))
def test_wholes(name, value):
    low, high = WHOLES[name]
    others = {"max_tokens": None} if name == "min_tokens" else {}
    if low <= value <= high:
        assert getattr(SamplingParams(**{name: value}, **others), name) == value
    else:
        refuse(f"{name} is {shown(value)}; it takes a whole number from {low} to {high}", **{name: value}, **others)


@pytest.mark.parametrize("name", WHOLES)
def test_ends_of_wholes(name):
    low, high = WHOLES[name]
    others = {"max_tokens": None} if name == "min_tokens" else {}
    SamplingParams(**{name: low}, **others)
    SamplingParams(**{name: high}, **others)
    for value in (low - 1, high + 1, float(low), math.nan, math.inf):
        refuse(f"{name} is {value!r}", **{name: value}, **others)


@pytest.mark.parametrize("name", [*REALS, *WHOLES])
@pytest.mark.parametrize("value", NO_NUMBER, ids=lambda value: type(value).__name__)
def test_what_is_no_number_is_refused(name, value):
    refuse(f"{name} is ", **{name: value})


@pytest.mark.parametrize("name", [*REALS, *FLAGS, "top_k", "min_tokens", "n", "output_kind"])
def test_none_where_a_number_must_be(name):
    refuse(f"{name} is None", **{name: None})


def test_none_where_nothing_need_be():
    params = SamplingParams(seed=None, max_tokens=None, logprobs=None)
    assert (params.seed, params.max_tokens, params.logprobs) == (None, None, None)


@settings(deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(1, 2**31 - 1))
def test_no_more_tokens_are_asked_for_than_allowed(least, most):
    if least <= most:
        SamplingParams(min_tokens=least, max_tokens=most)
    else:
        refuse(f"min_tokens is {least}, above max_tokens, which is {most}", min_tokens=least, max_tokens=most)


# --- strings ----------------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)


@settings(deadline=None)
@given(st.lists(TEXT, max_size=4))
def test_stop_strings_have_characters(stop):
    if all(stop):
        assert SamplingParams(stop=stop).stop == SamplingParams(stop=tuple(stop)).stop == tuple(stop)
    else:
        refuse(f"stop[{stop.index('')}] is ''; it takes a string of at least one character", stop=stop)


def test_one_stop_string_is_not_its_characters():
    assert SamplingParams(stop="END").stop == ("END",)
    assert SamplingParams(stop=None).stop == ()
    refuse("bad_words is 'END'; it takes a list of strings", bad_words="END")


@pytest.mark.parametrize(("name", "most"), [("stop", MAX_STOPS), ("bad_words", MAX_BAD_WORDS)])
def test_lists_of_strings(name, most):
    assert getattr(SamplingParams(**{name: ["a"] * most}), name) == ("a",) * most
    refuse(f"{name} has {most + 1} strings; it takes at most {most}", **{name: ["a"] * (most + 1)})
    refuse(f"{name}[1] has {MAX_STOP_CHARS + 1} characters", **{name: ["a", "b" * (MAX_STOP_CHARS + 1)]})
    refuse(f"{name}[0] has half a surrogate pair (U+D800) at character 1", **{name: ["a\ud800"]})
    for value in (7, {"a"}, {"a": 1}, b"a", iter(["a"])):
        refuse(f"{name} is ", **{name: value})
    for value, place in ([7], 0), ([None], 0), (["a", b"b"], 1), ([["a"]], 0), ([""], 0):
        refuse(f"{name}[{place}] is {value[place]!r}; it takes a string of at least one character", **{name: value})


# --- ids --------------------------------------------------------------------------------------------------------------


LISTS = [("stop_token_ids", MAX_STOP_IDS), ("allowed_token_ids", MAX_ALLOWED_IDS), ("logprob_token_ids", MAX_LOGPROB_IDS)]


@pytest.mark.parametrize(("name", "most"), LISTS)
def test_lists_of_ids(name, most):
    assert getattr(SamplingParams(**{name: [3, 1, 3, np.int64(2)]}), name) == (3, 1, 2)
    refuse(f"{name} has {most + 1} token ids; it takes at most {most}", **{name: range_list(most + 1)})
    for value in (-1, 2**31, 1.0, "1", True, None, math.nan):
        refuse(f"{name}[1] is {value!r}; it takes a whole number from 0", **{name: [0, value]})
    for value in (7, "12", {1}, {1: 2}):
        refuse(f"{name} is {value!r}; it takes a list of token ids", **{name: value})


def range_list(count):
    return list(range(count))


def test_at_least_one_id_is_allowed():
    assert SamplingParams(stop_token_ids=[]).stop_token_ids == ()
    refuse("allowed_token_ids is empty", allowed_token_ids=[])


def test_biases():
    assert SamplingParams(logit_bias={5: 1, np.int32(6): np.float32(-100)}).logit_bias == {5: 1.0, 6: -100.0}
    assert SamplingParams(logit_bias={}).logit_bias is None
    for value in ([5], "5", 5, {5}):
        refuse("logit_bias is ", logit_bias=value)
    for token in (-1, "5", 1.0, True, None, 2**31):
        refuse(f"logit_bias has the key {token!r}", logit_bias={token: 0})
    for bias in (MAX_BIAS + 1, -100.5, math.nan, math.inf, "1", True, None):
        refuse(f"logit_bias[5] is {bias!r}; it takes a number from -100 to 100", logit_bias={5: bias})
    refuse(f"logit_bias has {MAX_BIASES + 1} token ids", logit_bias=dict.fromkeys(range(MAX_BIASES + 1), 0))


def test_ids_that_are_named_need_an_answer():
    assert SamplingParams(logprob_token_ids=[]).logprob_token_ids is None and SamplingParams().logprobs is None
    assert (
        SamplingParams(logprob_token_ids=[4]).logprobs == 0 and SamplingParams(logprob_token_ids=[4], logprobs=3).logprobs == 3
    )
    refuse("logprob_token_ids are of the tokens of an answer", logprob_token_ids=[4], max_tokens=0, prompt_logprobs=0)


@pytest.mark.parametrize("name", ["stop_token_ids", "allowed_token_ids", "logprob_token_ids", "logit_bias"])
def test_ids_are_checked_against_the_vocabulary(name):
    params = SamplingParams(**{name: {9: 1.0} if name == "logit_bias" else [9]})
    params.check_vocabulary(10)
    with pytest.raises(RequestError, match=f"{name}: token id 9 is not in this model's vocabulary of 9"):
        params.check_vocabulary(9)


# --- all together -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FLAGS)
@pytest.mark.parametrize("value", [0, 1, "yes", "", [], np.int8(1)], ids=repr)
def test_flags_are_true_or_false(name, value):
    refuse(f"{name} is {value!r}; it takes True or False", **{name: value})


def test_numbers_of_numpy_become_plain_ones():
    params = SamplingParams(
        n=np.int64(2),
        temperature=np.float32(0.5),
        top_p=np.float64(0.9),
        top_k=np.uint8(5),
        seed=np.int32(7),
        logprobs=np.int16(1),
    )
    assert params == SamplingParams(n=2, temperature=0.5, top_p=0.9, top_k=5, seed=7, logprobs=1)
    assert all(
        type(getattr(params, name)) in (int, float) for name in ("n", "temperature", "top_p", "top_k", "seed", "logprobs")
    )
    refuse("temperature is ", temperature=np.float32("nan"))
    refuse("n is ", n=np.bool_(True))
    refuse("temperature is ", temperature=np.array(1.0))


def test_nothing_is_generated_only_to_score():
    assert SamplingParams(max_tokens=0, prompt_logprobs=0).max_tokens == 0
    refuse("max_tokens is 0; it takes a whole number from 1 to 2147483647; 0 only scores the prompt", max_tokens=0)
    refuse("n is 2, but with max_tokens 0", max_tokens=0, prompt_logprobs=0, n=2)


def test_stop_strings_need_text():
    refuse("detokenize is False; use stop_token_ids", detokenize=False, stop="END")


def test_output_kinds():
    for kind in RequestOutputKind:
        assert SamplingParams(output_kind=kind).output_kind is kind
    refuse("output_kind is 1; it takes one of RequestOutputKind.CUMULATIVE", output_kind=1)


def test_it_is_a_value():
    params = SamplingParams(stop=["a"], logit_bias={1: 2})
    with pytest.raises(AttributeError):
        params.n = 2
    assert params == SamplingParams(stop=("a",), logit_bias={1: 2.0})
    assert len(FIELDS) == 26
