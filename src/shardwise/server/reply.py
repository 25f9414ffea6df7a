"""What endpoints give back, before it is bytes on a socket: a value for JSON, or frames of a stream as they come."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field

import msgspec

from shardwise.server.refusal import Refusal

ENCODER = msgspec.json.Encoder()
DONE = b"data: [DONE]\n\n"
ALIVE = b": keep-alive\n\n"


@dataclass(frozen=True, slots=True)
class Json:
    """A body that is complete: a msgspec Struct or plain values."""

    value: object
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Text:
    """A body that is no JSON: a page, metrics."""

    text: str
    media: str = "text/plain; charset=utf-8"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Events:
    """A stream of server-sent events, each frame made by `sse`. Closing the generator aborts what makes it; an error it raises
    becomes the last frames, since the status is sent already: what `failed` makes of it, or OpenAI's error and [DONE]."""

    frames: AsyncGenerator[bytes, None]
    headers: Mapping[str, str] = field(default_factory=dict)
    failed: Callable[[Refusal], bytes] | None = None


Reply = Json | Text | Events


def sse(value: object, event: str | None = None) -> bytes:
    """One frame; `event` names it where an API wants that."""
    data = value if isinstance(value, bytes) else ENCODER.encode(value)
    return b"data: " + data + b"\n\n" if event is None else b"event: " + event.encode() + b"\ndata: " + data + b"\n\n"
