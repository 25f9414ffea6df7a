"""`/v1/score` and `/v1/rerank`: texts compared by how likely the model finds one after the other. Knows no HTTP.

A causal model has no trained similarity: these are log-probabilities, and say so. A body is read to pairs, each with a prompt
to run with `engine.likelihood.SCORING`; their outputs make the reply.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from shardwise.engine.likelihood import SCORING, Pair, pair, paired
from shardwise.engine.outputs import RequestOutput
from shardwise.engine.setup import Setup
from shardwise.engine.text import Tokenizer
from shardwise.sched.request import MOST
from shardwise.server.embeddings import PromptUsage, usage_of
from shardwise.server.fields import MAX_INPUTS, ModelName, Priority, Salt, Unused, check_count
from shardwise.server.fits import check_fits

PASSAGE = "Passage: {document}\n\nPlease write a question based on this passage.\n\nQuestion:"
"""What stands before the query that a document is scored by. The words are of UPR (Sachan et al. 2022, "Improving Passage
Retrieval with Zero-Shot Question Generation")."""


class ScoreBody(msgspec.Struct, kw_only=True):
    """Pairs of texts: how likely is each text_2 after its text_1?"""

    text_1: Annotated[str | list[str], Meta(description="What stands before: one text for all of text_2, or one for each.")]
    text_2: Annotated[str | list[str], Meta(description="What is scored: the mean log-probability of its tokens.")]
    model: ModelName | None = None
    priority: Priority = 0
    cache_salt: Salt | None = None
    user: Unused | None = None


class ScoreData(msgspec.Struct):
    """`score`: the mean log-probability a token of text_2 after text_1, at most 0; `exp` of it is between 0 and 1."""

    index: int
    score: float
    object: str = "score"


class ScoreReply(msgspec.Struct, kw_only=True):
    """One score for each pair, in their order."""

    id: str
    object: str = "list"
    created: int
    model: str
    data: list[ScoreData]
    usage: PromptUsage


class Document(msgspec.Struct):
    """A text to be found."""

    text: Annotated[str, Meta(description="The text itself.")]


class RerankBody(msgspec.Struct, kw_only=True):
    """Documents to put in order: how likely does each make the query?"""

    query: Annotated[str, Meta(min_length=1, description="What is looked for.")]
    documents: Annotated[
        list[str | Document],
        Meta(min_length=1, description="Where it is looked for: texts, or objects with a text."),
    ]
    top_n: Annotated[int, Meta(ge=0, le=MOST, description="Give only so many, the best; 0 or absent is all.")] = 0
    return_documents: Annotated[bool, Meta(description="Give the texts back beside their scores.")] = True
    model: ModelName | None = None
    priority: Priority = 0
    cache_salt: Salt | None = None
    user: Unused | None = None


class Ranked(msgspec.Struct):
    """One document by its index in the request. `relevance_score`: the mean log-probability a token of the query after the
    document and a request to write a question on it; at most 0, and `exp` of it is between 0 and 1."""

    index: int
    relevance_score: float
    document: Document | UnsetType = UNSET


class RerankReply(msgspec.Struct):
    """The best first; of equal ones, the one that came first."""

    id: str
    model: str
    results: list[Ranked]
    usage: PromptUsage


def read_score(
    body: ScoreBody, tokenizer: Tokenizer, setup: Setup, *, tenant: str = "", most: int = MAX_INPUTS
) -> tuple[Pair, ...]:
    """Checks and tokenises; blocks. RequestError or Refusal for what cannot run: also a pair that is too long, or more than
    `most` texts."""
    first, second = _many(body.text_1), _many(body.text_2)
    for name, texts in (("text_1", first), ("text_2", second)):
        check_count(len(texts), most, name)
    return tuple(_pair(tokenizer, setup, texts, f"pair {n}", None, tenant) for n, texts in enumerate(paired(first, second)))


def score_reply(pairs: Sequence[Pair], outputs: Sequence[RequestOutput], model: str, id: str, created: int) -> ScoreReply:
    """What the client gets, of one finished output for each pair, in their order. `created` is in seconds since 1970."""
    data = [ScoreData(n, one.score(output)) for n, (one, output) in enumerate(zip(pairs, outputs, strict=True))]
    return ScoreReply(id=id, created=created, model=model, data=data, usage=usage_of([one.prompt for one in pairs]))


def read_rerank(
    body: RerankBody, tokenizer: Tokenizer, setup: Setup, *, tenant: str = "", most: int = MAX_INPUTS
) -> tuple[Pair, ...]:
    """A pair for each document. As `read_score`."""
    check_count(len(body.documents), most, "documents")
    scored = f" {body.query}"
    return tuple(
        _pair(tokenizer, setup, (PASSAGE.format(document=text), scored), f"documents[{n}] with the query", "documents", tenant)
        for n, text in enumerate(map(_text, body.documents))
    )


def rerank_reply(body: RerankBody, pairs: Sequence[Pair], outputs: Sequence[RequestOutput], model: str, id: str) -> RerankReply:
    """What the client gets, of one finished output for each document, in their order."""
    scores = [one.score(output) for one, output in zip(pairs, outputs, strict=True)]
    # Sorting keeps the order of equal ones.
    best = sorted(range(len(scores)), key=lambda n: -scores[n])[: body.top_n or None]
    results = [Ranked(n, scores[n], Document(_text(body.documents[n])) if body.return_documents else UNSET) for n in best]
    return RerankReply(id, model, results, usage_of([one.prompt for one in pairs]))


def _many(given: str | list[str]) -> list[str]:
    return [given] if isinstance(given, str) else given


def _text(document: str | Document) -> str:
    return document if isinstance(document, str) else document.text


def _pair(tokenizer: Tokenizer, setup: Setup, texts: tuple[str, str], name: str, param: str | None, tenant: str) -> Pair:
    found = pair(tokenizer, *texts, name, tenant=tenant)
    check_fits(setup, found.prompt.ids, SCORING, param, name=name)
    return found
