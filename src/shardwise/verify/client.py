"""A small HTTP client for one server of OpenAI's API that the user named: answers whole or as they come, bounded in time and
size. Standard library only. Follows no redirect.

Knows HTTP and how servers word their errors, not what is asked.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from shardwise.errors import ShardwiseError, UserError

URL = "http://127.0.0.1:8000"
"""Where `shardwise serve` listens, unless told."""

LIMIT_BYTES = 64 * 2**20
"""The longest answer that is read whole."""

CONNECT_S = 10.0
TIMEOUT_S = 600.0
"""A whole request, from the first byte sent to the last byte read; of an answer that is read as it comes, the longest silence
in it. A large model on a CPU takes its time."""

SHOWN = 1000
"""Characters that are shown of what a server says is wrong."""


class Client:
    """Requests to `url`, the server's address with or without /v1, each on a connection of its own.

    `key`, if there is one, goes to that address and nowhere else. `flag` is the option that gave the address.
    """

    def __init__(
        self,
        url: str,
        key: str | None,
        *,
        flag: str = "--against",
        timeout_s: float = TIMEOUT_S,
        limit_bytes: int = LIMIT_BYTES,
    ) -> None:
        """UserError where the address is none, or the key cannot be sent."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise UserError(f"{flag} {url!r} is no address: {error}; it takes one such as {URL}") from None
        if "://" not in url and re.fullmatch(r"[\w.\[\]:-]+(/.*)?", url):
            raise UserError(f"{flag} {url!r} has no http:// or https:// before it; did you mean http://{url}?")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise UserError(f"{flag} {url!r} is no address; it takes one such as {URL} or https://host/v1")
        if parts.username is not None or parts.password is not None:
            raise UserError(f"{flag}: the address holds a name or a password; leave them out, and give --api-key")
        if key is not None and not (key.isascii() and key.isprintable() and key):
            raise UserError("--api-key must be printable ASCII; check how it was copied")
        self._path = parts.path.rstrip("/").removesuffix("/v1")
        self.url = f"{parts.scheme}://{parts.netloc}{self._path}"
        self._secure, self._host, self._port, self._flag = parts.scheme == "https", parts.hostname, port, flag
        self._headers = {"Accept": "application/json, text/event-stream"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"
        self._timeout_s, self._limit = timeout_s, limit_bytes

    def at(self, path: str) -> str:
        """The address of /v1/`path`, for messages."""
        return f"{self.url}/v1/{path}"

    def ask(self, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """(status, answer) of a GET, or of a POST of `body`, at /v1/`path`. UserError where there is no whole answer: for what
        needs it there is nothing else to be done."""
        try:
            with self.answer(path, body, within_s=self._timeout_s) as answer:
                data = answer.read(self._limit + 1)
                if answer.length and len(data) <= self._limit:
                    raise http.client.IncompleteRead(data, answer.length)
        except ShardwiseError as error:
            raise UserError(str(error)) from None
        if len(data) > self._limit:
            raise UserError(f"{self.at(path)} answered with more than {self._limit} bytes; use fewer or shorter prompts")
        return answer.status, data

    @contextmanager
    def answer(
        self, path: str, body: bytes | None = None, *, within_s: float | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        """The answer to the same, to be read as it comes, and nothing else done within it; in `within_s`, where that is given.
        UserError where the server cannot be reached, ShardwiseError where it breaks off."""
        where = self.at(path)
        connection = self._connect(where)
        late = threading.Event()
        clock = threading.Timer(within_s or 0.0, _cut, (connection.sock, late))
        clock.daemon = True
        # One limit at a time: two that end together would leave it to chance which of them is named.
        connection.sock.settimeout(self._timeout_s if within_s is None else None)
        if within_s is not None:
            clock.start()
        headers = self._headers if body is None else {**self._headers, "Content-Type": "application/json"}
        try:
            connection.request("GET" if body is None else "POST", f"{self._path}/v1/{path}", body, headers)
            yield connection.getresponse()
            if late.is_set():
                raise TimeoutError
        except (OSError, http.client.HTTPException) as error:
            if late.is_set():
                raise ShardwiseError(f"{where} has not answered in {within_s:g} s; is it overloaded?") from None
            if isinstance(error, TimeoutError):
                raise ShardwiseError(f"{where} has said nothing for {self._timeout_s:g} s; is it overloaded?") from None
            raise ShardwiseError(f"{where} broke off: {type(error).__name__}: {error}") from None
        finally:
            clock.cancel()
            connection.close()

    def _connect(self, where: str) -> http.client.HTTPConnection:
        made: http.client.HTTPConnection
        if self._secure:
            context = ssl.create_default_context()
            made = http.client.HTTPSConnection(self._host, self._port, timeout=CONNECT_S, context=context)
        else:
            made = http.client.HTTPConnection(self._host, self._port, timeout=CONNECT_S)
        try:
            made.connect()
        except (OSError, UnicodeError) as error:
            if isinstance(error, ssl.SSLError) and "WRONG_VERSION" in str(error):
                raise UserError(f"{where} speaks no TLS: use http:// in {self._flag}") from None
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise UserError(
                f"{where} cannot be reached: {reason}; does the server run there? `shardwise serve` starts one, {self._flag} "
                "names another"
            ) from None
        return made


def _cut(sock: socket.socket, late: threading.Event) -> None:
    """Ends a request that takes too long, wherever it waits: a server that sends a byte now and then included."""
    late.set()
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it has just ended by itself


def complaint(data: bytes) -> str:
    """What the body of a refusal says is wrong, as one short line; "" where it says nothing, or is a page."""
    try:
        return worded(json.loads(data))
    except (ValueError, RecursionError):
        text = data[: 4 * SHOWN].decode("utf-8", "replace")
        return "" if text.lstrip().startswith("<") else _line(text)


def worded(found: object) -> str:
    """The message of an error, in OpenAI's shape or one near to it; of another, all of it."""
    error = found.get("error", found.get("detail", found)) if isinstance(found, dict) else found
    said = error.get("message", error.get("detail", error)) if isinstance(error, dict) else error
    return _line(said if isinstance(said, str) else json.dumps(said) if said else "")


def _line(text: str) -> str:
    shown = "".join(c if c.isprintable() else " " for c in text[: 4 * SHOWN])
    return " ".join(shown.split())[:SHOWN]
