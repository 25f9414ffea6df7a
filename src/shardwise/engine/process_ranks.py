"""Ranks as processes of this host: what they say is heard, and what the supervisor makes of it is done.

The engine's thread alone uses it. Nothing here waits for one rank: whoever says nothing is judged by where it stands.
"""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from shardwise.comm.way import Way, way_of
from shardwise.engine.incident import Incident
from shardwise.engine.rank_lines import Gone, RankLines, Said, Woken
from shardwise.engine.rank_processes import RankProcesses
from shardwise.engine.ranks import Done, Formed, Progress, start_message
from shardwise.engine.setup import Setup, recut
from shardwise.engine.supervise import FAIL_FAST, Actions, Fault, Form, GiveUp, Kill, Policy, Spawn, Supervisor
from shardwise.errors import LossesSpent, RankLost, ShardwiseError, UserError
from shardwise.runtime import wire
from shardwise.sched.step import Draw, Result, Step
from shardwise.telemetry import log

KEPT = 16
"""How many incidents are remembered."""


class ProcessRanks:
    """One process a rank, on this host. They end with this process, whatever ends it. `started` are those that run already;
    `policy` says what a loss leads to. `busy_s` is how long the lead rank has worked on steps so far. By `lines` they are
    heard, `clock` tells the seconds, and `cut` is how a setup is cut for other shares.

    `setup` is what runs, or is to run next; `incidents` are the last losses, in order."""

    def __init__(
        self,
        setup: Setup,
        progress: Progress | None = None,
        started: RankProcesses | None = None,
        policy: Policy = FAIL_FAST,
        lines: RankLines | None = None,
        clock: Callable[[], float] = time.monotonic,
        cut: Callable[[Setup, Sequence[float]], Setup] = recut,
    ) -> None:
        self.setup, self._target = setup, setup
        self.busy_s = 0.0
        self.ready: Sequence[wire.Ready] = ()
        self.incidents: deque[Incident] = deque(maxlen=KEPT)
        self.recorded: Callable[[int, wire.Recorded], None] = lambda _, __: None
        """Called within `wait` with what a rank has recorded, since `record`."""
        self._progress, self._phase = progress, "start"
        self._started = started or RankProcesses()
        try:
            self._started.reach(setup.layout.mesh.size)
            self._lookout = self._started.lookout()
        except BaseException:
            self._started.close()
            raise
        self._lines = lines or RankLines()
        self._clock, self._cut = clock, cut
        self._supervisor = Supervisor(policy, setup.layout.mesh.size)
        self._pids: dict[int, int] = {}
        self._reports: dict[int, wire.Ready] = {}
        self._early: tuple[Result, ...] = ()
        self._out: deque[Done | Formed] = deque()
        self._rows: deque[wire.Rows] = deque()
        self._incident: Incident | None = None
        self._failed: str | None = None
        self._lost_s: float | None = None
        self._news = False
        self._asked = 0
        try:
            self._do(self._supervisor.start())
            while not self._supervisor.serving:
                self._turn(None)
        except BaseException:
            self.close()
            raise
        self._progress = None
        self._out.clear()

    @property
    def processes(self) -> list[subprocess.Popen[bytes]]:
        """Of the group in rank order; none once they are closed."""
        return [self._started[number].process for number in self._supervisor.seats if number in self._started]

    @property
    def whole(self) -> bool:
        """See `Ranks.whole`."""
        return self._supervisor.serving and not any(isinstance(found, Formed) for found in self._out)

    @property
    def mending(self) -> Incident | None:
        """The first of the losses for which nothing is computed now."""
        return self._incident

    # --- steps --------------------------------------------------------------------------------------------------------

    def forward(self, step: Step) -> None:
        """See `Ranks.forward`."""
        self._tell(wire.encode(wire.Forward(step)))

    def sample(self, number: int, draws: Sequence[Draw]) -> None:
        """See `Ranks.sample`."""
        self._asked += self._supervisor.serving  # before it is told: that may end this group, and then nothing was asked
        for body in wire.encode_sample(number, tuple(draws)):
            self._tell(body)

    def wait(self, wake: int) -> Done | Formed | None:
        """See `Ranks.wait`."""
        while not self._out:
            if self._turn(wake) or self._news:
                self._news = False
                return None
        return self._out.popleft()

    def logits(self, step: Step) -> Iterator[wire.Rows]:
        """See `Ranks.logits`."""
        self._tell(wire.encode(wire.Logits(step)))
        left = sum(item.rows for item in step.items)
        while left > 0:
            while not self._rows:
                self._turn(None)
                if not self.whole:
                    raise RankLost(0, "generate", "the group was formed anew meanwhile")
            rows = self._rows.popleft()
            left -= rows.count
            yield rows

    def record(self, order: wire.Record | wire.EndRecord) -> None:
        """Has every rank record what it does, or end that."""
        self._tell(wire.encode(order))

    def reform(self, setup: Setup) -> None:
        """Has them run another cut of the same model: `wait` gives a Formed when they do. They are to be whole."""
        self._target = setup
        self._lost_s = self._clock()
        self._do(self._supervisor.resize(setup.layout.mesh.size, self._clock()))

    # --- what is heard ------------------------------------------------------------------------------------------------

    def _turn(self, wake: int | None) -> bool:
        """Hears what there is to hear, waiting for something. Whether somebody wants this thread."""
        due, now = self._supervisor.next_due, self._clock()
        left_s = self._lookout.left_s(now, self._busy)
        woken = False
        for news in self._lines.news(left_s if due is None else max(0.0, min(left_s, due - now)), wake):
            if isinstance(news, Woken):
                woken = True
            elif isinstance(news, Said):
                self._hear(news.process, news.message)
            else:
                self._bury(news)
        now = self._clock()
        self._do(self._supervisor.due(now))
        if finding := self._lookout.look(now, self._busy):
            self._do(self._supervisor.stuck(self._supervisor.seats[finding.seat], finding.reason, now))
        return woken

    @property
    def _busy(self) -> bool:
        """Whether ranks were told all that they need to answer, and have not."""
        return self._asked > 0 or not self._supervisor.serving

    def _hear(self, number: int, message: wire.Message) -> None:
        """What a process says, if it is of the group that is."""
        supervisor = self._supervisor
        if number not in supervisor.seats or getattr(message, "epoch", supervisor.epoch) != supervisor.epoch:
            return
        seat = supervisor.seats.index(number)
        if isinstance(message, wire.Failed):
            fault = Fault("left" if message.secondary else "failed", message.message, message.mendable, message.culprit)
            self._do(supervisor.failed(number, message.epoch, fault, self._clock()))
        elif isinstance(message, wire.Ready):
            self._reports[number] = message
            self._do(supervisor.ready(number, message.epoch, self._clock()))
            if supervisor.serving:
                self._serve()
        elif isinstance(message, wire.Loading):
            self._phase = "load" if self._phase == "start" else self._phase
            if self._progress:
                self._progress(seat, message.bytes)
        elif isinstance(message, wire.Recorded):
            self.recorded(seat, message)
        elif isinstance(message, wire.Rows):
            self._rows.append(message)
        elif isinstance(message, wire.Results):
            self._early += message.results
        elif isinstance(message, wire.Done) and seat == 0:
            # What the others computed is the same; theirs only say that they are alive.
            self.busy_s += message.busy_s
            self._asked -= 1
            early, self._early = self._early, ()
            self._out.append((message.number, early + message.results))

    def _bury(self, news: Gone) -> None:
        """A process is gone."""
        process = self._started[news.process]
        reason = process.death()
        self._lines.remove(news.process)
        self._started.remove(news.process)
        self._do(self._supervisor.ended(news.process, reason, self._clock()))

    def _tell(self, body: bytes) -> None:
        """Sends all ranks a message, if they are whole: what those of a broken group are told is of no use."""
        for number in self._supervisor.seats:
            if self._supervisor.serving:
                self._send(number, body)

    def _send(self, number: int, body: bytes) -> None:
        try:
            self._lines.send(number, body)
        except BlockingIOError:
            self._do(self._supervisor.stuck(number, "it takes nothing of what it is sent", self._clock()))
        except OSError:
            pass  # it has ended, which is heard next

    # --- what is done -------------------------------------------------------------------------------------------------

    def _do(self, actions: Actions) -> None:
        for action in actions:
            if isinstance(action, Spawn):
                self._started.reach(action.process + 1)
                self._lines.add(self._started[action.process])
                self._pids[action.process] = self._started[action.process].pid
            elif isinstance(action, Kill):
                self._started[action.process].process.kill()
            elif isinstance(action, Form):
                self._note_loss()
                self._form(action)
            else:
                raise self._end(action)

    def _form(self, form: Form) -> None:
        """Tells every process its seat in the next group."""
        before = self.setup
        try:
            self.setup = self._setup_of(form.places)
        except UserError as error:
            self._do(self._supervisor.refused(str(error), self._clock()))
            return
        # Who waits for a lost rank would notice by himself only when he next looks.
        shared = form.epoch > 0 and way_of(before.device, before.layout.mesh.size) is Way.SHARED
        self._started.want(form.epoch, before.layout.mesh.size if shared else 0)
        # Who talks through shared memory needs no place to meet: nothing then has a name that could be left behind.
        way = way_of(self.setup.device, len(form.seats))
        meeting = self._started.meeting() if way.meets else ""
        self._reports = {}
        self._early = ()
        self._asked = 0
        self._rows.clear()
        # Nothing that the group of before has said is taken any more.
        self._out = deque(found for found in self._out if isinstance(found, Formed))
        self._lookout.begin(form.epoch, [self._pids[number] for number in form.seats], self._clock())
        for seat, number in enumerate(form.seats):
            if self._supervisor.epoch == form.epoch:  # none of those before was found stuck
                self._send(number, wire.encode(start_message(self.setup, seat, form.epoch, meeting)))

    def _setup_of(self, places: Sequence[int]) -> Setup:
        """What a group of these places runs. UserError where they are too few for the model."""
        target = self._target
        if len(places) == target.layout.mesh.size:
            return target
        shares = target.layout.shares.attention
        return self._cut(target, tuple(shares[place] for place in places))

    def _serve(self) -> None:
        """The group is formed."""
        self._started.met()
        self._started.give_back(self._supervisor.epoch)
        self._phase = "generate"
        self.ready = [self._reports[number] for number in self._supervisor.seats]
        if self._incident is not None and self._lost_s is not None:
            pause = self._clock() - self._lost_s
            incident = replace(self._incident, ranks=len(self.ready), pause_s=pause)
            self.incidents.append(incident)
            _say(str(incident))
        else:
            incident = None
        self._out.append(Formed(self.setup, self.ready, incident, self._failed))
        self._incident, self._failed, self._lost_s = None, None, None

    def _note_loss(self) -> None:
        """Says what was lost, as soon as that is known."""
        loss, self._supervisor.loss = self._supervisor.loss, None
        if loss is None:
            return
        before, pid, host = len(loss.seats), self._pids[loss.process], socket.gethostname()
        done = "it was formed anew" if not loss.gone else "a new process took its place"
        if len(self._supervisor.seats) < before:
            done = "the others took its part over"
        where = self._lookout.where(loss.seat)
        incident = Incident(time.time(), loss.epoch, loss.seat, pid, host, loss.reason, where, before, done)
        self._failed = loss.reason if loss.lone else None
        if self._incident is None:
            self._incident = incident
        if self._lost_s is None:
            self._lost_s = self._clock()
        self._news = True
        _say(str(incident))

    def _end(self, action: GiveUp) -> ShardwiseError:
        if action.mendable:
            return UserError(action.reason)
        lost = RankLost(action.seat, self._phase, action.reason)
        return LossesSpent(str(lost)) if action.spent else lost

    def close(self) -> None:
        """See `Ranks.close`. Twice is once."""
        self._lines.close()
        self._started.close()
        self._lookout.close()


def _say(text: str) -> None:
    with suppress(OSError):
        sys.stderr.write(log.line(text, logging.WARNING, "shardwise: "))
        sys.stderr.flush()
