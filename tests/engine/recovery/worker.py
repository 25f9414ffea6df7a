"""A rank process that computes no numbers: it follows the protocol of `runtime/worker.py`, and may fail anywhere in it.

A key of its cache is the hash of all tokens up to its position. What is drawn is a function of every key that a step sees in
the pages of every rank, so that a wrong page, a lost step or one that was made twice is a wrong token.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shardwise.runtime import wire
from shardwise.sched.step import Chosen, Draw, Item, Result, Step
from shardwise.spec.layout import PAGE_TOKENS

if TYPE_CHECKING:
    from tests.engine.recovery.cluster import Cluster

VOCABULARY = 97
POISON = VOCABULARY - 1
"""An id whose forward raises, on every rank."""

ROOT, GARBAGE = 7, -1
"""The key before the first token, and what a page holds that nothing was written to."""

Context = tuple[int, tuple[int, ...]]
"""Of an item: the hash of all keys that its last token sees, and the keys of its targets."""


def key_of(before: int, token: int) -> int:
    return hash((before, token))


def seen(keys: Iterable[int]) -> int:
    return hash(tuple(keys))


def drawn(context: int, draw: Draw, position: int) -> int:
    """The token that a draw gives at `position`. It shows what was said of the tokens before."""
    edit = draw.edit
    token = hash((context, draw.seed, draw.choice, position, edit.written if edit else ())) % POISON
    while edit and token in edit.barred:
        token = (token + 1) % POISON
    return token


def score(key: int) -> float:
    return -float(key % 1009)


@dataclass(eq=False)
class Group:
    """What the members of one epoch share. `calls`: who has come to which collective, with what."""

    cluster: Cluster
    epoch: int
    size: int
    members: dict[int, Worker] = field(default_factory=dict)
    joined: bool = False
    broken: bool = False
    culprit: int | None = None
    calls: dict[int, dict[int, tuple[Context, ...]]] = field(default_factory=dict)

    def enter(self, worker: Worker, go_on: Callable[[], None]) -> bool:
        """A member waits for the others, unless that is of no use any more."""
        if self.broken or self.cluster.wanted > self.epoch:
            worker.abandoned(self.culprit)
            return False
        worker.waiting = go_on
        if self.joined and self.cluster.plan.deadline_s is not None:
            self.cluster.after(self.cluster.plan.deadline_s, lambda: self._late(worker, go_on))
        return True

    def _late(self, worker: Worker, awaited: Callable[[], None]) -> None:
        """A member has waited too long: it blames the first that has not come."""
        if worker.alive and not worker.stopped and worker.waiting is awaited:
            come = self.calls[worker.number_of_step]
            self.leave(None, next((seat for seat in range(self.size) if seat not in come), None))

    def leave(self, seat: int | None, culprit: int | None) -> None:
        """A member is no more, or its part of it: who waits for it goes on to fail."""
        if seat is not None:
            self.members.pop(seat, None)
        if not self.broken:
            self.broken, self.culprit = True, culprit
            self.give_up()

    def give_up(self) -> None:
        for worker in list(self.members.values()):
            if worker.waiting is not None:
                worker.abandoned(self.culprit)

    def release(self) -> None:
        """All have come."""
        for worker in list(self.members.values()):
            go_on, worker.waiting = worker.waiting, None
            assert go_on is not None
            worker.later(self.cluster.some(2e-4), go_on)


class Worker:
    """One process as itself: `take` is told what the engine sends, `cluster.said` what it answers."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        self.cluster, self.number = cluster, number
        self.alive, self.stopped, self.cursed = True, False, False
        self.doomed = False
        """Whether anything has happened to it for which it may be killed."""
        self.serving = False
        self.faults, self.since = 0, 0.0
        self.inbox: deque[wire.Message] = deque()
        self.busy = True
        self.waiting: Callable[[], None] | None = None
        self.group: Group | None = None
        self.seat = -1
        self.epoch = -1
        self._frozen: list[Callable[[], None]] = []
        self._contents: list[list[int]] = []
        self._drawn: dict[tuple[int, int], int] = {}
        self._step: Step | None = None
        self.later(cluster.some(0.3), self._begin)

    @property
    def number_of_step(self) -> int:
        return self._step.number if self._step else 0

    # --- time ---------------------------------------------------------------------------------------------------------

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Does something that takes a while, and nothing else meanwhile."""
        self.busy = True
        self.cluster.after(seconds, lambda: self._wake(call))

    def _wake(self, call: Callable[[], None]) -> None:
        if not self.alive:
            return
        if self.stopped:
            self._frozen.append(lambda: self._wake(call))
            return
        self.busy = False
        call()
        self._turn()

    def _begin(self) -> None:
        """It has imported what it needs."""

    def _turn(self) -> None:
        while self.alive and not self.stopped and not self.busy and self.inbox:
            self._handle(self.inbox.popleft())

    def take(self, message: wire.Message) -> None:
        self.inbox.append(message)
        self._turn()

    def go_on(self) -> None:
        """SIGCONT."""
        if self.alive and self.stopped:
            self.stopped = False
            frozen, self._frozen = self._frozen, []
            for each in frozen:
                each()
            self._turn()

    def die(self) -> None:
        """At once, whatever it does. What it has said may be lost, from some point on."""
        if self.alive:
            self.alive = False
            self.cluster.cut_off(self.number)
            if self.group is not None:
                self.group.leave(self.seat, self.seat)

    # --- the protocol -------------------------------------------------------------------------------------------------

    def _handle(self, message: wire.Message) -> None:
        if isinstance(message, wire.Start):
            self._join(message)
        elif self.group is None:
            pass  # it waits for the next group, and drops what was still said of the last one
        elif isinstance(message, wire.Forward):
            if not self.cluster.strikes(self, "step"):
                self._step = message.step
                self.later(self.cluster.some(4e-3) + 2e-4 * message.step.tokens, self._forward)
        elif isinstance(message, wire.Sample) and not self.cluster.strikes(self, "step"):
            self.later(self.cluster.some(5e-4), lambda: self._sample(message))

    def _join(self, start: wire.Start) -> None:
        if self.group is not None:
            self.group.leave(self.seat, None)
        self.seat, self.epoch, self.serving = start.rank, start.epoch, False
        self.group = group = self.cluster.group(start.epoch, start.tp)
        self._contents = [[GARBAGE] * PAGE_TOKENS for _ in range(start.pages[0])]
        self._drawn = {}
        if self.cluster.strikes(self, "form"):
            return
        group.members[self.seat] = self
        if group.enter(self, self._load):
            self.busy = True
            if len(group.members) == group.size:
                group.joined = True
                group.release()

    def _load(self) -> None:
        if self.cursed:
            self.raises(f"process {self.number} has no device")
        elif not self.cluster.strikes(self, "form"):
            self.cluster.said(self.number, wire.Loading(1000, self.epoch))
            self.later(self.cluster.some(0.15), self._loaded)

    def _loaded(self) -> None:
        if not self.cluster.strikes(self, "form"):
            self.serving = True
            self.cluster.said(self.number, wire.Ready(1000, 1000, 1000, self.number, "host", self.epoch))

    def abandoned(self, culprit: int | None) -> None:
        """A CommError, noticed a little later."""
        self.waiting = None
        self.later(self.cluster.some(self.cluster.plan.notice_s), lambda: self._fail("a peer is gone", culprit, secondary=True))

    def raises(self, message: str) -> None:
        """An error of its own."""
        self._fail(message, None, secondary=False)

    def _fail(self, message: str, culprit: int | None, *, secondary: bool) -> None:
        """It leaves its group, says so, and waits for the next one."""
        if self.group is not None:
            group, self.group = self.group, None
            group.leave(self.seat, self.seat)
        self.cluster.said(self.number, wire.Failed(message, False, culprit, secondary, self.epoch))

    # --- steps --------------------------------------------------------------------------------------------------------

    def _forward(self) -> None:
        step, group = self._step, self.group
        assert step is not None and group is not None
        for item in step.items:
            if POISON in item.tokens:
                self.cluster.poisoned(self)
                self.raises(f"id {POISON} is out of range")
                return
        call = group.calls.setdefault(step.number, {})
        if self.cluster.strikes(self, "collective"):
            return
        call[self.seat] = self._contexts(step)
        if group.enter(self, lambda: None):
            self.busy = True
            if len(call) == group.size:
                group.release()

    def _contexts(self, step: Step) -> tuple[Context, ...]:
        """Writes the keys of all items into their pages, and reads there what they see."""
        for old, new in step.copies[0]:
            self._contents[new][:] = self._contents[old]
        return tuple(self._item(item) for item in step.items)

    def _item(self, item: Item) -> Context:
        tokens = item.tokens
        if item.source is not None:
            tokens = (self._drawn[item.source, item.sequence],)
        ids, contents = item.pages[0].ids, self._contents
        start, stop = item.start, item.start + len(tokens)
        key = ROOT if start == 0 else contents[ids[(start - 1) // PAGE_TOKENS]][(start - 1) % PAGE_TOKENS]
        for place, token in enumerate(tokens, start):
            key = key_of(key, token)
            contents[ids[place // PAGE_TOKENS]][place % PAGE_TOKENS] = key
        if not item.rows:
            return 0, ()
        keys = [key for page in ids for key in contents[page]][:stop]
        last = stop - 1 if item.drawn else stop
        rows = range(last - len(item.targets), last)
        # A target comes after its row; its own key need not be there.
        return seen(keys), tuple(key_of(keys[row], target) for row, target in zip(rows, item.targets, strict=True))

    def _sample(self, message: wire.Sample) -> None:
        group, step = self.group, self._step
        assert group is not None and step is not None and step.number == message.number, "a Sample of another step"
        parts = list(group.calls[step.number].values())
        contexts = parts[0]
        if any(part != contexts for part in parts):  # they are not of one mind: tokens that nobody expects
            contexts = tuple((hash(part), ()) for part in zip(*parts, strict=True))
        draws = iter(message.draws)
        results = []
        for item, (context, targets) in zip(step.items, contexts, strict=True):
            scores = tuple(Chosen(t, score(key)) for t, key in zip(item.targets, targets, strict=False))
            for sequence in item.drawn:
                token = drawn(context, next(draws), item.start + item.count)
                self._drawn[step.number, sequence] = token
                results.append(Result(sequence, (Chosen(token),), scores if sequence == item.sequence else ()))
            if scores and not item.drawn:
                results.append(Result(item.sequence, (), scores))
        lead = self.seat == 0
        if lead and len(results) > 1 and self.cluster.random.random() < 0.2:
            self.cluster.said(self.number, wire.Results(tuple(results[:1]), self.epoch))
            del results[:1]
            if self.cluster.strikes(self, "step"):
                return
        self.cluster.said(self.number, wire.Done(message.number, tuple(results) if lead else (), 1e-3, self.epoch))
