"""Who waits and who runs, each in order; and how many sequences those that run are, or will be."""

from __future__ import annotations

from bisect import bisect_left, insort

from shardwise.sched.sequence import Order, Sequence


def _order(sequence: Sequence) -> Order:
    return sequence.order


class Roster:
    """Two ordered queues. At most `most` sequences run, counting all continuations that a running one will have."""

    def __init__(self, most: int) -> None:
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.most = most
        self._slots = 0

    def has_slots(self, sequence: Sequence) -> bool:
        """Whether there is a place for the sequence and all that it will become."""
        return self._slots + sequence.slots <= self.most

    def victim(self, sequence: Sequence) -> Sequence | None:
        """The youngest that is younger than `sequence`; for one that must not be preempted again, the youngest of all."""
        for other in reversed(self.running):
            if not other.pledged and other is not sequence and (sequence.pledged or other.order > sequence.order):
                return other
        return None

    @property
    def crowded(self) -> bool:
        """Whether there are more than can run: one that was undone has its other continuations to come again."""
        return self._slots > self.most

    def wait(self, sequence: Sequence) -> None:
        """One more waits; it is not running."""
        insort(self.waiting, sequence, key=_order)

    def remove(self, sequence: Sequence) -> None:
        """It waits no more."""
        _take_out(self.waiting, sequence)

    def start(self, sequence: Sequence) -> None:
        """From waiting to running."""
        _take_out(self.waiting, sequence)
        self._run(sequence, sequence.slots)

    def stop(self, sequence: Sequence) -> None:
        """It runs no more."""
        _take_out(self.running, sequence)
        self._slots -= sequence.slots
        sequence.running = False

    def fork(self, child: Sequence) -> None:
        """A continuation of one that runs, which had a place for it."""
        self._run(child, 0)

    def unfork(self, lead: Sequence) -> None:
        """Its other continuations are gone, and it will have them again."""
        lead.forked = False
        if lead.running:
            self._slots += lead.slots - 1

    def _run(self, sequence: Sequence, slots: int) -> None:
        insort(self.running, sequence, key=_order)
        sequence.running = True
        self._slots += slots


def _take_out(queue: list[Sequence], sequence: Sequence) -> None:
    index = bisect_left(queue, sequence.order, key=_order)
    assert queue[index] is sequence
    del queue[index]
