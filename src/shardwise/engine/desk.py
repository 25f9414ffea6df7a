"""Where fronts ask: an engine served over stream sockets, from a thread that is not the engine's. It starts no processes.

All events of one step go to a front in one frame, written by the engine's thread where the socket takes it; what it does not
take is kept, up to a bound, and a front that reads nothing is cut off.
"""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import replace
from functools import partial

from shardwise.engine import bridge
from shardwise.engine.contract import HostedEngine
from shardwise.engine.profile import Traces
from shardwise.engine.setup import Setup
from shardwise.engine.status import Status
from shardwise.errors import Conflict, QueueFull, RequestError, ShardwiseError
from shardwise.sched.events import Ended, Event

BUFFER_BYTES = 64 * 2**20
"""How much a front may leave unread before it is cut off."""

READ_BYTES = 2**18
"""The most that is read of one front before the next one has its turn."""

FAREWELL_S = 1.0
"""How long a front is given to read why the engine has ended."""


class Line:
    """The connection of one front. `open` are its requests, with the engine's numbers once these are known."""

    def __init__(self, number: int, sock: socket.socket, most: int) -> None:
        self.number, self.sock = number, sock
        self.frames = bridge.Frames()
        self.open: dict[int, int | None] = {}
        self.cut = False
        self._most = most
        self._events: list[bridge.Packed] = []
        self._out = bytearray()
        self._lock = threading.Lock()

    @property
    def backlog(self) -> bool:
        """Whether something waits until the front reads."""
        return bool(self._out)

    def note(self, number: int, event: Event) -> None:
        """One more event of this step; on the engine's thread."""
        with self._lock:
            self._events.append(bridge.pack(event, number))
            if isinstance(event, Ended):
                self.open.pop(number, None)

    def began(self, number: int, prefilled: int, cached: int) -> None:
        """What the end of a request will say of its prompt; as `note`."""
        with self._lock:
            self._events.append(bridge.Began(number, prefilled, cached))

    def flush(self) -> bool:
        """Sends the events since the last flush as one frame. Whether the serving thread has something to do now."""
        if not self._events:
            return False
        with self._lock:
            events, self._events = self._events, []
            try:
                for data in bridge.event_frames(events):
                    self._put(data)
            except bridge.BridgeError:  # nobody could read it: better to lose the front than the engine
                self._cut()
            return self.cut or self.backlog

    def send(self, *messages: bridge.Message) -> None:
        """Sends messages, or keeps them until they can be sent."""
        data = b"".join(map(bridge.frame, messages))
        with self._lock:
            self._put(data)

    def drain(self) -> None:
        """Sends what the socket takes now of what was kept."""
        with self._lock:
            if self._out:
                del self._out[: self._sent(self._out)]

    def known(self, number: int, engines: int) -> None:
        """The engine's number of a request, unless it has ended already."""
        with self._lock:
            if number in self.open:
                self.open[number] = engines

    def numbers(self) -> dict[int, int]:
        """The front's numbers by the engine's."""
        with self._lock:
            return {engines: own for own, engines in self.open.items() if engines is not None}

    def close(self) -> None:
        """Nothing is sent any more."""
        with self._lock:
            self._cut()
            self.sock.close()

    def _put(self, data: bytes) -> None:
        if self.cut:
            return
        sent = 0 if self._out else self._sent(data)
        if sent < len(data):
            self._out += data[sent:] if sent else data
            if len(self._out) > self._most:
                self._cut()

    def _sent(self, data: bytes | bytearray) -> int:
        try:
            return self.sock.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            self._cut()
            return 0

    def _cut(self) -> None:
        self.cut = True
        self._out.clear()


class Desk:
    """Serves an engine to any number of fronts, until it is lost or `stop` is called."""

    def __init__(self, engine: HostedEngine, buffer_bytes: int = BUFFER_BYTES) -> None:
        self._engine, self._most = engine, buffer_bytes
        self._lines: tuple[Line, ...] = ()
        self._coming: deque[socket.socket] = deque()
        self._count = 0
        self._stopped = False
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._buffer = bytearray(READ_BYTES)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake, selectors.EVENT_READ, None)
        self._setup = engine.setup
        """What all lines know: what they were started with, or were told since."""
        self._begun = engine.setup
        engine.turned = self._flush
        engine.changed = self._notice

    # --- from any thread ----------------------------------------------------------------------------------------------

    def join(self, sock: socket.socket) -> None:
        """One more front, at the other end of a stream socket; the desk closes it."""
        self._coming.append(sock)
        self._rouse()

    def stop(self) -> None:
        """Ends `serve`."""
        self._stopped = True
        self._rouse()

    def _flush(self) -> None:
        """On the engine's thread."""
        busy = self._engine.lost is not None
        if self._setup is not self._engine.setup:
            self._setup = self._engine.setup
            recut = bridge.Recut(bridge.Boot.of(self._setup))
            for line in self._lines:
                line.send(recut)
                busy |= line.backlog or line.cut
        for line in self._lines:
            busy |= line.flush()
        if busy:
            self._rouse()

    def _notice(self) -> None:
        """On the engine's thread: all fronts are told of the ranks that were lost."""
        for line in self._lines:
            line.send(self._noticed())
        self._rouse()

    def _noticed(self) -> bridge.Noticed:
        return bridge.Noticed(self._engine.mending, self._engine.incidents)

    def _rouse(self) -> None:
        os.eventfd_write(self._wake, 1)

    # --- the serving thread -------------------------------------------------------------------------------------------

    def serve(self) -> str | None:
        """Answers fronts until the engine is lost: why, which they were told; or until `stop`: None. All are closed then."""
        while not self._stopped and self._engine.lost is None:
            for key, ready in self._selector.select():
                line: Line | None = key.data
                if line is None:
                    with suppress(BlockingIOError):
                        os.eventfd_read(self._wake)
                    continue
                if ready & selectors.EVENT_WRITE:
                    line.drain()
                if ready & selectors.EVENT_READ:
                    self._read(line)
            self._settle()
        self._settle()
        reason = self._engine.lost
        self._farewell(reason)
        return reason

    def _settle(self) -> None:
        """Takes in who has come, lets go who was cut off, and waits for those to read who have something kept."""
        while self._coming:
            sock = self._coming.popleft()
            sock.setblocking(False)
            self._count += 1
            line = Line(self._count, sock, self._most)
            self._selector.register(sock, selectors.EVENT_READ, line)
            self._lines = (*self._lines, line)
            if self._engine.mending is not None or self._engine.incidents:
                line.send(self._noticed())
            if self._engine.setup is not self._begun:  # which is what a front begins with
                line.send(bridge.Recut(bridge.Boot.of(self._engine.setup)))
        for line in self._lines:
            if line.cut:
                self._drop(line)
            else:
                events = selectors.EVENT_READ | (selectors.EVENT_WRITE if line.backlog else 0)
                if self._selector.get_key(line.sock).events != events:
                    self._selector.modify(line.sock, events, line)

    def _drop(self, line: Line) -> None:
        """The front is gone, and its requests with it."""
        self._lines = tuple(other for other in self._lines if other is not line)
        self._selector.unregister(line.sock)
        line.close()
        for number in line.numbers():
            self._engine.abort(number)

    def _read(self, line: Line) -> None:
        try:
            count = line.sock.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError:
            count = 0
        try:
            with memoryview(self._buffer) as view:
                messages = line.frames.feed(view[:count])
            answers = [answer for message in messages if (answer := self._obey(line, message)) is not None]
        except bridge.BridgeError:
            count, answers = 0, []
        if answers:
            line.send(*answers)
        if not count:
            line.cut = True

    def _obey(self, line: Line, message: bridge.Message) -> bridge.Message | None:
        """Does what a front asks: the answer, where there is one at once."""
        if isinstance(message, bridge.Submit):
            return self._submit(line, message)
        if isinstance(message, bridge.Knock):
            return self._knock(message)
        if isinstance(message, bridge.Abort):
            if (number := line.open.get(message.number)) is not None:
                self._engine.abort(number)
        elif isinstance(message, bridge.FinishChoice):
            if (number := line.open.get(message.number)) is not None:
                self._engine.finish(number, message.choice)
        elif isinstance(message, bridge.Ask):
            self._engine.gather(partial(self._answer, line, message.number))
        elif isinstance(message, bridge.Profile):
            self._engine.record(message.bounds, partial(self._recorded, line, message.number))
        elif isinstance(message, bridge.Reshard):
            self._engine.reshard(message.shares, partial(self._resharded, line, message.number))
        else:
            raise bridge.BridgeError(f"a front does not send {type(message).__name__}")
        return None

    def _submit(self, line: Line, asked: bridge.Submit) -> bridge.Message:
        """Hands a request to the engine: the answer for its front."""
        if asked.number in line.open:
            raise bridge.BridgeError(f"request {asked.number} is here already")
        # Before the engine knows it: its end may come at once.
        line.open[asked.number] = None
        try:
            number = self._engine.submit(
                asked.prompt,
                asked.params,
                partial(line.note, asked.number),
                ends=asked.ends,
                bad=asked.bad,
                priority=asked.priority,
                tenant=asked.tenant,
                timeout_s=asked.timeout_s,
                key=asked.key,
                written=asked.before,
                began=partial(line.began, asked.number),
            )
        except ShardwiseError as error:
            line.open.pop(asked.number, None)
            return _refused(asked.number, error)
        line.known(asked.number, number)
        return bridge.Admitted(asked.number)

    def _knock(self, asked: bridge.Knock) -> bridge.Message:
        try:
            self._engine.knock(asked.key, asked.tokens)
        except ShardwiseError as error:
            return _refused(asked.number, error)
        return bridge.Admitted(asked.number)

    def _answer(self, line: Line, number: int, status: Status | None) -> None:
        """On the engine's thread. Where it has ended, all are told so anyway."""
        if status is None:
            return
        owners = {engines: (other.number, own) for other in self._lines for engines, own in other.numbers().items()}
        slots = []
        for slot in status.slots:
            front, own = owners.get(slot.number, (slot.front, slot.number))
            slots.append(replace(slot, front=front, number=own))
        line.send(bridge.Answer(number, replace(status, slots=tuple(slots))))
        if line.backlog or line.cut:
            self._rouse()

    def _recorded(self, line: Line, number: int, said: Traces | ShardwiseError) -> None:
        """On the engine's thread. Where it has ended, all are told so anyway."""
        if isinstance(said, Conflict):
            line.send(bridge.Profiled(number, conflict=str(said)))
        elif not isinstance(said, ShardwiseError):
            line.send(bridge.Profiled(number, said))
        if line.backlog or line.cut:
            self._rouse()

    def _resharded(self, line: Line, number: int, said: Setup | ShardwiseError) -> None:
        """On the engine's thread, but where it has ended."""
        if isinstance(said, ShardwiseError):
            kinds = (name for name, kind in bridge.RESHARD_ERRORS.items() if isinstance(said, kind))
            line.send(bridge.Resharded(number, str(said), "gone" if self._engine.lost is not None else next(kinds)))
        else:
            self._flush()  # so that its front knows the setup before the answer
            line.send(bridge.Resharded(number))
        if line.backlog or line.cut:
            self._rouse()

    def _farewell(self, reason: str | None) -> None:
        """Tells all fronts why, gives them a moment to read it, and closes their connections."""
        until = time.monotonic() + FAREWELL_S
        for line in self._lines:
            line.flush()
            line.send(bridge.Gone(reason or "the engine was closed"))
        while (kept := [line for line in self._lines if line.backlog]) and (left := until - time.monotonic()) > 0:
            with selectors.DefaultSelector() as writable:
                for line in kept:
                    writable.register(line.sock, selectors.EVENT_WRITE)
                writable.select(left)
            for line in kept:
                line.drain()
        for line in self._lines:
            self._drop(line)
        self._selector.close()


def _refused(number: int, error: ShardwiseError) -> bridge.Refused:
    if isinstance(error, QueueFull):
        return bridge.Refused(number, "full", str(error), error.retry_after_s)
    return bridge.Refused(number, "request" if isinstance(error, RequestError) else "gone", str(error))
