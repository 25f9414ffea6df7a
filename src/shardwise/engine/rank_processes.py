"""The processes of this host's ranks, from their start to their end; what they are told and say, this does not know.

It imports next to nothing, so that ranks are started before all else: what they import takes longest.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

from shardwise import env
from shardwise.comm.memory import anonymous

STOP_S = 1.5
"""How long a process may take to end before it is killed."""


class RankProcesses:
    """Processes in rank order, each at the other end of one of `sockets`. They end with this process, whatever ends it."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self.sockets: list[socket.socket] = []
        self._folder: str | None = None
        self._shared = -1

    def reach(self, size: int) -> None:
        """Starts what is missing to `size` of them. OSError where the system has no room for one."""
        if self._shared < 0:
            self._shared = anonymous()
        while len(self.processes) < size:
            ours, theirs = socket.socketpair()
            with theirs:
                own = ["--fd", str(theirs.fileno()), "--shared", str(self._shared)]
                command = [sys.executable, "-m", "shardwise.runtime.worker", *own]
                # Its own process group: a Ctrl-C at the terminal is for this process alone to act on.
                started = subprocess.Popen(
                    command,
                    pass_fds=[theirs.fileno(), self._shared],
                    process_group=0,
                    stdin=subprocess.DEVNULL,
                    env=env.of_a_rank(),
                )
            self.processes.append(started)
            self.sockets.append(ours)

    @property
    def shared(self) -> int:
        """The descriptor of the memory that they share; -1 before the first was started, and after the last has ended."""
        return self._shared

    def meeting(self) -> str:
        """A new folder for a group to meet in, instead of an earlier one."""
        self.met()
        self._folder = tempfile.mkdtemp(prefix=f"shardwise-{os.getpid()}-")  # 0700, as mkdtemp makes it
        return self._folder

    def met(self) -> None:
        """No name of the group is left on the file system: all have met, or none will any more."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def death(self, rank: int) -> str:
        """How a process whose stream has ended came to its end."""
        process = self.processes[rank]
        try:
            code = process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            return f"process {process.pid} closed its channel but still runs"
        if code >= 0:
            return f"process {process.pid} ended with exit code {code}"
        name = signal.Signals(-code).name
        hint = " (the kernel does that when memory runs out)" if name == "SIGKILL" else ""
        return f"process {process.pid} was killed by {name}{hint}"

    def _end_meeting(self) -> None:
        """No name and no memory of the group is held by this process."""
        self.met()
        shared, self._shared = self._shared, -1
        if shared >= 0:
            os.close(shared)

    def kill(self) -> None:
        """Nothing of them is left, at once: for those that hold nothing yet."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()
        self._end_meeting()

    def close(self) -> None:
        """Nothing of them is left; they are let end by themselves."""
        # Closing its socket ends a rank; what has not ended in time, because it is stopped or stuck, is killed.
        for each in self.sockets:
            each.close()
        until = time.monotonic() + STOP_S
        for process in self.processes:
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes, self.sockets = [], []
        self._end_meeting()
