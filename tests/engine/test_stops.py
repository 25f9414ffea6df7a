"""Stop strings leak nothing, wherever the text is cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardwise.engine.stops import StopStrings
from shardwise.errors import RequestError
from shardwise.sched.request import MAX_STOPS


def reference_cut(text: str, stops: list[str], include: bool) -> str:
    """The text up to the stop that is complete first, of several the longest: by looking at every end."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end if include else end - max(map(len, ending))]
    return text


@settings(max_examples=500, deadline=None, derandomize=True)
@given(
    text=st.text("abé👍", max_size=24),
    stops=st.lists(st.text("abé👍", min_size=1, max_size=5), min_size=1, max_size=4),
    cuts=st.lists(st.integers(0, 24), max_size=8),
    include=st.booleans(),
)
def test_stop_strings_do_not_depend_on_the_cuts(text: str, stops: list[str], cuts: list[int], include: bool) -> None:
    edges = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    cutter = StopStrings(stops, include=include)
    given_out = ""
    for start, end in itertools.pairwise(edges):
        given_out += cutter.push(text[start:end])
        # Nothing of a stop is ever given out, and nothing is held that could not begin one.
        assert reference_cut(text, stops, include).startswith(given_out)
        held = text[len(given_out) : end]
        assert cutter.matched or not held or any(stop.startswith(held) for stop in stops)
    given_out += cutter.finish()
    assert given_out == reference_cut(text, stops, include)
    assert (cutter.matched is not None) == any(stop in text for stop in stops)


@pytest.mark.parametrize("stops", [[""], ["ok", ""], ["x" * 5000], ["\ud800"], [7], ["a"] * (MAX_STOPS + 1)])
def test_unusable_stops_are_refused(stops: list[str]) -> None:
    with pytest.raises(RequestError, match="stop string"):
        StopStrings(stops)
