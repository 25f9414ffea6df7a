"""Which rank is at fault, if one is: told what each said of itself and what the kernel says of its process.

A rank is at fault if its process is stopped, or if it stands where it should move; never because it waits for others, or for a
processor that others have. Pure: it knows no clock, no process and no memory, and what follows from its finding.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from shardwise.engine.pace import Pace
from shardwise.runtime.pulse import State, Where, describe

LATE_S = 0.3
"""What one look charges at most. Looks are meant to come every 0.1 s: after a longer pause nobody knows who could have run."""
STOPPED_S = 0.5
"""For so long a process is stopped before it counts: a debugger's short stops do not."""
FIRST_S = 60.0
"""Of the very first steps nothing is known. So long the others wait for a rank in any case (`comm.protocol.DEADLINE_S`)."""
FRESH_S = 10.0
"""The least limit in a rank's first step of an epoch: much is done for the first time."""
SLOW_S = 30.0
"""Where nothing says how long a tick may take (before the first step, while a recording is written), of the time in which the
process does not run; and where a disk is waited for."""


@dataclass(frozen=True, slots=True)
class Vital:
    """What the kernel says of the process of a seat: its state as in /proc ("R", "S", "D", "T", ...), and for how many seconds
    its threads have waited for a processor, and have run, since it began."""

    seat: int
    pid: int
    state: str
    waited_s: float
    ran_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Finding:
    """The rank at fault, why, and where it stood."""

    seat: int
    reason: str
    where: Where

    def __str__(self) -> str:
        return f"rank {self.seat} {self.reason} ({describe(self.where)})"


@dataclass(slots=True)
class _Account:
    """One seat's: what was seen last, and for how long it has stood since it last moved: `stood_s` with a processor or for no
    good reason, `disk_s` for a disk, `ran_s` running. `last_s` is what the last look has added."""

    where: Where
    vital: Vital
    first: int = -1
    stood_s: float = 0.0
    disk_s: float = 0.0
    ran_s: float = 0.0
    last_s: float = 0.0
    halted_s: float = 0.0
    moved: bool = True

    def begin(self) -> None:
        self.moved, self.stood_s, self.disk_s, self.ran_s, self.last_s = True, 0.0, 0.0, 0.0, 0.0


@dataclass(frozen=True, slots=True)
class _Look:
    """What one look is: `gap_s` after the one before, it adds `s` seconds at most; where it is `late`, nothing is decided by
    those alone. `least` are the seats that have come least far, `behind` those that another one has come further than."""

    gap_s: float
    s: float
    late: bool
    busy: bool
    least: frozenset[int] = frozenset()
    behind: frozenset[int] = frozenset()


class Watch:
    """One group's, over all its epochs: `look` every 0.1 s or so."""

    def __init__(self, least_s: float = 2.0, factor: float = 8.0) -> None:
        self.least_s, self.factor = least_s, factor
        self.epoch = -1
        self._paces: defaultdict[int, Pace] = defaultdict(Pace)
        self._at: float | None = None
        self._accounts: dict[int, _Account] = {}

    def begin(self, epoch: int) -> None:
        """A group of this epoch is formed: what was before says nothing of it, but how fast its ranks are."""
        self.epoch = epoch
        self._at = None
        self._accounts = {}

    def look(self, now: float, busy: bool, wheres: Sequence[Where], vitals: Sequence[Vital]) -> Finding | None:
        """The rank at fault at `now` (seconds of a monotonic clock), or None. Both sequences are in the order of seats.

        `busy`: the ranks have been told all that a step takes, and have not answered. Where only its forward was sent, they may
        wait for the rest of it.
        """
        if (newest := max((where.epoch for where in wheres), default=-1)) > self.epoch:
            self.begin(newest)
        gap_s, self._at = (0.0 if self._at is None else max(0.0, now - self._at)), now
        if gap_s > self.least_s or len(self._accounts) != len(wheres):
            # Somebody slept, the machine perhaps: who did not move then, may not have been able to.
            self._accounts = {
                seat: _Account(w, v, self._first(seat, w)) for seat, (w, v) in enumerate(zip(wheres, vitals, strict=True))
            }
            return None
        look = self._ranked(_Look(gap_s, min(gap_s, LATE_S), gap_s > LATE_S, busy), wheres)
        added = [self._added(seat, look, where, vital) for seat, (where, vital) in enumerate(zip(wheres, vitals, strict=True))]
        # All in one collective: each may be waiting for any other, so that none is charged for what one has waited.
        inside = {seat for seat in look.least if wheres[seat].state == State.IN_COLLECTIVE}
        shared_s = min((0.0 if vitals[seat].state == "D" else added[seat] for seat in inside), default=0.0)
        for seat, (where, vital) in enumerate(zip(wheres, vitals, strict=True)):
            self._charge(
                seat, look, where, vital, min(added[seat], shared_s) if len(inside) > 1 and seat in inside else added[seat]
            )
        return self._verdict(look)

    def _first(self, seat: int, where: Where) -> int:
        """The first step that a seat was seen in, in this epoch."""
        if where.epoch != self.epoch or where.step < 0:
            return -1
        known = self._accounts.get(seat)
        return known.first if known and known.first >= 0 else where.step

    def _ranked(self, look: _Look, wheres: Sequence[Where]) -> _Look:
        come = {seat: self._come(where) for seat, where in enumerate(wheres) if where.state != State.LEFT}
        if not come:
            return look
        least, most = min(come.values()), max(come.values())
        return replace(
            look,
            least=frozenset(seat for seat, far in come.items() if far == least),
            behind=frozenset(seat for seat, far in come.items() if far < most),
        )

    def _come(self, where: Where) -> tuple[int, ...]:
        """How far a rank has come. The collectives say it, for all ranks enter the same ones; where they are equal, the step,
        its layer, and whether all that was asked for is done."""
        if where.epoch != self.epoch:
            return (State.NONE,)
        if where.state <= State.LOADING:
            return (where.state,)
        inside = where.state == State.IN_COLLECTIVE
        return State.LOADING + 1, 2 * where.calls - inside, where.step, where.layer, where.state == State.IDLE

    def _added(self, seat: int, look: _Look, where: Where, vital: Vital) -> float:
        """For how much of the time since the last look a rank has stood for no reason but its own."""
        account = self._accounts[seat]
        if where != account.where or not self._should_move(seat, look, where):
            return 0.0
        added_s = look.gap_s - (vital.waited_s - account.vital.waited_s)
        if self._patient(where):
            added_s -= vital.ran_s - account.vital.ran_s
        return max(0.0, min(added_s, look.s))

    def _should_move(self, seat: int, look: _Look, where: Where) -> bool:
        if where.epoch != self.epoch:
            return True
        match where.state:
            case State.LEFT:
                return False
            case State.JOINING:  # with a deadline of its own, until the others are there
                return seat in look.behind
            case State.IN_COLLECTIVE:
                return seat in look.least
            case State.IDLE:
                return seat in look.least and (look.busy or seat in look.behind)
        return True

    def _patient(self, where: Where) -> bool:
        """Whether nothing says how long what it does may take."""
        return where.epoch != self.epoch or where.state in (State.JOINING, State.LOADING, State.ASIDE)

    def _charge(self, seat: int, look: _Look, where: Where, vital: Vital, added_s: float) -> None:
        """Adds to the account of a seat, or begins it anew where the rank has moved."""
        account = self._accounts[seat]
        before, was = account.where, account.vital
        account.where, account.vital, account.first = where, vital, self._first(seat, where)
        ran_s, waited_s = vital.ran_s - was.ran_s, vital.waited_s - was.waited_s
        halted = vital.state in "TZ" and vital.state == was.state and ran_s <= 0
        account.halted_s = account.halted_s + look.s if halted else 0.0
        if where != before:
            self._paces[seat].saw(before, where, account.stood_s, max(0.0, min(look.gap_s - waited_s, look.s)))
            account.begin()
            return
        account.moved = False
        account.last_s = 0.0
        if vital.state == "D":
            account.disk_s += added_s
        elif added_s:
            account.stood_s, account.last_s, account.ran_s = account.stood_s + added_s, added_s, account.ran_s + ran_s

    def _verdict(self, look: _Look) -> Finding | None:
        """Of those whose time is over, the one that has come least far. In the same place, one that does not sleep, or the one
        that slept most: who waits in shared memory looks around now and then."""
        come = {seat: self._come(account.where) for seat, account in self._accounts.items()}
        guilty = [
            (come[seat], account.vital.state == "S", account.ran_s, seat, reason)
            for seat, account in self._accounts.items()
            if (reason := self._reason(seat, account, look)) is not None
        ]
        if not guilty:
            return None
        far, _, _, seat, reason = min(guilty)
        finding = Finding(seat, reason, self._accounts[seat].where)
        others = (account for other, account in self._accounts.items() if come[other] < far)
        if self._halted_s(self._accounts[seat], look) < STOPPED_S and any(self._holds_up(account) for account in others):
            return None
        return finding

    @staticmethod
    def _holds_up(account: _Account) -> bool:
        """Whether it may be what one that has come further waits for: its own time will be over soon, or it moves on."""
        return not account.moved and account.where.state != State.LEFT

    @staticmethod
    def _halted_s(account: _Account, look: _Look) -> float:
        return account.halted_s - (look.s if look.late and account.halted_s else 0.0)

    def _reason(self, seat: int, account: _Account, look: _Look) -> str | None:
        vital = account.vital
        if self._halted_s(account, look) >= STOPPED_S:
            said = "has lost its main thread" if vital.state == "Z" else "is stopped"
            return f"{said}: process {vital.pid}, state {vital.state}, for {account.halted_s:.1f} s"
        # A look that came late decides nothing by what it adds itself.
        stood_s = account.stood_s - (account.last_s if look.late else 0.0)
        waits = account.disk_s >= SLOW_S
        if not waits and (stood_s < self.least_s or stood_s < self._limit_s(seat, account)):
            return None
        away = account.where.epoch != self.epoch
        said = f"has not come to epoch {self.epoch}" if away else "makes no progress"
        does = "waits for a disk" if waits else "runs" if account.ran_s >= account.stood_s / 2 else "sleeps"
        return f"{said} for {max(stood_s, account.disk_s):.1f} s: process {vital.pid} {does}"

    def _limit_s(self, seat: int, account: _Account) -> float:
        """For how long a rank may stand where it does."""
        where = account.where
        if self._patient(where):
            return SLOW_S
        if where.state == State.IDLE:
            return self.least_s
        expected_s = self._paces[seat].expected_s(where)
        if expected_s is None:
            return FIRST_S
        longest_s = max(expected_s, *(pace.seen_s(where) for pace in self._paces.values()))
        limit_s = max(self.least_s, self.factor * longest_s)
        return max(limit_s, FRESH_S) if where.step <= account.first else limit_s
