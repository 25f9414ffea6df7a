"""The ASGI application: every request passes the guard, finds its route, has its body read, and is answered in one place.

Nothing is served that no route names, and nothing without a key, where keys are set, unless its route is open.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any
from urllib.parse import parse_qsl, unquote

from shardwise.server import body as bodies
from shardwise.server import lenient
from shardwise.server.body import Gone
from shardwise.server.call import Call
from shardwise.server.failure import told
from shardwise.server.guard import Guard, Headers, request_id, trace_of, values
from shardwise.server.health import stopping
from shardwise.server.page import documents
from shardwise.server.refusal import Refusal
from shardwise.server.reply import Events
from shardwise.server.route import Route
from shardwise.server.send import Deadline, Exchange, Receive, Send, last_frames
from shardwise.server.service import Service
from shardwise.server.table import Found, Table

LOG = logging.getLogger("shardwise.server")
QUERY_FIELDS = 32
BYTES_A_TOKEN = 4
"""Of a body, for the queue to guess how long a prompt is before it is read: as in English text."""

SAFE = {"x-content-type-options": "nosniff"}


class App:
    """An ASGI application of one front."""

    def __init__(self, service: Service, routes: Sequence[Route]) -> None:
        self.service = service
        self.table = Table(routes)
        self._guard = Guard(service.settings)

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers: Headers = scope["headers"]
        path = unquote(scope["raw_path"].decode("latin-1")) if scope.get("raw_path") else scope["path"]
        beta = ",".join(values(headers, "anthropic-beta"))[:1000]
        call = Call(request_id(headers), "", time.monotonic(), path, beta)
        named = {"x-request-id": call.id, "request-id": call.id}  # Anthropic's clients look for the other
        exchange = Exchange(receive, send, {**SAFE, **named}, f"{call.id} {trace_of(headers)}".rstrip())
        found = self.table.find(path)
        try:
            await self._told_apart(scope, exchange, found, call)
        finally:
            end = " (its client is gone)" if exchange.gone else ""
            spent_s = time.monotonic() - call.began
            said = call.id, scope["method"], path[:200], exchange.status, spent_s, end
            LOG.info("%s %s %r: %d after %.3f s%s", *said, extra={"request_id": call.id})

    async def _told_apart(self, scope: Any, exchange: Exchange, found: Found | None, call: Call) -> None:
        """Answers, or refuses with what went wrong; a client that is gone is told nothing."""
        try:
            await self._answer(scope, exchange, found, call)
        except Gone:
            return
        except BaseException as error:
            if exchange.gone:
                return  # nobody is there to be told; a cancellation was the client's doing
            answer = told(self.service, error, exchange.name)
            if exchange.started:
                return  # half an answer: the protocol closes the connection
            errors = found.errors(scope["method"]) if found else None  # in the shape of the API that was asked
            await exchange.refuse(answer, errors(answer, call) if errors else answer.openai())

    async def _answer(self, scope: Any, exchange: Exchange, found: Found | None, call: Call) -> None:
        """Does one request; raises what its client is to be told."""
        headers, method = scope["headers"], scope["method"]
        if self.service.drain.draining:
            exchange.headers["connection"] = "close"
        self._guard.check_host(headers)
        exchange.headers.update(self._guard.origin(headers))
        if (preflight := self._guard.preflight(method, headers)) is not None:
            await exchange.empty(preflight)
            return
        route = found.route(method) if found else None
        if route is None or not route.open:
            call = replace(call, tenant=self._guard.tenant(headers))
        if found is None:
            raise self._unknown(call.path)
        if method == "OPTIONS":
            await exchange.empty({"allow": found.allow})
        elif route is None:
            raise Refusal(
                405, f"{call.path[:200]!r} does not take {method}; it takes {found.allow}", headers={"allow": found.allow}
            )
        elif self.service.drain.draining and not route.open:
            raise stopping()
        else:
            with self.service.drain.open():
                await self._serve(scope, exchange, route, found, call)

    def _unknown(self, path: str) -> Refusal:
        nearest = self.table.nearest(path)
        hint = f"; the nearest is {nearest}" if nearest else "; /docs lists what there is"
        return Refusal(404, f"there is no {path[:200]!r} here{hint}", code="unknown_path")

    async def _serve(self, scope: Any, exchange: Exchange, route: Route, found: Found, call: Call) -> None:
        settings, headers = self.service.settings, scope["headers"]
        deadline = Deadline(settings.request_timeout_s)
        value: Any
        if route.body is None:
            value = {**query(scope["query_string"]), **found.values}
        else:
            bodies.check_head(headers, settings)
            data = await bodies.read(exchange.receive, settings)
            if route.queued:
                call = replace(call, key=known_by(call, data))
                await self.service.engine.room(call.key, len(data) // BYTES_A_TOKEN)
            value, unknown = await bodies.struct(self.service, route.body, data, found.values)
            bodies.count_unknown(self.service, unknown)
            if settings.lenient and (dropped := lenient.ignored(self.service, call, value)):
                exchange.headers[lenient.IGNORED] = ", ".join(dropped)
        async with exchange.watched():
            async with deadline.within():
                reply = await route.endpoint(self.service, call, value)
            if isinstance(reply, Events):
                await self._stream(exchange, route, call, reply, deadline)
            else:
                await exchange.whole(reply, self.service.encoded)

    async def _stream(self, exchange: Exchange, route: Route, call: Call, events: Events, deadline: Deadline) -> None:
        """An error after the start becomes the last frames, since the status is sent already."""
        last = b""
        try:
            await exchange.stream(events, self.service.settings.keep_alive_s, deadline)
        except BaseException as error:
            if exchange.gone:
                raise
            refusal = told(self.service, error, exchange.name)
            last = last_frames(refusal, events, route.errors(refusal, call) if route.errors else None)
        await exchange.end(last)


def known_by(call: Call, data: bytes) -> str:
    """What tells a request that comes again from all others: whose it is, where it goes and its body."""
    return blake2b(f"{call.tenant} {call.path} ".encode() + data, digest_size=16).hexdigest()


def query(text: bytes) -> dict[str, str]:
    """The parameters behind the path; of one that comes twice, the last. Refusal 400 where there are too many."""
    try:
        return dict(parse_qsl(text.decode("latin-1"), max_num_fields=QUERY_FIELDS, errors="replace"))
    except ValueError:
        raise Refusal(400, f"the address has too many parameters; {QUERY_FIELDS} are the most", code="bad_request") from None


def make_app(service: Service, routes: Sequence[Route]) -> App:
    """The application of `routes` over `service`, and of the documents that describe them."""
    return App(service, (*routes, *documents(routes, service.settings)))
