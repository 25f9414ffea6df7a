"""Whether a prompt has room and its tokens are known: told of the client's own field, with the code that clients know."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from shardwise.engine.admit import admit
from shardwise.engine.setup import Setup
from shardwise.errors import RequestError, TooLong
from shardwise.sched.pooling import PoolingParams
from shardwise.sched.request import SamplingParams
from shardwise.server.refusal import Refusal

PROMPT = "the prompt"
"""What errors begin with that are not of a sampling field."""


def check_fits(
    setup: Setup,
    ids: Sequence[int],
    params: SamplingParams | PoolingParams,
    param: str | None,
    *,
    name: str = "",
    limit: str = "max_tokens",
) -> None:
    """Refuses a prompt that is too long, with what was asked for behind it, or has tokens that the model does not know; both
    are told of `param`, and called `name` where that is one of several. `limit` is how the API calls `max_tokens`.

    RequestError for the token ids of a sampling field."""
    place = f"{name}: " if name else ""
    try:
        with renamed(max_tokens=limit):
            admit(setup, ids, params)
    except TooLong as error:
        # In the words of OpenAI's and of Anthropic's API, by which clients (litellm, Claude Code) know what to do about it.
        this = "The prompt is too long: this" if len(ids) >= setup.context else "This"
        said = f"{place}{error}. {this} model's maximum context length is {setup.context} tokens"
        raise Refusal(400, said, param=param, code="context_length_exceeded") from None
    except RequestError as error:
        if not str(error).startswith(PROMPT):
            raise
        raise Refusal(400, f"{place}{error}", param=param) from None


@contextmanager
def told_of(name: str) -> Iterator[None]:
    """Errors begin with the field that they are of."""
    try:
        yield
    except RequestError as error:
        raise type(error)(f"{name}: {error}") from None


@contextmanager
def renamed(**names: str) -> Iterator[None]:
    """Errors call a field as the API that was asked calls it: `max_tokens="max_output_tokens"`."""
    try:
        yield
    except RequestError as error:
        words = re.compile(rf"\b({'|'.join(names)})\b")
        raise type(error)(words.sub(lambda match: names[match[1]], str(error))) from None
