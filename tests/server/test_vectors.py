"""Embeddings, scores and ranks over HTTP, by a real engine: the same numbers as from Python."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import pytest

from shardwise import LLM
from shardwise.engine.engine import Engine
from shardwise.engine.setup import Options, resolve
from shardwise.sched.pooling import floats
from shardwise.server.routes import ROUTES
from tests.server.drive import Served, serving

TEXTS = ["The cat sat on the mat.", "Tensor parallelism", "a"]


class Admitting(Engine):
    """An engine of this process, which takes whatever comes."""

    lost: str | None = None

    async def admitted(self, request: int) -> None:
        pass


@pytest.fixture(scope="module")
def engine() -> Iterator[Admitting]:
    with Admitting(resolve(Options("shardling", tp=2, device="cpu", dtype="float32", threads=1)), "threads") as engine:
        yield engine


@pytest.fixture(scope="module")
def llm(engine: Admitting) -> LLM:
    return LLM.on(engine)


@pytest.fixture(scope="module")
def served(engine: Admitting) -> Iterator[Served]:
    with serving(engine, ROUTES) as served:
        yield served


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_embeddings_are_those_of_the_library(served: Served, llm: LLM, pooling: str):
    answer = served.post("/v1/embeddings", {"input": TEXTS, "pooling": pooling, "model": "shardling"})
    assert answer.status == 200, answer.body
    assert [each["index"] for each in answer.json["data"]] == [0, 1, 2]
    expected = llm.embed(TEXTS, False, pooling=pooling)  # type: ignore[arg-type]
    for each, mine in zip(answer.json["data"], expected, strict=True):
        assert each["embedding"] == pytest.approx(mine.outputs.embedding, abs=1e-5)
        assert sum(x * x for x in each["embedding"]) == pytest.approx(1, abs=1e-5)
    tokens = sum(len(each.prompt_token_ids) for each in expected)
    assert answer.json["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}


def test_base64_holds_the_same_numbers(served: Served):
    path, body = "/v1/embeddings", {"input": TEXTS[0], "dimensions": 5}
    plain, packed = (
        served.post(path, {**body, "encoding_format": kind}).json["data"][0]["embedding"] for kind in ("float", "base64")
    )
    assert len(plain) == 5
    assert list(floats(base64.b64decode(packed))) == pytest.approx(plain, abs=1e-6)


def test_scores_are_those_of_the_library(served: Served, llm: LLM):
    answer = served.post("/v1/score", {"text_1": "Once upon a", "text_2": [" time", " xylophone"]})
    assert answer.status == 200, answer.body
    expected = llm.score("Once upon a", [" time", " xylophone"])
    assert [each["score"] for each in answer.json["data"]] == pytest.approx([each.outputs.score for each in expected], abs=1e-5)


def test_documents_come_best_first(served: Served):
    body = {"query": "What is a cat?", "documents": TEXTS, "top_n": 2, "return_documents": False}
    answer = served.post("/v1/rerank", body)
    assert answer.status == 200, answer.body
    scores = [each["relevance_score"] for each in answer.json["results"]]
    assert len(scores) == 2 and scores == sorted(scores, reverse=True) and scores[0] < 0


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/v1/embeddings", {}, "input"),
        ("/v1/embeddings", {"input": []}, "input is empty"),
        ("/v1/embeddings", {"input": "a", "dimensions": 100000}, "dimensions"),
        ("/v1/embeddings", {"input": "a " * 3000}, "the prompt has"),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["c", "d", "e"]}, "text_1"),
        ("/v1/rerank", {"query": "", "documents": ["a"]}, "query"),
        ("/v1/rerank", {"query": "a", "documents": []}, "documents"),
    ],
)
def test_what_cannot_run_is_refused(served: Served, path: str, body: dict[str, object], message: str):
    answer = served.post(path, body)
    assert answer.status == 400 and message in answer.json["error"]["message"], answer.body
