"""A further front as a process: `python -m shardwise.server.worker --fd N`, on one end of a socket pair, started by `Fleet`.

It is handed the listening socket and a connection to the engine, and answers until it is told to drain (SIGTERM) or the other
end closes, however that came.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import threading
from contextlib import suppress

import msgspec
import uvloop

from shardwise.engine.bridge import unpack_setup
from shardwise.engine.remote import RemoteEngine
from shardwise.errors import ShardwiseError, Unavailable, UserError
from shardwise.server.checks import open_text
from shardwise.server.fleet import Begin, Report
from shardwise.server.quiet import settle
from shardwise.server.service import Service
from shardwise.server.web import Web
from shardwise.telemetry import log


def main() -> None:
    """Answers until told otherwise. Exit code 0 after a drain, 1 where the engine was lost or it could not start."""
    parser = argparse.ArgumentParser(description="a further front of shardwise serve; started by it, not by hand")
    parser.add_argument("--fd", type=int, required=True)
    control = socket.socket(fileno=parser.parse_args().fd)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    begin, listener, core = received(control)
    log.begin(begin.settings.log_format, verbose=begin.settings.verbose)
    parent = Parent(control)
    try:
        lost = uvloop.run(answer(parent, begin, listener, core))
    except Exception as error:
        message = str(error) if isinstance(error, ShardwiseError) else f"{type(error).__name__}: {error}"
        parent.tell(Report(message, isinstance(error, UserError)))
        os._exit(1)
    os._exit(0 if lost is None else 1)


async def answer(parent: Parent, begin: Begin, listener: socket.socket, core: socket.socket) -> str | None:
    """Answers until it is drained: None; or the engine is lost: why."""
    setup = unpack_setup(begin.setup)
    engine = await RemoteEngine.open(core, setup, again=parent.connect)
    text = open_text(setup, begin.settings.chat_template)
    service = Service(engine, begin.settings, text.front(engine, begin.settings.seed, begin.number))
    web = Web(service, listener)
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    settle()
    await web.start()
    parent.tell(Report())
    waits = [asyncio.create_task(told.wait()), asyncio.create_task(engine.gone())]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    if engine.lost is None:
        await web.drain(begin.settings.drain_timeout_s)
    else:
        await web.end()
    return engine.lost if not told.is_set() else None


def received(control: socket.socket) -> tuple[Begin, socket.socket, socket.socket]:
    """What it was started with."""
    _, descriptors, _, _ = socket.recv_fds(control, 1, 2)
    listener, core = (socket.socket(fileno=descriptor) for descriptor in descriptors)
    size = int.from_bytes(control.recv(4, socket.MSG_WAITALL), "little")
    return msgspec.msgpack.decode(control.recv(size, socket.MSG_WAITALL), type=Begin), listener, core


class Parent:
    """The process that started this one, at the other end of `control`: its end is this one's, whatever other threads do."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._loop: asyncio.AbstractEventLoop | None = None
        self._answer: asyncio.Future[socket.socket] | None = None
        threading.Thread(target=self._follow, daemon=True, name="control").start()

    def tell(self, report: Report) -> None:
        with suppress(OSError):
            self._control.sendall(msgspec.json.encode(report) + b"\n")

    async def connect(self) -> socket.socket:
        """Another connection to the engine, in the place of one that has ended. Unavailable where there will be no engine."""
        self._loop = asyncio.get_running_loop()
        self._answer = self._loop.create_future()
        self._control.sendall(b"+")
        return await self._answer

    def _follow(self) -> None:
        with suppress(OSError):
            while True:
                data, descriptors, _, _ = socket.recv_fds(self._control, 1, 1)
                if not data:
                    break
                if data == b"+":
                    self._tell(socket.socket(fileno=descriptors[0]))
                else:
                    size = int.from_bytes(self._control.recv(4, socket.MSG_WAITALL), "little")
                    self._tell(Unavailable(self._control.recv(size, socket.MSG_WAITALL).decode()))
        os._exit(0)

    def _tell(self, found: socket.socket | Unavailable) -> None:
        loop, answer = self._loop, self._answer
        assert loop is not None and answer is not None

        def tell() -> None:
            if isinstance(found, Unavailable):
                answer.set_exception(found)
            else:
                answer.set_result(found)

        with suppress(RuntimeError):  # the loop is closed: this process ends
            loop.call_soon_threadsafe(tell)


if __name__ == "__main__":
    main()
