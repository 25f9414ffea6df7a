"""Other ranks take over: requests go on token for token, who has no room is told so, who makes ranks fail is found."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from shardwise.engine.ranks import Done
from shardwise.engine.setup import Setup, recut
from shardwise.engine.thread_ranks import ThreadRanks
from shardwise.errors import SHRUNK
from shardwise.sched.pooling import PoolingParams
from shardwise.sched.request import SamplingParams
from shardwise.sched.step import Step
from tests.engine.drive import Ask, Drive
from tests.engine.test_many import asks, fewer_pages, setup_of, told

PLAIN = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
POISON = (2, 7, 8)
"""`asks` never uses the first of these, and what it gets does not go on like that."""


class Raises(ValueError):
    """What goes wrong in a rank."""


class Poisoned(ThreadRanks):
    """Ranks that raise in a step that computes POISON."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.steps: list[Step] = []

    def forward(self, step: Step) -> None:
        self.steps.append(step)
        super().forward(step)

    def wait(self, wake: int) -> Done | None:
        done = super().wait(wake)
        items = [item for step in self.steps if done and step.number == done[0] for item in step.items]
        if done and any(item.tokens[n : n + 3] == POISON for item in items for n in range(item.count)):
            raise Raises(f"step {done[0]}")
        return done


def turn(drive: Drive) -> int:
    """One turn; how often a rank failed in it."""
    try:
        drive.turn()
    except Raises as error:
        drive.restart(failed=f"rank 1 failed: {error}")
        return 1
    return 0


def alone(setup: Setup, wanted: Sequence[Ask]) -> list[list[list[int]]]:
    with Drive(setup) as drive:
        for index, ask in enumerate(wanted):
            drive.alone(ask, index)
        return told(drive, list(drive.told), list(wanted))


@pytest.mark.parametrize("degrees", [(2, 3, 2), (3, 2, 1)])
def test_they_go_on_on_any_number_of_ranks(checkpoint: Callable[[str], Path], degrees: tuple[int, ...]) -> None:
    wanted = asks(10, seed=5)
    setup = setup_of(checkpoint("llama"), degrees[0])
    with Drive(setup) as drive:
        numbers = [drive.add(ask, index) for index, ask in enumerate(wanted)]
        for ranks in degrees[1:]:
            for _ in range(6):
                drive.turn()
            assert drive.core.scheduler.requests
            drive.restart(recut(setup, (1.0,) * ranks))
        drive.finish()
        assert told(drive, numbers, wanted) == alone(setup, wanted)


def test_who_has_no_room_ends_and_the_others_wait(checkpoint: Callable[[str], Path]) -> None:
    setup = setup_of(checkpoint("llama"), 2)
    fitting = [ask for ask in asks(20, seed=7) if len(ask.prompt) <= 66]
    wanted = [*fitting, Ask(tuple(range(3, 83)), replace(PLAIN, max_tokens=30))]
    with Drive(setup) as drive:
        numbers = [drive.add(ask, index) for index, ask in enumerate(wanted)]
        for _ in range(5):
            drive.turn()
        assert not drive.told[numbers[-1]].ended
        drive.restart(fewer_pages(setup, 96))
        (ended,) = drive.told[numbers[-1]].ended
        assert ended.unfit and ended.error is not None and ended.error.startswith(SHRUNK) and not ended.asked
        drive.finish()
        assert told(drive, numbers[:-1], wanted[:-1]) == alone(setup, wanted[:-1])


def test_a_shorter_context_ends_those_alone_that_asked_for_more(checkpoint: Callable[[str], Path]) -> None:
    setup = setup_of(checkpoint("llama"), 2, max_model_len=96, max_num_seqs=8, max_num_batched_tokens=50)
    shorter = replace(setup, context=64, bound="memory")
    prompt = tuple(range(3, 43))
    wanted = [
        Ask(prompt, replace(PLAIN, max_tokens=24)),
        Ask(prompt, replace(PLAIN, max_tokens=25)),
        Ask(prompt, replace(PLAIN, max_tokens=None, n=2)),
        Ask(prompt, PoolingParams()),
        Ask(prompt * 2, PoolingParams()),
    ]
    with Drive(setup) as drive:
        # Not begun, or on their way.
        for ask in wanted:
            drive.add(ask)
        late = replace(drive.entries[2], number=99, choices=[], ended=False)
        drive.told[99] = type(drive.told[1])()
        late.sink = drive.told[99].events.append
        drive.core.expect(late)
        drive.turn()
        drive.restart(shorter)
        drive.core.begin(late)
        drive.finish()
        ends = {number: story.ended[0] for number, story in drive.told.items()}
        assert {number: (end.unfit, end.error is not None) for number, end in ends.items()} == {
            **dict.fromkeys((1, 3, 4), (False, False)),
            **dict.fromkeys((2, 5, 99), (True, True)),
        }
        assert "the context has become 64" in str(ends[2].error)
        assert [len(drive.told[3].tokens(choice)) for choice in (0, 1)] == [24, 24]
        first = alone(setup, wanted[:1])[0][0]
        assert drive.told[3].tokens(0) == first == drive.told[1].tokens()


@pytest.mark.parametrize("seed", [1, 2])
def test_only_the_request_that_makes_a_rank_fail_ends(checkpoint: Callable[[str], Path], seed: int) -> None:
    setup = setup_of(checkpoint("llama"), 2)
    good = asks(14, seed=seed)
    bad = [replace(good[index], prompt=(*good[index].prompt[:5], *POISON)) for index in (3, 9)]
    bad[1] = Ask(bad[1].prompt, PoolingParams())
    wanted = [*good[:4], bad[0], *good[4:], bad[1]]
    places = {4, 15}
    failures = 0
    with Drive(setup, Poisoned) as drive:
        numbers: list[int] = []
        chance = random.Random(seed)
        while len(numbers) < len(wanted) or drive.core.scheduler.requests:
            for _ in range(min(chance.choice((0, 1, 5)), len(wanted) - len(numbers))):
                numbers.append(drive.add(wanted[len(numbers)], len(numbers)))
            failures += turn(drive)
        errors = [drive.told[number].ended[0].error for number in numbers]
        assert {place for place, error in enumerate(errors) if error} == places
        assert all("rank 1 failed: step" in str(errors[place]) for place in places)
        assert 2 <= failures <= 4, "once among others at the most, and once alone"
        fine = [place for place in range(len(wanted)) if place not in places]
        with Drive(setup) as single:
            for place in fine:
                one = single.alone(wanted[place], place)
                params = wanted[place].params
                assert isinstance(params, SamplingParams)
                for choice in range(params.n):
                    assert drive.told[numbers[place]].tokens(choice) == one.tokens(choice), place


def test_a_failure_with_nothing_in_flight_accuses_nobody(checkpoint: Callable[[str], Path]) -> None:
    with Drive(setup_of(checkpoint("llama"), 1)) as drive:
        drive.restart(failed="nobody's fault")
        number = drive.add(Ask((5, 6, 7), PLAIN))
        drive.restart(failed="nobody's fault")
        assert drive.core.scheduler.alone is None
        drive.finish()
        assert drive.told[number].ended[0].error is None
