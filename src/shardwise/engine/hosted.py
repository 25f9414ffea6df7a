"""What the engine's process does once its ranks are started: it gets a Boot, and serves the fronts whose sockets it is handed.

When the other end closes, it ends. It never imports torch.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from contextlib import suppress

from shardwise import env
from shardwise.engine import bridge
from shardwise.engine.desk import Desk
from shardwise.engine.engine import Engine
from shardwise.engine.process_ranks import ProcessRanks
from shardwise.engine.rank_processes import RankProcesses
from shardwise.errors import ShardwiseError, UserError
from shardwise.telemetry import log

SWITCH_S = 0.0005
"""How long one thread may keep the others from running: reading a long prompt is not to hold the engine up."""


CRASHED = 70
"""The exit code of a process whose engine met what nobody foresaw (EX_SOFTWARE)."""


class Control:
    """The connection to whoever started this process."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.Lock()
        self.desk: Desk | None = None

    def boot(self) -> bridge.Boot:
        """The first message. It is read to its last byte and no further: sockets may come right behind it."""
        size = int.from_bytes(self._exactly(4), "little")
        if size > bridge.LIMIT_BYTES:
            raise bridge.BridgeError(f"a message of {size} bytes is announced; the limit is {bridge.LIMIT_BYTES}")
        message = bridge.decode(self._exactly(size))
        if not isinstance(message, bridge.Boot):
            raise bridge.BridgeError(f"a {type(message).__name__} message where a Boot was expected")
        return message

    def _exactly(self, count: int) -> bytes:
        found = self._sock.recv(count, socket.MSG_WAITALL)
        if len(found) < count:
            raise bridge.BridgeError("the connection closed before anything was asked for")
        return found

    def tell(self, message: bridge.Message) -> None:
        """Nothing happens where nobody listens any more: that is noticed elsewhere."""
        with self._lock, suppress(OSError):
            self._sock.sendall(bridge.frame(message))

    def listen(self, started: RankProcesses) -> None:
        """Takes fronts in until the other end is gone, then has this process end, whatever its other threads do; `started` too
        where they still load."""
        with suppress(OSError):
            while True:
                data, descriptors, _, _ = socket.recv_fds(self._sock, 1, 1)
                if not data:
                    break
                for descriptor in descriptors:
                    if self.desk is None:
                        os.close(descriptor)
                    else:
                        self.desk.join(socket.socket(fileno=descriptor))
        if self.desk is None:
            started.kill()
            os._exit(0)
        self.desk.stop()


def serve(sock: socket.socket, started: RankProcesses) -> int:
    """Serves with ranks that were `started` until the other end of `sock` closes: exit code 0; or a rank is lost: 1."""
    sys.setswitchinterval(SWITCH_S)
    control = Control(sock)
    try:
        lost = run(control, started)
    except BaseException as error:
        if env.debug():
            log.trace(error)
        message = str(error) if isinstance(error, ShardwiseError) else f"{type(error).__name__}: {error}"
        started.kill()
        control.tell(bridge.Failed(message, isinstance(error, UserError)))
        return 1
    if lost is not None:
        control.tell(bridge.Gone(lost))
    return 0 if lost is None else 1


def crashed(error: BaseException) -> None:
    """Ends this process, and its ranks with it: what it served is well, and goes on where another engine takes its place."""
    log.trace(error)
    os._exit(CRASHED)


def run(control: Control, started: RankProcesses) -> str | None:
    """Serves until the engine is lost: why; or until nobody wants it any more: None."""
    boot = control.boot()
    setup = boot.setup()
    threading.Thread(target=control.listen, args=(started,), daemon=True, name="control").start()

    def progress(rank: int, count: int) -> None:
        control.tell(bridge.Loading(rank, count))

    ranks = ProcessRanks(setup, progress, started, boot.policy)
    with Engine(setup, ranks, queue=boot.queue, queue_tokens=boot.queue_tokens) as engine:
        engine.crashed = crashed
        control.desk = Desk(engine)
        control.tell(bridge.Ready())
        return control.desk.serve()
