"""All trials of a plan on a server that is started for them, and again whenever one has ended it."""

from __future__ import annotations

import time
from collections.abc import Callable

from shardwise.chaos.asked import requests
from shardwise.chaos.heard import Told, told
from shardwise.chaos.judge import judge
from shardwise.chaos.plan import CALM, FAULTS, Plan, Trial
from shardwise.chaos.processes import descriptors, worked_s
from shardwise.chaos.rows import Row
from shardwise.chaos.server import Command, Server
from shardwise.chaos.trial import Course, on_live, on_start
from shardwise.errors import ShardwiseError

QUIET_S = 300.0
"""The longest that one request may take on the quiet server."""

LOOK_S, IDLE_S, SETTLE_S = 1.0, 0.05, 30.0
"""Open files are counted so often, until all processes together work for less than such a part of the time; at most so long."""


class Campaign:
    """One run. `say` is told each part before it begins: `parts` in all."""

    def __init__(self, plan: Plan, command: Command, patience_s: float, say: Callable[[str], None]) -> None:
        self._plan, self._command, self._say = plan, command, say
        self._server: Server | None = None
        asked = requests(plan.seed, 2 * plan.clients, plan.tokens)
        self._course = Course(asked, {}, plan.clients, patience_s, plain=False)

    @property
    def parts(self) -> int:
        """How much there is to be told: oracles, and trials."""
        return len(self._course.requests) + len(self._plan.trials)

    def run(self) -> list[Row]:
        """A row for each trial, and one with what is left after an orderly end. ShardwiseError where the server does not start
        at all, or does not answer while nothing is done to it."""
        rows = []
        try:
            self._server, _ = self._start()
            self._learn(self._server)
            for trial in self._plan.trials:
                self._say(f"trial {trial.number}: {trial.fault}, {trial.phase}")
                rows.append(self._one(trial))
            if self._server is not None:
                rows[-1].left += self._end(self._server)
        finally:
            if self._server is not None:
                self._server.close()
        return rows

    def _start(self) -> tuple[Server, float]:
        """A server that answers, and the seconds that it took."""
        server = Server(self._command)
        if (taken := server.up()) is None:
            how = f"ended with exit code {server.process.poll()}" if server.ended else "does not answer"
            said = server.last_words()
            server.close()
            raise ShardwiseError(f"the server {how}: {said}")
        self._course.start_s = min(taken, self._course.start_s or taken)
        return server, taken

    def _learn(self, server: Server) -> None:
        """What each request is answered with while nothing happens, one after the other."""
        course = self._course
        for asked in course.requests:
            self._say(f"request {asked.number} on the quiet server")
            found = self._told(server, asked.number)
            if found.error is not None and found.error.startswith("4") and not course.plain:
                course.plain = True  # a server that knows OpenAI's fields alone
                found = self._told(server, asked.number)
            course.truths[asked.number] = found

    def _told(self, server: Server, number: int) -> Told:
        asked = self._course.requests[number]
        heard = self._course.call(server, asked, "quiet").wait(time.monotonic() + QUIET_S)
        found = told(heard)
        if heard.status is not None and 400 <= heard.status < 500 and not self._course.plain:
            return found
        if (verdict := judge(heard, found, found)).kind != "fine" or not found.choices:
            raise ShardwiseError(
                f"the quiet server does not answer request {number} as it should: {verdict.why or 'no choice'}"
            )
        return found

    def _one(self, trial: Trial) -> Row:
        if trial.phase == "start":
            if self._server is not None:
                left = self._end(self._server)
                self._server = None
            else:
                left = []
            row, self._server = on_start(trial, self._command, self._course)
            row.left = [*left, *row.left]
        else:
            assert self._server is not None
            row = on_live(trial, self._server, self._course)
        if trial.fault == CALM and self._command.foreign:
            self._loosen(row)
        self._renew(row)
        return row

    def _renew(self, row: Row) -> None:
        """The server for what comes next: the same where it is whole, else a new one; that it starts is part of the trial."""
        server = self._server
        assert server is not None
        spoilt = FAULTS[row.fault].fatal or row.fault in ("stop", "spin") or row.stuck
        if not server.ended and row.whole_s is not None and not (spoilt and self._command.foreign):
            row.files = _files(server)
            return
        server.close()
        self._server = None
        try:
            self._server, row.start_s = self._start()
        except ShardwiseError as error:
            row.counts["failed"] += 1
            row.why.append(f"the next start failed: {error}")
            self._server, row.start_s = self._start()

    def _loosen(self, row: Row) -> None:
        """What a server of other people answers otherwise in company, without any fault, is compared by its form alone."""
        self._course.loose.update(row.corrupt)
        row.counts["fine"] += row.counts["corrupt"]
        row.counts["corrupt"] = 0

    def _end(self, server: Server) -> list[str]:
        """Ends it in order; what is left of it 2 s later."""
        at = server.stop()
        found = [f"after an orderly end: {each}" for each in server.gone(at)[1]]
        server.close()
        return found

    @property
    def loose(self) -> int:
        """How many requests are compared by their form alone."""
        return len(self._course.loose)


def _files(server: Server) -> int:
    """The open files of all its processes, once these do next to nothing: one that has just been started, to wait for the next
    loss, imports for a second or more, and opens the last of its files afterwards."""
    until = time.monotonic() + SETTLE_S
    worked, count = _work(server)
    while time.monotonic() < until:
        time.sleep(LOOK_S)
        before, (worked, count) = worked, _work(server)
        if worked - before < IDLE_S * LOOK_S:
            break
    return count


def _work(server: Server) -> tuple[float, int]:
    """(seconds of processor time so far, open files) of all processes of a server."""
    pids = [process.pid for process in server.herd.look()]
    return sum(map(worked_s, pids)), sum(descriptors(pid) or 0 for pid in pids)
