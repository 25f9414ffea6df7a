"""Every interleaving of forming a group anew, for a few processes, faults and steps: ProcessRanks and its Supervisor as they
are, on processes that are no more than where they stand, what they were told, and what they said.

Breadth first: the first state in which something does not hold is one of the shortest ways there.

    python -m tests.engine.recovery.model [--size 2] [--faults 2] [--steps 1] [--spares 1]
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from shardwise.engine.process_ranks import ProcessRanks
from shardwise.engine.rank_lines import Gone
from shardwise.engine.ranks import Formed
from shardwise.errors import ShardwiseError
from shardwise.runtime import wire
from shardwise.sched.limits import Limits
from shardwise.sched.step import Step
from tests.engine.recovery.cluster import need
from tests.engine.recovery.world import Machine, Parts


class Told(NamedTuple):
    """A message to a process: a Start or a Forward."""

    kind: str
    number: int
    seat: int = 0
    size: int = 0


class Worker(NamedTuple):
    """A process: "out" of all groups, "joining" one, "ready", or at "step"; what it was told, and what it said."""

    alive: bool = True
    stopped: bool = False
    mode: str = "out"
    epoch: int = -1
    seat: int = 0
    size: int = 0
    step: int = 0
    inbox: tuple[Told, ...] = ()
    outbox: tuple[wire.Message, ...] = ()


class Meeting(NamedTuple):
    """What the members of an epoch share: who has joined, who is at the step, whether it is broken."""

    joined: frozenset[int] = frozenset()
    entered: frozenset[tuple[int, int]] = frozenset()
    broken: bool = False


class Eyes:
    """As `Lookout`; what it finds is a move of the model."""

    def begin(self, epoch: int, pids: Sequence[int], now: float) -> None:
        pass

    def where(self, seat: int) -> str:
        return ""


class Host:
    """As `started` and `lines` of ProcessRanks."""

    def __init__(self) -> None:
        self.workers: dict[int, Worker] = {}
        self.count = 0
        self.meetings: dict[int, Meeting] = {}
        self.wanted = -1

    def copied(self) -> Host:
        new = Host()
        new.workers, new.count = dict(self.workers), self.count
        new.meetings, new.wanted = dict(self.meetings), self.wanted
        return new

    # --- as the engine sees it ----------------------------------------------------------------------------------------

    def reach(self, size: int) -> None:
        for number in range(self.count, size):
            self.workers[number] = Worker()
        self.count = max(self.count, size)

    def __getitem__(self, number: int) -> Process:
        return Process(self, number)

    def __contains__(self, number: int) -> bool:
        return number in self.workers

    def add(self, process: Process) -> None:
        pass

    def remove(self, number: int) -> None:
        self.workers.pop(number, None)

    def lookout(self) -> Eyes:
        return Eyes()

    def want(self, epoch: int, before: int = 0) -> None:
        need(epoch > self.wanted, "epoch", epoch, "is wanted after", self.wanted)
        self.wanted = epoch

    def give_back(self, epoch: int) -> None:
        late = [n for n, w in self.workers.items() if w.alive and w.mode != "out" and w.epoch < epoch]
        need(not late, "processes", late, "are in an older group than", epoch)

    def meeting(self) -> str:
        return ""

    def met(self) -> None:
        pass

    def close(self) -> None:
        pass

    def send(self, number: int, body: bytes) -> None:
        need(number in self.workers, "a process that is known to be dead is told something:", number)
        message, worker = wire.decode(body), self.workers[number]
        if isinstance(message, wire.Start):
            told = Told("start", message.epoch, message.rank, message.tp)
            need(message.epoch == self.wanted, "a Start of epoch", message.epoch, "when", self.wanted, "is wanted")
        else:
            assert isinstance(message, wire.Forward)
            told = Told("forward", message.step.number)
        if worker.alive:
            self.change(number, inbox=(*worker.inbox, told))

    # --- what processes do --------------------------------------------------------------------------------------------

    def change(self, number: int, **changes: Any) -> None:
        self.workers[number] = self.workers[number]._replace(**changes)

    def share(self, epoch: int, **changes: Any) -> None:
        self.meetings[epoch] = self.meetings.get(epoch, Meeting())._replace(**changes)

    def die(self, number: int, *, cut: bool) -> None:
        worker = self.workers[number]
        if worker.mode != "out":
            self.share(worker.epoch, broken=True)
        said = () if cut else worker.outbox
        self.workers[number] = Worker(alive=False, outbox=said)

    def take(self, number: int) -> None:
        """The oldest of what it was told."""
        worker = self.workers[number]
        told, rest = worker.inbox[0], worker.inbox[1:]
        self.change(number, inbox=rest)
        if told.kind == "start":
            if worker.mode != "out":
                self.share(worker.epoch, broken=True)
            self.change(number, mode="joining", epoch=told.number, seat=told.seat, size=told.size)
            self.share(told.number, joined=self.meetings.get(told.number, Meeting()).joined | {told.seat})
        elif worker.mode == "ready":
            self.change(number, mode="step", step=told.number)
            entered = {each for each in self.meetings[worker.epoch].entered if each[0] >= told.number - 1}
            self.share(worker.epoch, entered=frozenset(entered | {(told.number, worker.seat)}))

    def pass_on(self, number: int) -> None:
        """All have joined, or are at the step."""
        worker = self.workers[number]
        said: tuple[wire.Message, ...] = ()
        if worker.mode == "joining":
            said = (wire.Ready(0, 0, 0, number, "", worker.epoch),)
        elif worker.seat == 0:
            said = (wire.Done(worker.step, (), 0.0, worker.epoch),)
        self.change(number, mode="ready", outbox=(*worker.outbox, *said))

    def fail(self, number: int, *, own: bool) -> None:
        worker = self.workers[number]
        self.share(worker.epoch, broken=True)
        said = wire.Failed("own" if own else "a peer", False, None, not own, worker.epoch)
        self.change(number, mode="out", outbox=(*worker.outbox, said))

    def can_pass(self, worker: Worker) -> bool:
        shared = self.meetings[worker.epoch]
        if worker.mode == "joining":
            return len(shared.joined) == worker.size
        return sum(step == worker.step for step, _ in shared.entered) == worker.size

    def must_fail(self, worker: Worker) -> bool:
        return self.meetings[worker.epoch].broken or self.wanted > worker.epoch


class Process(NamedTuple):
    """As `RankProcess`."""

    host: Host
    number: int

    @property
    def process(self) -> Process:
        return self

    @property
    def pid(self) -> int:
        return self.number

    def kill(self) -> None:
        if self.host.workers[self.number].alive:
            self.host.die(self.number, cut=False)

    def death(self) -> str:
        return "gone"


@dataclass
class State:
    """The engine, its host, the step in flight with its epoch, and how many are done."""

    ranks: Any
    host: Host
    faults: int
    flight: tuple[int, int] | None = None
    issued: int = 0
    done: int = 0
    over: bool = False

    def copied(self) -> State:
        host, old = self.host.copied(), self.ranks
        ranks = copy.copy(old)
        ranks._started = ranks._lines = host
        ranks._out, ranks.incidents = deque(old._out), deque(old.incidents)
        ranks._reports, ranks._pids = dict(old._reports), dict(old._pids)
        rules = ranks._supervisor = copy.copy(old._supervisor)
        for name, value in vars(rules).items():
            if isinstance(value, list | dict | deque):  # a Counter is a dict
                setattr(rules, name, copy.copy(value))
        return State(ranks, host, self.faults, self.flight, self.issued, self.done, self.over)

    def key(self) -> Hashable:
        """All that matters for what can follow."""
        if self.over:
            return ("over",)
        ranks, rules, host = self.ranks, self.ranks._supervisor, self.host
        told = (rules.epoch, rules.seats, rules.places, rules.serving, rules.served, tuple(rules._spares), rules._count)
        seen = tuple((process, fault.kind) for process, fault in rules._seen.items())
        failed = tuple(sorted(rules._failed.items()))
        rest = (seen, failed, tuple(rules._ready), rules._settled is None, len(rules._losses), len(rules._spare_ends))
        workers = tuple(sorted((number, worker) for number, worker in host.workers.items()))
        alive = {worker.epoch for worker in host.workers.values() if worker.mode != "out"} | {host.wanted}
        meetings = tuple(sorted((e, m.joined, m.entered, m.broken) for e, m in host.meetings.items() if e in alive))
        out = tuple(("formed", len(each.ready)) if isinstance(each, Formed) else each[0] for each in ranks._out)
        return told, rest, workers, meetings, host.wanted, out, self.flight, self.done, self.faults

    def good(self, steps: int) -> bool:
        """Whether it may stay like this: it serves, and all is done; or it has given up."""
        return self.over or (self.ranks.whole and not self.ranks._out and self.done == steps)


Move = tuple[str, bool, Callable[[State], None]]


def moves(state: State, steps: int) -> Iterator[Move]:
    """What can happen next: its name, whether it is a fault, and how it is done."""
    if state.over:
        return
    ranks, host = state.ranks, state.host
    if ranks._out:
        yield "the engine takes what there is", False, _take
    elif ranks.whole and state.flight is None and state.done < steps:
        yield "the engine issues a step", False, _issue
    if ranks._supervisor._settled is not None:
        yield "it is settled", False, lambda s: s.ranks._do(s.ranks._supervisor.due(s.ranks._supervisor._settled))
    for number, worker in host.workers.items():
        if worker.outbox:
            yield f"{number} is heard", False, lambda s, n=number: _hear(s, n)
        elif not worker.alive:
            yield f"the end of {number} is heard", False, lambda s, n=number: s.ranks._bury(Gone(n))
        if worker.alive:
            yield from _own(state, number, worker)


def _own(state: State, number: int, worker: Worker) -> Iterator[Move]:
    """What a process can do, or can befall it."""
    host = state.host
    waits = worker.mode in ("joining", "step")
    if worker.stopped:
        yield f"{number} is found stopped", False, lambda s: s.ranks._do(s.ranks._supervisor.stuck(number, "stopped", 0.0))
        return
    if waits and host.must_fail(worker):
        yield f"{number} gives up", False, lambda s: s.host.fail(number, own=False)
    elif waits and host.can_pass(worker):
        yield f"{number} goes on", False, lambda s: s.host.pass_on(number)
    if worker.inbox and not waits:
        yield f"{number} takes what it is told", False, lambda s: s.host.take(number)
    if state.faults:
        yield f"{number} dies", True, lambda s: s.host.die(number, cut=False)
        if worker.outbox:
            yield f"{number} dies, unheard", True, lambda s: s.host.die(number, cut=True)
        if worker.seat == worker.size - 1 or worker.mode == "out":  # one of them is enough: the others wait
            yield f"{number} stops", True, lambda s: s.host.change(number, stopped=True)
        if waits:
            yield f"{number} fails", True, lambda s: s.host.fail(number, own=True)


def _hear(state: State, number: int) -> None:
    worker = state.host.workers[number]
    state.host.change(number, outbox=worker.outbox[1:])
    state.ranks._hear(number, worker.outbox[0])


def _take(state: State) -> None:
    """`Engine._run`: what `wait` gives."""
    found = state.ranks._out.popleft()
    if isinstance(found, Formed):
        state.flight = None
    else:
        need(state.flight is not None and found[0] == state.flight[0], "a step's results, and it is not in flight:", found[0])
        assert state.flight is not None
        need(state.flight[1] == state.host.wanted, "results of epoch", state.flight[1], "in epoch", state.host.wanted)
        state.flight, state.done = None, state.done + 1


def _issue(state: State) -> None:
    state.issued += 1
    epoch = state.ranks._supervisor.epoch
    state.flight = state.issued, epoch
    state.ranks.forward(Step(state.issued, ()))


@dataclass
class Explored:
    """All states, by key: how each was reached first, and which follow without a fault."""

    states: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    before: dict[Hashable, tuple[Hashable, str]] = field(default_factory=dict)

    def way(self, key: Hashable) -> list[str]:
        names = []
        while key in self.before:
            key, name = self.before[key]
            names.append(name)
        return names[::-1]


def first(size: int, faults: int, spares: int, on_loss: str, parts: Parts) -> State:
    """An engine that has begun, and whose processes have not."""
    limits = Limits(tokens=4, sequences=2)
    machine = Machine(size, dict.fromkeys(range(1, size + 1), 8), 1, limits, 100)
    host = Host()
    rules: Any = parts.policy(on_loss, 10, 60.0, spares)  # type: ignore[arg-type]

    class Begun(parts.ranks):  # type: ignore[misc, name-defined]
        def _turn(self, wake: int | None) -> bool:
            raise _Begun(self)

        def close(self) -> None:
            pass

    try:
        fakes: dict[str, Any] = {"started": host, "lines": host}
        Begun(machine.setup(size), policy=rules, clock=lambda: 0.0, cut=machine.cut, **fakes)
    except _Begun as begun:
        return State(begun.ranks, host, faults)
    raise AssertionError("it waits for nothing")


class _Begun(BaseException):
    def __init__(self, ranks: ProcessRanks) -> None:
        super().__init__()
        self.ranks = ranks


def explore(
    size: int, faults: int, steps: int = 1, spares: int = 1, on_loss: str = "restart", parts: Parts | None = None
) -> Explored:
    """Goes through all states. AssertionError with the way to the first that is wrong, or from which it does not go on."""
    found = Explored()
    with contextlib.redirect_stderr(io.StringIO()):
        start = first(size, faults, spares, on_loss, parts or Parts())
        waiting = deque([start])
        edges: dict[Hashable, list[Hashable]] = {start.key(): []}
        keys = deque([start.key()])
        while waiting:
            state, key = waiting.popleft(), keys.popleft()
            calm = 0
            for name, fault, act in moves(state, steps):
                after = state.copied()
                after.faults -= fault
                try:
                    act(after)
                except ShardwiseError as error:
                    after.over = True
                    allowed = not after.ranks._supervisor.served or on_loss == "exit"
                    need(allowed, "it gave up:", repr(error), "; ".join([*found.way(key), name]))
                    found.ends[type(error).__name__] += 1
                except Exception as error:
                    raise AssertionError("; ".join([*found.way(key), name])) from error
                new = after.key()
                if not fault:
                    calm += 1
                    edges[key].append(new)
                if new not in edges:
                    edges[new] = []
                    found.before[new] = key, name
                    waiting.append(after)
                    keys.append(new)
            if not calm:
                need(state.good(steps), "it goes no further:", "; ".join(found.way(key)))
    found.states = len(edges)
    _ends(edges)
    return found


def _ends(edges: dict[Hashable, list[Hashable]]) -> None:
    """Without further faults every way comes to an end, which is a good one: there are no circles."""
    into = Counter(after for all_after in edges.values() for after in all_after)
    free = [key for key in edges if not into[key]]
    count = 0
    while free:
        key = free.pop()
        count += 1
        for after in edges[key]:
            into[after] -= 1
            if not into[after]:
                free.append(after)
    need(count == len(edges), len(edges) - count, "states are in circles")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    for name, default in (("size", 2), ("faults", 2), ("steps", 1), ("spares", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    for on_loss in ("restart", "shrink"):
        began = time.perf_counter()
        found = explore(asked.size, asked.faults, asked.steps, asked.spares, on_loss)
        print(on_loss, found.states, "states", dict(found.ends), f"{time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
