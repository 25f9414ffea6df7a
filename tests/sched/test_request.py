"""Sampling values: every value inside the closed ranges is taken, every other is refused by name, whatever it is."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from shardwise.errors import RequestError
from shardwise.sched.request import MAX_LOGPROBS, SEEDS, SamplingParams

REALS = {"temperature": (0, 100), "top_p": (0, 1), "min_p": (0, 1)}
WHOLES = {
    "top_k": (-1, 2**31 - 1),
    "min_tokens": (0, 2**31 - 1),
    "max_tokens": (1, 2**31 - 1),
    "seed": (0, SEEDS - 1),
    "logprobs": (0, MAX_LOGPROBS),
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
    if math.isfinite(value) and low <= value <= high and not (name == "top_p" and value == 0):
        assert getattr(SamplingParams(**{name: value}), name) == value
    else:
        refuse(f"{name} is {value!r}; it takes a number", **{name: value})


@pytest.mark.parametrize("name", REALS)
def test_ends_of_reals(name):
    low, high = REALS[name]
    for value in (high, float(high), 5e-324):
        SamplingParams(**{name: value})
    for value in (math.nextafter(high, math.inf), -5e-324, math.nan, math.inf, -math.inf, 1.7e308):
        refuse(f"{name} is {value!r}", **{name: value})
    if name == "top_p":
        refuse("top_p is 0; it takes a number above 0 to 1", top_p=0)
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
        refuse(f"{name} is {value}; it takes a whole number from {low} to {high}", **{name: value}, **others)


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


@pytest.mark.parametrize("name", [*REALS, "top_k", "min_tokens"])
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
        refuse(f"min_tokens {least} is above max_tokens {most}", min_tokens=least, max_tokens=most)


@settings(deadline=None)
@given(st.lists(st.text(), max_size=4).map(tuple))
def test_stop_strings_have_characters(stop):
    if all(stop):
        assert SamplingParams(stop=stop).stop == stop
    else:
        refuse("it takes a list of strings of at least one character", stop=stop)


@settings(deadline=None)
@given(st.lists(st.text(min_size=1) | st.integers() | st.none(), max_size=4).map(tuple))
def test_stop_strings_are_strings(stop):
    assume(not all(isinstance(s, str) for s in stop))
    refuse("stop is ", stop=stop)
    refuse("stop is ", stop="END")
