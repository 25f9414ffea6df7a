"""The table of endpoints: what each takes and gives. Router, validator, OpenAPI and docs are made from it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from shardwise.server.call import Call
from shardwise.server.refusal import Refusal
from shardwise.server.reply import Reply
from shardwise.server.service import Service

Endpoint = Callable[[Service, Call, Any], Awaitable[Reply]]
"""endpoint(service, call, body): `body` is a value of the route's `body` type; without one, the parameters as a dict."""


Errors = Callable[[Refusal, Call], dict[str, object]]
"""errors(refusal, call): the body of a refusal."""


@dataclass(frozen=True, slots=True)
class Route:
    """`paths` are all its names, the usual one first; `{name}` in one is a parameter, and one at the end takes slashes too.
    A path that begins with /v1 is found without it too. `summary` is one line for people.

    Where it has both a body and path parameters, the body struct has fields of the parameters' names. Without a body, the
    endpoint gets the parameters of path and query. `open`: needs no key, and is served while draining.
    `queued`: it needs a place in the engine's queue, and is refused unread while there is known to be none.
    `errors` makes the body of a refusal: OpenAI's shape unless the API has its own. `example` is a body that works.
    `media` is the type of a whole answer.
    """

    method: str
    paths: tuple[str, ...]
    endpoint: Endpoint
    summary: str
    tag: str
    body: type[msgspec.Struct] | None = None
    reply: type[msgspec.Struct] | type[list[Any]] | None = None
    streams: bool = False
    queued: bool = False
    open: bool = False
    errors: Errors | None = None
    example: dict[str, Any] | None = None
    media: str = "application/json"
