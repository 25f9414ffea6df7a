"""Streams as servers send them, made of events, so that a test can spoil one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from shardwise.chaos.heard import End, Heard

WORDS = [(11, "Once"), (12, " upon"), (13, " a"), (14, " time"), (15, " —"), (16, " a"), (17, " cat"), (18, ".")]
"""Tokens: id and text."""


def chunk(words: Sequence[tuple[int, str]] = (), index: int = 0, reason: str | None = None) -> dict[str, Any]:
    """An event of tokens."""
    text, ids = "".join(text for _, text in words), [number for number, _ in words]
    return {"id": "cmpl-1", "choices": [{"index": index, "text": text, "token_ids": ids, "finish_reason": reason}]}


def usage(written: int) -> dict[str, Any]:
    return {
        "id": "cmpl-1",
        "choices": [],
        "usage": {"prompt_tokens": 4, "completion_tokens": written, "total_tokens": 4 + written},
    }


def good(choices: int = 1) -> list[Any]:
    """The events of a stream that is whole."""
    events: list[Any] = [chunk([word], index) for word in WORDS[:-1] for index in range(choices)]
    events += [chunk(WORDS[-1:], index, "stop") for index in range(choices)]
    return [*events, usage(choices * len(WORDS)), "[DONE]"]


def encoded(event: Any) -> bytes:
    """An event as it is sent; bytes are sent as they are."""
    if isinstance(event, bytes):
        return event
    return b"data: " + (event if isinstance(event, str) else json.dumps(event, ensure_ascii=False)).encode() + b"\n\n"


def heard(events: Sequence[Any], end: End = "closed", status: int | None = 200) -> Heard:
    """A client that got them, one every 10 ms."""
    pieces = tuple((1 + 0.01 * n, encoded(event)) for n, event in enumerate(events))
    return Heard(1.0, status, pieces, end, 1 + 0.01 * len(events))
