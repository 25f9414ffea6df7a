"""All endpoints, by the modules that define them."""

from __future__ import annotations

from shardwise.server import about, chat, completions, generate, health, models, tokens
from shardwise.server.route import Route

ROUTES: tuple[Route, ...] = (
    *chat.ROUTES,
    *completions.ROUTES,
    *generate.ROUTES,
    *models.ROUTES,
    *tokens.ROUTES,
    *about.ROUTES,
    *health.ROUTES,
)
