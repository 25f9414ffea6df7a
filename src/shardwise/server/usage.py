"""How many tokens a request had, as OpenAI's API tells it."""

from __future__ import annotations

import msgspec

from shardwise.server.job import Usage


class PromptDetails(msgspec.Struct):
    """Tokens of the prompt that were found in the cache."""

    cached_tokens: int


class UsageReply(msgspec.Struct):
    """Tokens of all prompts, each once, and of all answers."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


def told(usage: Usage) -> UsageReply:
    """`usage` as a client reads it."""
    return UsageReply(usage.prompt, usage.completion, usage.prompt + usage.completion, PromptDetails(usage.cached))
