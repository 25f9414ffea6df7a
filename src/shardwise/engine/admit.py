"""Whether a request can run at all, said before anything is computed: ids in range, and room in the context."""

from __future__ import annotations

from collections.abc import Sequence

from shardwise.engine.setup import Setup
from shardwise.errors import RequestError, TooLong
from shardwise.sched.checks import in_vocabulary
from shardwise.sched.pooling import PoolingParams
from shardwise.sched.request import SamplingParams


def admit(setup: Setup, prompt: Sequence[int], params: SamplingParams | PoolingParams) -> int:
    """How many tokens may be generated; RequestError where the request can never run, TooLong where that
    is for want of room. Needs no ranks."""
    context, vocab = setup.context, setup.layout.model.vocab
    if not prompt:
        raise RequestError("the prompt is empty: it needs at least one token")
    scoring = not isinstance(params, SamplingParams) or params.max_tokens == 0
    if len(prompt) >= context + scoring:
        raise TooLong(_too_long(setup, len(prompt), scoring))
    in_vocabulary("the prompt", prompt, vocab)
    if not isinstance(params, SamplingParams):
        return 0
    params.check_vocabulary(vocab)
    if scoring:
        return 0
    room = context - len(prompt)
    if params.max_tokens is not None and params.max_tokens > room:
        raise TooLong(
            f"the prompt has {len(prompt)} tokens and max_tokens is {params.max_tokens}: together more than the context of "
            f"{context}; ask for at most {room}"
        )
    return room if params.max_tokens is None else params.max_tokens


def _too_long(setup: Setup, length: int, scoring: bool) -> str:
    own = f"(this model's own context is {setup.layout.model.context})"
    reasons = {"model": "this model's context", "flag": f"--max-model-len {own}", "memory": f"what the memory holds {own}"}
    most, least = (setup.context, "") if scoring else (setup.context - 1, "with at least one to generate ")
    return f"the prompt has {length} tokens; {least}it may have {most}, by {reasons[setup.bound]}"
