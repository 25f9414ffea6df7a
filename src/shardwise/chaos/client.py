"""One streaming client on a thread: it sends a request and writes down what comes, byte by byte with times."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from contextlib import suppress
from urllib.parse import urlsplit

from shardwise.chaos.heard import End, Heard

CONNECT_S = 5.0


class Call:
    """A request under way. `events` counts what came so far, `port` is this end's."""

    def __init__(self, url: str, path: str, body: bytes, key: str | None = None) -> None:
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=CONNECT_S)
        self._path, self._body = f"{parts.path.rstrip('/')}/v1/{path}", body
        self._headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        self._pieces: list[tuple[float, bytes]] = []
        self._late = False
        self._heard: Heard | None = None
        self._sock: socket.socket | None = None
        self.events = 0
        self.port: int | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def over(self) -> bool:
        """It has ended."""
        return self._heard is not None

    def wait(self, until: float) -> Heard:
        """What was heard; at `until`, by time.monotonic, it is cut off."""
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._heard is None:
            self.cut()
            self._thread.join()
        assert self._heard is not None
        return self._heard

    def cut(self) -> None:
        """Time is up."""
        self._late = True
        if (sock := self._sock) is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        sent, status, why, connected = time.monotonic(), None, "", False
        end: End = "closed"
        try:
            self._connection.connect()
            connected = True
            self._sock = self._connection.sock
            self._sock.settimeout(None)
            self.port = self._sock.getsockname()[1]
            if self._late:
                self.cut()
            self._connection.request("POST", self._path, self._body, self._headers)
            answer = self._connection.getresponse()
            status = answer.status
            while piece := answer.read1(2**16):
                self._pieces.append((time.monotonic(), piece))
                self.events += piece.count(b"data:")
        except (OSError, http.client.HTTPException, ValueError) as error:
            end, why = ("cut" if connected else "unreachable"), type(error).__name__
        finally:
            self._connection.close()
        ended: End = "late" if self._late else end
        self._heard = Heard(sent, status, tuple(self._pieces), ended, time.monotonic(), why)


def get(url: str, path: str, timeout_s: float = 2.0, key: str | None = None) -> tuple[int, bytes] | None:
    """(status, body) of a GET; None where there is no answer."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=timeout_s)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {key}"} if key else {})
        answer = connection.getresponse()
        return answer.status, answer.read(2**22)
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
