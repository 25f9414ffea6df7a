"""Keeps an engine up: where its process is killed or crashes, another one takes its place, and fronts go on with that.

An engine that says itself why it ends is not started anew. Knows no requests: those are the fronts' (`RemoteEngine`).
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Self

from shardwise.engine.core_process import CoreProcess
from shardwise.engine.host_process import HostProcess
from shardwise.engine.intensity import Intensity, Losses
from shardwise.errors import ShardwiseError, Unavailable, UserError

SETTLE_S = 0.2
"""How long the end of a process may come behind the end of its connections."""

Start = Callable[[HostProcess], CoreProcess]
"""An engine like the first one, in a process that has started."""


class CoreKeeper:
    """`core` is the engine that is there; `host` starts a process for another one, `start` an engine in it. `say` is given a
    line for each change, on another thread.

    A context manager: nothing is left of any engine when its context has ended.
    """

    def __init__(
        self,
        core: CoreProcess,
        host: Callable[[], HostProcess],
        start: Start,
        say: Callable[[str], None],
        intensity: Intensity | None = None,
    ) -> None:
        self._core: CoreProcess | None = core
        self._host, self._start, self._say = host, start, say
        self._losses = Losses(intensity or Intensity())
        self._pid = core.pid
        self._lost: str | None = None
        self._away: str | None = None
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._waiting: list[Callable[[], object]] = []
        # One thread for all engines, for as long as this lives: a process ends with the thread that started it (`children`).
        self._thread = threading.Thread(target=self._keep, daemon=True, name="engine-keeper")
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def lost(self) -> str | None:
        """Why there will be no engine any more; None while there is one, or will be."""
        return self._lost

    def why(self, timeout_s: float) -> str | None:
        """Why there is no engine for the moment; None where there is one, that does not end within `timeout_s`."""
        core = self._core
        return self._away if core is None else core.wait(timeout_s)

    async def connect(self, *, again: bool = False) -> socket.socket:
        """A connection for a front to the engine that is there, or will be. Unavailable where none will. `again`: it had one,
        which has ended."""
        loop = asyncio.get_running_loop()
        while True:
            there: asyncio.Future[None] = loop.create_future()
            core = self._current(partial(loop.call_soon_threadsafe, _done, there))
            if core is None:
                await there
                continue
            # Its connection may have ended before the end of the process was seen.
            if not again or await asyncio.to_thread(core.wait, SETTLE_S) is None:
                with suppress(Unavailable):
                    return core.connect()
            await asyncio.sleep(0.01)  # until that is known here

    def _current(self, told: Callable[[], object]) -> CoreProcess | None:
        """The engine that is there; or None, and `told` is called once that may have changed."""
        with self._lock:
            if self._lost is not None:
                raise Unavailable(self._lost)
            if self._core is None:
                self._waiting.append(told)
            return self._core

    def kill(self) -> None:
        """Ends the process at once, and its ranks with it; none follows it."""
        self._closing.set()
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)

    def close(self) -> None:
        """Ends the engine and its ranks. Twice is once."""
        with self._lock:
            self._closing.set()
            core = self._core
        if core is not None:
            core.close()
        else:
            self.kill()  # it starts, and holds nothing yet
        self._thread.join()

    # --- the keeper's thread ------------------------------------------------------------------------------------------

    def _keep(self) -> None:
        core = self._core
        while core is not None:
            reason = core.wait()
            assert reason is not None
            if self._closing.is_set() or not core.crashed:
                self._settle(None, reason)
                return
            begun = time.monotonic()
            self._settle(None, None, reason)
            core.close()
            core = self._another(reason)
            if core is not None:
                self._settle(core, None)
                self._say(f"the engine is back after {time.monotonic() - begun:.1f} s, in process {core.pid}")

    def _another(self, reason: str) -> CoreProcess | None:
        """The next engine; None where there is none, which all who wait are told."""
        while not self._closing.is_set():
            if not self._losses.note(time.monotonic()):
                reason += self._losses.reason
                break
            self._say(f"{reason}; another one is started, and goes on with all open requests")
            try:
                host = self._host()
                self._pid = host.process.pid
                if self._closing.is_set():
                    host.close()
                    break
                return self._start(host)
            except UserError as error:
                reason = f"{reason}, and another one cannot be started: {error}"
                break
            except (ShardwiseError, OSError) as error:
                reason = str(error)
        self._settle(None, reason)
        return None

    def _settle(self, core: CoreProcess | None, lost: str | None, away: str | None = None) -> None:
        """Which engine there is now, why there will be none, or why there is none for a while; all who wait are told."""
        waiting: list[Callable[[], object]] = []
        with self._lock:
            self._core, self._lost, self._away = core, lost, away
            if away is None:
                waiting, self._waiting = self._waiting, []
            closing = self._closing.is_set()
        for told in waiting:
            with suppress(RuntimeError):  # its loop is closed
                told()
        if closing and core is not None:
            core.close()


def _done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
