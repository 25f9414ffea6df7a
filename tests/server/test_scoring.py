"""Scoring over HTTP against transformers in float32: prompts' log-probabilities, at degrees that cut heads evenly and not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shardwise.engine.engine import Engine
from shardwise.engine.hub import bundled
from shardwise.engine.setup import Options, resolve
from shardwise.server.routes import ROUTES
from tests.scoring.expected import Judge, windows
from tests.server.drive import Served, serving

LIMIT = 1e-4
"""The largest difference of a text's log-likelihood, in nats."""

LONGEST = 256
TEXTS = ("Once upon a time there was a little girl.", "na\u00efve caf\u00e9 \u4e00\u4e8c \U0001f642\n", "The sun rises " * 40)


class Real(Engine):
    """An engine in this process takes all requests."""

    lost: str | None = None

    async def admitted(self, request: int) -> None: ...


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge(bundled(), LONGEST)


@pytest.fixture(scope="module", params=[1, 2, 3])
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    setup = resolve(Options("shardling", tp=request.param, dtype="float32", device="cpu"))
    with Real(setup, "threads") as engine, serving(engine, ROUTES) as made:
        yield made


@pytest.mark.parametrize("most", [0, 1])
def test_echoed_prompts_are_worth_what_transformers_says(served: Served, judge: Judge, most: int):
    """As lm-eval asks: ids, all at once, with one token more than is scored or none."""
    prompts = [judge.encode(text)[:LONGEST] for text in TEXTS]
    asked = {"prompt": prompts, "max_tokens": most, "temperature": 0, "logprobs": 1, "echo": True}
    choices = served.post("/v1/completions", asked).json["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2]
    for ids, choice in zip(prompts, choices, strict=True):
        found = choice["logprobs"]["token_logprobs"]
        assert len(found) == len(ids) + most and found[0] is None
        assert sum(found[1 : len(ids)]) == pytest.approx(sum(judge.tokens(ids)), abs=LIMIT)
        tops = choice["logprobs"]["top_logprobs"][1 : len(ids)]
        assert all(max(top.values()) >= value for top, value in zip(tops, found[1:], strict=False))


def test_tokens_over_http_are_the_tokenizers(served: Served, judge: Judge):
    for text in TEXTS:
        given = served.post("/tokenize", {"prompt": text, "add_special_tokens": False}).json["tokens"]
        assert given == judge.encode(text)


def test_windows_count_every_token_once():
    for length in (1, 5, 6, 7, 18, 100):
        ids = list(range(1, length + 1))
        found = list(windows(ids, 0, 6))
        assert [token for seen, count in found for token in seen[-count:]] == ids
        assert all(len(seen) > count and len(seen) <= 7 for seen, count in found)


def test_the_tasks_are_there():
    tasks = Path(__file__).parents[1] / "scoring" / "tasks"
    assert sorted(path.name for path in tasks.iterdir()) == ["choices.jsonl", "choices.yaml", "prose.jsonl", "prose.yaml"]
