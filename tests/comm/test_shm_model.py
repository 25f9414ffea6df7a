"""No interleaving of the shared memory protocol reads what is half written, or sleeps for ever; planted faults are found."""

from __future__ import annotations

import pytest

from tests.comm.shm_model import Action, Protocol, divided_rounds, letters, lost_wakes, races, small_round

SOUND = Protocol()


def small(ranks: int, rounds: int, how: Protocol) -> list[list[Action]]:
    return [[step for n in range(rounds) for step in small_round(rank, ranks, n, how)] for rank in range(ranks)]


def mixed(ranks: int, how: Protocol) -> list[list[Action]]:
    """A small sum, a large one, and a small one: the slots' turns shift."""
    return [
        [
            *small_round(rank, ranks, 0, how, parts=ranks),
            *divided_rounds(rank, ranks, 1, how),
            *small_round(rank, ranks, 3, how, parts=ranks),
        ]
        for rank in range(ranks)
    ]


@pytest.mark.parametrize(("ranks", "rounds", "states"), [(2, 5, 100), (3, 3, 5000)])
def test_small_rounds_are_in_order(ranks: int, rounds: int, states: int) -> None:
    assert races(small(ranks, rounds, SOUND), SOUND) > states


def test_large_rounds_between_small_ones_are_in_order() -> None:
    assert races(mixed(2, SOUND), SOUND) > 100


def test_letters_are_in_order() -> None:
    assert races([list(letters(rank, 6, SOUND)) for rank in range(2)], SOUND) > 30


FAULTS = {
    "one slot": Protocol(slots=1),
    "no release": Protocol(release=False),
    "no acquire": Protocol(acquire=False),
    "only one peer is awaited": Protocol(waits_for_all=False),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_rounds_are_found(fault: str) -> None:
    how = FAULTS[fault]
    with pytest.raises(AssertionError, match="of slot"):
        races(small(3, 3, how), how)


@pytest.mark.parametrize("how", [Protocol(slots=1), Protocol(release=False), Protocol(acquire=False)])
def test_faults_of_large_rounds_are_found(how: Protocol) -> None:
    with pytest.raises(AssertionError, match="of slot"):
        races(mixed(2, how), how)


@pytest.mark.parametrize("how", [Protocol(slots=1), Protocol(letters_ahead=2), Protocol(acquire=False)])
def test_faults_of_letters_are_found(how: Protocol) -> None:
    with pytest.raises(AssertionError, match="of letter"):
        races([list(letters(rank, 6, how)) for rank in range(2)], how)


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_nobody_sleeps_for_ever(ranks: int) -> None:
    assert lost_wakes(ranks, 3) > 30


@pytest.mark.parametrize("fault", ["ordered", "compares"])
def test_lost_wakes_are_found(fault: str) -> None:
    with pytest.raises(AssertionError, match="nobody can go on"):
        lost_wakes(3, 2, **{fault: False})
