"""The engine's process while it starts: on a thread of its own, so that this process gets its own part ready meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

from shardwise.engine.core_process import CoreProcess
from shardwise.engine.host_process import HostProcess
from shardwise.engine.ranks import Progress
from shardwise.engine.setup import Setup
from shardwise.engine.supervise import Policy

Bars = Callable[[Setup], AbstractContextManager[Progress]]
"""Shows how far each rank's weights are, for as long as its context lasts."""


class CoreStart:
    """An engine that starts in `host` from the moment that this is made. `result` waits for it."""

    def __init__(self, setup: Setup, host: HostProcess, queue: int | None, policy: Policy, bars: Bars | None) -> None:
        self.setup = setup
        self.begun_s = time.monotonic()
        self.loading_s: tuple[float, float] | None = None
        """When the first weights and when the last ones were in place. Before that, ranks import torch and meet."""
        self.ready_s = 0.0
        self._host, self._queue, self._policy, self._bars = host, queue, policy, bars
        self._core: CoreProcess | None = None
        self._error: BaseException | None = None
        # A daemon, so that an interrupted start need not wait for it: the processes end with the connection to them.
        self._thread = threading.Thread(target=self._run, name="start", daemon=True)
        self._thread.start()

    def result(self) -> CoreProcess:
        """The engine, ready. Raises what kept it from it."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._core is not None
        return self._core

    def host(self) -> HostProcess:
        """A process for another engine."""
        return HostProcess(self.setup.layout.mesh.size, self._host.log_format)

    def engine(self, host: HostProcess) -> CoreProcess:
        """Another engine like the first one."""
        return CoreProcess(self.setup, host=host, queue=self._queue)

    @property
    def split(self) -> dict[str, float]:
        """What the start went to, in seconds: importing and meeting, weights, the rest."""
        first, last = self.loading_s or (self.ready_s, self.ready_s)
        return {"import": first - self.begun_s, "weights": last - first, "ranks": self.ready_s - last}

    def _run(self) -> None:
        try:
            with nullcontext() if self._bars is None else self._bars(self.setup) as shown:
                note = partial(self._note, shown)
                self._core = CoreProcess(self.setup, note, host=self._host, queue=self._queue, policy=self._policy)
            self.ready_s = time.monotonic()
        except BaseException as error:
            self._error = error

    def _note(self, shown: Progress | None, rank: int, count: int) -> None:
        now = time.monotonic()
        self.loading_s = (self.loading_s[0] if self.loading_s else now, now)
        if shown is not None:
            shown(rank, count)
