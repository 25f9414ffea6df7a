"""One turn of a conversation, whichever API asked for it: messages and tools in, content, reasoning and tool calls out.

Chat completions, responses and messages are three spellings of this.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

import msgspec

from shardwise.engine.complete import Prompt
from shardwise.engine.outputs import CompletionOutput, Logprobs
from shardwise.engine.prompts import read_chat
from shardwise.errors import CheckpointError, RequestError
from shardwise.sched.request import SamplingParams
from shardwise.server.answer.choice import Tool, ToolChoice
from shardwise.server.answer.pieces import Called, Piece, Thought
from shardwise.server.answer.reader import Reader, reader
from shardwise.server.answer.style import Style, detect
from shardwise.server.call import Call
from shardwise.server.fits import check_fits
from shardwise.server.job import Job, Usage
from shardwise.server.refusal import Refusal
from shardwise.server.sampling import shortened
from shardwise.server.service import Service
from shardwise.server.shape import shaped

if TYPE_CHECKING:
    from shardwise.engine.template import ChatTemplate  # which brings jinja2, and other endpoints need none

Finish = Literal["stop", "length", "tool_calls", "abort"]


TAIL_CHARS = 64
"""Of the prompt, to see whether it opens the reasoning."""


@dataclass(frozen=True, slots=True)
class Turn:
    """`messages` are in the form of OpenAI's chat API, checked by the template's checks. `tools` and `tool_choice` are as in
    `answer.tools`. `variables` go to the template; `salt` keeps the cache apart within a tenant. `template` is used instead of
    the model's own; whether a client may give one is the endpoint's to check. `truncate` keeps so many tokens of the prompt,
    the last. `offered` is the field that the tools came in, for messages. `budget` bounds the tokens of the reasoning; where
    that cannot be done, the turn is refused unless it is `lenient`. `special`: the prompt begins with the tokens that the
    tokenizer puts first, which most templates write themselves. `fit`: where less of the context is left than `max_tokens`,
    that is the limit. `source` is the field of the body that the conversation came in, `limit` the one that
    `max_tokens` came in."""

    messages: Sequence[Mapping[str, Any]]
    params: SamplingParams
    tools: Sequence[Tool] = ()
    offered: str = "tools"
    tool_choice: ToolChoice = "auto"
    parallel: bool = True
    variables: Mapping[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    split_reasoning: bool = True
    priority: int = 0
    salt: str = ""
    documents: Sequence[Mapping[str, Any]] | None = None
    template: str | None = None
    truncate: int | None = None
    budget: int | None = None
    lenient: bool = False
    special: bool = False
    fit: bool = False
    source: str = "messages"
    limit: str = "max_tokens"


class News(msgspec.Struct, frozen=True, gc=False):
    """What is new of one choice. `pieces` are those of `answer.pieces`; `finish` is set on its last.

    `finish` is "tool_calls" where calls were made and the answer was not cut short, whoever chose the tool."""

    choice: int
    pieces: Sequence[Piece]
    token_ids: Sequence[int]
    logprobs: Sequence[Logprobs] | None = None
    finish: Finish | None = None
    stop_reason: int | str | None = None


class Talk(Protocol):
    """A turn that was accepted and runs: an async iterator of lists of News, and an async context manager that aborts.

    `prompt_logprobs` are complete with the first News, where they were asked for."""

    prompt_ids: Sequence[int]

    @property
    def prompt_logprobs(self) -> Sequence[Logprobs | None] | None: ...

    @property
    def usage(self) -> Usage: ...

    def __aiter__(self) -> AsyncIterator[list[News]]: ...


async def talk(service: Service, call: Call, turn: Turn) -> AbstractAsyncContextManager[Talk]:
    """Renders, tokenises, and hands a turn to the engine. RequestError, QueueFull or Unavailable before anything runs."""
    prepared = await service.read(prepare, service, call, turn)
    return _Talk(service, await started(service, call, [prepared.prompt], [prepared.params], turn.priority), prepared)


async def started(
    service: Service, call: Call, prompts: Sequence[Prompt], params: Sequence[SamplingParams], priority: int = 0
) -> Job:
    """A job whose prompts are all taken; where one is not, or whoever waits is cancelled, none runs."""
    for each in {id(each): each for each in params}.values():
        await service.check(each)
    job = Job(service, call)
    try:
        await job.start(prompts, params, priority)
    except BaseException:
        job.abort()
        raise
    return job


@dataclass(frozen=True, slots=True)
class Prepared:
    """A turn as the engine takes it, and what reads the answer: a reader for each choice."""

    prompt: Prompt
    params: SamplingParams
    readers: Sequence[Reader]


def prepare(service: Service, call: Call, turn: Turn) -> Prepared:
    """Renders and tokenises a turn; blocks. RequestError for what the model cannot be asked."""
    prompt = replace(rendered(service, turn), tenant=tenant(call, turn.salt))
    params, style = shaped(turn, style_of(service, turn, prompt.text or ""), service.front.tokenizer)
    params = _fitting(service, turn, prompt, params)
    check_fits(service.engine.setup, prompt.ids, params, turn.source, limit=turn.limit)
    return Prepared(prompt, params, [reader(style, turn.tools, turn.tool_choice, turn.parallel) for _ in range(params.n)])


def style_of(service: Service, turn: Turn, prompt: str) -> Style:
    """How the model writes its answer to a prompt of this text."""
    return detect(_template(service, turn).source(tools=bool(_shown(turn))), prompt[-TAIL_CHARS:])


def rendered(service: Service, turn: Turn) -> Prompt:
    """The prompt that a turn makes; blocks. RequestError for what the model cannot be asked."""
    check_text_only(turn.messages)
    try:
        prompt = read_chat(
            turn.messages,
            service.front.tokenizer,
            _template(service, turn),
            tools=_shown(turn) or None,
            add_generation_prompt=turn.add_generation_prompt,
            continue_final_message=turn.continue_final_message,
            variables=turn.variables,
            documents=turn.documents,
        )
    except CheckpointError as error:
        if turn.template is None:
            raise
        raise RequestError(f"chat_template: {error}") from None  # the client's own
    except RequestError as error:
        refusal = Refusal.of(error)
        if refusal.param == "messages":  # which are not what each API calls them
            refusal.param = turn.source
        raise refusal from None
    if turn.special and prompt.text is not None:
        prompt = replace(prompt, ids=tuple(service.front.tokenizer.encode(prompt.text)))
    return replace(prompt, ids=shortened(service, prompt.ids, turn.truncate))


def counted(service: Service, turn: Turn) -> int:
    """How many tokens the prompt of a turn has; as `rendered`."""
    return len(rendered(service, turn).ids)


def _template(service: Service, turn: Turn) -> ChatTemplate:
    return service.front.template if turn.template is None else service.front.template.other(turn.template)


def _shown(turn: Turn) -> list[dict[str, Any]]:
    """The tools as the template gets them. One that must not be used is not shown, either."""
    return [_schema(tool) for tool in turn.tools] if turn.tool_choice != "none" else []


def _fitting(service: Service, turn: Turn, prompt: Prompt, params: SamplingParams) -> SamplingParams:
    room, asked = service.engine.setup.context - len(prompt.ids), params.max_tokens
    return replace(params, max_tokens=room) if turn.fit and asked is not None and 0 < room < asked else params


def tenant(call: Call, salt: str | None) -> str:
    """What the cache of a request is shared by. The id of a key has no `|`, so no salt makes it another's."""
    return f"{call.tenant}|{salt}" if salt else call.tenant


def owner(tenant: str) -> str:
    """Whose request it is: the `Call.tenant` of the key, whatever the salt."""
    return tenant.partition("|")[0]


def check_text_only(messages: Sequence[Mapping[str, Any]]) -> None:
    """RequestError for images, sound and files: they are not read, and no URL is ever fetched."""
    for n, message in enumerate(messages):
        content = message.get("content") if isinstance(message, Mapping) else None
        for m, part in enumerate(content if isinstance(content, list) else ()):
            kind = part.get("type") if isinstance(part, Mapping) else None
            if isinstance(kind, str) and kind != "text":
                raise RequestError(
                    f"messages[{n}].content[{m}] is of type {kind[:40]!r}; this model reads text only, as "
                    '{"type": "text", "text": "..."}'
                )


def _schema(tool: Tool) -> dict[str, Any]:
    """A tool as chat templates know it."""
    described = {"description": tool.description} if tool.description else {}
    return {"type": "function", "function": {"name": tool.name, **described, "parameters": tool.parameters}}


class _Talk:
    """Deltas of a job, read choice by choice."""

    def __init__(self, service: Service, job: Job, prepared: Prepared) -> None:
        self.prompt_ids: Sequence[int] = prepared.prompt.ids
        self._service, self._job, self._readers = service, job, prepared.readers
        self._thoughts: list[list[str]] = [[] for _ in self._readers]
        self._reasoning = 0
        self._called = [False] * len(self._readers)

    @property
    def prompt_logprobs(self) -> Sequence[Logprobs | None] | None:
        return self._job.scores(0)

    @property
    def usage(self) -> Usage:
        return replace(self._job.usage, reasoning=min(self._reasoning, self._job.usage.completion))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[News]:
        news = [self._read(each) for _, each in await self._job.__anext__()]
        for each in news:
            if each.finish is not None and (thought := "".join(self._thoughts[each.choice])):
                self._reasoning += await self._service.read(self._count, thought)
        return news

    def _count(self, thought: str) -> int:
        return len(self._service.front.tokenizer.encode(thought, add_special_tokens=False))

    def _read(self, output: CompletionOutput) -> News:
        reader, choice = self._readers[output.index], output.index
        pieces = reader.feed(output.text) if output.text else []
        if output.finish_reason is not None:
            pieces += reader.finish()
        for piece in pieces:
            if type(piece) is Called:
                self._called[choice] = True
            elif type(piece) is Thought:
                self._thoughts[choice].append(piece.text)
        finish: Finish | None = output.finish_reason
        if finish == "stop" and self._called[choice]:
            finish = "tool_calls"
        return News(choice, pieces, output.token_ids, output.logprobs, finish, output.stop_reason)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._job.__aexit__(kind, error, trace)
