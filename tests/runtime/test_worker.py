"""Rank processes in one group after the other, driven message by message: real processes, real signals. What a group that was
formed anew computes is to the last bit what a group computes that never was."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from shardwise import env
from shardwise.comm import memory
from shardwise.comm.shared import end_group
from shardwise.comm.way import Way, way_of
from shardwise.engine.rank_processes import RankProcesses
from shardwise.engine.ranks import start_message
from shardwise.engine.setup import Options, Setup, resolve
from shardwise.runtime import wire
from shardwise.sched.step import Item, Pages, Step
from tests.checkpoints import FAMILIES, build
from tests.group import Group

WITHIN_S = 60.0
"""How long anything may take on a machine that does much else."""
AT_ONCE_S = 15.0
"""Far below the minute after which a collective gives up by itself."""

PROMPT = tuple((i * 37 + 5) % 60 for i in range(24))


class Driven:
    """Rank processes by number, the group that they were told of last, and what they have said."""

    def __init__(self, setups: dict[int, Setup]) -> None:
        self.setups, self.processes, self.epoch = setups, RankProcesses(), -1
        self.seats: tuple[int, ...] = ()
        self.times: list[str] = []
        self._channels: dict[int, wire.Channel] = {}
        self._count = 0

    def living(self, count: int) -> tuple[int, ...]:
        """So many processes that live, started where they are missing."""
        known = [number for number in range(self._count) if number in self.processes]
        while len(known) < count:
            known.append(self._count)
            self.channel(self._count)
        return tuple(known[:count])

    def channel(self, number: int) -> wire.Channel:
        self.processes.reach(number + 1)
        self._count = max(self._count, number + 1)
        if number not in self._channels:
            self._channels[number] = wire.Channel(self.processes[number].sock)
        return self._channels[number]

    def tell(self, *seats: int, want: bool = True, only: Sequence[int] | None = None, change: Setup | None = None) -> None:
        """Tells these processes, or only some of them, of the next group. What they keep is then of an older one."""
        self.epoch, self.seats = self.epoch + 1, seats
        setup = change or self.setups[len(seats)]
        for number in seats:
            self.channel(number)
        if want:
            memory.want(self.processes.shared, self.epoch)
        meeting = self.processes.meeting() if way_of("cpu", len(seats)).meets else ""
        for rank, number in enumerate(seats):
            if only is None or number in only:
                self.channel(number).send(start_message(setup, rank, self.epoch, meeting))

    def hear(self, number: int) -> wire.Message:
        """What a process says next, but for how its loading goes."""
        until = time.monotonic() + WITHIN_S
        while True:
            channel = self.channel(number)
            assert select.select([channel], [], [], max(0.0, until - time.monotonic()))[0], f"process {number} says nothing"
            message = channel.receive()
            assert message is not None, f"process {number}: {self.processes[number].death()}"
            if not isinstance(message, wire.Loading):
                return message

    def formed(self) -> list[wire.Ready]:
        """What the members of the group report, in rank order. What they still say of older groups is dropped."""
        found = []
        for number in self.seats:
            while (message := self.hear(number)).epoch < self.epoch:  # type: ignore[union-attr]
                pass
            assert isinstance(message, wire.Ready), message
            found.append(message)
        memory.give_back(self.processes.shared, self.epoch)
        return found

    def reform(self, *seats: int) -> list[wire.Ready]:
        began = time.monotonic()
        self.tell(*seats)
        found = self.formed()
        self.times.append(f"{len(seats)} ranks {1000 * (time.monotonic() - began):.0f} ms")
        return found

    def kill(self, number: int) -> None:
        self.processes.remove(number)
        del self._channels[number]

    def send(self, message: wire.Message, *seats: int) -> None:
        for number in seats or self.seats:
            self.channel(number).send(message)

    def failure(self, number: int) -> wire.Failed:
        message = self.hear(number)
        assert isinstance(message, wire.Failed) and message.epoch == self.epoch, message
        return message

    def logits(self) -> torch.Tensor:
        """Of the prompt in two steps."""
        parts = []
        for step in steps(self.setups[len(self.seats)]):
            self.send(wire.Logits(step))
            message = self.hear(self.seats[0])
            assert isinstance(message, wire.Rows), message
            parts.append(torch.frombuffer(bytearray(message.logits), dtype=torch.float32).view(-1, message.vocabulary))
        return torch.cat(parts)


def steps(setup: Setup) -> list[Step]:
    pages = tuple(Pages(0, (3, 1)) for _ in setup.pages)
    first, second = PROMPT[:15], PROMPT[15:]
    items = Item(1, first, 0, 15, pages, targets=(0,) * 15), Item(1, second, 15, 24, pages, targets=(0,) * 9)
    return [Step(number, (item,)) for number, item in enumerate(items)]


@pytest.fixture(scope="module")
def setups(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Setup]:
    folder = build(FAMILIES["llama"], tmp_path_factory.mktemp("llama"))
    options = Options(str(folder), dtype="float32", device="cpu", threads=1, max_model_len=64)
    return {degree: resolve(replace(options, tp=degree)) for degree in (1, 2, 3, 4)}


@pytest.fixture(scope="module")
def oracle(setups: dict[int, Setup]) -> dict[int, torch.Tensor]:
    """What a group of so many ranks computes that never was broken."""
    found = {}
    for size, setup in setups.items():
        with Group(setup.layout, setup.folder, context=64) as group:
            found[size] = torch.cat([group.logits(*step.items) for step in steps(setup)])
    return found


@pytest.fixture(scope="module", params=["shm", "gloo"])
def ranks(request: pytest.FixtureRequest, setups: dict[int, Setup]) -> Iterator[Driven]:
    """Processes that go from test to test, and talk as this process's environment tells them."""
    before = os.environ.get(env.COLLECTIVES)
    os.environ[env.COLLECTIVES] = request.param
    driven = Driven(setups)
    yield driven
    driven.processes.close()
    print(f"{request.param}: forming takes", ", ".join(driven.times))
    del os.environ[env.COLLECTIVES]
    if before is not None:
        os.environ[env.COLLECTIVES] = before


def test_more_and_fewer_ranks(ranks: Driven, setups: dict[int, Setup], oracle: dict[int, torch.Tensor]) -> None:
    a, b, c, d = ranks.living(4)
    for seats in ((a, b, c, d), (a, b, d), (a, b, c, d), (c, b), (d,), (b, a)):
        found = ranks.reform(*seats)
        layout = setups[len(seats)].layout
        assert [ready.weight_bytes for ready in found] == [layout.arena_bytes(rank) for rank in range(len(seats))]
        assert torch.equal(ranks.logits(), oracle[len(seats)]), seats


def test_who_waits_for_one_that_never_comes_is_freed_by_a_later_group(ranks: Driven, oracle: dict[int, torch.Tensor]) -> None:
    a, b, c = ranks.living(3)
    ranks.tell(a, b, c, only=(a, b))
    ranks.tell(a, b, c, only=(a, b))  # and again, while they wait or are about to
    began = time.monotonic()
    ranks.reform(a, b, c)
    assert time.monotonic() - began < AT_ONCE_S
    assert torch.equal(ranks.logits(), oracle[3])


def test_a_group_is_ended_from_outside(ranks: Driven, setups: dict[int, Setup], oracle: dict[int, torch.Tensor]) -> None:
    """Two wait in a collective for a third, which was told of nothing."""
    a, b, c = ranks.living(3)
    ranks.reform(a, b, c)
    if way_of("cpu", 3) is Way.SHARED:
        ranks.send(wire.Forward(steps(setups[3])[0]), a, b)
        began = time.monotonic()
        end_group(ranks.processes.shared, ranks.epoch, 3)
        failures = [ranks.failure(number) for number in (a, b)]
        assert time.monotonic() - began < AT_ONCE_S
        assert all(each.secondary and each.culprit is None for each in failures)
        ranks.reform(b, a, c)
    assert torch.equal(ranks.logits(), oracle[3])


def test_what_cannot_be_loaded_is_said_and_nobody_ends_of_it(
    ranks: Driven, setups: dict[int, Setup], oracle: dict[int, torch.Tensor], tmp_path: Path
) -> None:
    seats = ranks.living(3)
    ranks.tell(*seats, change=replace(setups[3], folder=tmp_path))
    said = [ranks.failure(number) for number in seats]
    assert any(each.mendable and str(tmp_path) in each.message for each in said)
    ranks.reform(*seats)
    assert torch.equal(ranks.logits(), oracle[3])


def test_groups_are_formed_anew_after_deaths_and_errors(
    ranks: Driven, setups: dict[int, Setup], oracle: dict[int, torch.Tensor]
) -> None:
    a, b, c, spare = ranks.living(4)
    first, held = steps(setups[3])[0], setups[3].layout
    before = ranks.reform(a, b, c)
    assert torch.equal(ranks.logits(), oracle[3])

    # The second dies within a step: the others wait for it in a collective.
    ranks.send(wire.Forward(first), a, c)
    ranks.kill(b)
    began = time.monotonic()
    assert all(ranks.failure(number).secondary for number in (a, c))
    assert time.monotonic() - began < AT_ONCE_S
    again = ranks.reform(a, spare, c)
    assert torch.equal(ranks.logits(), oracle[3])
    assert [now.pid == then.pid for now, then in zip(again, before, strict=True)] == [True, False, True]
    assert [again[rank].kept_bytes for rank in (0, 2)] == [held.weight_bytes(0), held.weight_bytes(2)]

    # An error in one rank: its peers are told at once, and all processes stay.
    ranks.send(wire.Stop(), spare)
    ranks.send(wire.Forward(first), a, c)
    assert not ranks.failure(spare).secondary
    assert all(ranks.failure(number).secondary for number in (a, c))
    kept = ranks.reform(a, spare, c)
    assert torch.equal(ranks.logits(), oracle[3]) and [now.pid for now in kept] == [then.pid for then in again]

    # The lead rank dies while the others are told of steps; two go on.
    ranks.send(wire.Forward(first))
    ranks.kill(a)
    ranks.reform(spare, c)
    assert torch.equal(ranks.logits(), oracle[2])
