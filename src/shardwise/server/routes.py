"""All endpoints, by the modules that define them."""

from __future__ import annotations

from shardwise.server import health, messages, responses
from shardwise.server.route import Route

ROUTES: tuple[Route, ...] = (*health.ROUTES, *responses.ROUTES, *messages.ROUTES)
