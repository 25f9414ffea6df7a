"""What a request gives back, under the names that users of vLLM know."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from shardwise.sched.events import Finish


class Logprob(msgspec.Struct, frozen=True, gc=False):
    """The log-probability of one token at one place, before temperature and edits. `rank` 1 is the likeliest; None is not
    known, of ids that were named (`logprob_token_ids`): their log-probabilities alone are looked up.

    `decoded_token` is its text by itself: U+FFFD where it is only a part of a character. Long prompts have a million of these,
    so they are made quickly, and the garbage collector, which they would keep busy for long, does not know them.
    """

    logprob: float
    rank: int | None
    decoded_token: str


Logprobs = dict[int, Logprob]
"""By token id: first the token that is there, then the likeliest ones, or those that were named."""


@dataclass(slots=True)
class CompletionOutput:
    """One continuation. `logprobs`, one for each of `token_ids`, and `cumulative_logprob` are None where nobody asked.

    `finish_reason` is None while it goes on; "stop" at an end token or a stop string, "length" at the limit, "abort".
    `stop_reason`: the stop string, or the one of `stop_token_ids`, that ended it; None for the model's own end token.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[Logprobs] | None = None
    finish_reason: Finish | None = None
    stop_reason: int | str | None = None

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None


@dataclass(frozen=True, slots=True)
class Metrics:
    """When things happened, in seconds after the request came in, and how often it had to start over."""

    first_token_s: float | None = None
    total_s: float | None = None
    preempted: int = 0


@dataclass(slots=True)
class RequestOutput:
    """A request as far as it has come. `prompt` is None where it was given as token ids.

    `prompt_logprobs`, one for each token of the prompt, is None where nobody asked; that of the first token always is.
    `num_cached_tokens` of the prompt were not computed again; None until that is known.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[Logprobs | None] | None
    outputs: list[CompletionOutput]
    finished: bool
    metrics: Metrics = field(default_factory=Metrics)
    num_cached_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class EmbeddingOutput:
    """One vector, as long as the model's hidden states are wide, unless fewer dimensions were asked for."""

    embedding: list[float]


@dataclass(frozen=True, slots=True)
class EmbeddingRequestOutput:
    """What became of one prompt: `outputs.embedding`. `num_cached_tokens` of the prompt were not computed again."""

    request_id: str
    outputs: EmbeddingOutput
    prompt_token_ids: list[int]
    num_cached_tokens: int
    finished: bool = True


@dataclass(frozen=True, slots=True)
class ScoringOutput:
    """A mean log-probability a token: at most 0, higher is likelier."""

    score: float


@dataclass(frozen=True, slots=True)
class ScoringRequestOutput:
    """What became of one pair of texts: `outputs.score`. The prompt is both, one after the other."""

    request_id: str
    outputs: ScoringOutput
    prompt_token_ids: list[int]
    num_cached_tokens: int
    finished: bool = True
