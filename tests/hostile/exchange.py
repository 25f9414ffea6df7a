"""One hostile exchange: bytes to a server, and what comes back, on a connection of its own."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass

from tests.hostile.answers import first
from tests.hostile.bombs import BAIT
from tests.hostile.wire import Case

WAIT_S = 60.0
"""Nothing is waited for longer, however busy the machine is."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where the server is, how long it waits for what does not come (`patience_s`), and a key of it."""

    port: int
    patience_s: float
    key: str = ""


async def exchanged(target: Target, case: Case, bait: int) -> tuple[bytes, float]:
    """(all that came back, seconds since the connection was asked for, without those of pauses). TimeoutError where the server
    leaves it without an end."""
    began = time.monotonic()  # the server may count from when its kernel has taken the connection
    reader, writer = await asyncio.open_connection("127.0.0.1", target.port, limit=2**20)
    try:
        sent = asyncio.create_task(_send(writer, case, bait))
        if case.leaves:
            await sent
            return b"", 0.0
        data = await asyncio.wait_for(_received(reader, case), WAIT_S)
        return data, time.monotonic() - began - case.pause_s * (len(case.parts) - 1)
    finally:
        sent.cancel()
        writer.transport.abort()


async def _send(writer: asyncio.StreamWriter, case: Case, bait: int) -> None:
    with contextlib.suppress(OSError):  # the server may answer and close before all of it was sent
        for part in case.parts:
            writer.write(part.replace(BAIT, b"%06d" % bait))  # as long as what it replaces: lengths stay right
            await writer.drain()
            await asyncio.sleep(case.pause_s)


async def _received(reader: asyncio.StreamReader, case: Case) -> bytes:
    """Until the connection closes; where the request is whole, until its answer is."""
    data = bytearray()
    while True:
        try:
            part = await reader.read(2**16)
        except OSError:
            return bytes(data)
        data += part
        if not part or (not case.late and first(bytes(data))[0] is not None):
            return bytes(data)
