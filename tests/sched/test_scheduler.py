"""What the scheduler promises, one sentence a test. `World` checks pages, keys, tokens and order along the way."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from shardwise.errors import RequestError
from shardwise.sched.events import Ended, Event
from shardwise.sched.limits import Limits, peak_pages
from shardwise.sched.scheduler import Scheduler
from shardwise.sched.sequence import Request
from shardwise.sched.step import Item
from tests.sched.world import World

LIMITS = Limits(tokens=64, sequences=8)
LINE = Limits(tokens=64, sequences=8, flight=1)
"""One step after the other."""


class Told(World):
    """A world that keeps what was told."""

    def __init__(self, limits: Limits = LIMITS, pages: int = 40, window: int | None = None, **others: object) -> None:
        self.events: list[Event] = []
        super().__init__((pages,), (window,), limits, **others)  # type: ignore[arg-type]

    def take(self, events: tuple[Event, ...]) -> None:
        self.events += events
        super().take(events)

    def items(self) -> tuple[Item, ...]:
        """The items of the next step."""
        step = self.step()
        assert step is not None
        return step.items

    def turn(self) -> tuple[Item, ...]:
        """A step, and its results."""
        items = self.items()
        self.apply()
        self.check()
        return items

    def end(self, number: int) -> Ended:
        (ended,) = (event for event in self.events if isinstance(event, Ended) and event.request == number)
        return ended


def prompt(length: int, kind: int = 0) -> tuple[int, ...]:
    return tuple((kind + place * place) % 7 for place in range(length))


def counts(items: tuple[Item, ...]) -> list[tuple[int, int]]:
    return [(item.start, item.count) for item in items]


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


# --- what is lost -----------------------------------------------------------------------------------------------------


def test_a_dropped_step_is_made_again():
    world = Told(LIMITS)
    world.add(Request(1, prompt(20), 5, n=2, scored=True))
    first, second = world.step(), world.step()
    assert first is not None and second is not None
    world.drop(0)
    world.check()
    again = world.step()
    assert again is not None and again.number > second.number
    values = [(i.tokens, i.start, i.known, i.source, i.targets, len(i.drawn)) for i in (first.items[0], again.items[0])]
    assert values[0] == values[1]
    world.drain()


def test_a_step_can_be_dropped_while_earlier_ones_stay():
    world = Told(LIMITS)
    world.add(Request(1, prompt(20), 5))
    world.items()
    world.items()
    world.drop(1)
    (item,) = world.items()
    assert (item.start, item.source) == (20, 1)
    world.drain()


def test_ranks_that_lost_their_pages_are_told_everything_again():
    world = Told(LINE)
    world.add(Request(1, prompt(40), 5))
    world.turn()
    world.turn()
    world.forget()
    assert counts(world.turn()) == [(0, 42)]
    world.drain()
    assert world.end(1).preempted == 0, "it is not its fault"


def waiting(world: Told) -> None:
    world.add(Request(1, prompt(20), 5, n=2, scored=True))


def prefilling(world: Told) -> None:
    waiting(world)
    world.step()


def ahead(world: Told) -> None:
    prefilling(world)
    world.step()


def decoding(world: Told) -> None:
    ahead(world)
    world.apply()


@pytest.mark.parametrize("stage", [waiting, prefilling, ahead, decoding])
def test_a_request_can_be_aborted_at_any_stage(stage: Callable[[Told], None]):
    world = Told(LIMITS)
    stage(world)
    world.abort(1)
    world.abort(1)
    world.check()
    world.drain()
    assert [event for event in world.events if isinstance(event, Ended)] == [world.end(1)]


# --- scores, ends, deadlines ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, 2])
def test_scores_come_in_chunks_and_once(limit):
    world = Told(Limits(tokens=7, sequences=2, flight=1))
    world.add(Request(1, prompt(24), limit, scored=True, top=3))
    targets = []
    while world.scheduler.requests:
        targets.append([len(item.targets) for item in world.turn()])
    assert targets[:4] == [[7], [7], [7], [2]]
    assert all(targets == [0] for targets in targets[4:])


def test_what_is_to_be_scored_is_computed_though_it_is_known():
    world = Told(LINE)
    for number in (1, 2):
        world.add(Request(number, prompt(40), 1, scored=number == 2))
        world.turn()
    assert world.end(2) == Ended(2, prefilled=40)


def test_one_token_without_a_limit_needs_no_step():
    world = Told()
    world.add(Request(1, (1,), 0, scored=True))
    assert (world.end(1), world.step()) == (Ended(1), None)


def test_an_end_before_its_time_is_a_token_like_others():
    every = frozenset(range(7))
    world = Told(LINE)
    world.add(Request(1, prompt(4), 9, ends=every, least=3))
    world.drain()
    assert [type(event).__name__ for event in world.events] == ["Emitted"] * 4 + ["Ended"]


def test_a_client_that_has_read_enough_ends_one_continuation():
    world = Told(LINE)
    world.add(Request(1, prompt(4), 9, n=2))
    world.finish(1, 0)
    assert world.scheduler.requests == 1, "it has no token yet"
    world.turn()
    world.finish(1, 0)
    assert [item.drawn for item in world.turn()] == [(2,)]
    world.finish(1, 1)
    assert world.end(1)


def test_time_that_is_up_ends_a_request():
    world = Told(LINE)
    world.add(Request(1, prompt(4), 9, deadline=10))
    world.turn()
    world.now = 10
    world.turn()
    world.now = 10.5
    assert world.step() is None
    assert world.end(1).error == "its time was up before it was complete"


# --- guesses, ropes ---------------------------------------------------------------------------------------------------


def test_right_guesses_are_kept_and_wrong_ones_cost_nothing():
    alone = World((40,), (None,), LINE)
    alone.add(request := Request(1, prompt(4), 9))
    story = alone.clients[1].stories[0].told[0]
    world = Told(LINE, guess=lambda tokens, most: [*story[len(tokens) - 4 :][:2], 9][:most])
    world.add(request)
    assert [(i.start, i.drafts) for _ in range(4) for i in world.turn()] == [(0, 0), (4, 3), (7, 3), (10, 1)]
    assert world.end(1)


def test_guesses_take_what_nobody_else_wants():
    world = Told(Limits(tokens=5, sequences=4, flight=1), guess=lambda _, most: [8] * most)
    for number in (1, 2, 3):
        world.add(Request(number, prompt(1, kind=number), 9))
    assert [item.drafts for item in world.turn()] == [0, 0, 0]
    assert [item.drafts for item in world.turn()] == [2, 0, 0]


def test_a_sequence_that_outgrows_its_angles_is_computed_anew():
    world = Told(Limits(64, 8, flight=1, turns=(20,)))
    world.add(Request(1, prompt(18), 6))
    steps = [(i.start, i.count, i.known) for _ in range(6) for i in world.turn()]
    assert steps == [(0, 18, 18), (18, 1, 18), (19, 1, 18), (0, 21, 21), (21, 1, 21), (22, 1, 21)]


def test_prefixes_of_other_angles_are_not_found():
    world = Told(Limits(64, 8, flight=1, turns=(40,)))
    for number, length in ((1, 40), (2, 41), (3, 41)):
        world.add(Request(number, prompt(length), 1))
        world.turn()
    assert [world.end(number).cached for number in (1, 2, 3)] == [0, 0, 32]


@pytest.mark.parametrize(("shared", "cached"), [(None, 48), (0, 0), (48, 0), (60, 48)])
def test_keys_that_depend_on_when_they_were_computed_are_not_shared(shared, cached):
    world = Told(Limits(64, 8, flight=1, shared=shared))
    for number in (1, 2):
        world.add(Request(number, prompt(50), 1))
        world.turn()
    assert world.end(2).cached == cached


def test_the_same_calls_make_the_same_steps():
    def day(build: Callable[..., Scheduler]) -> list[object]:
        world = Told(LIMITS, pages=9, build=build)
        for number in range(9):
            world.add(Request(number, prompt(20 + number), 12, n=1 + number % 3))
        steps: list[object] = []
        while world.scheduler.requests:
            steps.append(world.step())
            if steps[-1] is None:
                world.apply()
        return [*steps, *world.events]

    assert day(Scheduler) == day(Scheduler)
