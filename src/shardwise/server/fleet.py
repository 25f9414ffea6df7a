"""Further fronts, each a process: started with the listening socket and a connection to the engine, replaced when one dies.

They end with this process, whatever ends it. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial

import msgspec

from shardwise import children
from shardwise.engine.core_keeper import CoreKeeper
from shardwise.errors import ShardwiseError, UserError
from shardwise.server.settings import Settings
from shardwise.telemetry import log

MOST, WITHIN_S = 5, 60.0
"""So many fronts may die in so long a time and be replaced; more are a fault that a new process does not mend."""

STOP_S = 4.0
"""How long a front may take beyond the time that requests have to finish: more than it gives its clients (`Web.end`)."""


class Begin(msgspec.Struct, frozen=True):
    """All that a front needs besides its two sockets. `setup`: as packed by `engine.bridge`."""

    number: int
    setup: bytes
    settings: Settings


class Report(msgspec.Struct, frozen=True):
    """What a front says, once: that it answers, or why it does not."""

    failure: str | None = None
    mendable: bool = False


def replaceable(deaths: deque[float], now: float) -> bool:
    """Notes a death; whether there were few enough of late."""
    deaths.append(now)
    while deaths[0] < now - WITHIN_S:
        deaths.popleft()
    return len(deaths) <= MOST


class Member:
    """One further front. The process is known by its control channel: its end is the front's end, in both directions."""

    def __init__(self, begin: Begin, listener: socket.socket, core: socket.socket) -> None:
        self.number = begin.number
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = children.started(
                children.module("shardwise.server.worker", "--fd", str(theirs.fileno())),
                pass_fds=[theirs.fileno()],
                process_group=0,  # a Ctrl-C at the terminal is for the first front alone to act on
                stdin=subprocess.DEVNULL,
            )
        with contextlib.suppress(OSError):  # it has died already, which `report` will find
            socket.send_fds(ours, [b"F"], [listener.fileno(), core.fileno()])
            body = msgspec.msgpack.encode(begin)
            ours.sendall(len(body).to_bytes(4, "little") + body)
        core.close()
        ours.setblocking(False)
        self._channel = ours
        self._said = b""

    async def report(self) -> Report:
        """What it says once it is up. ShardwiseError where it died before."""
        while not self._said.endswith(b"\n"):
            if not (data := await self._read()):
                raise ShardwiseError(f"front {self.number} (process {self.process.pid}) ended before it was up")
            self._said += data
        return msgspec.json.decode(self._said, type=Report)

    async def ended(self, connect: Callable[[], Awaitable[socket.socket]]) -> None:
        """Returns once it has ended. Whenever it asks for one, it is handed another connection to the engine."""
        while await self._read():
            try:
                with await connect() as core:
                    self._hand([b"+"], [core.fileno()])
            except ShardwiseError as error:
                body = str(error).encode()
                self._hand([b"-", len(body).to_bytes(4, "little"), body], [])
        await asyncio.to_thread(self.process.wait)
        self._channel.close()

    async def _read(self) -> bytes:
        try:
            return await asyncio.get_running_loop().sock_recv(self._channel, 4096)
        except OSError:
            return b""

    def _hand(self, data: list[bytes], descriptors: list[int]) -> None:
        with contextlib.suppress(OSError):  # it has ended, which is noticed elsewhere
            socket.send_fds(self._channel, data, descriptors)

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)


class Fleet:
    """`count` further fronts of the engine that `core` keeps up."""

    def __init__(self, count: int, setup: bytes, settings: Settings, listener: socket.socket, core: CoreKeeper) -> None:
        self._begin = [Begin(number, setup, settings) for number in range(1, count + 1)]
        self._listener, self._core = listener, core
        self.members: dict[int, Member] = {}
        self._deaths: deque[float] = deque()
        self._watches: list[asyncio.Task[None]] = []
        self._ending = False

    async def start(self) -> None:
        """Returns once all answer. Raises what kept one from it."""
        await asyncio.gather(*(self._one(begin) for begin in self._begin))
        self._watches = [asyncio.create_task(self._watch(begin)) for begin in self._begin]

    async def _one(self, begin: Begin) -> None:
        core = await self._core.connect()
        self.members[begin.number] = member = Member(begin, self._listener, core)
        report = await member.report()
        if report.failure is not None:
            raise (UserError if report.mendable else ShardwiseError)(report.failure)

    async def _watch(self, begin: Begin) -> None:
        """Keeps one front up."""
        while True:
            member = self.members[begin.number]
            await member.ended(partial(self._core.connect, again=True))
            if self._ending:
                return
            how = f"front {begin.number} (process {member.process.pid}) {children.end_of(member.process.returncode)}"
            if not replaceable(self._deaths, time.monotonic()):
                _say(f"{how}; {MOST} others have within {WITHIN_S:g} s, so it is not replaced")
                return
            _say(f"{how}; it is replaced")
            try:
                await self._one(begin)
            except ShardwiseError as error:
                _say(f"front {begin.number} could not be replaced: {error}")
                return

    async def drain(self, within_s: float) -> None:
        """Has all finish their open requests, for so long; ends those that do not."""
        self.end(signal.SIGTERM)
        if self._watches:
            _, late = await asyncio.wait(self._watches, timeout=within_s + STOP_S)
            if late:
                self.end(signal.SIGKILL)
                await asyncio.wait(late, timeout=STOP_S)

    def end(self, number: int) -> None:
        """Sends all a signal; none is replaced any more."""
        self._ending = True
        for member in self.members.values():
            member.signal(number)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, log.line(text, logging.WARNING, "shardwise: ").encode())
