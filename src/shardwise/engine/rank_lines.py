"""What rank processes say and how they end, awaited at one place. It knows their messages from each other, not their meaning.

Nothing here waits for the rest of a message: who sent the first half may have been stopped.
"""

from __future__ import annotations

import selectors
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from shardwise.engine.rank_processes import RankProcess
from shardwise.runtime import wire

_NOW = socket.MSG_DONTWAIT


@dataclass(frozen=True, slots=True)
class Said:
    """A message of a process."""

    process: int
    message: wire.Message


@dataclass(frozen=True, slots=True)
class Gone:
    """The end of a process."""

    process: int


@dataclass(frozen=True, slots=True)
class Woken:
    """Whoever waits has something else to do."""


News = Said | Gone | Woken


class RankLines:
    """The lines to processes by number."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._lines: dict[int, RankProcess] = {}
        self._frames: dict[int, wire.Frames[wire.Message]] = {}

    def add(self, process: RankProcess) -> None:
        """From now on it is listened to."""
        self._lines[process.number] = process
        self._frames[process.number] = wire.Frames(wire.decode, wire.WireError)
        self._selector.register(process.sock, selectors.EVENT_READ, process.number)
        self._selector.register(process.ended, selectors.EVENT_READ, process.number)

    def remove(self, number: int) -> None:
        """It is listened to no more."""
        process = self._lines.pop(number)
        del self._frames[number]
        for each in (process.sock, process.ended):
            with suppress(KeyError):
                self._selector.unregister(each)

    def send(self, number: int, body: bytes) -> None:
        """Sends an encoded message. OSError where the process is gone, or takes nothing."""
        self._lines[number].sock.sendall(len(body).to_bytes(4, "little") + body)

    def news(self, timeout_s: float | None, wake: int | None) -> list[News]:
        """What has happened, waiting for something, or for `timeout_s`. What processes said comes before their ends."""
        if wake is not None:
            self._selector.register(wake, selectors.EVENT_READ, None)
        try:
            ready = self._selector.select(timeout_s)
        finally:
            if wake is not None:
                self._selector.unregister(wake)
        said: list[News] = []
        gone: list[News] = []
        for key, _ in ready:
            if key.data is None:
                gone.append(Woken())
            elif key.fileobj is self._lines[key.data].sock:
                said += self._read(key.data)
            else:
                # What it said last is read first.
                said += self._read(key.data, to_end=True)
                gone.append(Gone(key.data))
        return [*said, *gone]

    def _read(self, number: int, *, to_end: bool = False) -> Iterator[News]:
        sock, frames = self._lines[number].sock, self._frames[number]
        while True:
            try:
                data = sock.recv(2**20, _NOW)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                with suppress(KeyError):  # its process's end tells
                    self._selector.unregister(sock)
                return
            for message in frames.feed(data):
                yield Said(number, message)
            if not to_end:
                return

    def close(self) -> None:
        """Nobody is listened to any more. Twice is once."""
        self._selector.close()
        self._lines = {}
