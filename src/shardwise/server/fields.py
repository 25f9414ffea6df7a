"""Fields that many bodies have, one range and one text for each; and how many texts may stand in one."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from shardwise.sched.request import MOST
from shardwise.server.refusal import Refusal
from shardwise.server.settings import Settings

ModelName = Annotated[str, Meta(description="The model's name; the one there is if absent.")]
Priority = Annotated[int, Meta(ge=-MOST, le=MOST, description="Lower is sooner.")]
Salt = Annotated[str, Meta(description="Shares the prompt cache only with the same salt.")]
RequestId = Annotated[str, Meta(description="Becomes part of the answer's id.")]
Begins = Annotated[bool, Meta(description="Begin a text with the tokens that the model expects.")]
Streams = Annotated[bool, Meta(description="Send the answer as it comes, as server-sent events.")]
KeptTokens = Annotated[
    int,
    Meta(ge=-1, le=MOST, description="Keep only so many tokens, the last; -1: what the context holds. Else too long is 400."),
]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Unused = Annotated[str, Meta(description="Changes nothing.")]

MAX_INPUTS = Settings().max_prompts
"""Texts of one request, unless a server is told otherwise."""


def check_count(count: int, most: int, name: str) -> None:
    """Refusal for more than `most` texts."""
    if count > most:
        raise Refusal(400, f"{name} has {count} texts; {most} are the most, send the others apart", param=name)
