"""What `/v1/chat/completions` takes and gives."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from shardwise.sched.request import MAX_LOGPROBS, MOST
from shardwise.server.fields import Effort, KeptTokens, ModelName, Priority, RequestId, Salt, Streams, Unused
from shardwise.server.logprobs import ChatLogprobs, PromptLogprob
from shardwise.server.sampling import SamplingBody, StreamOptions
from shardwise.server.usage import UsageReply

Messages = Annotated[
    list[dict[str, Any]],
    Meta(description="The conversation: role (system, developer, user, assistant, tool), content, tool_calls, ..."),
]
Tools = Annotated[list[dict[str, Any]], Meta(description="Functions that the model may call.")]
Generation = Annotated[
    bool, Meta(description="End the prompt with the head of the answer; usual unless the last message goes on.")
]
GoesOn = Annotated[bool, Meta(description="The answer goes on with the last message.")]
Documents = Annotated[list[dict[str, Any]], Meta(description="For templates that show documents.")]
Template = Annotated[str, Meta(description="A template in place of the model's; only where the server trusts those.")]
Variables = Annotated[dict[str, Any], Meta(description="Variables of the template, such as enable_thinking.")]


ThinkingBudget = Annotated[
    int,
    Meta(ge=-1, le=MOST, description="The most tokens of reasoning, after which it has to end; -1 is no bound of its own."),
]


class Thinking(msgspec.Struct):
    """Whether the model is to reason first, where its template can tell it so, and for how long at most."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, Meta(ge=0, le=MOST)] | None = None


class ChatBody(SamplingBody, kw_only=True):
    """A conversation to answer."""

    messages: Messages
    model: ModelName | None = None
    tools: Tools | None = None
    add_generation_prompt: Generation | None = None
    continue_final_message: GoesOn = False
    documents: Documents | None = None
    chat_template: Template | None = None
    chat_template_kwargs: Variables | None = None
    max_completion_tokens: (
        Annotated[int, Meta(ge=0, le=MOST, description="The most tokens of an answer; the newer name of max_tokens.")] | None
    ) = None
    tool_choice: (
        Annotated[
            str | dict[str, Any],
            Meta(description="none, auto, required, or {type: function, function: {name}}; a grammar keeps the last two."),
        ]
        | None
    ) = None
    parallel_tool_calls: Annotated[bool, Meta(description="Whether more than one call may come.")] | None = None
    functions: Annotated[list[dict[str, Any]], Meta(description="Older form of tools.")] | None = None
    function_call: Annotated[str | dict[str, Any], Meta(description="Older form of tool_choice.")] | None = None
    logprobs: Annotated[bool, Meta(description="Tell the log-probabilities of the tokens.")] | None = None
    top_logprobs: (
        Annotated[int, Meta(ge=0, le=MAX_LOGPROBS, description="With so many of the likeliest tokens at each place.")] | None
    ) = None
    stream: Streams | None = None
    stream_options: Annotated[StreamOptions | None, Meta(description="What a stream tells besides the answer.")] = None
    reasoning_effort: (
        Annotated[Effort, Meta(description="For templates that know it; none also turns thinking off.")] | None
    ) = None
    include_reasoning: Annotated[bool, Meta(description="Whether the reasoning is told; it takes place all the same.")] = True
    thinking_token_budget: ThinkingBudget | None = None
    thinking_budget: Annotated[ThinkingBudget, Meta(description="Another name of thinking_token_budget.")] | None = None
    thinking_budget_tokens: Annotated[ThinkingBudget, Meta(description="llama.cpp's name of it.")] | None = None
    reasoning_budget_tokens: Annotated[ThinkingBudget, Meta(description="Its other name there.")] | None = None
    thinking: Annotated[Thinking | None, Meta(description="Anthropic's way to say it.")] = None
    echo: Annotated[bool, Meta(description="Begin with the text of the last message where the answer goes on with it.")] = False
    truncate_prompt_tokens: KeptTokens | None = None
    add_special_tokens: Annotated[
        bool,
        Meta(description="Begin with the tokens that the tokenizer puts first; most templates do so themselves."),
    ] = False
    return_token_ids: Annotated[bool, Meta(description="Give the token ids of prompt and answer.")] | None = None
    return_tokens_as_token_ids: Annotated[bool, Meta(description="Name tokens in logprobs as token_id:N.")] | None = None
    priority: Priority = 0
    cache_salt: Salt | None = None
    request_id: RequestId | None = None
    modalities: Annotated[list[str], Meta(description="Only text works.")] | None = None
    service_tier: Annotated[str, Meta(description="There is one tier, default.")] | None = None
    user: Unused | None = None
    metadata: Annotated[dict[str, Any], Meta(description="Changes nothing.")] | None = None
    store: Annotated[bool, Meta(description="Changes nothing: no answers are kept.")] | None = None
    safety_identifier: Unused | None = None
    prompt_cache_key: Annotated[str, Meta(description="Changes nothing: equal prefixes are found by themselves.")] | None = None


class FunctionReply(msgspec.Struct):
    """Which function to call, with which arguments: the JSON text of an object."""

    name: str
    arguments: str


class CallReply(msgspec.Struct):
    """A call of a tool."""

    id: str
    function: FunctionReply
    type: str = "function"


class MessageReply(msgspec.Struct, kw_only=True):
    """The answer. `reasoning_content` and `reasoning` are one thing under the two names that clients know."""

    role: str = "assistant"
    content: str | None
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[CallReply] | UnsetType = UNSET
    function_call: FunctionReply | UnsetType = UNSET


class ChatChoice(msgspec.Struct, kw_only=True):
    """One of the n answers."""

    index: int
    message: MessageReply
    logprobs: ChatLogprobs | None
    finish_reason: str
    stop_reason: int | str | None
    token_ids: list[int] | UnsetType = UNSET


class ChatReply(msgspec.Struct, kw_only=True):
    """All answers."""

    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageReply
    system_fingerprint: str
    service_tier: str | UnsetType = UNSET
    prompt_logprobs: list[dict[int, PromptLogprob] | None] | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class FunctionDelta(msgspec.Struct, omit_defaults=True):
    """The name comes first, the arguments in parts."""

    name: str | None = None
    arguments: str | None = None


class CallDelta(msgspec.Struct, omit_defaults=True):
    """What is new of one call; id and type come first."""

    index: int
    id: str | None = None
    type: str | None = None
    function: FunctionDelta | None = None


class Delta(msgspec.Struct, omit_defaults=True, gc=False):
    """What is new of an answer: only what there is."""

    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[CallDelta] | None = None
    function_call: FunctionDelta | None = None


class ChunkChoice(msgspec.Struct, gc=False):
    """What is new of one choice; `finish_reason` is null until its last frame."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET
