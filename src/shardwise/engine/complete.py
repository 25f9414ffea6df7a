"""Text out of an engine: a prompt's ids go in, pieces of text come out as they become certain, stop strings cut.

Knows one request at a time; neither templates nor where the text goes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardwise.engine.engine import Engine, Finish
from shardwise.engine.text import Detokenizer, StopStrings, Tokenizer, read_json
from shardwise.errors import CheckpointError, RequestError
from shardwise.sched.request import SamplingParams

SAMPLING_KEYS = ("temperature", "top_p", "top_k", "min_p")


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a request read and made."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Piece:
    """What one token added. `text` is often empty: a character may take several tokens, a stop string may have begun.

    `logprob` is the token's own, `top` are the most likely ones at its place, if they were asked for. The last piece has
    `finish`: "stop" at an end token or a stop string, "length" at the limit.
    """

    text: str
    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    usage: Usage
    finish: Finish | None = None


def complete(engine: Engine, tokenizer: Tokenizer, prompt: Sequence[int], params: SamplingParams) -> Iterator[Piece]:
    """The continuation of `prompt`. End tokens and stop strings are not part of the text; closing the iterator ends it.

    As in vLLM, stop strings are looked for after `min_tokens`. Raises RequestError where the request can never run.
    """
    characters = Detokenizer(tokenizer, after=prompt)
    stops = StopStrings(params.stop)
    tokens = engine.generate(prompt, params, tokenizer.eos_ids)
    for count, token in enumerate(tokens, start=1):
        finish = token.finish
        # An end token need not be a special one, but it is never text.
        text = "" if finish == "stop" else characters.push(token.id)
        if count > params.min_tokens:
            text = stops.push(text)
        if finish and stops.matched is None:
            text += stops.push(characters.finish()) + stops.finish()
        if stops.matched is not None:
            finish = "stop"
        yield Piece(text, token.id, token.chosen.logprob, token.chosen.top, Usage(len(prompt), count), finish)
        if finish:
            return


def sampling_defaults(folder: Path) -> dict[str, Any]:
    """What the checkpoint's generation_config.json recommends, by the names of SamplingParams. As in vLLM, it need not say
    `do_sample`; but where it says false, the likeliest token is taken. Raises CheckpointError for values out of range."""
    path = folder / "generation_config.json"
    given = read_json(path)
    if given.get("do_sample") is False:
        return {"temperature": 0.0}
    found = {key: given[key] for key in SAMPLING_KEYS if given.get(key) is not None}
    try:
        SamplingParams(**found)
    except RequestError as error:
        raise CheckpointError(f"{path}: {error}; mend it, or remove the file") from None
    return found
