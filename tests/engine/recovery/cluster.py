"""A host of rank processes in virtual time: it starts, ends and connects them, as `RankProcesses` and `RankLines` do for real.

Whatever happens is drawn from one seed. Messages are late, a death cuts what was not heard yet, and faults come where a
process is at work, at any time, or in pairs.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from zlib import crc32

from shardwise.engine.rank_lines import Gone, News, Said, Woken
from shardwise.runtime import wire
from tests.engine.recovery.worker import Group, Worker

PIDS = 1000
"""What is added to the number of a process."""

TURNS = 4000
"""The most that an engine asks for news in one life."""

SPIKE = 0.03
"""How often a message, or the engine, is late."""


class Broken(AssertionError):
    """Something that must never happen."""


def need(holds: object, *words: object) -> None:
    """Broken unless `holds`."""
    if not holds:
        raise Broken(" ".join(map(str, words)))


@dataclass(frozen=True)
class Plan:
    """What goes wrong, and until when. `rates`: how often a process is struck at a place; `kinds`: by what. After `patience_s`
    the watch says who is stopped; after `deadline_s` ranks give each other up, if they do. Messages take about `delay_s`; it
    takes about `notice_s` to see that a peer is gone. The engine's thread is `late` so often; so often a process is
    `stillborn`, or `cursed`: it joins no group."""

    faults: int = 0
    until: float = 2.0
    rates: dict[str, float] = field(default_factory=dict)
    kinds: tuple[str, ...] = ("die",)
    pairs: float = 0.0
    at_times: tuple[float, ...] = ()
    stillborn: float = 0.0
    jumps: tuple[float, ...] = ()
    patience_s: float = 2.0
    deadline_s: float | None = None
    delay_s: float = 2e-4
    notice_s: float = 0.05
    late: float = 0.0
    cursed: float = 0.0


class Life:
    """One process as the engine's side has it: what `RankProcess` is."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        self.cluster, self.number, self.pid = cluster, number, PIDS + number
        self.worker = Worker(cluster, number)
        self.heard_of_end = False
        self.killed = False
        self.last_in = self.last_out = 0.0
        self.unheard: deque[list[object]] = deque()

    @property
    def process(self) -> Life:
        return self

    def kill(self) -> None:
        self.killed = True
        self.cluster.after(1e-4, self.worker.die)

    def death(self) -> str:
        need(not self.worker.alive, "the end of process", self.number, "was heard, and it lives")
        return f"process {self.number} was killed by SIGKILL"


@dataclass(frozen=True)
class Finding:
    """As `engine.watch.Finding`."""

    seat: int
    reason: str


class Eyes:
    """As `Lookout`: it sees who is stopped, and blames nobody else."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.processes: list[int] = []

    def begin(self, epoch: int, pids: Sequence[int], now: float) -> None:
        self.processes = [pid - PIDS for pid in pids]

    def left_s(self, now: float, busy: bool) -> float:
        return 0.25

    def look(self, now: float, busy: bool) -> Finding | None:
        for seat, process in enumerate(self.processes):
            worker = self.cluster.lives[process].worker
            if worker.alive and worker.stopped and now - worker.since >= self.cluster.plan.patience_s:
                self.cluster.last_fault = now
                return Finding(seat, "it is stopped")
        return None

    def where(self, seat: int) -> str:
        return ""

    def close(self) -> None:
        pass


class Cluster:
    """As `started` and as `lines` of ProcessRanks; `now` is the time."""

    def __init__(self, random: Random, plan: Plan) -> None:
        self.random, self.plan = random, plan
        self.now = 0.0
        self.wanted = -1
        self.faults = 0
        self.last_fault = 0.0
        self.lives: list[Life] = []
        self.epoch_of: dict[int, int] = {}
        self.orders: deque[Callable[[], None]] = deque()
        self.turns = 0
        self.raised: set[str] = set()
        self.trace = 0
        self.closed = False
        self.meetings = 0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._heard: deque[Said | Gone] = deque()
        self._groups: dict[int, Group] = {}
        self._decoded: tuple[bytes, wire.Message] | None = None
        self._listened: set[int] = set()
        for when in plan.at_times:
            self.after(when, lambda: self._strike_anyone(self.plan.kinds))
        for when in plan.jumps:
            self.after(when, self._jump)
        self._tick()

    # --- time ---------------------------------------------------------------------------------------------------------

    def clock(self) -> float:
        return self.now

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        self.at(self.now + seconds, call)

    def at(self, when: float, call: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._heap, (when, self._count, call))

    def some(self, seconds: float) -> float:
        """A while, most often shorter than `seconds`, now and then much longer."""
        draw = self.random.random
        return seconds * draw() * (20.0 if draw() < SPIKE else 1.0)

    def _jump(self) -> None:
        """The host slept: all that would have been done meanwhile is done late."""
        self.now += 30.0
        self.last_fault = self.now

    def _tick(self) -> None:
        """Somebody asks the engine how it is, now and then."""
        if len(self.orders) < 2:
            self.order(lambda: None)
        self.after(0.5, self._tick)

    def note(self, *what: object) -> None:
        self.trace = crc32(repr((round(self.now, 9), *what)).encode(), self.trace)

    def _next(self) -> None:
        when, _, call = heapq.heappop(self._heap)
        self.now = max(self.now, when)
        call()

    def order(self, call: Callable[[], None]) -> None:
        """Something that the engine's thread is to do."""
        self.orders.append(call)

    # --- lines --------------------------------------------------------------------------------------------------------

    def news(self, timeout_s: float | None, wake: int | None) -> list[News]:
        """Lets time pass until there is something to say."""
        self.turns += 1
        need(self.turns < TURNS, "it goes on for ever")
        late = 0.3 * self.random.random() if self.random.random() < self.plan.late else self.some(2e-4)
        until = self.now + late
        while self._heap and self._heap[0][0] <= until:
            self._next()
        self.now = max(self.now, until)
        end = None if timeout_s is None else self.now + max(0.0, timeout_s - late)
        while not (self._heard or (wake is not None and self.orders)):
            if end is not None and (not self._heap or self._heap[0][0] > end):
                self.now = end
                break
            self._next()
        heard, self._heard = list(self._heard), deque()
        said = [each for each in heard if isinstance(each, Said)]
        gone = [each for each in heard if isinstance(each, Gone)]
        woken = [Woken()] if wake is not None and self.orders else []
        self.random.shuffle(gone)
        for each in (*said, *gone):
            self.note(type(each).__name__, each.process, type(each.message).__name__ if isinstance(each, Said) else "")
        return [*said, *gone, *woken]

    def add(self, life: Life) -> None:
        self._listened.add(life.number)

    def send(self, number: int, body: bytes) -> None:
        """What the engine says to a process."""
        life = self.lives[number]
        need(number in self._listened, "process", number, "is told something, and has no line")
        if not life.worker.alive and self.random.random() < 0.5:
            raise BrokenPipeError
        if life.worker.stopped and self.random.random() < 0.5:
            raise BlockingIOError
        if self._decoded is None or self._decoded[0] is not body:
            self._decoded = body, wire.decode(body)
        message = self._decoded[1]
        if isinstance(message, wire.Forward):
            self.epoch_of[message.step.number] = self.wanted
        life.last_in = max(life.last_in, self.now + self.some(self.plan.delay_s))
        self.at(life.last_in, lambda: life.worker.take(message))

    def lookout(self) -> Eyes:
        return Eyes(self)

    def want(self, epoch: int, before: int = 0) -> None:
        """Older groups are of no use from now on."""
        need(epoch > self.wanted, "epoch", epoch, "is wanted after", self.wanted)
        self.wanted = epoch
        for group in self._groups.values():
            if group.epoch < epoch:
                group.give_up()

    def said(self, number: int, message: wire.Message) -> None:
        """What a process says to the engine."""
        life = self.lives[number]
        life.last_out = max(life.last_out, self.now + self.some(self.plan.delay_s))
        unheard: list[object] = [message]
        life.unheard.append(unheard)
        self.at(life.last_out, lambda: self._hear(life, unheard))

    def _hear(self, life: Life, unheard: list[object]) -> None:
        if unheard and life.number in self._listened:
            life.unheard.popleft()
            message = unheard[0]
            assert not isinstance(message, type(None))
            self._heard.append(Said(life.number, message))  # type: ignore[arg-type]

    def cut_off(self, number: int) -> None:
        """A process has died: what it said last may be lost, and its end is heard after the rest."""
        life = self.lives[number]
        self.note("died", number)
        if life.unheard and self.random.random() < 0.5:
            keep = self.random.randrange(len(life.unheard))
            while len(life.unheard) > keep:
                life.unheard.pop().clear()
        life.last_out = max(life.last_out, self.now + self.some(self.random.choice([2e-3, 0.06])))
        self.at(life.last_out, lambda: self._heard.append(Gone(number)))

    # --- processes ----------------------------------------------------------------------------------------------------

    def reach(self, size: int) -> None:
        while len(self.lives) < size:
            life = Life(self, len(self.lives))
            self.lives.append(life)
            if self._may_fault() and self.random.random() < self.plan.stillborn:
                self._strike(life.worker, "die")
            elif self.wanted >= 0 and self._may_fault() and self.random.random() < self.plan.cursed:
                life.worker.cursed = life.worker.doomed = True
                self._struck(life.worker)

    def __getitem__(self, number: int) -> Life:
        need(number in self, "process", number, "is not there any more")
        return self.lives[number]

    def __contains__(self, number: int) -> bool:
        return number < len(self.lives) and not self.lives[number].heard_of_end

    def remove(self, number: int) -> None:
        """As `RankLines.remove` and, after it, `RankProcesses.remove`."""
        self._listened.discard(number)
        self.lives[number].heard_of_end = True

    def meeting(self) -> str:
        self.meetings += 1
        return ""

    def give_back(self, epoch: int) -> None:
        """The memory of older groups: a process that is in one still would lose what it reads there."""
        need(epoch == self.wanted, "memory is given back of epochs before", epoch, "while", self.wanted, "is wanted")
        late = [life.number for life in self.lives if life.worker.alive and life.worker.group and life.worker.epoch < epoch]
        need(not late, "processes", late, "are in an older group than", epoch)

    def met(self) -> None:
        self.meetings = 0

    def close(self) -> None:
        self.closed = True

    @property
    def alive(self) -> list[int]:
        return [life.number for life in self.lives if life.worker.alive]

    # --- groups and faults --------------------------------------------------------------------------------------------

    def group(self, epoch: int, size: int) -> Group:
        group = self._groups.setdefault(epoch, Group(self, epoch, size))
        need(group.size == size, "members of epoch", epoch, "are told of", size, "and", group.size, "ranks")
        return group

    def _may_fault(self) -> bool:
        return self.faults < self.plan.faults and self.now < self.plan.until

    def strikes(self, worker: Worker, place: str) -> bool:
        """Whether a process is struck down here, at what it does."""
        if not self._may_fault() or self.random.random() >= self.plan.rates.get(place, 0.0):
            return False
        kind = self.random.choice(self.plan.kinds)
        self._strike(worker, kind)
        return kind in ("die", "raise", "slip")

    def _strike_anyone(self, kinds: tuple[str, ...]) -> None:
        alive = [life.worker for life in self.lives if life.worker.alive]
        waiting = [worker for worker in alive if worker.epoch < 0]
        if waiting and self.random.random() < 0.5:
            alive = waiting
        outside = tuple(kind for kind in kinds if kind in ("die", "stop", "pause")) or ("die",)
        if alive and self._may_fault():
            self._strike(self.random.choice(alive), self.random.choice(outside))

    def _struck(self, worker: Worker) -> None:
        self.faults += 1
        self.last_fault = self.now
        worker.faults += 1

    def _strike(self, worker: Worker, kind: str) -> None:
        self._struck(worker)
        worker.doomed |= kind != "raise" or not worker.serving
        self.note("fault", worker.number, kind)
        if self.random.random() < self.plan.pairs:
            self.after(0.5 * self.random.random() ** 3, lambda: self._strike_anyone(("die",)))
        if kind == "die":
            worker.die()
        elif kind == "stop":
            worker.stopped, worker.since = True, self.now
        elif kind == "pause":
            worker.stopped, worker.since = True, self.now
            self.after(0.9 * self.plan.patience_s * self.random.random(), worker.go_on)
        elif kind == "raise":
            message = f"planted error {self.faults}"
            self.raised.add(message)
            worker.raises(message)
        else:
            assert worker.group is not None
            worker.abandoned(self.random.choice([None, self.random.randrange(worker.group.size)]))

    def poisoned(self, worker: Worker) -> None:
        """A request makes it fail."""
        self.last_fault = self.now
        worker.faults += 1
