"""Ranks as threads of this process: the same classes, for tests and for use from Python.

Imports torch, whose threads per operation are the caller's to set: they belong to the process.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from shardwise.comm.protocol import DEADLINE_S
from shardwise.comm.threads import threads
from shardwise.engine.ranks import Done, Progress, first_readable, start_message
from shardwise.engine.setup import Setup
from shardwise.errors import CommError, RankLost, ShardwiseError
from shardwise.runtime import wire
from shardwise.runtime.opening import open_runner
from shardwise.runtime.runner import Runner
from shardwise.runtime.worker import ready, rows_of
from shardwise.sched.step import Draw, Step

T = TypeVar("T")


class ThreadRanks:
    """One thread a rank; each does its work in the order in which it came."""

    def __init__(self, setup: Setup, progress: Progress | None = None) -> None:
        size = setup.layout.mesh.size
        self.whole = True  # they are never mended
        self._comms = threads(size, deadline_s=DEADLINE_S)
        self._threads = [ThreadPoolExecutor(1, thread_name_prefix=f"rank{rank}") for rank in range(size)]
        self._news = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._open: deque[Future[Any]] = deque()
        self._sampled: deque[tuple[int, Future[Any]]] = deque()
        self.runners: list[Runner] = []
        starts = [start_message(setup, rank) for rank in range(size)]

        def load(rank: int) -> Runner:
            return open_runner(starts[rank], self._comms[rank], lambda count: progress(rank, count) if progress else None)

        try:
            loading = self._each(load)
            self._check("load", [(rank, future.exception()) for rank, future in enumerate(loading)])
            self.runners = [future.result() for future in loading]
        except BaseException:
            self.close()
            raise
        self.ready: Sequence[wire.Ready] = [ready(runner) for runner in self.runners]

    def forward(self, step: Step) -> None:
        self._open.extend(self._each(lambda rank: self.runners[rank].forward(step)))

    def sample(self, number: int, draws: Sequence[Draw]) -> None:
        told = tuple(draws)
        futures = self._each(lambda rank: self.runners[rank].sample(number, told))
        self._open.extend(futures)
        self._sampled.append((number, futures[0]))

    def wait(self, wake: int) -> Done | None:
        while True:
            self._settle()
            if self._sampled and self._sampled[0][1].done():
                number, lead = self._sampled.popleft()
                return number, lead.result()
            if first_readable(self._news, wake) == wake:
                return None
            os.eventfd_read(self._news)

    def logits(self, step: Step) -> Iterator[wire.Rows]:
        found = self._each(lambda rank: list(rows_of(self.runners[rank], step)))
        self._check("generate", [(rank, future.exception()) for rank, future in enumerate(found)])
        yield from found[0].result()

    def _settle(self) -> None:
        """Raises the cause where anything that was started has failed, once all ranks are done with it."""
        if any(future.done() and future.exception() for future in self._open):
            # What failed on one rank has woken the others: they end too.
            ranks = len(self._comms)
            self._check("generate", [(i % ranks, future.exception()) for i, future in enumerate(self._open)])
        while len(self._open) >= len(self._comms) and all(self._open[i].done() for i in range(len(self._comms))):
            for _ in self._comms:
                self._open.popleft()

    def _each(self, work: Callable[[int], T]) -> list[Future[T]]:
        """Starts work(rank) on every rank's thread. Where it fails, its peers are woken at once."""

        def guarded(rank: int) -> T:
            try:
                return work(rank)
            except BaseException as error:
                self._comms[rank].abort(error)
                raise

        futures = [thread.submit(guarded, rank) for rank, thread in enumerate(self._threads)]
        for future in futures:
            # Not from within the work: only from here on the future says that it is done.
            future.add_done_callback(lambda _: os.eventfd_write(self._news, 1))
        return futures

    def _check(self, phase: str, errors: Sequence[tuple[int, BaseException | None]]) -> None:
        causes = [(rank, e) for rank, e in errors if e is not None]
        if not causes:
            return
        rank, cause = next(((r, e) for r, e in causes if not isinstance(e, CommError)), causes[0])
        if isinstance(cause, ShardwiseError):
            raise cause
        raise RankLost(rank, phase, f"{type(cause).__name__}: {cause}") from cause

    def close(self) -> None:
        for comm in self._comms:
            comm.close()
        for thread in self._threads:
            thread.shutdown(cancel_futures=True)
        if self._news >= 0:
            os.close(self._news)
        self._news = -1
        self.runners = []
