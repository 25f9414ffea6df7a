"""What `/v1/score` and `/v1/rerank` take and give: pairs, means, orders, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardwise.engine.complete import Prompt
from shardwise.engine.likelihood import Pair
from shardwise.engine.outputs import Logprob, RequestOutput
from shardwise.engine.setup import Setup
from shardwise.engine.text import Tokenizer, open_tokenizer
from shardwise.errors import RequestError
from shardwise.server.refusal import Refusal
from shardwise.server.score import (
    RerankBody,
    ScoreBody,
    read_rerank,
    read_score,
    rerank_reply,
    score_reply,
)

CONTEXT = 1024
"""Of the bundled model."""


@pytest.fixture(scope="module")
def tokenizer(setup: Setup) -> Tokenizer:
    return open_tokenizer(setup.folder)


def score_body(**fields: object) -> ScoreBody:
    return msgspec.convert(fields, ScoreBody)


def rerank_body(**fields: object) -> RerankBody:
    return msgspec.convert(fields, RerankBody)


def finished(pair: Pair, logprob: float) -> RequestOutput:
    """The engine's output, where every scored token has this log-probability and those before it another one."""
    ids = list(pair.prompt.ids)
    before = len(ids) - pair.scored
    places = [{token: Logprob(logprob if n >= before else -99.0, 1, "")} for n, token in enumerate(ids)]
    return RequestOutput("1", None, ids, [None, *places[1:]], [], True, num_cached_tokens=0)


def plain(value: msgspec.Struct) -> dict:  # type: ignore[type-arg]
    return json.loads(msgspec.json.encode(value))  # type: ignore[no-any-return]


# --- score ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "pairs"),
    [
        ("a", "b", [("a", "b")]),
        ("a", ["b", "c"], [("a", "b"), ("a", "c")]),
        (["a"], ["b", "c"], [("a", "b"), ("a", "c")]),
        (["a", "b"], ["c", "d"], [("a", "c"), ("b", "d")]),
    ],
)
def test_one_with_each_or_each_with_its_own(
    setup: Setup, tokenizer: Tokenizer, first: object, second: object, pairs: Sequence[tuple[str, str]]
) -> None:
    found = read_score(score_body(text_1=first, text_2=second), tokenizer, setup, tenant="t")
    for one, (before, scored) in zip(found, pairs, strict=True):
        own = tokenizer.encode(scored, add_special_tokens=False)
        assert list(one.prompt.ids) == [*tokenizer.encode(before), *own]
        assert (one.scored, one.prompt.tenant) == (len(own), "t")


def test_the_reply_is_vllm_s(setup: Setup, tokenizer: Tokenizer) -> None:
    pairs = read_score(score_body(text_1="The cat", text_2=[" sat", " sat down"]), tokenizer, setup)
    outputs = [finished(one, logprob) for one, logprob in zip(pairs, (-0.5, -2.25), strict=True)]
    count = sum(len(one.prompt.ids) for one in pairs)
    assert plain(score_reply(pairs, outputs, "shardling", "score-1", 1700000000)) == {
        "id": "score-1",
        "object": "list",
        "created": 1700000000,
        "model": "shardling",
        "data": [{"index": 0, "object": "score", "score": -0.5}, {"index": 1, "object": "score", "score": -2.25}],
        "usage": {"prompt_tokens": count, "total_tokens": count, "completion_tokens": 0},
    }


@given(st.lists(st.floats(-50, 0), min_size=1, max_size=30), st.integers(1, 5))
def test_a_score_is_the_mean_of_its_own_tokens(logprobs: list[float], before: int) -> None:
    ids = tuple(range(before + len(logprobs)))
    places = [{0: Logprob(-1.0, 1, "")} for _ in range(before)]
    places += [{before + n: Logprob(value, 1, ""), 999: Logprob(0.0, 1, "")} for n, value in enumerate(logprobs)]
    output = RequestOutput("1", None, list(ids), [None, *places[1:]], [], True)
    found = Pair(Prompt(None, ids), len(logprobs)).score(output)
    assert found == pytest.approx(sum(logprobs) / len(logprobs), abs=1e-12)
    assert min(logprobs) - 1e-9 <= found <= max(logprobs) + 1e-9 and 0 <= math.exp(found) <= 1


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (["a", "b"], ["c"], "text_1 has 2 texts and text_2 has 1; give one text_1 for all, or as many of each"),
        ([], "b", "text_1 has 0 texts"),
        ("a", [], "text_2 has 0"),
        ("a", ["b", ""], "the second text of pair 1 is empty"),
        ("a", ["b"] * 2049, "text_2 has 2049 texts; 2048 are the most"),
        ("a", " cat" * 1500, "pair 0: the prompt has "),
    ],
)
def test_what_cannot_be_scored(setup: Setup, tokenizer: Tokenizer, first: object, second: object, message: str) -> None:
    with pytest.raises((RequestError, Refusal)) as caught:
        read_score(score_body(text_1=first, text_2=second), tokenizer, setup)
    assert message in str(caught.value) and Refusal.of(caught.value).status == 400


def test_a_pair_that_is_too_long_is_told_with_both_numbers(setup: Setup, tokenizer: Tokenizer) -> None:
    count = len(tokenizer.encode("a")) + len(tokenizer.encode(" cat" * 1500, add_special_tokens=False))
    with pytest.raises(Refusal, match=f"the prompt has {count} tokens; it may have {CONTEXT}") as raised:
        read_score(score_body(text_1="a", text_2=" cat" * 1500), tokenizer, setup)
    assert raised.value.code == "context_length_exceeded"


# --- rerank -----------------------------------------------------------------------------------------------------------


def test_a_document_stands_before_the_query(setup: Setup, tokenizer: Tokenizer) -> None:
    documents = ["One {document} day", {"text": "Two"}]
    found = read_rerank(rerank_body(query="Who?", documents=documents), tokenizer, setup)
    for one, text in zip(found, ("One {document} day", "Two"), strict=True):
        before = f"Passage: {text}\n\nPlease write a question based on this passage.\n\nQuestion:"
        own = tokenizer.encode(" Who?", add_special_tokens=False)
        assert list(one.prompt.ids) == [*tokenizer.encode(before), *own] and one.scored == len(own)


@given(
    scores=st.lists(st.sampled_from([-0.5, -1.0, -1.5, -7.0]), min_size=1, max_size=12),
    top=st.integers(0, 15),
    texts=st.booleans(),
)
def test_the_best_come_first_and_equal_ones_in_their_order(
    setup: Setup, tokenizer: Tokenizer, scores: list[float], top: int, texts: bool
) -> None:
    documents = [f"document {n}" if n % 2 else {"text": f"document {n}"} for n in range(len(scores))]
    body = rerank_body(query="a", documents=documents, top_n=top, return_documents=texts)
    pairs = read_rerank(body, tokenizer, setup)
    outputs = [finished(one, score) for one, score in zip(pairs, scores, strict=True)]
    found = plain(rerank_reply(body, pairs, outputs, "m", "rerank-1"))
    results = found.pop("results")
    count = sum(len(one.prompt.ids) for one in pairs)
    usage = {"prompt_tokens": count, "total_tokens": count, "completion_tokens": 0}
    assert found == {"id": "rerank-1", "model": "m", "usage": usage}
    wanted = sorted(enumerate(scores), key=lambda pair: (-pair[1], pair[0]))[: top or len(scores)]
    assert [(each["index"], each["relevance_score"]) for each in results] == wanted
    assert [each.get("document") for each in results] == [{"text": f"document {n}"} if texts else None for n, _ in wanted]


@pytest.mark.parametrize(
    "fields",
    [
        {"documents": ["a"]},
        {"query": "", "documents": ["a"]},
        {"query": "a", "documents": []},
        {"query": "a", "documents": "a"},
        {"query": "a", "documents": [5]},
        {"query": "a", "documents": [{"title": "a"}]},
        {"query": "a", "documents": ["a"], "top_n": -1},
    ],
)
def test_what_no_body_is(fields: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        rerank_body(**fields)


def test_a_long_document_is_named(setup: Setup, tokenizer: Tokenizer) -> None:
    said = rf"documents\[1\] with the query: the prompt has \d+ tokens; it may have {CONTEXT}"
    with pytest.raises(Refusal, match=said) as raised:
        read_rerank(rerank_body(query="a", documents=["b", " cat" * 1500]), tokenizer, setup)
    assert (raised.value.param, raised.value.code) == ("documents", "context_length_exceeded")
