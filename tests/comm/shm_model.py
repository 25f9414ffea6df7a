"""Every interleaving of what native/shm.cpp does, for a few ranks and rounds: who could read what is half written, or sleep on.

A rank is a list of atomic actions. Exclusion is held by C++'s rule: of two accesses to one place, one of them a write, one must
happen before the other, as a release and an acquire that read it say. Sleeping is held with stores that stay in a buffer until
the processor gives them out. Knows no bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace

State = Hashable
Clock = tuple[int, ...]


def explore(first: State, successors: Callable[[State], Iterator[State]], done: Callable[[State], bool]) -> int:
    """Goes through all states and returns how many there are. AssertionError where one that is not done leads nowhere."""
    seen, waiting = {first}, [first]
    while waiting:
        state = waiting.pop()
        further = False
        for following in successors(state):
            further = True
            if following not in seen:
                seen.add(following)
                waiting.append(following)
        assert further or done(state), f"nobody can go on: {state}"
    return len(seen)


# --- rounds and letters: is a place ever accessed by two at once? ------------------------------------------------------


@dataclass(frozen=True)
class Protocol:
    """What is done; each departure from what the library does is a fault to be found. `slots` are written by turns."""

    slots: int = 2
    release: bool = True
    acquire: bool = True
    waits_for_all: bool = True
    letters_ahead: int = 1


Action = tuple[str, str, int]
"""("write" | "read", place, 0), ("raise", count, value) or ("await", count, value)."""


def small_round(rank: int, ranks: int, number: int, how: Protocol, parts: int = 1) -> Iterator[Action]:
    """Everyone shows all it has, and reads all the others'."""
    for part in range(parts):
        yield ("write", f"slot {rank} {number % how.slots} part {part}", 0)
    yield ("raise", f"posted {rank}", number + 1)
    others = [other for other in range(ranks) if other != rank]
    for other in others if how.waits_for_all else others[:1]:
        yield ("await", f"posted {other}", number + 1)
    for other in others:
        for part in range(parts):
            yield ("read", f"slot {other} {number % how.slots} part {part}", 0)


def divided_rounds(rank: int, ranks: int, number: int, how: Protocol) -> Iterator[Action]:
    """Everyone shows the others' parts, sums its own into its next slot, shows that, and reads the others' sums: two rounds."""
    others = [other for other in range(ranks) if other != rank]
    for other in others:
        yield ("write", f"slot {rank} {number % how.slots} part {other}", 0)
    yield ("raise", f"posted {rank}", number + 1)
    for other in others:
        yield ("await", f"posted {other}", number + 1)
    for other in others:
        yield ("read", f"slot {other} {number % how.slots} part {rank}", 0)
    number += 1
    yield ("write", f"slot {rank} {number % how.slots} part {rank}", 0)
    yield ("raise", f"posted {rank}", number + 1)
    for other in others:
        yield ("await", f"posted {other}", number + 1)
    for other in others:
        yield ("read", f"slot {other} {number % how.slots} part {other}", 0)


def letters(rank: int, count: int, how: Protocol) -> Iterator[Action]:
    """Rank 0 sends, rank 1 receives."""
    for number in range(count):
        if rank == 0:
            if number > how.letters_ahead:
                yield ("await", "taken", number - how.letters_ahead)
            yield ("write", f"letter {number % how.slots}", 0)
            yield ("raise", "sent", number + 1)
        else:
            yield ("await", "sent", number + 1)
            yield ("read", f"letter {number % how.slots}", 0)
            yield ("raise", "taken", number + 1)


@dataclass(frozen=True)
class Seen:
    """How far each rank has come, what each knows of the others, what each raised count tells, and who accessed which place."""

    at: tuple[int, ...]
    clocks: tuple[Clock, ...]
    counts: tuple[tuple[str, int, Clock], ...]
    accesses: tuple[tuple[str, Clock, Clock], ...]  # place, each rank's last write, each rank's last read


def races(programs: list[list[Action]], how: Protocol) -> int:
    """The number of states. AssertionError where two accesses of a place are not in order."""
    ranks = len(programs)
    nothing: Clock = (0,) * ranks

    def following(state: Seen) -> Iterator[Seen]:
        for rank, program in enumerate(programs):
            if state.at[rank] < len(program) and (after := act(state, rank, program[state.at[rank]])):
                yield after

    def act(state: Seen, rank: int, action: Action) -> Seen | None:
        kind, name, value = action
        clock = tuple(time + (other == rank) for other, time in enumerate(state.clocks[rank]))
        counts, accesses = {c[0]: c[1:] for c in state.counts}, {a[0]: a[1:] for a in state.accesses}
        if kind == "await":
            reached, told = counts.get(name, (0, nothing))
            if reached < value:
                return None
            clock = tuple(map(max, clock, told)) if how.acquire else clock
        elif kind == "raise":
            counts[name] = value, clock if how.release else nothing
        else:
            writes, reads = accesses.get(name, (nothing, nothing))
            before = tuple(map(max, writes, reads)) if kind == "write" else writes
            assert all(a <= b for a, b in zip(before, clock, strict=True)), f"{kind} of {name} by {rank}: {state}"
            mark = tuple(clock[rank] if other == rank else 0 for other in range(ranks))
            writes, reads = (mark, reads) if kind == "write" else (writes, tuple(map(max, reads, mark)))
            accesses[name] = writes, reads
        return Seen(
            _with(state.at, rank, state.at[rank] + 1),
            _with(state.clocks, rank, clock),
            tuple(sorted((n, *c) for n, c in counts.items())),
            tuple(sorted((n, *a) for n, a in accesses.items())),
        )

    start = Seen((0,) * ranks, (nothing,) * ranks, (), ())
    return explore(start, following, lambda s: all(at == len(p) for at, p in zip(s.at, programs, strict=True)))


def _with(items: tuple, place: int, item: object) -> tuple:
    return (*items[:place], item, *items[place + 1 :])


# --- sleeping: is there a way to sleep on when what was awaited has come? ----------------------------------------------


@dataclass(frozen=True)
class Sleepers:
    """One rank raises a count `rounds` times, others await each. A store of the raiser may wait in its buffer."""

    count: int
    asleep: int  # how many say that they may sleep
    buffered: tuple[int, ...]
    raiser: tuple[str, int]
    waiters: tuple[tuple[str, int], ...]  # what each does next, and for which count


def lost_wakes(ranks: int, rounds: int, *, ordered: bool = True, compares: bool = True) -> int:
    """The number of states. AssertionError where somebody sleeps for ever.

    `ordered`: the raiser's store is out before it looks who sleeps. `compares`: the kernel puts a waiter to sleep only where
    the count is still what it saw.
    """

    def following(s: Sleepers) -> Iterator[Sleepers]:
        if s.buffered:  # the processor gives out the oldest store, at any time
            yield replace(s, count=s.buffered[0], buffered=s.buffered[1:])
        yield from _raising(s, rounds, ordered)
        for rank in range(len(s.waiters)):
            yield from _waiting(s, rank, rounds, compares)

    def done(s: Sleepers) -> bool:
        return all(goal > rounds for _, goal in s.waiters)

    return explore(Sleepers(0, 0, (), ("raise", 0), (("look", 1),) * (ranks - 1)), following, done)


def _raising(s: Sleepers, rounds: int, ordered: bool) -> Iterator[Sleepers]:
    doing, number = s.raiser
    if doing == "raise" and number < rounds:
        after = replace(s, raiser=("look", number + 1))
        yield replace(after, count=number + 1) if ordered else replace(after, buffered=(*s.buffered, number + 1))
    elif doing == "look":
        yield replace(s, raiser=("wake" if s.asleep else "raise", number))
    elif doing == "wake":
        awake = tuple(("look again", goal) if doing == "sleeping" else (doing, goal) for doing, goal in s.waiters)
        # The system call that wakes is a barrier, too.
        yield replace(s, raiser=("raise", number), waiters=awake, count=max((s.count, *s.buffered)), buffered=())


def _waiting(s: Sleepers, rank: int, rounds: int, compares: bool) -> Iterator[Sleepers]:
    doing, goal = s.waiters[rank]

    def then(doing: str, goal: int = goal, asleep: int = 0) -> Sleepers:
        return replace(s, asleep=s.asleep + asleep, waiters=_with(s.waiters, rank, (doing, goal)))

    come = s.count >= goal
    if doing == "look" and goal <= rounds:
        yield then("look", goal + 1) if come else then("say")
    elif doing == "say":
        yield then("look again", asleep=1)
    elif doing == "look again":
        yield then("look", goal + 1, asleep=-1) if come else then("fall asleep")
    elif doing == "fall asleep":
        yield then("look again") if come and compares else then("sleeping")
