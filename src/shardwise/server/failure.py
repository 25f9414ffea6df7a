"""An error that ends a request: what its client is told, and what the log says of it. A prompt is quoted in neither."""

from __future__ import annotations

import asyncio
import logging
import traceback

from shardwise import env
from shardwise.errors import ShardwiseError
from shardwise.server.health import stopping
from shardwise.server.refusal import RETRY_S, Refusal
from shardwise.server.service import Service

LOG = logging.getLogger("shardwise.server")


def told(service: Service, error: BaseException, name: str) -> Refusal:
    """What the client of request `name`, its id and where there is one its trace, is told; where that is little, the log says
    more. Raises what ends the process."""
    if isinstance(error, asyncio.CancelledError):
        return stopping()
    if not isinstance(error, Exception):
        raise error
    # Where it is the error itself, its traceback holds whoever holds it: a cycle, with all of a request in it.
    refusal = Refusal.of(error).with_traceback(None)
    if refusal.status != 500:
        return refusal
    named = {"request_id": name.partition(" ")[0]}
    if isinstance(error, ShardwiseError):
        LOG.error("request %s failed: %s", name, error, extra=named)
        if service.drain.draining:
            return stopping()  # its time to finish was up
        if service.engine.lost is not None:
            return Refusal(503, "the engine is lost", code="engine_lost", retry_after_s=RETRY_S)
    else:
        LOG.error("request %s failed:\n%s", name, trace(error), extra=named)
    return refusal


def trace(error: BaseException) -> str:
    """Where it happened and what kind it is. What it says may quote a prompt, and is left out unless SHARDWISE_DEBUG is set."""
    if env.debug():
        return "".join(traceback.format_exception(error))
    return "".join(traceback.format_tb(error.__traceback__)) + type(error).__qualname__
