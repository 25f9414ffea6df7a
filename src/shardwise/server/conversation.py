"""What a body may say of the template that makes a prompt of its conversation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shardwise.server.refusal import Refusal
from shardwise.server.service import Service


def template_of(service: Service, asked: str | None) -> str | None:
    """A client's own template, where this server trusts those; Refusal elsewhere."""
    if asked is not None and not service.settings.trust_request_chat_template:
        raise Refusal(
            400, "chat_template is not taken from requests here; the model's own is used. A server that is started with "
            "--trust-request-chat-template takes it",
            param="chat_template",
        )  # fmt: skip
    return asked


def variables_of(asked: Mapping[str, Any] | None, effort: str | None = None, thinking: str | None = None) -> dict[str, Any]:
    """The template's variables. `effort` "none" turns the thinking off too, for templates that know only that; `thinking` is
    "enabled" or "disabled", of any other word the model may decide."""
    found: dict[str, Any] = {}
    if thinking in ("enabled", "disabled"):
        found = dict.fromkeys(("enable_thinking", "thinking"), thinking == "enabled")
    if effort is not None:
        found["reasoning_effort"] = effort
    if effort == "none":
        found["enable_thinking"] = False
    return {**found, **(asked or {})}
