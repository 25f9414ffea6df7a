"""Large language models cut over any number of devices: tensor parallelism, end to end.

Importing this loads nothing else; each name brings its own part when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shardwise.engine.outputs import (
        CompletionOutput,
        EmbeddingOutput,
        EmbeddingRequestOutput,
        Logprob,
        RequestOutput,
        ScoringOutput,
        ScoringRequestOutput,
    )
    from shardwise.engine.prompts import TextPrompt, TokensPrompt
    from shardwise.errors import RequestError, ShardwiseError, UserError
    from shardwise.llm import LLM, AsyncLLM
    from shardwise.sched.pooling import PoolingParams
    from shardwise.sched.request import RequestOutputKind, SamplingParams

_HOMES = {
    "LLM": "llm", "AsyncLLM": "llm",
    "PoolingParams": "sched.pooling",
    "SamplingParams": "sched.request", "RequestOutputKind": "sched.request",
    "RequestOutput": "engine.outputs", "CompletionOutput": "engine.outputs", "Logprob": "engine.outputs",
    "EmbeddingRequestOutput": "engine.outputs", "EmbeddingOutput": "engine.outputs",
    "ScoringRequestOutput": "engine.outputs", "ScoringOutput": "engine.outputs",
    "TextPrompt": "engine.prompts", "TokensPrompt": "engine.prompts",
    "ShardwiseError": "errors", "UserError": "errors", "RequestError": "errors",
}  # fmt: skip

__all__ = [
    "AsyncLLM",
    "CompletionOutput",
    "EmbeddingOutput",
    "EmbeddingRequestOutput",
    "LLM",
    "Logprob",
    "PoolingParams",
    "RequestError",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
    "ScoringOutput",
    "ScoringRequestOutput",
    "ShardwiseError",
    "TextPrompt",
    "TokensPrompt",
    "UserError",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("shardwise")
    if name not in _HOMES:
        raise AttributeError(f"module 'shardwise' has no attribute {name!r}")
    return getattr(import_module(f"shardwise.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
