"""The engine's process, as whoever starts it has it: started, waited for, connected to, ended. It asks the engine nothing."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from shardwise import children
from shardwise.engine import bridge
from shardwise.engine.host_process import HostProcess
from shardwise.engine.rank_processes import STOP_S
from shardwise.engine.ranks import Progress
from shardwise.engine.setup import Setup
from shardwise.engine.supervise import FAIL_FAST, Policy
from shardwise.errors import ShardwiseError, Unavailable, UserError

QUEUE = 4
"""So many requests wait at most for each sequence that can run at once, unless it is said otherwise."""

QUEUE_TOKENS = 2**20
"""The most prompt tokens that wait, or four times the context where that is more."""


class CoreProcess:
    """An engine that is ready, in a process of its own with ranks of its own; they end with this process, whatever ends it.

    A context manager. `policy` says what the loss of a rank leads to. `host` is the process, where it was started before.
    Raises what kept the engine from starting: UserError where the user can mend it.
    """

    def __init__(
        self,
        setup: Setup,
        progress: Progress | None = None,
        *,
        host: HostProcess | None = None,
        queue: int | None = None,
        queue_tokens: int | None = None,
        policy: Policy = FAIL_FAST,
    ) -> None:
        self.setup = setup
        self.queue = queue if queue is not None else QUEUE * setup.limits.sequences
        tokens = queue_tokens if queue_tokens is not None else max(QUEUE_TOKENS, 4 * setup.context)
        self._host = host or HostProcess(setup.layout.mesh.size)
        self._process, self._control = self._host.process, self._host.control
        self._closing = False
        self.crashed = False
        """Whether the process ended without a word: what it served is well, and may go on in another one."""
        self._reason: str | None = None
        self._ended = threading.Event()
        self._watchers: list[Callable[[str], None]] = []
        self._lock = threading.Lock()
        self._frames = bridge.Frames()
        try:
            self._load(bridge.Boot.of(setup, self.queue, tokens, policy), progress)
        except BaseException:
            self._host.close()
            raise
        self._watch = threading.Thread(target=self._listen, daemon=True, name="engine-process")
        self._watch.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _load(self, boot: bridge.Boot, progress: Progress | None) -> None:
        with contextlib.suppress(OSError):  # it has ended already: why is found below
            self._control.sendall(bridge.frame(boot))
        while (messages := self._messages()) is not None:
            for message in messages:
                if isinstance(message, bridge.Ready):
                    return
                if isinstance(message, bridge.Failed):
                    raise UserError(message.message) if message.mendable else ShardwiseError(message.message)
                if isinstance(message, bridge.Loading) and progress:
                    progress(message.rank, message.bytes)
        raise ShardwiseError(f"the engine could not start: {self._death()}")

    def _messages(self) -> list[bridge.Message] | None:
        """Some more of what it says; None where it says nothing any more."""
        try:
            data = self._control.recv(2**16)
        except OSError:
            return None
        return self._frames.feed(data) if data else None

    def _listen(self) -> None:
        """On a thread of its own: waits for the end of the process."""
        cause: str | None = None
        with contextlib.suppress(bridge.BridgeError):
            while (messages := self._messages()) is not None:
                for message in messages:
                    if isinstance(message, bridge.Gone):
                        cause = message.reason
                    elif isinstance(message, bridge.Failed):
                        cause = message.message
        self.crashed = cause is None and not self._closing
        reason = "the engine was closed" if self._closing else cause or self._death()
        with self._lock:
            self._reason = reason
            self._ended.set()
            watchers, self._watchers = self._watchers, []
        for told in watchers:
            told(reason)

    def _death(self) -> str:
        """How the process came to its end."""
        try:
            code = self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            return f"the engine's process {self.pid} closed its connection but still runs"
        return f"the engine's process {self.pid} {children.end_of(code)}"

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def lost(self) -> str | None:
        """Why it has ended; None while it runs."""
        return self._reason

    def watch(self, told: Callable[[str], None]) -> None:
        """Has `told` called with the reason once it has ended, on another thread; at once where it has."""
        with self._lock:
            if self._reason is None:
                self._watchers.append(told)
                return
        told(self._reason)

    def wait(self, timeout_s: float | None = None) -> str | None:
        """The reason once it has ended; None where it has not after `timeout_s`."""
        self._ended.wait(timeout_s)
        return self._reason

    def connect(self) -> socket.socket:
        """A connection for one more front: for a RemoteEngine here, or to be handed to another process. Unavailable where the
        engine has ended."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                with self._lock:
                    if self._closing or self._reason is not None:
                        raise Unavailable(self._reason or "the engine was closed")
                    socket.send_fds(self._control, [b"+"], [theirs.fileno()])
            except OSError:
                ours.close()
                raise Unavailable(self.wait(STOP_S) or "the engine's process does not answer") from None
            except Unavailable:
                ours.close()
                raise
        return ours

    def close(self) -> None:
        """Ends it and its ranks. Twice is once."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_WR)
        self._ended.wait(3 * STOP_S)
        self._host.close()
        self._watch.join(STOP_S)
