"""One turn of a conversation, whichever API asked for it: messages and tools in, content, reasoning and tool calls out.

Chat completions, responses and messages are three spellings of this.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from shardwise.engine.outputs import Logprobs
from shardwise.sched.request import SamplingParams
from shardwise.server.call import Call
from shardwise.server.job import Usage
from shardwise.server.service import Service

Finish = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class Turn:
    """`messages` are in the form of OpenAI's chat API, checked by the template's checks. `tools` and `tool_choice` are as in
    `answer.tools`. `variables` go to the template; `salt` keeps the cache apart within a tenant."""

    messages: Sequence[Mapping[str, Any]]
    params: SamplingParams
    tools: Sequence[Any] = ()
    tool_choice: Any = "auto"
    parallel: bool = True
    variables: Mapping[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    split_reasoning: bool = True
    priority: int = 0
    salt: str = ""


@dataclass(frozen=True, slots=True)
class News:
    """What is new of one choice. `pieces` are those of `answer.pieces`; `finish` is set on its last."""

    choice: int
    pieces: Sequence[Any]
    token_ids: Sequence[int]
    logprobs: Sequence[Logprobs] | None = None
    finish: Finish | None = None
    stop_reason: int | str | None = None


class Talk(Protocol):
    """A turn that was accepted and runs: an async iterator of lists of News, and an async context manager that aborts."""

    prompt_ids: Sequence[int]

    @property
    def usage(self) -> Usage: ...

    def __aiter__(self) -> AsyncIterator[list[News]]: ...


async def talk(service: Service, call: Call, turn: Turn) -> AbstractAsyncContextManager[Talk]:
    """Renders, tokenises, and hands a turn to the engine. RequestError, QueueFull or Unavailable before anything runs."""
    raise NotImplementedError
