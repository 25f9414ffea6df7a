"""Anthropic's Messages API."""

from __future__ import annotations

from shardwise.server.messages.endpoints import ROUTES

__all__ = ["ROUTES"]
