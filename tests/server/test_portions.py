"""JSON in portions is the JSON that one call makes."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET, UnsetType

from shardwise.server.chat_body import Delta
from shardwise.server.logprobs import TextLogprobs, TokenLogprob
from shardwise.server.messages.output import TextBlock
from shardwise.server.portions import PORTION, encoded, is_large, weight
from shardwise.server.reply import ENCODER
from shardwise.server.responses.output import OutputMessage, OutputText


class Some(msgspec.Struct):
    """Of everything that replies are made of."""

    rest: object
    absent: int | UnsetType = UNSET
    named: int = msgspec.field(name="other_name", default=1)


scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text()
small = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(), inner, max_size=3)
        | st.dictionaries(st.integers(0, 9), inner, max_size=3)
        | st.builds(Some, inner)
    ),
    max_leaves=8,
)


def grown(value: object, times: list[int]) -> object:
    """Something large that holds `value` often."""
    for count in times:
        value = Some([value] * count) if count % 2 else {"a": [value] * count, "b\n": value, "c": []}
    return value


@settings(deadline=None, max_examples=60)
@given(small, st.lists(st.sampled_from([0, 1, 2, 101, 300]), max_size=3).filter(lambda times: sum(times) < 600))
def test_portions_add_up(value: object, times: list[int]) -> None:
    whole = grown(value, times)
    assert encoded(whole, b"\n") == ENCODER.encode(whole) + b"\n"


COUNT = 3 * PORTION
LARGE = [
    list(range(COUNT)),
    [None, *([-0.5] * COUNT)],
    [None, *({"a": -1.0, "b": -2.0} for _ in range(COUNT))],
    ["x" * 100] * COUNT,
    "x" * 64 * COUNT,
    {str(n): n for n in range(COUNT)},
    {n: [n] for n in range(COUNT)},
    [TextLogprobs(["a"] * COUNT, [-1.0] * COUNT, None, list(range(COUNT)))] * 2,
    [1, [2] * COUNT, 3, [4] * COUNT, [5] * COUNT],
    [Delta(content="a" * 64 * COUNT), TextBlock("b" * 64 * COUNT)],
    [TextBlock("b")] * COUNT,
    OutputMessage(id="m", content=[OutputText(logprobs=[TokenLogprob("a", -1.0, [97], [])] * COUNT)]),
    msgspec.Raw(b"[" + b" " * 64 * COUNT + b"]"),
]


@pytest.mark.parametrize("value", LARGE, ids=range(len(LARGE)))
def test_large_ones_are_seen_and_add_up(value: object) -> None:
    assert is_large(value) and encoded(value) == ENCODER.encode(value)
    assert weight(value, 2**60) >= COUNT


def test_small_ones_are_not_large() -> None:
    assert not is_large([Some([1, 2, 3])] * 100) and not is_large("x" * 10_000) and not is_large(None)
