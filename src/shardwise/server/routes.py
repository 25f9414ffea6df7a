"""All endpoints, by the modules that define them."""

from __future__ import annotations

from shardwise.server import (
    about,
    chat,
    completions,
    derender,
    generate,
    health,
    messages,
    models,
    profile,
    reshard,
    responses,
    tgi,
    tokens,
    vectors,
)
from shardwise.server.route import Route

ROUTES: tuple[Route, ...] = (
    *chat.ROUTES,
    *completions.ROUTES,
    *responses.ROUTES,
    *messages.ROUTES,
    *generate.ROUTES,
    *models.ROUTES,
    *tokens.ROUTES,
    *derender.ROUTES,
    *about.ROUTES,
    *vectors.ROUTES,
    *tgi.ROUTES,
    *profile.ROUTES,
    *reshard.ROUTES,
    *health.ROUTES,
)
