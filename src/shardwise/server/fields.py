"""Fields that many bodies have: one range and one text for each, wherever it stands."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from shardwise.sched.request import MOST

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
Unused = Annotated[str, Meta(description="Changes nothing.")]
