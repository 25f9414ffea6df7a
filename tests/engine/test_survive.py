"""Ranks are lost while requests run: real processes, real signals. Requests go on token for token, and it is said who was lost."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shardwise.engine.engine import Engine
from shardwise.engine.process_ranks import ProcessRanks
from shardwise.engine.setup import Options, Setup, resolve
from shardwise.engine.supervise import Policy
from shardwise.errors import LossesSpent, RankLost
from shardwise.sched.request import SamplingParams
from tests.checkpoints import FAMILIES, build
from tests.engine.test_ranks import leftovers

PROMPTS = ([1, 5, 9, 2, 7], [3, 3, 8], [11, 4, 6, 2, 9, 1, 7, 7, 2])
COUNT = 60
WITHIN_S = 30.0
"""How long anything may take on a machine that does much else: a bound for the test, not a promise."""


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    folder = build(FAMILIES["llama"], tmp_path_factory.mktemp("llama"))
    return resolve(Options(str(folder), tp=3, dtype="float32", device="cpu", threads=1))


@pytest.fixture(scope="module")
def oracle(setup: Setup) -> list[list[int]]:
    """What each prompt is continued with where nothing happens."""
    with Engine(setup, "processes") as engine:
        return [_tokens(engine, number) for number in range(len(PROMPTS))]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = leftovers()
    yield
    assert leftovers() == before


@contextmanager
def engine_of(setup: Setup, policy: Policy) -> Iterator[Engine]:
    with Engine(setup, ProcessRanks(setup, policy=policy)) as engine:
        yield engine


def _params(number: int) -> SamplingParams:
    """Greedy, and drawn with a seed."""
    if number % 2:
        return SamplingParams(temperature=0.8, seed=number, max_tokens=COUNT, ignore_eos=True)
    return SamplingParams(temperature=0, max_tokens=COUNT, ignore_eos=True)


def _tokens(engine: Engine, number: int, at: dict[int, Callable[[], None]] | None = None) -> list[int]:
    """The tokens of a prompt; what `at` says is done after so many of them."""
    found = []
    for event in engine.generate(PROMPTS[number], _params(number)):
        found.append(event.chosen.token)
        if at and len(found) in at:
            at[len(found)]()
    return found


def _pids(engine: Engine) -> list[int]:
    assert isinstance(engine.ranks, ProcessRanks)
    return [ready.pid for ready in engine.ranks.ready]


def _kill(engine: Engine, rank: int, number: int = signal.SIGKILL) -> None:
    os.kill(_pids(engine)[rank], number)


def _until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.005)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_killed_rank_is_replaced_and_tokens_go_on(setup: Setup, oracle: list[list[int]], rank: int) -> None:
    with engine_of(setup, Policy("restart", spares=1)) as engine:
        before = _pids(engine)
        found = [_tokens(engine, number, {20: lambda: _kill(engine, rank)}) for number in range(2)]
        assert found == oracle[:2]
        after, incidents = _pids(engine), engine.incidents
    assert [pid == other for pid, other in zip(before, after, strict=True)] == [seat != rank for seat in range(3)]
    assert [(each.rank, each.before, each.ranks, each.epoch) for each in incidents] == [(rank, 3, 3, 0), (rank, 3, 3, 1)]
    assert incidents[0].pid == before[rank] and "was killed by SIGKILL" in incidents[0].reason
    assert all(each.pause_s is not None and each.pause_s < WITHIN_S for each in incidents)


def test_a_rank_killed_while_idle_is_replaced_before_it_is_needed(setup: Setup, oracle: list[list[int]]) -> None:
    with engine_of(setup, Policy("restart", spares=1)) as engine:
        before = _pids(engine)
        _kill(engine, 2)
        _until(lambda: len(engine.incidents) == 1 and engine.mending is None)
        assert _pids(engine)[:2] == before[:2] and _pids(engine)[2] != before[2]
        assert _tokens(engine, 2) == oracle[2]


def test_two_ranks_at_once_and_one_while_mending(setup: Setup, oracle: list[list[int]]) -> None:
    with engine_of(setup, Policy("restart", losses=9, spares=1)) as engine:

        def both() -> None:
            _kill(engine, 0)
            _kill(engine, 2)

        def again() -> None:
            _kill(engine, 1)
            _until(lambda: engine.mending is not None)
            _kill(engine, 2)

        assert _tokens(engine, 0, {10: both, 40: again}) == oracle[0]
        assert engine.mending is None


def test_the_others_take_a_lost_part_over_and_give_it_back(setup: Setup, oracle: list[list[int]]) -> None:
    with engine_of(setup, Policy("shrink", losses=9)) as engine:
        kept = _pids(engine)[::2]
        assert _tokens(engine, 0, {20: lambda: _kill(engine, 1)}) == oracle[0]
        assert _pids(engine) == kept and engine.setup.layout.mesh.size == 2
        _kill(engine, 1)
        assert _tokens(engine, 1) == oracle[1]
        assert _pids(engine) == kept[:1] and [each.ranks for each in engine.incidents] == [2, 1]
        told: list[object] = []
        engine.reshard((1.0, 1.0, 1.0), told.append)
        assert _tokens(engine, 2) == oracle[2]
        _until(lambda: bool(told))
        assert isinstance(told[0], Setup) and len(_pids(engine)) == 3


def test_it_is_cut_anew_while_requests_run(setup: Setup, oracle: list[list[int]]) -> None:
    with engine_of(setup, Policy("restart")) as engine:
        told: list[object] = []
        steps = {10: (1.0, 1.0), 25: (3.0, 1.0), 40: (1.0, 1.0, 1.0)}
        found = _tokens(engine, 0, {at: lambda shares=shares: engine.reshard(shares, told.append) for at, shares in steps.items()})
        assert found == oracle[0]
        _until(lambda: len(told) == 3)
        assert [each.layout.mesh.size for each in told if isinstance(each, Setup)] == [2, 2, 3]
        assert not engine.incidents


@pytest.mark.parametrize("phase", ["decode", "idle"])
def test_a_stopped_rank_is_named_and_replaced(setup: Setup, oracle: list[list[int]], phase: str) -> None:
    with engine_of(setup, Policy("restart", spares=1)) as engine:
        stop = lambda: _kill(engine, 1, signal.SIGSTOP)  # noqa: E731
        if phase == "idle":
            stop()
            _until(lambda: bool(engine.incidents))
        assert _tokens(engine, 0, {20: stop} if phase == "decode" else None) == oracle[0]
        assert [each.rank for each in engine.incidents] == [1] and "stopped" in engine.incidents[0].reason


def test_more_losses_than_the_budget_end_it(setup: Setup) -> None:
    with engine_of(setup, Policy("restart", losses=2)) as engine:
        kill = lambda: _kill(engine, 1)  # noqa: E731
        with pytest.raises(LossesSpent, match=r"rank 1 was lost during generate: .*; 2 others were lost within 60 s"):
            _tokens(engine, 0, {5: kill, 15: kill, 25: kill})


def test_nothing_is_mended_where_that_is_asked_for(setup: Setup) -> None:
    with engine_of(setup, Policy("exit", spares=1)) as engine:
        with pytest.raises(RankLost, match="rank 0 was lost during generate"):
            _tokens(engine, 0, {5: lambda: _kill(engine, 0)})


@pytest.mark.parametrize("rank", [0, 2])
def test_a_rank_killed_while_the_first_group_is_formed(setup: Setup, oracle: list[list[int]], rank: int, tmp_path: Path) -> None:
    killed = []

    def kill(_rank: int, _count: int) -> None:
        if not killed:
            killed.append(ranks_started()[rank])
            os.kill(killed[0], signal.SIGKILL)

    ranks = ProcessRanks(setup, kill, policy=Policy("restart"))
    with Engine(setup, ranks) as engine:
        assert _tokens(engine, 0) == oracle[0]
        assert [each.pid for each in engine.incidents] == killed


def ranks_started() -> list[int]:
    from tests.engine.test_ranks import workers

    return [worker.pid for worker in workers()]
