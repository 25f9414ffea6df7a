"""What engine and ranks say to each other arrives as it was sent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardwise.runtime import wire
from shardwise.runtime.limits import Limits
from shardwise.sched.step import Chosen, Draw, Edit, Item, Pages, Result, Step

EDIT = Edit(1.1, 0.5, -0.5, (1, 2), ((1, 3),), ((5, -100.0),), (7,), (), b"\x00\xff")
ITEMS = (
    Item(3, (5, 6), 0, 2, (Pages(0, (4, 9)), Pages(16, ())), targets=(6,), top=2, drawn=(3, 4)),
    Item(8, (), 40, 41, (Pages(0, (1,)), Pages(0, (2,))), source=6, drawn=(8,)),
    Item(9, (1, 2, 3), 7, 10, (Pages(0, (3,)), Pages(0, (3,))), drawn=(9,), drafts=2),
    Item(10, (1, 2), 0, 2, (Pages(0, (5,)), Pages(0, (5,))), pool="mean"),
)
MESSAGES: list[wire.Message] = [
    wire.Start(
        1,
        "{}",
        None,
        2,
        ((1.0, 2.0),) * 3,
        True,
        "bf16",
        "fp8",
        None,
        "cpu",
        (9, 5),
        Limits(512, 64, (8, 4)),
        1,
        0,
        60.0,
        None,
        rendezvous="/tmp/a",
    ),
    wire.Loading(9, 3),
    wire.Ready(4, 2, 9, 17, "here", 3, 4),
    wire.Failed("gone", False, 1, True, 3),
    wire.Forward(Step(7, ITEMS, (((1, 2), (1, 3)), ()))),
    wire.Sample(7, (Draw(3, 0.0, 0), Draw(4, 0.7, 2**63 - 1, 1, 0.9, 40, 0.1, 5, EDIT), Draw(8, 1.0, 3), Draw(9, 1.0, 3))),
    wire.Sample(8, ()),
    wire.Draws((Draw(3, 0.0, 0),)),
    wire.Results((Result(6, pooled=b"\x00\xff" * 8),), 3),
    wire.Done(7, (Result(3, (Chosen(5, -0.5, 1, ((5, -0.5), (6, -1.0))),), (Chosen(6),)), Result(4, error="no")), 0.25, 3),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_messages_arrive_as_they_were_sent(message: wire.Message) -> None:
    assert wire.decode(wire.encode(message)) == message


@pytest.mark.parametrize("limit", [600, 1000, 2000, 10**6])
def test_draws_that_one_message_cannot_hold_come_in_several(limit: int) -> None:
    draws = tuple(Draw(i, 0.5, i, edit=Edit(allowed=tuple(range(i % 40)))) for i in range(50))
    *early, last = [wire.decode(body) for body in wire.encode_sample(4, draws, limit)]
    assert isinstance(last, wire.Sample) and last.number == 4
    assert all(isinstance(message, wire.Draws) for message in early) and bool(early) == (limit < 10**6)
    assert (*(draw for message in early for draw in message.draws), *last.draws) == draws  # type: ignore[union-attr]
    assert max(len(wire.encode(message)) for message in (*early, last)) <= limit


def test_one_draw_is_not_cut() -> None:
    with pytest.raises(wire.WireError, match=r"one draw takes \d+ bytes, over the limit of 100"):
        list(wire.encode_sample(4, (Draw(1, 0.5, 1, edit=Edit(allowed=tuple(range(300)))),), 100))


@given(st.lists(st.integers(0, 300)), st.integers(1, 500))
def test_pooled_states_that_one_message_cannot_hold_come_in_several(sizes: list[int], limit: int) -> None:
    results = tuple(Result(n, pooled=bytes(size)) for n, size in enumerate(sizes))
    parts = list(wire.in_messages(results, limit))
    assert parts and tuple(result for part in parts for result in part) == results
    taken = [sum(len(result.pooled) for result in part) for part in parts]
    assert all(size <= limit or len(part) == 1 for size, part in zip(taken, parts, strict=True))
    # None is sent that the one before it had room for.
    assert all(size + len(part[0].pooled) > limit for size, part in zip(taken, parts[1:], strict=False))
