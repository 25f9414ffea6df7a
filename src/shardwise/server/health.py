"""Whether the server is up, whether it takes requests, and which version it is: what load balancers and people ask first.

Needs no key; the version neither, as at vLLM (docs/usage/security.md), where clients tell by it what they may ask.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from typing import Any

import msgspec

from shardwise.engine.incident import Incident
from shardwise.server.call import Call
from shardwise.server.refusal import RETRY_S, Refusal
from shardwise.server.reply import Json, Reply
from shardwise.server.route import Route
from shardwise.server.service import Service


class Health(msgspec.Struct, omit_defaults=True):
    """`status` is "ok". `incidents`, where there are any: the last ranks that were lost since the start, and what was done."""

    status: str
    incidents: tuple[Incident, ...] = ()


class Version(msgspec.Struct):
    """Of shardwise."""

    version: str


async def health(service: Service, _call: Call, _body: Any) -> Reply:
    """200 while the engine computes what it is asked, also while it drains. 503 with the reason while a lost rank is made up
    for, or another engine takes the place of one that is gone: requests are taken meanwhile, and go on afterwards."""
    if (reason := service.engine.lost) is not None:
        raise Refusal(503, f"the engine is lost: {reason}", code="engine_lost")
    if (reason := service.engine.away) is not None:
        raise Refusal(503, reason, code="engine_away", retry_after_s=RETRY_S)
    if (incident := service.engine.mending) is not None:
        raise Refusal(503, f"mending: {incident}", code="mending", retry_after_s=RETRY_S)
    return Json(Health("ok", service.engine.incidents))


async def ready(service: Service, call: Call, body: Any) -> Reply:
    """200 while new requests are taken."""
    if service.drain.draining:
        raise Refusal(503, "the server is stopping: open requests finish, new ones are not taken", code="draining")
    return await health(service, call, body)


async def the_version(_service: Service, _call: Call, _body: Any) -> Reply:
    return Json(Version(installed()))


@cache
def installed() -> str:
    return version("shardwise")


def stopping() -> Refusal:
    """What new requests are told while the server drains."""
    return Refusal(503, "the server is stopping; ask another, or again after a while", code="draining", retry_after_s=RETRY_S)


ROUTES = (
    Route("GET", ("/health", "/ping"), health, "Whether the process and its engine live.", "server", reply=Health, open=True),
    Route("GET", ("/ready",), ready, "Whether new requests are taken; else 503 and why.", "server", reply=Health, open=True),
    Route("GET", ("/version",), the_version, "The version of shardwise.", "server", reply=Version, open=True),
)
