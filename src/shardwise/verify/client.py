"""A small HTTP client for one server that the user named: JSON out, bytes back, bounded in time and size. Follows no redirect.

Knows HTTP, not what is asked.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from urllib.parse import urlsplit

from shardwise.errors import UserError

LIMIT_BYTES = 64 * 2**20
"""The longest answer that is read."""

CONNECT_S = 10.0
TIMEOUT_S = 600.0
"""A whole request, from the first byte sent to the last byte read: a large model on a CPU takes its time."""


class Client:
    """Requests to `url`, the server's address with or without /v1, each on a connection of its own.

    `key`, if there is one, goes to that address and nowhere else.
    """

    def __init__(self, url: str, key: str | None, *, timeout_s: float = TIMEOUT_S, limit_bytes: int = LIMIT_BYTES) -> None:
        """UserError where the address is none, or the key cannot be sent."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise UserError(f"--against {url!r} is no address: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise UserError(f"--against {url!r} is not an address such as http://127.0.0.1:8000 or https://host/v1")
        if parts.username is not None or parts.password is not None:
            raise UserError("--against: the address holds a name or a password; leave it out, and give --api-key")
        if key is not None and not (key.isascii() and key.isprintable() and key):
            raise UserError("--api-key must be printable ASCII; check how it was copied")
        self.address = f"{parts.scheme}://{parts.netloc}"
        self._secure, self._host, self._port = parts.scheme == "https", parts.hostname, port
        self._prefix = parts.path.rstrip("/").removesuffix("/v1")
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"
        self._timeout_s, self._limit = timeout_s, limit_bytes

    def ask(self, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """(status, answer) of a GET, or of a POST of `body`, at /v1/`path`. UserError where there is no whole answer."""
        where = f"{self.address}{self._prefix}/v1/{path}"
        connection = self._connect(where)
        late = threading.Event()
        clock = threading.Timer(self._timeout_s, _cut, (connection.sock, late))
        clock.daemon = True
        clock.start()
        try:
            connection.request("GET" if body is None else "POST", f"{self._prefix}/v1/{path}", body, self._headers)
            answer = connection.getresponse()
            data = answer.read(self._limit + 1)
            if late.is_set():
                raise TimeoutError
            if answer.length and len(data) <= self._limit:
                raise http.client.IncompleteRead(data, answer.length)
        except (OSError, http.client.HTTPException) as error:
            if late.is_set() or isinstance(error, TimeoutError):
                raise UserError(f"{where} has not answered in {self._timeout_s:g} s; is it overloaded?") from None
            raise UserError(f"{where} broke off: {type(error).__name__}: {error}") from None
        finally:
            clock.cancel()
            connection.close()
        if len(data) > self._limit:
            raise UserError(f"{where} answered with more than {self._limit} bytes; use fewer or shorter prompts")
        return answer.status, data

    def _connect(self, where: str) -> http.client.HTTPConnection:
        connection: http.client.HTTPConnection
        if self._secure:
            connection = http.client.HTTPSConnection(
                self._host, self._port, timeout=CONNECT_S, context=ssl.create_default_context()
            )
        else:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=CONNECT_S)
        try:
            connection.connect()
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise UserError(f"{where} cannot be reached: {reason}; does the server run there?") from None
        connection.sock.settimeout(self._timeout_s)
        return connection


def _cut(sock: socket.socket, late: threading.Event) -> None:
    """Ends a request that takes too long, wherever it waits: a server that sends a byte now and then included."""
    late.set()
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it has just ended by itself
