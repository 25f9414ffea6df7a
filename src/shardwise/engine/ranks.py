"""All ranks together, behind one small protocol: a forward, how to sample it, its results. Three ways to run them.

Processes on this host (the rule, here), threads in this process (`thread_ranks`), or torchrun's processes (`torchrun`).
"""

from __future__ import annotations

import json
import select
import selectors
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from shardwise.comm.protocol import DEADLINE_S
from shardwise.comm.way import way_of
from shardwise.engine.rank_processes import RankProcesses
from shardwise.engine.setup import Setup
from shardwise.errors import RankLost, ShardwiseError, UserError
from shardwise.runtime import wire
from shardwise.runtime.limits import Limits
from shardwise.sched.step import Draw, Result, Step

SETTLE_S = 0.3
"""After a first failure, how long the others' reports are awaited: the cause often arrives after its consequences."""

Progress = Callable[[int, int], None]
"""Called with (rank, bytes of weights that it has put in place since the last call)."""


Done = tuple[int, tuple[Result, ...]]
"""A step's number and what the lead rank made of it."""


class Ranks(Protocol):
    """A started group of ranks. One thread at a time uses it."""

    def forward(self, step: Step) -> None:
        """Starts the forward of a step, after those that were started before. RankLost if a rank is gone."""
        ...

    def sample(self, number: int, draws: Sequence[Draw]) -> None:
        """Says how the tokens of the oldest step that was not told yet are drawn, one draw for each in its items."""
        ...

    def wait(self, wake: int) -> Done | None:
        """The results of the oldest step, waiting for them; None as soon as descriptor `wake` can be read: where no step is
        under way, nothing else comes. Raises the cause where a rank failed or is gone."""
        ...

    def logits(self, step: Step) -> Iterator[wire.Rows]:
        """Instead of forward, sample and wait, and with nothing else under way: the logits of all rows of all items, in order.
        To be read to the end. Raises the cause where a rank failed or is gone."""
        ...

    @property
    def ready(self) -> Sequence[wire.Ready]:
        """What each rank reported when it was ready."""
        ...

    def close(self) -> None:
        """Ends all ranks; nothing of them is left."""
        ...


def first_readable(*descriptors: int) -> int:
    """The first of the descriptors that can be read, waiting for one. (`select.select` takes none above 1023.)"""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    ready = dict(poll.poll())
    return next(descriptor for descriptor in descriptors if descriptor in ready)


def start_message(setup: Setup, rank: int, epoch: int = 0, rendezvous: str = "") -> wire.Start:
    """Everything that rank `rank` of `setup` needs to know of the group of `epoch`."""
    layout = setup.layout
    shares = (layout.shares.attention, layout.shares.mlp, layout.shares.vocab)
    return wire.Start(
        rank=rank,
        config=json.dumps(setup.config),
        folder=str(setup.folder) if setup.load_format == "auto" else None,
        tp=layout.mesh.tp,
        shares=shares,
        expert_parallel=layout.expert_parallel,
        dtype=layout.dtype,
        kv_dtype=layout.kv_dtype,
        activations=layout.activations,
        device=setup.device,
        pages=setup.pages,
        limits=Limits(setup.limits.tokens, setup.limits.sequences, setup.sequence_pages),
        threads=setup.threads,
        epoch=epoch,
        deadline_s=DEADLINE_S,
        memory=setup.memory,
        quantization=(setup.quantization.kind, setup.quantization.size) if setup.quantization else None,
        cores=setup.cores,
        crowded=setup.crowded is not None,
        rendezvous=rendezvous,
    )


class ProcessRanks:
    """One process a rank, on this host. They end with this process, whatever ends it. `started` are those that run already.
    `busy_s` is how long the lead rank has worked on steps so far."""

    def __init__(self, setup: Setup, progress: Progress | None = None, started: RankProcesses | None = None) -> None:
        self._phase = "start"
        self.busy_s = 0.0
        self._started = started or RankProcesses()
        self._channels: list[wire.Channel] = []
        self._early: tuple[Result, ...] = ()
        self.recorded: Callable[[int, wire.Recorded], None] = lambda _, __: None
        """Called within `wait` with what a rank has recorded, since `record`."""
        self._selector = selectors.DefaultSelector()
        try:
            self._started.reach(setup.layout.mesh.size)
            self._channels = [wire.Channel(each) for each in self._started.sockets]
            # Who talks through shared memory needs no place to meet: nothing then has a name that could be left behind.
            way = way_of(setup.device, setup.layout.mesh.tp)
            rendezvous = self._started.meeting() if way.meets else ""
            for rank, channel in enumerate(self._channels):
                self._selector.register(channel, selectors.EVENT_READ, rank)
                self._send(rank, channel, start_message(setup, rank, 0, rendezvous))
            self.ready: Sequence[wire.Ready] = self._all_ready(progress)
        except BaseException:
            self.close()
            raise
        finally:
            self._started.met()

    @property
    def processes(self) -> list[subprocess.Popen[bytes]]:
        """In rank order; none once they are closed."""
        return self._started.processes

    def _all_ready(self, progress: Progress | None) -> list[wire.Ready]:
        ready: dict[int, wire.Ready] = {}
        self._phase = "load"
        while len(ready) < len(self._channels):
            found = self._next()
            assert found is not None
            rank, message = found
            if isinstance(message, wire.Loading):
                if progress:
                    progress(rank, message.bytes)
            elif isinstance(message, wire.Ready):
                ready[rank] = message
        self._phase = "generate"
        return [ready[rank] for rank in sorted(ready)]

    def forward(self, step: Step) -> None:
        self._tell(wire.Forward(step))

    def sample(self, number: int, draws: Sequence[Draw]) -> None:
        for body in wire.encode_sample(number, tuple(draws)):
            self._tell_encoded(body)

    def wait(self, wake: int) -> Done | None:
        self._selector.register(wake, selectors.EVENT_READ, None)
        try:
            while (found := self._next()) is not None:
                rank, message = found
                if isinstance(message, wire.Recorded):
                    self.recorded(rank, message)
                    continue
                if isinstance(message, wire.Results):
                    self._early += message.results
                    continue
                assert isinstance(message, wire.Done)
                # What the others computed is the same; theirs only say that they are alive.
                if rank == 0:
                    self.busy_s += message.busy_s
                    early, self._early = self._early, ()
                    return message.number, early + message.results
            return None
        finally:
            self._selector.unregister(wake)

    def logits(self, step: Step) -> Iterator[wire.Rows]:
        self._tell(wire.Logits(step))
        left = sum(item.rows for item in step.items)
        while left > 0:
            found = self._next()
            assert found is not None
            _, message = found
            assert isinstance(message, wire.Rows)
            left -= message.count
            yield message

    def record(self, order: wire.Record | wire.EndRecord) -> None:
        """Has every rank record what it does, or end that."""
        self._tell(order)

    def _tell(self, message: wire.Message) -> None:
        self._tell_encoded(wire.encode(message))

    def _tell_encoded(self, body: bytes) -> None:
        for rank, channel in enumerate(self._channels):
            try:
                channel.send_encoded(body)
            except OSError:
                raise self._why({rank: None}) from None

    def _send(self, rank: int, channel: wire.Channel, message: wire.Message) -> None:
        try:
            channel.send(message)
        except OSError:
            raise self._why({rank: None}) from None

    def _next(self) -> tuple[int, wire.Message] | None:
        """The next message of any rank; None where what is not a rank can be read. Raises the cause if a rank failed."""
        ready = self._selector.select()
        key = next((key for key, _ in ready if key.data is not None), None)
        if key is None:
            return None
        rank: int = key.data
        message = self._channels[rank].receive()
        if message is None or isinstance(message, wire.Failed):
            raise self._why({rank: message})
        return rank, message

    def _why(self, reports: dict[int, wire.Failed | None]) -> ShardwiseError:
        """The cause of a failure: a rank that died before one that failed, one that failed by itself before one that
        only lost its peer. `reports` holds what is known so far; None is the end of a rank's stream."""
        until = time.monotonic() + SETTLE_S
        with selectors.DefaultSelector() as others:
            for rank, channel in enumerate(self._channels):
                if rank not in reports:
                    others.register(channel, selectors.EVENT_READ, rank)
            while (left := until - time.monotonic()) > 0 and others.get_map():
                for key, _ in others.select(left):
                    message = self._channels[key.data].receive()
                    if message is None or isinstance(message, wire.Failed):
                        others.unregister(key.fileobj)
                        reports[key.data] = message
        for rank, report in sorted(reports.items()):
            if report is None:
                return RankLost(rank, self._phase, self._started.death(rank))
        failed = {rank: report for rank, report in sorted(reports.items()) if report is not None}
        rank = next((r for r, report in failed.items() if not report.secondary), next(iter(failed)))
        report = failed[rank]
        if report.mendable:
            return UserError(report.message)
        if report.culprit is not None and report.culprit != rank:
            return RankLost(report.culprit, self._phase, report.message)
        return RankLost(rank, self._phase, report.message)

    def close(self) -> None:
        self._started.close()
        self._selector.close()
        self._channels = []
