"""Ranks are lost while requests run: real processes, real signals. Requests go on token for token; who was lost is said."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from shardwise.engine.engine import Engine
from shardwise.engine.process_ranks import ProcessRanks
from shardwise.engine.setup import Options, Setup, resolve
from shardwise.engine.supervise import Policy
from shardwise.errors import LossesSpent
from shardwise.sched.request import SamplingParams
from tests.checkpoints import FAMILIES, build
from tests.engine.test_ranks import leftovers, workers

PROMPTS = ([1, 5, 9, 2, 7], [3, 3, 8], [11, 4, 6, 2, 9, 1, 7, 7, 2])
COUNT = 60
WITHIN_S = 30.0
"""How long anything may take on a machine that does much else: a bound for the test, not a promise."""


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    folder = build(FAMILIES["llama"], tmp_path_factory.mktemp("llama"))
    return resolve(Options(str(folder), tp=3, dtype="float32", device="cpu", threads=1))


@pytest.fixture(scope="module")
def engine(setup: Setup) -> Iterator[Engine]:
    """One whose ranks are replaced, as often as it takes."""
    before = leftovers()
    with Engine(setup, ProcessRanks(setup, policy=Policy("restart", losses=1000, spares=1))) as engine:
        yield engine
    assert leftovers() == before


@pytest.fixture(scope="module")
def oracle(engine: Engine) -> list[list[int]]:
    """What each prompt is continued with where nothing happens."""
    return [_tokens(engine, number) for number in range(len(PROMPTS))]


@contextmanager
def engine_of(setup: Setup, policy: Policy) -> Iterator[Engine]:
    before = leftovers()
    with Engine(setup, ProcessRanks(setup, policy=policy)) as engine:
        yield engine
    assert leftovers() == before


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
def test_a_killed_rank_is_replaced_and_tokens_go_on(engine: Engine, oracle: list[list[int]], rank: int) -> None:
    before, epoch = _pids(engine), len(engine.incidents) and engine.incidents[-1].epoch + 1
    assert _tokens(engine, rank, {20: lambda: _kill(engine, rank)}) == oracle[rank]
    assert [pid == other for pid, other in zip(before, _pids(engine), strict=True)] == [seat != rank for seat in range(3)]
    found = engine.incidents[-1]
    assert (found.rank, found.pid, found.before, found.ranks, found.epoch) == (rank, before[rank], 3, 3, epoch)
    assert "was killed by SIGKILL" in found.reason and found.where
    assert found.pause_s is not None and found.pause_s < WITHIN_S


def test_a_rank_killed_while_idle_is_replaced_before_it_is_needed(engine: Engine, oracle: list[list[int]]) -> None:
    before = _pids(engine)
    _kill(engine, 2)
    _until(lambda: _pids(engine) != before and engine.mending is None)
    assert _pids(engine)[:2] == before[:2]
    assert _tokens(engine, 2) == oracle[2]


def test_two_ranks_at_once_and_one_while_mending(engine: Engine, oracle: list[list[int]]) -> None:
    def both() -> None:
        _kill(engine, 0)
        _kill(engine, 2)

    def again() -> None:
        _kill(engine, 1)
        _until(lambda: engine.mending is not None)
        _kill(engine, 2)

    assert _tokens(engine, 0, {10: both, 40: again}) == oracle[0]
    assert engine.mending is None


@pytest.mark.parametrize("phase", ["decode", "idle"])
def test_a_stopped_rank_is_named_and_replaced(engine: Engine, oracle: list[list[int]], phase: str) -> None:
    before, stopped = _pids(engine), lambda: _kill(engine, 1, signal.SIGSTOP)
    if phase == "idle":
        stopped()
        _until(lambda: _pids(engine) != before)
    assert _tokens(engine, 0, {20: stopped} if phase == "decode" else None) == oracle[0]
    found = engine.incidents[-1]
    assert (found.rank, found.pid) == (1, before[1]) and "is stopped" in found.reason


def test_it_is_cut_anew_while_requests_run(engine: Engine, oracle: list[list[int]]) -> None:
    told: list[object] = []
    steps = {10: (1.0, 1.0), 25: (3.0, 1.0), 40: (1.0, 1.0, 1.0)}
    count = len(engine.incidents)
    found = _tokens(engine, 0, {at: partial(engine.reshard, shares, told.append) for at, shares in steps.items()})
    assert found == oracle[0]
    _until(lambda: len(told) == 3)
    assert [each.layout.mesh.size for each in told if isinstance(each, Setup)] == [2, 2, 3]
    assert len(engine.incidents) == count


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


def test_more_losses_than_the_budget_end_it_also_while_the_first_group_is_formed(setup: Setup) -> None:
    others = [worker.pid for worker in workers()]
    killed: list[int] = []

    def at_first(_rank: int, _count: int) -> None:
        if not killed:
            killed.append(next(worker.pid for worker in workers() if worker.pid not in others))
            os.kill(killed[0], signal.SIGKILL)

    ended = pytest.raises(LossesSpent, match=r"rank 1 was lost during generate: .*; 2 others were lost within 60 s")
    ranks = ProcessRanks(setup, at_first, policy=Policy("restart", losses=2))
    with Engine(setup, ranks) as engine, ended:
        assert [each.pid for each in engine.incidents] == killed
        kill = lambda: _kill(engine, 1)  # noqa: E731
        _tokens(engine, 0, {5: kill, 15: kill})
