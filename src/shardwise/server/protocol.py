"""HTTP/1.1 on one connection: uvicorn's httptools protocol, with the limits that it leaves to a proxy in front.

Heads are bounded in bytes, number and time, readers that take nothing are cut off, and what two parsers could read in two ways
is refused: trailers, absolute targets, requests behind one that is not answered yet. It knows no paths, keys or bodies.
"""

from __future__ import annotations

import asyncio
import socket
import uuid
from collections.abc import Callable
from typing import Any

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from shardwise.server.refusal import RETRY_S, Refusal
from shardwise.server.reply import ENCODER
from shardwise.server.settings import Settings

LINGER_S = 2.0
"""How long the rest of a body is read and dropped after its answer. Closing at once would reset the connection, and many
clients would then never see the answer (RFC 9112, 9.6)."""

DROPPED_BYTES = 8 * 2**20
"""After so many bytes that are dropped, a connection is cut off."""

OVERHEAD = 4
"""How much longer a chunked body may be on the wire than what it holds: chunks of a few bytes are no honest way to send one."""


class Connection(HttpToolsProtocol):
    """One connection. `limits` is set by `protocol`."""

    limits: Settings

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # uvicorn's own is lenient about data after `Connection: close`.
        self.parser = httptools.HttpRequestParser(self)
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._fed = self._head_bytes = self._heads = self._dropped = 0
        self._head_done, self._message_done, self._deaf = False, True, False
        self._refusal: Refusal | None = None
        self._begins, self._head = False, b""

    # --- timers -------------------------------------------------------------------------------------------------------

    def _arm(self, name: str, after_s: float, then: Callable[[], None]) -> None:
        self._disarm(name)
        self._timers[name] = self.loop.call_later(after_s, then)

    def _disarm(self, name: str) -> None:
        if timer := self._timers.pop(name, None):
            timer.cancel()

    # --- the connection -----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # What waits here costs four times its size: each frame of a stream is a write of its own, with uvloop 1 KB more.
        transport.set_write_buffer_limits(high=self.limits.write_buffer_bytes // 4)
        # The kernel would grow its own to megabytes, which a slow reader would fill before anybody noticed.
        if (opened := transport.get_extra_info("socket")) is not None:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.limits.write_buffer_bytes)
        if len(self.connections) > 2 * self.limits.max_connections:
            transport.abort()
        elif len(self.connections) > self.limits.max_connections:
            most = self.limits.max_connections
            self._refuse(Refusal(503, f"{most} connections are open, the most there may be", retry_after_s=RETRY_S))
        else:
            self._arm("head", self.limits.head_timeout_s, self._head_late)

    def connection_lost(self, exc: Exception | None) -> None:
        for name in list(self._timers):
            self._disarm(name)
        self._unset_keepalive_if_required()
        self._deaf = True
        super().connection_lost(exc)
        self.cycle = None  # type: ignore[assignment]  # each holds the other, and both what was asked, until a collection

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            self._dropped += len(data)
            if self._dropped > DROPPED_BYTES:
                self.transport.abort()
            return
        self._unset_keepalive_if_required()
        self._fed += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # Answered as the HTTP/1.1 that it also is (RFC 9110, 7.8); the parser takes nothing more.
            self._last()
        except httptools.HttpParserError:
            self._broken()
        else:
            self._weigh()

    def _weigh(self) -> None:
        """Bounds what the parser keeps of headers that have not ended, and what a body is on the wire."""
        if not self._head_done and self._fed > self.limits.max_header_bytes:
            self._refuse(self._head_too_large())
        elif self._fed > OVERHEAD * self.limits.max_body_bytes + self.limits.max_header_bytes:
            self._refusal = Refusal(413, "the body is too large on the wire")
            self._broken()

    # --- the parser's calls -------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            raise ValueError("a request behind one that is not answered yet")
        self._head_done = self._message_done = False
        self._head_bytes = self._heads = 0
        self._arm("head", self.limits.head_timeout_s, self._head_late)
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > self.limits.max_url_bytes:
            self._stop(Refusal(414, f"the address is too long; {self.limits.max_url_bytes} bytes are the most"))

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_done:
            self._stop(Refusal(400, "headers after a body are not taken"))
        self._heads += 1
        self._head_bytes += len(name) + len(value) + 4
        if self._heads > self.limits.max_headers:
            self._stop(Refusal(431, f"too many headers; {self.limits.max_headers} are the most"))
        if self._head_bytes + len(self.url) > self.limits.max_header_bytes:
            self._stop(self._head_too_large())
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if not self.url.startswith(b"/"):
            self._stop(Refusal(400, "the target of a request begins with '/'; this server is no proxy"))
        if self.parser.get_http_version() not in ("1.0", "1.1"):
            self._stop(Refusal(505, "HTTP/1.1 is spoken here"))
        self._head_done = True
        self._disarm("head")
        super().on_headers_complete()
        self.cycle.transport = Side(self)
        self._begins = True

    def on_message_complete(self) -> None:
        self._message_done = True
        self._fed = 0
        self._disarm("rest")
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._message_done:
            self._arm("rest", LINGER_S, self.transport.abort)

    # --- refusing -----------------------------------------------------------------------------------------------------

    def _stop(self, refusal: Refusal) -> None:
        """Out of the parser; `_broken` takes it from there."""
        self._refusal = refusal
        raise ValueError(refusal.message)

    def _head_too_large(self) -> Refusal:
        return Refusal(431, f"the headers are too large; {self.limits.max_header_bytes} bytes are the most")

    def _head_late(self) -> None:
        if self._fed:
            self._refuse(Refusal(408, f"the headers did not end within {self.limits.head_timeout_s:g} s"))
        else:
            self._close()

    def _last(self) -> None:
        """Nothing more is read; the request that is open gets its answer, and the connection ends."""
        self._deaf = True
        if self.cycle is None or self.cycle.response_complete:
            self._close()
        else:
            self.cycle.keep_alive = False

    def _broken(self) -> None:
        """What came cannot be read. It is answered only where no other answer could get mixed with that."""
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if self._message_done or cycle.response_started:
                self._last()
                return
            # The request that is being read: whoever waits for its body hears that the client has gone.
            cycle.disconnected = True
            cycle.message_event.set()
        self._refuse(self._refusal or Refusal(400, "this is no valid HTTP/1.1", code="bad_request"))

    def _refuse(self, refusal: Refusal) -> None:
        body = ENCODER.encode(refusal.openai())
        head = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "x-request-id": uuid.uuid4().hex,
            "x-content-type-options": "nosniff",
            **refusal.headers,
            "connection": "close",
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
        self.transport.write(STATUS_LINE[refusal.status] + lines.encode("latin-1") + b"\r\n" + body)
        self._linger()

    def write(self, data: bytes) -> None:
        """A piece of an answer. The head waits for what comes within this turn of the loop: with a body behind it, that is one
        system call, which is what a small answer costs the most. What follows has no reason to wait."""
        if self._begins:
            self._begins, self._head = False, data
            self.loop.call_soon(self._flush)
        elif self._head:
            head, self._head = self._head, b""
            self.transport.writelines((head, data))
        else:
            self.transport.write(data)

    def _flush(self) -> None:
        head, self._head = self._head, b""
        if head and not self.transport.is_closing():  # the client may have left in this very turn
            self.transport.write(head)

    def shutdown(self) -> None:
        self._flush()
        super().shutdown()

    def _linger(self) -> None:
        """Ends the answer, and reads on for a moment so that it arrives."""
        self._flush()
        self._deaf = True
        self._disarm("head")
        if self.transport.can_write_eof() and not self.transport.is_closing():
            self.transport.write_eof()
        self.flow.resume_reading()
        self._arm("rest", LINGER_S, self.transport.abort)

    def _close(self) -> None:
        """Closes once all is sent, or cuts off a reader that takes nothing."""
        self._flush()
        self.transport.close()
        self._watch("close")

    def timeout_keep_alive_handler(self) -> None:
        if not self.transport.is_closing():
            self._close()

    # --- slow readers -------------------------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch("write")

    def resume_writing(self) -> None:
        self._disarm("write")
        super().resume_writing()

    def _watch(self, name: str) -> None:
        """Looks after a while whether the reader has taken anything."""
        before = self.transport.get_write_buffer_size()

        def check() -> None:
            if self.transport.get_write_buffer_size() >= before:
                self.transport.abort()
            else:
                self._watch(name)

        self._arm(name, self.limits.write_timeout_s, check)


class Side(asyncio.Transport):
    """A connection as the answering side sees it: closing it lets the rest of the request come first."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection

    def write(self, data: Any) -> None:
        self._connection.write(data)

    def is_closing(self) -> bool:
        return self._connection.transport.is_closing()

    def close(self) -> None:
        if self._connection._message_done or self._connection.transport.is_closing():
            self._connection._close()
        else:
            self._connection._linger()


def protocol(settings: Settings) -> type[Connection]:
    """The protocol with the limits of `settings`."""
    return type("LimitedConnection", (Connection,), {"limits": settings})


def uvicorn_config(app: Any, settings: Settings) -> uvicorn.Config:
    """What uvicorn is to do: this protocol and nothing of its own; no log, no lifespan, no trust in forwarded headers."""
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=protocol(settings),
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=settings.idle_timeout_s,  # type: ignore[arg-type]  # it goes to call_later as it is
    )
