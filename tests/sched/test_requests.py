"""What becomes of a request: losses, ends, scores, guesses and ropes, a promise a test. `World` checks the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from shardwise.sched.events import Ended
from shardwise.sched.limits import Limits
from shardwise.sched.scheduler import Scheduler
from shardwise.sched.sequence import Request
from tests.sched.told import LIMITS, LINE, Told, counts, prompt
from tests.sched.world import World

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


def test_suspects_run_alone_until_they_have_computed_again_what_they_had():
    world = Told(Limits(tokens=20, sequences=4, flight=2))
    for number, length in ((1, 6), (2, 3), (3, 12)):
        world.add(Request(number, prompt(length, kind=number), 4, n=number if number < 3 else 1))
    world.turn()
    world.items()
    world.items()
    issued = {(s.request.number, s.choice): s.issued for s in world.scheduler.running}
    assert {number for number, _ in issued} == {1, 2, 3} == set(world.scheduler.in_doubt)
    world.accuse()
    world.add(Request(9, prompt(2), 1, priority=-9))
    order = []
    while (alone := world.scheduler.alone) is not None:
        order.append(alone)
        world.step()
        if world.flight:
            world.apply()
        for sequence in world.scheduler.sequences(alone):
            if world.scheduler.alone != alone:
                assert sequence.computed >= issued[alone, sequence.choice] or sequence.finished or not sequence.running
    assert list(dict.fromkeys(order)) == [1, 2, 3], "and who has come since waits, whatever its priority"
    assert not any(event.request == 9 for event in world.events)
    world.drain()


def test_a_suspect_alone_may_have_its_guesses():
    world = Told(Limits(tokens=64, sequences=8, flight=1), guess=lambda _, most: [8] * most)
    for number in (1, 2):
        world.add(Request(number, prompt(5, kind=number), 9))
    world.turn()
    world.items()
    world.accuse()
    assert [item.drafts for item in world.turn()] == [0], "what it had issued, guesses aside, is one token behind its prompt"
    assert world.scheduler.alone is not None
    world.drain()


def test_who_does_not_fit_other_ranks_ends_and_the_others_go_on():
    world = Told(LINE)
    for number, length in ((1, 30), (2, 60), (3, 30)):
        world.add(Request(number, prompt(length, kind=number), 10))
        world.turn()
    world.recut((5,), replace(LINE, sequences=2))
    assert world.end(2).unfit and "there is less room than when the request came: the prompt has 60" in str(world.end(2).error)
    world.add(Request(4, prompt(20), 4, n=2))
    world.recut((5,), replace(LINE, sequences=1))
    assert "at most 1 sequences run at once" in str(world.end(4).error)
    world.drain()
    assert not world.end(1).error and not world.end(3).error


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


@pytest.mark.parametrize(("pool", "cached"), [("mean", 0), ("last", 32)])
def test_a_mean_computes_what_is_known_and_the_last_state_does_not(pool, cached):
    world = Told(LINE)
    world.add(Request(1, prompt(40), 1))
    world.turn()
    world.add(Request(2, prompt(40), 0, pooled=pool))
    world.turn()
    assert world.end(2) == Ended(2, prefilled=40 - cached, cached=cached)
    world.add(Request(3, prompt(1), 0, pooled=pool))
    world.turn()
    assert world.end(3) == Ended(3, prefilled=1)


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
