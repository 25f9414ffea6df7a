"""The processes of this host's ranks, from their start to their end; what they are told and say, this does not know.

It imports next to nothing, so that ranks are started before all else: what they import takes longest.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from shardwise import children, env
from shardwise.comm import memory

if TYPE_CHECKING:
    from shardwise.engine.lookout import Lookout

STOP_S = 1.5
"""How long a process may take to end before it is killed."""

SEND_S = 10.0
"""How long a process may take nothing of what it is sent: one thread of it does nothing but read."""


class RankProcess:
    """One process, at the other end of `sock`. `ended` can be read once it is gone."""

    def __init__(self, number: int, shared: int) -> None:
        self.number = number
        self.sock, theirs = socket.socketpair()
        with theirs:
            own = ["--fd", str(theirs.fileno()), "--shared", str(shared)]
            # Its own process group: a Ctrl-C at the terminal is for this process alone to act on.
            self.process = children.started(
                children.module("shardwise.runtime.worker", *own),
                pass_fds=[theirs.fileno(), shared],
                process_group=0,
                stdin=subprocess.DEVNULL,
                env=env.of_a_rank(),
            )
        seconds, rest = divmod(SEND_S, 1)
        timeout = int(seconds).to_bytes(8, sys.byteorder) + int(rest * 1e6).to_bytes(8, sys.byteorder)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
        self.ended = os.pidfd_open(self.process.pid)

    @property
    def pid(self) -> int:
        return self.process.pid

    def death(self) -> str:
        """How a process that was seen to end, or whose stream has, came to its end."""
        try:
            code = self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            return f"process {self.pid} closed its channel but still runs"
        return f"process {self.pid} {children.end_of(code)}"

    def kill(self) -> None:
        """Nothing of it is left."""
        self.process.kill()
        self.process.wait()
        self.forget()

    def forget(self) -> None:
        """Of one that has ended. Twice is once."""
        self.sock.close()
        if self.ended >= 0:
            os.close(self.ended)
            self.ended = -1


class RankProcesses:
    """Those that run, by number: each gets the next one, in rank order at first. They end with this process, whatever ends
    it. `shared` is the file that all of them have open."""

    def __init__(self) -> None:
        self.shared = -1
        self._running: dict[int, RankProcess] = {}
        self._count = 0
        self._meetings: list[int] = []

    @property
    def processes(self) -> list[subprocess.Popen[bytes]]:
        """In the order of their numbers; none once they are closed."""
        return [each.process for each in self._running.values()]

    def __getitem__(self, number: int) -> RankProcess:
        return self._running[number]

    def __contains__(self, number: int) -> bool:
        return number in self._running

    def reach(self, size: int) -> None:
        """Starts what is missing to `size` of them. OSError where the system has no room for one."""
        if self.shared < 0:
            self.shared = memory.anonymous()
        while self._count < size:
            self._running[self._count] = RankProcess(self._count, self.shared)
            self._count += 1

    def meeting(self) -> str:
        """A new file where a group can meet that shares no memory: without a name, so that nothing is left of it. Only
        processes of this user may open it, while this one has."""
        self.met()
        self._meetings.append(memory.anonymous())
        return f"/proc/{os.getpid()}/fd/{self._meetings[-1]}"

    def met(self) -> None:
        """Nobody can come to the meeting any more: all have met, or none will."""
        while self._meetings:
            os.close(self._meetings.pop())

    def want(self, epoch: int, before: int = 0) -> None:
        """Who waits in a group of an older epoch is to give up at once: to join it, or, if that of the last epoch was of
        `before` ranks that shared memory, for its peers."""
        memory.want(self.shared, epoch)
        if before:
            from shardwise.comm.shared import end_group  # not before processes are started

            end_group(self.shared, epoch - 1, before)

    def lookout(self) -> Lookout:
        """Eyes on those that share this memory."""
        from shardwise.engine.lookout import Lookout

        return Lookout(self.shared)

    def give_back(self, epoch: int) -> None:
        """The memory of groups older than that of `epoch`, which all have left."""
        memory.give_back(self.shared, epoch)

    def remove(self, number: int) -> None:
        """Of one that has ended, or is to end at once."""
        self._running.pop(number).kill()

    def _end_meeting(self) -> None:
        """No memory of the group is held by this process."""
        self.met()
        shared, self.shared = self.shared, -1
        if shared >= 0:
            os.close(shared)

    def kill(self) -> None:
        """Nothing of them is left, at once: for those that hold nothing yet."""
        for each in self._running.values():
            each.process.kill()
        self.close()

    def close(self) -> None:
        """Nothing of them is left; they are let end by themselves."""
        # Closing its socket ends a rank; what has not ended in time, because it is stopped or stuck, is killed.
        for each in self._running.values():
            each.sock.close()
        until = time.monotonic() + STOP_S
        for each in self._running.values():
            try:
                each.process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                each.process.kill()
                each.process.wait()
            each.forget()
        self._running = {}
        self._end_meeting()
