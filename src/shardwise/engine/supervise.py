"""What is done when ranks are lost: decided of facts and their times, by rules alone. It knows no process, no clock, no model.

Whoever holds the processes tells it what was seen and does what it answers. A process is a number that is never used again;
its seat is its rank in the group that is formed with an epoch.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

OnLoss = Literal["restart", "shrink", "exit"]

SETTLE_S = 0.25
"""How long a cause is awaited after a rank reports no more than that its peers failed it."""

TRIES = 2
"""So many processes in a row may fail in one place before a forming; then the group goes on without the place."""

GROW_S = 30.0
"""How long a smaller group serves before the places that it lacks are tried again; each failure doubles it."""

ERRORS = 100
"""So many errors of steps, which leave all processes as they were, may come within the budget's time: each ends a request at
most, and whoever sends bad ones is not to end the server for all."""

WARM_S = 5.0
"""How long a process is given to import what it needs, where nothing waits for it."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What a loss leads to. `losses` may come within `within_s`; one more, and the engine gives up. `spares` processes wait,
    with all that takes long done, to take a lost one's place."""

    on_loss: OnLoss = "exit"
    losses: int = 5
    within_s: float = 60.0
    spares: int = 0


FAIL_FAST = Policy()
"""Nothing is mended: whoever computes once, and has no clients, begins anew himself."""


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start this process: a spare, or to be seated by the Form that follows."""

    process: int


@dataclass(frozen=True, slots=True)
class Kill:
    """End this process at once, whatever it does."""

    process: int


@dataclass(frozen=True, slots=True)
class Form:
    """Have these processes form the group anew, each in its seat. `places`: which of all places of the whole group they are."""

    epoch: int
    seats: tuple[int, ...]
    places: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GiveUp:
    """It is over. `seat` was at fault; `mendable` by the user; `spent`: the budget is, so that a new start would not help."""

    seat: int
    reason: str
    mendable: bool = False
    spent: bool = False


Action = Spawn | Kill | Form | GiveUp
Actions = tuple[Action, ...]


@dataclass(frozen=True, slots=True)
class Fault:
    """What was seen of one process. "ended": it is gone; "stuck": it was judged and killed; "failed": it met an error of its
    own; "left": it says that a peer, perhaps the one in seat `culprit`, failed it."""

    kind: Literal["ended", "stuck", "failed", "left"]
    reason: str
    mendable: bool = False
    culprit: int | None = None


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss as it was judged: whose `seat` and `process` was at fault, and why. `gone`: the processes that were lost; none
    where an error left them all. `seats`: all that were in the group. `lone`: an error of a step that left its process."""

    epoch: int
    seat: int
    process: int
    reason: str
    gone: tuple[int, ...]
    seats: tuple[int, ...]
    lone: bool


@dataclass
class Supervisor:
    """The rules, for a whole group of `size` ranks. Every method that takes a fact returns what is to be done, in order.

    `serving`: the group of `epoch` is formed and nothing is known against it. `loss` is the one judged last.
    """

    policy: Policy
    size: int
    epoch: int = -1
    seats: tuple[int, ...] = ()
    places: tuple[int, ...] = ()
    serving: bool = False
    served: bool = False
    over: bool = False
    loss: Loss | None = None
    _spares: list[int] = field(default_factory=list)
    _count: int = 0
    _ready: list[int] = field(default_factory=list)
    _seen: dict[int, Fault] = field(default_factory=dict)
    _settled: float | None = None
    _losses: deque[float] = field(default_factory=deque)
    _errors: deque[float] = field(default_factory=deque)
    _spare_ends: deque[float] = field(default_factory=deque)
    _failed: Counter[int] = field(default_factory=Counter)
    _grow: float | None = None
    _grow_s: float = GROW_S

    # --- facts --------------------------------------------------------------------------------------------------------

    def start(self) -> Actions:
        """The first group. Its spares come when it serves, so that they do not hold it up."""
        self.places = tuple(range(self.size))
        spawned = tuple(self._spawn() for _ in range(self.size))
        self.seats = tuple(spawn.process for spawn in spawned)
        return (*spawned, *self._form())

    def ready(self, process: int, epoch: int, now: float) -> Actions:
        """A process has joined the group of `epoch`, with all that it needs."""
        if self.over or epoch != self.epoch or process not in self.seats or process in self._ready:
            return ()
        self._ready.append(process)
        if len(self._ready) < len(self.seats) or self._seen:
            return ()
        self.serving = self.served = True
        self._failed.clear()
        if len(self.places) == self.size:
            self._grow, self._grow_s = None, GROW_S
        elif self._grow is None:
            self._grow = now + self._grow_s
        return self._refill()

    def ended(self, process: int, reason: str, now: float) -> Actions:
        """A process is gone."""
        if self.over:
            return ()
        if process in self._spares:
            self._spares.remove(process)
            # Spares that keep dying are not worth a processor: the next loss starts its own.
            return self._refill() if self._few(self._spare_ends, now) else ()
        return self._fault(process, Fault("ended", reason), now)

    def stuck(self, process: int, reason: str, now: float) -> Actions:
        """A process lives, but does not go on."""
        if self.over or process not in (*self.seats, *self._spares):
            return ()
        if process in self._spares:
            return (Kill(process), *self.ended(process, reason, now))
        return (Kill(process), *self._fault(process, Fault("stuck", reason), now))

    def failed(self, process: int, epoch: int, fault: Fault, now: float) -> Actions:
        """A process says that it failed the group of `epoch`, or was failed by it. It waits to be told of another."""
        if self.over or epoch != self.epoch:
            return ()
        return self._fault(process, fault, now)

    def due(self, now: float) -> Actions:
        """What the time has come for."""
        if self.over:
            return ()
        if self._settled is not None and now >= self._settled:
            return self._judge(now)
        if self.serving and self._grow is not None and now >= self._grow:
            return self._regrow(now)
        return ()

    @property
    def next_due(self) -> float | None:
        """When `due` has something to do."""
        return self._settled if self._settled is not None else self._grow if self.serving else None

    def resize(self, size: int, now: float) -> Actions:
        """The whole group has `size` ranks from now on, and is formed anew: with the places that it lacks, if that is its size
        already, else with those that are here in the first places."""
        if size != self.size:
            self.places = tuple(range(len(self.seats)))
        self.size = size
        seated = dict(zip(self.places, self.seats, strict=True))
        left = tuple(Kill(process) for place, process in seated.items() if place >= size)
        spawned = self._fill(seated, tuple(range(size)))
        return (*left, *spawned, *self._form())

    def refused(self, reason: str, now: float) -> Actions:
        """The group that was to be formed cannot be: its ranks are too few for the model."""
        if len(self.places) == self.size:
            return self._give_up(0, reason)
        seated = dict(zip(self.places, self.seats, strict=True))
        spawned = self._fill(seated, tuple(range(self.size)))
        return (*spawned, *self._form())

    def _regrow(self, now: float) -> Actions:
        """Tries the places that the group lacks; first, where there are none, with processes that get ready beside it."""
        missing = self.size - len(self.places) - len(self._spares)
        if missing > 0:
            spawned = tuple(self._spawn() for _ in range(missing))
            self._spares += [spawn.process for spawn in spawned]
            self._grow = now + WARM_S
            return spawned
        self._grow = None
        self._grow_s *= 2
        return self.resize(self.size, now)

    # --- judgement ----------------------------------------------------------------------------------------------------

    def _fault(self, process: int, fault: Fault, now: float) -> Actions:
        if process not in self.seats:
            return ()
        known = self._seen.get(process)
        if known is None or known.kind == "left" or fault.kind in ("ended", "stuck"):
            self._seen[process] = fault
        self.serving = False
        # What is worse than a peer's failure is a cause; so is that everybody has been failed.
        if fault.kind != "left" or all(process in self._seen for process in self.seats):
            return self._judge(now)
        if self._settled is None:
            self._settled = now + SETTLE_S
        return ()

    def _judge(self, now: float) -> Actions:
        """Says who was at fault, and what follows."""
        killed = self._silent()
        gone = tuple(p for p in self.seats if p in self._seen and self._seen[p].kind in ("ended", "stuck"))
        own = tuple(p for p in self.seats if p in self._seen and self._seen[p].kind == "failed")
        first = next((p for p in self._seen if p in (gone or own)), next(iter(self._seen)))
        fault, forming = self._seen[first], len(self._ready) < len(self.seats)
        seat = self.seats.index(first)
        self.loss = Loss(self.epoch, seat, first, fault.reason, gone, self.seats, bool(own and not gone and not forming))
        over = self._verdict(seat, fault, own, forming, now)
        if over is not None:
            return (*killed, *over)
        if forming and own:
            # A group that its own members cannot form is not formed with them.
            killed, gone = (*killed, *map(Kill, own)), (*gone, *own)
        return (*killed, *self._mend(gone, forming))

    def _silent(self) -> tuple[Kill, ...]:
        """Where all that is known are complaints: whom most of them are about, if it says nothing itself, is stuck."""
        if any(fault.kind != "left" for fault in self._seen.values()):
            return ()
        blamed = Counter(f.culprit for f in self._seen.values() if f.culprit is not None and f.culprit < len(self.seats))
        for seat, _ in blamed.most_common(1):
            if (process := self.seats[seat]) not in self._seen:
                reason = next(f.reason for f in self._seen.values() if f.culprit == seat)
                self._seen[process] = Fault("stuck", reason)
                return (Kill(process),)
        return ()

    def _verdict(self, seat: int, fault: Fault, own: Sequence[int], forming: bool, now: float) -> Actions | None:
        """Whether this is the end: by policy, by budget, or because the group could never be formed."""
        if self.policy.on_loss == "exit" or (own and forming and not self.served):
            return self._give_up(seat, fault.reason, mendable=fault.mendable)
        lone = self.loss is not None and self.loss.lone
        times, most = (self._errors, ERRORS) if lone else (self._losses, self.policy.losses)
        # What dies together is lost once: whoever kills all ranks of a large group has not spent the budget.
        if not times or now - times[-1] > SETTLE_S:
            times.append(now)
        if not self._within(times, most, now):
            within = self.policy.within_s
            return self._give_up(seat, f"{fault.reason}; {most} others were lost within {within:g} s", spent=True)
        return None

    def _mend(self, gone: Sequence[int], forming: bool) -> Actions:
        """The next group: with others in the places of those that are gone, or without."""
        seated = dict(zip(self.places, self.seats, strict=True))
        lost = [place for place, process in seated.items() if process in gone]
        wanted = self.places
        if forming:
            self._failed.update(lost)
        given_up = lost if self.policy.on_loss == "shrink" else [place for place in lost if self._failed[place] >= TRIES]
        if len(given_up) < len(wanted):
            wanted = tuple(place for place in wanted if place not in given_up)
        for place in lost:
            del seated[place]
        spawned = self._fill(seated, wanted)
        return (*spawned, *self._form())

    # --- what is done -------------------------------------------------------------------------------------------------

    def _fill(self, seated: dict[int, int], wanted: tuple[int, ...]) -> Actions:
        """Seats spares, or processes that are started now, in the wanted places that nobody has."""
        spawned: list[Action] = []
        for place in wanted:
            if place not in seated:
                if not self._spares:
                    spawn = self._spawn()
                    spawned.append(spawn)
                    self._spares.append(spawn.process)
                seated[place] = self._spares.pop(0)
        self.places, self.seats = wanted, tuple(seated[place] for place in wanted)
        return tuple(spawned)

    def _form(self) -> Actions:
        self.epoch += 1
        self.serving = False
        self._ready, self._seen, self._settled = [], {}, None
        return (Form(self.epoch, self.seats, self.places),)

    def _refill(self) -> Actions:
        """As many spares as there are to be, and no more but those that get ready for the places that are lacking."""
        most = self.policy.spares + self.size - len(self.places)
        left, self._spares = self._spares[most:], self._spares[:most]
        spawned = [self._spawn() for _ in range(self.policy.spares - len(self._spares))]
        self._spares += [spawn.process for spawn in spawned]
        return (*map(Kill, left), *spawned)

    def _spawn(self) -> Spawn:
        self._count += 1
        return Spawn(self._count - 1)

    def _give_up(self, seat: int, reason: str, *, mendable: bool = False, spent: bool = False) -> Actions:
        self.over, self.serving = True, False
        return (GiveUp(seat, reason, mendable, spent),)

    def _few(self, ends: deque[float], now: float) -> bool:
        ends.append(now)
        return self._within(ends, self.policy.losses, now)

    def _within(self, times: deque[float], most: int, now: float) -> bool:
        """Whether the last of these is still within a budget of so many."""
        while times and times[0] <= now - self.policy.within_s:
            times.popleft()
        return len(times) <= most
