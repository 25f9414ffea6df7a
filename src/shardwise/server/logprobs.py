"""Log-probabilities in the three shapes that clients read: chat's, the older one of completions, vLLM's of prompts."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from shardwise.engine.outputs import Logprob, Logprobs
from shardwise.engine.text import Detokenizer, Tokenizer
from shardwise.sched.request import SamplingParams

LEAST = -9999.0
"""In place of minus infinity, which JSON does not have (as in vLLM)."""


class TopLogprob(msgspec.Struct, gc=False):
    """A token that might have come here."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct, gc=False):
    """A token of the answer, and the likeliest ones at its place; with `logprob_token_ids` itself and those."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, gc=False):
    """One entry for each token, those of the reasoning and of tool calls too."""

    content: list[TokenLogprob]


class TextLogprobs(msgspec.Struct, gc=False):
    """The older shape, lists of one length. `text_offset` is where each token begins in `text`, in characters."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class PromptLogprob(msgspec.Struct):
    """vLLM's shape, by token id."""

    logprob: float
    rank: int | None
    decoded_token: str


class Speller:
    """Names tokens: by their text, `bytes:\\xe2\\x80` for a part of a character (as OpenAI), or `token_id:5`."""

    def __init__(self, tokenizer: Tokenizer, *, by_id: bool = False) -> None:
        self._tokenizer, self._by_id = tokenizer, by_id
        self._known: dict[int, tuple[str, list[int]]] = {}

    def name(self, token: int) -> str:
        return self.spelled(token)[0]

    def spelled(self, token: int) -> tuple[str, list[int]]:
        """The name of a token and its bytes, which are not to be changed: both are made once."""
        if (found := self._known.get(token)) is None:
            data = self._tokenizer.spell(token, first=False, skip_special_tokens=False) or b""
            found = self._known[token] = (f"token_id:{token}" if self._by_id else _named(data), list(data))
        return found

    def chat(self, places: Sequence[Logprobs], top: int | None) -> list[TokenLogprob]:
        """The tokens of some places, each with what `likeliest` gives of `top`."""
        found = []
        for place in places:
            token = next(iter(place))
            beside = []
            for each, one in likeliest(place, top):
                name, data = self.spelled(each)
                beside.append(TopLogprob(name, finite(one), data))
            name, data = self.spelled(token)
            found.append(TokenLogprob(name, finite(place[token]), data, beside))
        return found


def _named(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


class Offsets:
    """The older shape for one text as it comes: knows where it is. `top` is as `likeliest` has it."""

    def __init__(self, speller: Speller, characters: Detokenizer, top: int | None, begin: int = 0) -> None:
        self._speller, self._characters, self._top, self._at = speller, characters, top, begin

    def read(self, ids: Sequence[int], places: Sequence[Logprobs | None]) -> TextLogprobs:
        """Some more tokens; None for the first of a prompt, which has no log-probability."""
        found = TextLogprobs([], [], None if self._top == 0 else [], [])
        for token, place in zip(ids, places, strict=True):
            found.tokens.append(self._speller.name(token))
            found.text_offset.append(self._at)
            found.token_logprobs.append(None if place is None else finite(place[token]))
            if found.top_logprobs is not None:
                found.top_logprobs.append(None if place is None else self._tops(token, place))
            self._at += len(self._characters.push(token))
        return found

    def _tops(self, token: int, place: Logprobs) -> dict[str, float]:
        """The likeliest, and the one that is there (as in vLLM and OpenAI)."""
        names = {self._speller.name(each): finite(one) for each, one in likeliest(place, self._top)}
        return {**names, self._speller.name(token): finite(place[token])}


def joined(first: TextLogprobs | None, then: TextLogprobs | None) -> TextLogprobs | None:
    """`first` with the other behind it."""
    if first is None or then is None:
        return first or then
    first.tokens += then.tokens
    first.token_logprobs += then.token_logprobs
    first.text_offset += then.text_offset
    if first.top_logprobs is not None and then.top_logprobs is not None:
        first.top_logprobs += then.top_logprobs
    return first


def likeliest(place: Logprobs, top: int | None) -> list[tuple[int, Logprob]]:
    """The `top` likeliest tokens of a place in their order; the one that is there only if it is among them. None: all that are
    told of the place, the one that is there first (as in vLLM, where ids are named)."""
    if top is None:
        return list(place.items())
    ranked = sorted((one.rank, token) for token, one in place.items() if one.rank is not None and one.rank <= top)
    return [(token, place[token]) for _, token in ranked[:top]]


def wanted_beside(params: SamplingParams) -> int | None:
    """How many of the likeliest tokens an answer tells at each place; None where other ids are named."""
    return None if params.logprob_token_ids is not None else params.logprobs or 0


def finite(one: Logprob) -> float:
    """The log-probability as JSON can hold it."""
    return max(one.logprob, LEAST)


def prompt_shape(places: Sequence[Logprobs | None] | None) -> list[dict[int, PromptLogprob] | None] | None:
    """vLLM's shape of a prompt's log-probabilities; None where nobody asked."""
    if places is None:
        return None
    return [
        None
        if place is None
        else {token: PromptLogprob(finite(one), one.rank, one.decoded_token) for token, one in place.items()}
        for place in places
    ]
