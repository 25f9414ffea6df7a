"""The frames of one stream in OpenAI's shape. What all of them share is encoded once."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from shardwise.engine.setup import Setup
from shardwise.errors import RequestError
from shardwise.sched.checks import check_text, shown
from shardwise.server.job import Usage
from shardwise.server.portions import encoded
from shardwise.server.reply import ENCODER, Events
from shardwise.server.sampling import StreamOptions
from shardwise.server.usage import told

MAX_ID_CHARS = 128


class Frames:
    """`known` are the fields besides `choices` and `usage`. `counts`: the client wants the usage in every frame."""

    def __init__(self, known: Mapping[str, object], options: StreamOptions | None) -> None:
        self.ends_with_usage = bool(options and options.include_usage)
        self.counts = self.ends_with_usage and bool(options and options.continuous_usage_stats)
        self._head = b"data: " + ENCODER.encode(known)[:-1] + b',"choices":'
        # A client that asked for usage finds the field in all frames, as with OpenAI.
        self._tail = b',"usage":null}\n\n' if self.ends_with_usage else b"}\n\n"

    def choice(self, choice: object, usage: Usage | None = None, *, long: bool = False) -> bytes:
        """What is new of one choice; with the `usage` so far, which is to be given where this `counts`. `long`: it may be,
        and is told on another thread than the loop's. Most are short: to see how short takes longer than encoding."""
        tail = self._tail if usage is None else b',"usage":' + ENCODER.encode(told(usage)) + b"}\n\n"
        return b"".join((self._head, b"[", encoded(choice) if long else ENCODER.encode(choice), b"]", tail))

    def usage(self, usage: Usage) -> bytes:
        """The last frame, without choices."""
        return b"".join((self._head, b'[],"usage":', ENCODER.encode(told(usage)), b"}\n\n"))


async def begun(frames: AsyncGenerator[bytes, None]) -> Events:
    """A stream that has reached its first `yield`, which is of nothing: from there on, closing it runs its clean-up."""
    nothing = await anext(frames)
    assert nothing == b"", nothing
    return Events(frames)


def new_id(prefix: str, asked: str | None = None) -> str:
    """The id of an answer, or of a part of one: what the client asked for, or one that nobody guesses. RequestError for one
    that is no short text."""
    if asked is None:
        return prefix + secrets.token_hex(24)
    check_text(asked, "request_id")
    if not 0 < len(asked) <= MAX_ID_CHARS or not asked.isprintable():
        raise RequestError(f"request_id is {shown(asked)}; it takes 1 to {MAX_ID_CHARS} printable characters")
    return prefix + asked


def now() -> int:
    """Seconds since 1970, as `created` has it."""
    return int(time.time())


def known(setup: Setup, kind: str, made: str, model: str) -> dict[str, Any]:
    """What an answer of chat or completions tells besides what was answered, by the names of its fields."""
    return {"id": made, "object": kind, "created": now(), "model": model, "system_fingerprint": fingerprint(setup)}


def fingerprint(setup: Setup) -> str:
    """Stands for what answers depend on besides the request: the model, and how it is cut and held."""
    layout = setup.layout
    dtypes = layout.dtype, layout.compute_dtype, layout.kv_dtype
    told = repr((setup.name, layout.mesh.tp, dtypes, setup.quantization, setup.device, setup.load_format))
    return "fp_" + hashlib.sha256(told.encode()).hexdigest()[:10]
