"""How many tokens a request had, as OpenAI's API tells it."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from shardwise.server.job import Usage


class PromptDetails(msgspec.Struct):
    """Tokens of the prompt that were found in the cache."""

    cached_tokens: int


class CompletionDetails(msgspec.Struct):
    """Tokens of the answers that are reasoning, known of each answer at its end."""

    reasoning_tokens: int


class UsageReply(msgspec.Struct):
    """Tokens of all prompts, each once, and of all answers."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails | UnsetType = UNSET


def told(usage: Usage) -> UsageReply:
    """`usage` as a client reads it."""
    details = UNSET if usage.reasoning is None else CompletionDetails(usage.reasoning)
    total = usage.prompt + usage.completion
    return UsageReply(usage.prompt, usage.completion, total, PromptDetails(usage.cached), details)
