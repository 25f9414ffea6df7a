"""What `--lenient` takes out of a body instead of refusing the request. Off by default: a client should hear what it asked
for and does not get. OpenAI's own test suite sends such bodies. Knows neither how a body is read nor what it runs as.
"""

from __future__ import annotations

from collections.abc import Iterator

from shardwise.server.call import Call
from shardwise.server.chat_body import ChatBody
from shardwise.server.completions_body import CompletionBody
from shardwise.server.embeddings import EmbeddingBody
from shardwise.server.responses.body import ResponsesBody
from shardwise.server.service import Service

IGNORED = "X-Ignored"
"""The header of an answer that names the fields that were taken out."""


def ignored(service: Service, call: Call, body: object) -> list[str]:
    """Takes out of `body` what would be refused but can be done without; the names of these fields."""
    vocab = service.engine.setup.layout.model.vocab
    match body:
        case ChatBody():
            return [*_biases(body, vocab), *_chat(body)]
        case CompletionBody():
            return [*_biases(body, vocab), *_text(body)]
        case EmbeddingBody():
            return list(_embedding(body))
        case ResponsesBody():
            return list(_response(body, {kept.id for kept in service.store.all(call.tenant)}))
        case _:
            return []


def _chat(body: ChatBody) -> Iterator[str]:
    """Answers of no tokens at all, which have one then, and the older name of tools beside the newer."""
    for name in ("max_tokens", "max_completion_tokens"):
        if getattr(body, name) == 0:
            setattr(body, name, 1)
            yield name
    if body.tools is not None:
        for name in ("functions", "function_call"):
            if getattr(body, name) is not None:
                setattr(body, name, None)
                yield name


def _text(body: CompletionBody) -> Iterator[str]:
    """The text behind a gap: this server fills none. Log-probabilities of an echoed prompt: its first token has none, and where
    OpenAI's schema has a number a null is refused by clients that validate strictly."""
    if body.suffix is not None:
        body.suffix = None
        yield "suffix"
    if body.echo and body.logprobs is not None:
        body.logprobs = body.logprob_token_ids = None
        yield "logprobs"


def _biases(body: ChatBody | CompletionBody, vocab: int) -> Iterator[str]:
    """Biases of what is no token."""
    given = body.logit_bias or {}
    known = {key for key in given if key.isascii() and key.isdigit() and len(key) < 20 and int(key) < vocab}
    kept = {key: bias for key, bias in given.items() if key in known}
    if len(kept) < len(given):
        body.logit_bias = kept
        yield "logit_bias"


def _embedding(body: EmbeddingBody) -> Iterator[str]:
    """base64: OpenAI's Python client asks for it unasked, and where it validates strictly it then refuses it."""
    if body.encoding_format == "base64":
        body.encoding_format = "float"
        yield "encoding_format"


def _response(body: ResponsesBody, known: set[str]) -> Iterator[str]:
    """Ids of what is not kept here; `known` are those that are."""
    if body.previous_response_id is not None and body.previous_response_id not in known:
        body.previous_response_id = None
        yield "previous_response_id"
    for name in ("conversation", "prompt"):
        if getattr(body, name) is not None:
            setattr(body, name, None)
            yield name
