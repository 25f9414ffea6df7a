"""The engine's process, from its start to its end; what it is told and says, this does not know.

It imports next to nothing, so that the process and its ranks are started before all else: what ranks import takes longest.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from types import TracebackType
from typing import Self

from shardwise import children, env
from shardwise.engine.rank_processes import STOP_S


class HostProcess:
    """A process that starts `ranks` ranks and waits at the other end of `control` to be told what they compute. They all end
    when `control` closes, at the latest with this process, and log as text or as JSON.

    A context manager: the process has ended when its context has.
    """

    def __init__(self, ranks: int, log_format: str = "text") -> None:
        self.log_format = log_format
        self.control, theirs = socket.socketpair()
        with theirs:
            own = ["--fd", str(theirs.fileno()), "--ranks", str(ranks)]
            command = children.module("shardwise.engine.host", *own)
            # Its own process group: a Ctrl-C at the terminal is for this process alone to act on.
            told = {**os.environ, env.LOG_FORMAT: log_format}  # which ranks inherit
            self.process = children.started(
                command, pass_fds=[theirs.fileno()], process_group=0, stdin=subprocess.DEVNULL, env=told
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Nothing is left of it. It has closed its ranks' channels, or they close as it is killed. Twice is once."""
        with contextlib.suppress(OSError):
            self.control.shutdown(socket.SHUT_RDWR)
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.control.close()
