"""OpenAI's Responses API."""

from __future__ import annotations

from shardwise.server.responses.endpoints import ROUTES

__all__ = ["ROUTES"]
