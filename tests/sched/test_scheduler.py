"""Who runs next, with which pages: a promise a test. `World` checks pages, keys, tokens and order along the way."""

from __future__ import annotations

import re

import pytest

from shardwise.errors import RequestError
from shardwise.sched.events import Ended
from shardwise.sched.limits import Limits, peak_pages
from shardwise.sched.sequence import Request
from tests.sched.told import LIMITS, LINE, Told, counts, prompt

# --- one rule for prefill and decode ----------------------------------------------------------------------------------


def test_a_prompt_is_computed_in_chunks_and_then_token_by_token():
    world = Told(Limits(tokens=10, sequences=2, flight=1))
    world.add(Request(1, prompt(24), 3))
    assert [counts(world.turn()) for _ in range(5)] == [[(0, 10)], [(10, 10)], [(20, 4)], [(24, 1)], [(25, 1)]]
    assert world.end(1) == Ended(1, prefilled=24)


def test_next_tokens_go_before_long_prompts():
    world = Told(Limits(tokens=10, sequences=4, flight=1))
    world.add(Request(1, prompt(30), 1, priority=0))
    world.turn()
    world.add(Request(2, prompt(2, kind=3), 5, priority=-1))
    assert counts(world.turn()) == [(10, 10)], "the budget was gone before the second could come"
    assert counts(world.turn()) == [(20, 10)]
    assert counts(world.turn()) == [(0, 2)]
    world.add(Request(3, prompt(40, kind=5), 1, priority=-2))
    assert counts(world.turn()) == [(2, 1), (0, 9)]
    assert counts(world.turn()) == [(3, 1), (9, 9)], "a decode is first, though the prompt has priority"


def test_a_step_that_is_not_applied_is_built_on_by_its_number():
    world = Told(LIMITS)
    world.add(Request(1, prompt(5), 4))
    (first,), (second,) = world.items(), world.items()
    assert (first.start, first.count, first.drawn) == (0, 5, (first.sequence,))
    assert (second.start, second.source, second.tokens) == (5, 1, ())
    assert world.step() is None, "two may be in flight"
    world.apply()
    (third,) = world.items()
    assert (third.start, third.source) == (6, 2)
    world.drain()


def test_it_goes_no_further_ahead_than_it_may():
    world = Told(Limits(tokens=64, sequences=8, flight=3, ahead=0))
    world.add(Request(1, prompt(5), 4))
    world.items()
    assert world.step() is None, "its token is not known, and another stage may work for somebody else"
    world.add(Request(2, prompt(5), 4))
    assert counts(world.items()) == [(0, 5)]


def test_tokens_after_an_end_that_is_found_late_are_nobody_s():
    request = Request(1, prompt(5), 9, ends=frozenset(range(7)))
    world = Told(LIMITS)
    world.add(request)
    world.items()
    world.items()
    world.apply()
    assert world.end(1)
    before = len(world.events)
    world.apply()
    assert len(world.events) == before
    world.check()


# --- prefixes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "shared", "cached"),
    [
        (40, 40, 32),
        (40, 33, 32),
        (40, 32, 32),
        (40, 31, 16),
        (40, 15, 0),
        (48, 48, 32),
        (16, 16, 0),
        (17, 17, 16),
        (33, 33, 32),
    ],
)
def test_what_is_prefilled_is_the_prompt_less_whole_shared_pages(length, shared, cached):
    world = Told(LINE)
    world.add(Request(1, prompt(shared), 1))
    world.turn()
    world.add(Request(2, (*prompt(shared), *prompt(length - shared, kind=5)), 1))
    world.turn()
    assert world.end(2) == Ended(2, prefilled=length - cached, cached=cached)


def test_pages_are_found_once_they_are_applied_and_not_before():
    world = Told(Limits(tokens=32, sequences=4, flight=2))
    world.add(Request(1, prompt(64), 1))
    world.add(Request(2, prompt(64), 1))
    world.items()
    world.items()
    world.apply()
    world.drop(0)
    world.drain()
    assert world.end(1) == Ended(1, prefilled=64)
    assert world.end(2).cached == 32, "what was applied; not what was lost, nor what is in flight again"


@pytest.mark.parametrize(("limits", "salt"), [(LINE, 1), (Limits(64, 8, flight=1, prefixes=False), 0)])
def test_nothing_is_found_under_another_salt_or_where_nothing_is_looked_up(limits, salt):
    world = Told(limits)
    for number in (1, 2):
        world.add(Request(number, prompt(40), 1, salt=salt * number))
        world.turn()
    assert world.end(2) == Ended(2, prefilled=40)


def test_nothing_of_a_failed_request_is_found():
    world = Told(LINE)
    world.add(Request(1, prompt(40), 4))
    world.turn()
    world.items()
    world.apply(error=0)
    assert world.end(1).error == "not a number"
    world.add(Request(2, prompt(40), 1))
    world.turn()
    assert world.end(2) == Ended(2, prefilled=40)


def test_the_longest_unheld_page_is_forgotten_first():
    world = Told(LINE, pages=7)
    for number, kind in ((1, 0), (2, 3)):
        world.add(Request(number, prompt(33, kind), 1))
        world.turn()
    world.add(Request(3, prompt(33, kind=5), 1))
    world.turn()
    world.add(Request(4, prompt(33, kind=3), 1))
    world.turn()
    assert world.end(4).cached == 32
    world.add(Request(5, prompt(33), 1))
    world.turn()
    assert world.end(5).cached < 32


# --- several continuations --------------------------------------------------------------------------------------------


def test_continuations_share_the_prompt_and_copy_a_page_when_they_write():
    world = Told(LINE)
    world.add(Request(1, prompt(40), 8, n=3))
    (item,) = world.turn()
    assert len(item.drawn) == 3
    assert len({page for _, page in world.scheduler.cache.held(world.scheduler.running)}) == 3
    step = world.step()
    assert step is not None and [item.start for item in step.items] == [40, 40, 40]
    assert {old for old, _ in step.copies[0]} == {item.pages[0].ids[-1]}
    assert len({i.pages[0].ids[-1] for i in step.items}) == 3 and len({i.pages[0].ids[:-1] for i in step.items}) == 1
    world.drain()


def test_a_page_that_is_full_needs_no_copy():
    world = Told(LINE)
    world.add(Request(1, prompt(32), 8, n=3))
    world.turn()
    step = world.step()
    assert step is not None and step.copies == ((),)


# --- windows ----------------------------------------------------------------------------------------------------------


def test_pages_behind_a_window_are_given_back():
    world = Told(LINE, window=20)
    world.add(Request(1, prompt(60), 20))
    world.turn()
    assert [len(table.ids) for s in world.scheduler.running for table in s.tables] == [peak_pages(20, 79) - 1]
    while world.scheduler.requests:
        (item,) = world.turn()
        assert item.pages[0].first <= item.start - 19 and len(item.pages[0].ids) <= peak_pages(20, 79)


@pytest.mark.parametrize(
    ("window", "tokens", "pages"), [(None, 1, 1), (None, 33, 3), (1, 99, 1), (16, 99, 2), (17, 99, 2), (18, 99, 3)]
)
def test_the_most_pages_of_a_window(window, tokens, pages):
    assert peak_pages(window, tokens) == pages


# --- room -------------------------------------------------------------------------------------------------------------


def test_what_can_never_fit_is_refused_with_both_numbers():
    world = Told(pages=5)
    message = "has 50 tokens and up to 16 may follow: that is 65 tokens to keep, and the cache holds 64"
    with pytest.raises(RequestError, match=re.escape(message)):
        world.scheduler.add(Request(1, prompt(50), 16))
    world.add(Request(2, prompt(50), 15))
    world.drain()


@pytest.mark.parametrize(
    ("request_", "message"), [(Request(1, (), 1), "prompt is empty"), (Request(1, (1,), 1, n=9), "n is 9, but at most 8")]
)
def test_what_makes_no_sense_is_refused(request_, message):
    with pytest.raises(RequestError, match=message):
        Told().scheduler.add(request_)


def test_a_number_that_is_here_is_refused():
    world = Told()
    world.add(Request(1, (1,), 1))
    with pytest.raises(RequestError, match="request 1 is here already"):
        world.scheduler.add(Request(1, (1,), 1))


def test_the_youngest_gives_way_and_starts_over():
    world = Told(LINE, pages=9)
    for number in (1, 2, 3):
        world.add(Request(number, prompt(30, kind=number), 20))
        world.turn()
    while len(world.scheduler.running) == 3:
        world.turn()
    assert [s.request.number for s in world.scheduler.waiting] == [3]
    world.drain()
    assert [world.end(number).preempted for number in (1, 2)] == [0, 0] and world.end(3).preempted >= 1


@pytest.mark.parametrize("preemptions", [1, 3])
def test_who_gave_way_often_enough_does_not_again(preemptions):
    world = Told(Limits(64, 8, flight=1, preemptions=preemptions), pages=8)
    world.add(Request(1, prompt(30), 60, priority=9))
    for number in range(2, 40):
        world.add(Request(number, prompt(60, kind=number), 4))
        for _ in range(5):
            world.turn()
        if 1 not in world.clients:
            break
    assert world.end(1).preempted == preemptions


def test_nobody_overtakes_who_waits_first():
    world = Told(LINE, pages=9)
    world.add(Request(1, prompt(60), 20))
    world.turn()
    world.add(Request(2, prompt(70, kind=3), 20))
    world.add(Request(3, prompt(5, kind=5), 1))
    world.turn()
    assert [s.request.number for s in world.scheduler.waiting] == [2, 3]
    world.drain()


def test_smaller_priority_goes_first_and_takes_the_room_of_others():
    world = Told(LINE, pages=6)
    world.add(Request(1, prompt(60), 10, priority=1))
    world.turn()
    world.add(Request(2, prompt(60, kind=3), 10, priority=1))
    world.add(Request(3, prompt(60, kind=5), 10))
    world.turn()
    assert [s.request.number for s in world.scheduler.running] == [3]
    assert [s.request.number for s in world.scheduler.waiting] == [1, 2]
    world.drain()
