"""One trial: requests, the moment, the fault, and what came of both. On a server that runs, or on one that is starting."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from shardwise.chaos.asked import Asked
from shardwise.chaos.client import Call
from shardwise.chaos.heard import Told, pause, told
from shardwise.chaos.judge import judge
from shardwise.chaos.moment import reached
from shardwise.chaos.plan import FAULTS, STALL_S, Trial
from shardwise.chaos.processes import holder, send
from shardwise.chaos.rows import Row
from shardwise.chaos.server import Command, Server
from shardwise.chaos.standing import standing
from shardwise.chaos.strike import spin, starved, state
from shardwise.chaos.watch import Watch, named
from shardwise.errors import ShardwiseError

END_S = 5.0
"""A server that is not whole again may take so long to end."""

START_PART = 0.9
"""Of the shortest start so far, from the first rank's process on: faults come within it."""


@dataclass(slots=True)
class Course:
    """What every trial needs: requests and what each has to be answered with. `loose` are the numbers of those whose tokens are
    not compared; `plain`: without fields beyond OpenAI's. A stream without an end `patience_s` after a fault is lost."""

    requests: Sequence[Asked]
    truths: dict[int, Told]
    clients: int
    patience_s: float
    plain: bool
    start_s: float = 0.0
    loose: set[int] = field(default_factory=set)

    def turn(self, trial: Trial) -> list[Asked]:
        """The requests of a trial, one a client."""
        return [self.requests[(trial.turn + n) % len(self.requests)] for n in range(self.clients)]

    def answered(self, server: Server) -> bool:
        """Whether the server answers a request to its end, as every client's patience has it."""
        call = self.call(server, self.requests[0], "afterwards")
        heard = call.wait(time.monotonic() + self.patience_s)
        return heard.status == 200 and heard.end == "closed"

    def call(self, server: Server, asked: Asked, salt: str) -> Call:
        """A client with that request. `salt` keeps its prompt from being known already."""
        assert server.url is not None
        return Call(server.url, asked.path, asked.encoded(server.model, plain=self.plain, salt=salt), server.command.key)


def on_live(trial: Trial, server: Server, course: Course) -> Row:
    """A trial on a server that is whole."""
    row = Row(trial.number, trial.fault, trial.phase, load=os.getloadavg()[0])
    turn, salt = course.turn(trial), f"trial {trial.number}"
    ranks = server.ranks()
    idle = trial.phase == "idle"
    calls = [] if idle else [course.call(server, asked, salt) for asked in turn]
    if not idle:
        place = trial.victim % max(1, len(ranks))
        row.aimed = reached(trial, calls, (place, ranks[place]) if ranks else None)
    strike = _Strike(trial, server, ranks, calls, row)
    watch = Watch(server, strike.at_s)
    if idle:
        time.sleep(trial.gap_s)
        calls = [course.call(server, asked, salt) for asked in turn]
    until = strike.at_s + course.patience_s
    heard = [call.wait(until) for call in calls]
    fatal = FAULTS[trial.fault].fatal and row.undone is None
    times: list[float] = []
    for number, (asked, each) in enumerate(zip(turn, heard, strict=True)):
        found = told(each)
        times += found.times
        verdict = judge(each, found, course.truths[asked.number], exact=asked.number not in course.loose)
        if verdict.kind in ("lost", "failed") and (fatal or number in strike.excused):
            row.excused += 1
            continue
        row.counts[verdict.kind] += 1
        if verdict.kind == "corrupt":
            row.corrupt.append(asked.number)
        if verdict.kind != "fine":
            row.why.append(f"request {asked.number} is {verdict.kind}: {verdict.why}")
        elif (silent := pause(found.times, each.sent_s, strike.at_s, each.ended_s)) is not None:
            row.pauses.append(silent)
    row.silence_s = pause(sorted(times), min(each.sent_s for each in heard), strike.at_s, max(each.ended_s for each in heard))
    _aftermath(row, server, watch, strike, course, max(until, time.monotonic() + 2.0))
    return row


def on_start(trial: Trial, command: Command, course: Course) -> tuple[Row, Server]:
    """A trial on a server that is starting; and that server, which may have ended."""
    row = Row(trial.number, trial.fault, trial.phase, load=os.getloadavg()[0])
    server = Server(command)
    try:
        until = server.begun_s + command.start_s
        while not (found := server.herd.of("rank")) and time.monotonic() < until and not server.ended:
            time.sleep(0.005)
        due = time.monotonic() + trial.delay * START_PART * max(0.0, course.start_s - (time.monotonic() - server.begun_s))
        while time.monotonic() < due and not server.up_now() and not server.ended:
            time.sleep(0.01)
        row.aimed = bool(found) and not server.up_now()
        ranks = [process.pid for process in server.herd.of("rank")]
        strike = _Strike(trial, server, ranks, [], row)
        watch = Watch(server, strike.at_s)
        if FAULTS[trial.fault].fatal:
            _aftermath(row, server, watch, strike, course, time.monotonic())
        else:
            row.start_s = server.up()
            _started(row, trial, server, course)
            _aftermath(row, server, watch, strike, course, time.monotonic() + 2.0)
    except BaseException:
        server.close()
        raise
    return row, server


def _started(row: Row, trial: Trial, server: Server, course: Course) -> None:
    """After a fault during the start: the start fails, and says so, or all is as ever."""
    if row.start_s is None:
        kind = "failed" if server.ended else "lost"
        row.counts[kind] += 1
        row.why.append(f"the start {kind}: {server.last_words() if server.ended else 'neither up nor at its end'}")
        return
    turn = course.turn(trial)
    calls = [course.call(server, asked, f"trial {trial.number}") for asked in turn]
    until = time.monotonic() + course.patience_s
    for asked, call in zip(turn, calls, strict=True):
        each = call.wait(until)
        verdict = judge(each, told(each), course.truths[asked.number], exact=asked.number not in course.loose)
        row.counts[verdict.kind] += 1
        if verdict.kind != "fine":
            row.why.append(f"request {asked.number} is {verdict.kind}: {verdict.why}")


def _aftermath(row: Row, server: Server, watch: Watch, strike: _Strike, course: Course, until: float) -> None:
    """What the server is after it, whom it named, what is left where it has ended."""
    fatal = FAULTS[row.fault].fatal and row.undone is None
    if not fatal:
        row.whole_s = watch.until_whole(until)
        strike.undo()  # a process that was left standing goes on only now, and has to be nobody's by then
        if row.whole_s is not None and not course.answered(server):
            row.whole_s = None
        if row.whole_s is None:
            with suppress(Exception):
                server.process.wait(min(END_S, course.patience_s))
    ended = fatal or server.ended
    since = strike.at_s if fatal else time.monotonic()
    if ended:
        row.gone_s, row.left = server.gone(strike.last_s if fatal else since)
        row.exit_code = server.process.poll()
    watch.end()
    row.stuck = not ended and row.whole_s is None
    if watch.unwell is not None:
        row.unwell_s, row.unwell = watch.unwell
    if row.wanted and (found := named(server.said(strike.at_s), strike.at_s, strike.pids)):
        row.named_s, row.named = found


class _Strike:
    """The fault, done while this is made: `at_s` is when it began, `last_s` when the last of it was done. `excused` are the
    clients, by their places, that it cuts."""

    def __init__(self, trial: Trial, server: Server, ranks: list[int], calls: Sequence[Call], row: Row) -> None:
        self._trial, self._server, self._row = trial, server, row
        self._undo: list[Callable[[], object]] = []
        self.pids = {pid: rank for rank, pid in enumerate(ranks)}
        self.excused: set[int] = set()
        if trial.fault == "front":
            self._front(calls)
        self.at_s = time.monotonic()
        try:
            if trial.phase == "recovery":
                self._kill(self._ranks(ranks, trial.victim, "kill first"))
                time.sleep(trial.gap_s)
            self._do(ranks)
        except ShardwiseError as error:
            row.undone = str(error)
        self.last_s = time.monotonic()

    def undo(self) -> None:
        """What can be taken back is: stopped processes go on."""
        for each in self._undo:
            each()
        self._undo = []

    def _do(self, ranks: list[int]) -> None:
        trial = self._trial
        match trial.fault:
            case "kill" if trial.phase == "recovery":
                # Whoever is a rank now, or about to be one.
                self._kill(self._ranks([process.pid for process in self._server.herd.of("rank")], trial.second, "kill then"))
            case "kill":
                self._kill(self._ranks(ranks, trial.victim, "kill"))
            case "double":
                self._kill(self._ranks(ranks, trial.victim, "kill"))
                time.sleep(trial.gap_s)
                if len(ranks) > 1:
                    self._kill(self._ranks(ranks, trial.victim + 1 + trial.second % (len(ranks) - 1), "kill"))
            case "stop" | "stall":
                pid = self._ranks(ranks, trial.victim, "stop")
                send(pid, signal.SIGSTOP)
                if trial.fault == "stall":
                    self._later(lambda: _resume(pid))
                self._undo.append(lambda: _resume(pid))
            case "spin":
                spin(self._ranks(ranks, trial.victim, "spin"))
            case "starve":
                self._starve(self._ranks(ranks, trial.victim, "starve"))
                self._row.wanted = []  # it is no fault of the rank's: nobody is to be named
            case "engine" | "front":
                self._kill(self._one(trial.fault))
            case "parent" | "group" | "all":
                self._end(trial.fault)

    def _end(self, fault: str) -> None:
        root = self._server.process.pid
        self._row.victims.append(f"{fault} of {root}")
        if fault == "all":
            for process in self._server.herd.look():
                send(process.pid, signal.SIGKILL)
        elif fault == "group":
            with suppress(ProcessLookupError):
                os.killpg(root, signal.SIGKILL)
        else:
            send(root, signal.SIGKILL)

    def _ranks(self, pids: list[int], number: int, what: str) -> int:
        if not pids:
            raise ShardwiseError("no process of a rank is known; --rank-processes says how their titles look")
        pid = pids[number % len(pids)]
        name = f"rank {self.pids[pid]}" if pid in self.pids else "a new rank"
        self._row.victims.append(f"{what} {name} ({pid})")
        if pid in self.pids and not self._server.command.foreign:
            with standing(pid, self.pids[pid]) as where:
                self._row.stood = self._row.stood or str(where() or "") or None
        if pid in self.pids and self._trial.phase != "start":
            self._row.wanted.append(name)
        return pid

    def _one(self, role: str) -> int:
        if not (found := self._server.herd.of(role)):
            raise ShardwiseError(f"the server has no process that is a{'n' if role == 'engine' else ' further'} {role}")
        pid = found[self._trial.victim % len(found)].pid
        self._row.victims.append(f"{role} ({pid})")
        return pid

    def _front(self, calls: Sequence[Call]) -> None:
        """Whose connections it has."""
        if fronts := self._server.herd.of("front"):
            pid = fronts[self._trial.victim % len(fronts)].pid
            every = [process.pid for process in self._server.herd.look()]
            holders = [holder(call.port, every) if call.port and not call.over else None for call in calls]
            self.excused = {number for number, each in enumerate(holders) if each == pid}

    def _kill(self, pid: int) -> None:
        send(pid, signal.SIGKILL)

    def _starve(self, pid: int) -> None:
        def hold() -> None:
            with starved(pid):
                time.sleep(STALL_S)

        self._after(hold)

    def _later(self, act: Callable[[], object]) -> None:
        def wait() -> None:
            time.sleep(STALL_S)
            act()

        self._after(wait)

    def _after(self, run: Callable[[], None]) -> None:
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        self._undo.append(thread.join)


def _resume(pid: int) -> None:
    """Goes on, where it still stands: the number may be another process's by now."""
    if state(pid) == "T":
        send(pid, signal.SIGCONT)
