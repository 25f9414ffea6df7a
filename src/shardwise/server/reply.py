"""What endpoints give back, before it is bytes on a socket: a value for JSON, or frames of a stream as they come."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field

import msgspec

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
class Events:
    """A stream of server-sent events, each frame made by `sse`. Closing the generator aborts what makes it; an error it raises
    becomes a last frame, by `failed`, since the status is sent already."""

    frames: AsyncGenerator[bytes, None]
    headers: Mapping[str, str] = field(default_factory=dict)


Reply = Json | Events


def sse(value: object, event: str | None = None) -> bytes:
    """One frame; `event` names it where an API wants that."""
    data = value if isinstance(value, bytes) else ENCODER.encode(value)
    return b"data: " + data + b"\n\n" if event is None else b"event: " + event.encode() + b"\ndata: " + data + b"\n\n"
