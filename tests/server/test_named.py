"""`logprob_token_ids`: of each place of an answer the log-probabilities of the ids that are named, as transformers has them."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from shardwise.engine.engine import Engine
from shardwise.engine.hub import bundled
from shardwise.engine.setup import Options, resolve
from shardwise.llm import LLM
from shardwise.sched.request import SamplingParams
from shardwise.server.routes import ROUTES
from tests.checkpoints import FAMILIES, build
from tests.server.drive import Served, serving
from tests.server.saying import chat_streamed, chat_whole, text_streamed, text_whole

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
VOCAB = 4110
"""More logits than the tokenizer has ids."""

NAMED = (4109, 0, 300, 2055, 1370, 2740)
"""At the ends of what two or three ranks hold, and within."""

LIMIT = 1e-4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random llama that reads and writes as the bundled model does."""
    found = tmp_path_factory.mktemp("named")
    build({**FAMILIES["llama"], "vocab_size": VOCAB, "max_position_embeddings": 512, "eos_token_id": 6}, found)
    for pattern in ("*token*.json", "*.jinja"):
        for path in bundled().glob(pattern):
            shutil.copy(path, found)
    return found


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def expected(model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """[answer, vocabulary]: the log-probabilities of all ids at each place of the answer."""
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    return logits.double().log_softmax(-1)


@pytest.mark.parametrize("tp", [1, 2, 3])
def test_they_are_those_of_all_logits(folder: Path, model: Any, tp: int):
    """Drawn under edits that change neither; beside others, who want the likeliest or nothing."""
    chance = random.Random(tp)
    kinds: list[dict[str, Any]] = [
        {"logprob_token_ids": NAMED, "n": 2},
        {"logprob_token_ids": [7], "logprobs": 5, "logit_bias": {7: -100}, "repetition_penalty": 1.5},
        {"logprobs": 3},
        {},
    ]
    params = [SamplingParams(temperature=1.2, max_tokens=9, ignore_eos=True, seed=n, **kind) for n, kind in enumerate(kinds)]
    prompts = [[chance.randrange(8, 4000) for _ in range(count)] for count in (3, 20, 7, 5)]
    with LLM(folder, tensor_parallel_size=tp, dtype="float32", device="cpu", ranks="threads") as llm:
        outputs = llm.generate(prompts, params, use_tqdm=False)
    for prompt, kind, output in zip(prompts, kinds, outputs, strict=True):
        for choice in output.outputs:
            if not kind:
                assert choice.logprobs is None
                continue
            every = expected(model, prompt, choice.token_ids)
            for row, token, place in zip(every, choice.token_ids, choice.logprobs, strict=True):
                named = kind.get("logprob_token_ids") or row.topk(3).indices.tolist()
                assert list(place) == list(dict.fromkeys((token, *named)))
                assert {i: one.logprob for i, one in place.items()} == pytest.approx(
                    {i: row[i].item() for i in place}, abs=LIMIT
                )
                ranks = [one.rank for one in place.values()]
                assert ranks[0] == (row > row[token]).sum().item() + 1
                assert all(rank is None for rank in ranks[1:]) or "logprob_token_ids" not in kind


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    setup = resolve(Options(str(folder), tp=3, dtype="float32", device="cpu", threads=1))
    with Engine(setup, "threads") as engine, serving(engine, ROUTES) as made:
        yield made


ASKED: dict[str, Any] = {
    "max_tokens": 6, "temperature": 1.2, "seed": 5, "n": 2, "ignore_eos": True, "logprob_token_ids": NAMED,
    "return_token_ids": True, "return_tokens_as_token_ids": True,
}  # fmt: skip


def test_chat_tells_them_beside_the_one_that_came(served: Served, model: Any):
    """As vLLM: the token that came is the first of `top_logprobs`, whatever `top_logprobs` says."""
    asked = {**ASKED, "messages": [{"role": "user", "content": "Tell me a story."}], "logprobs": True, "top_logprobs": 1}
    answer = served.post(CHAT, asked)
    whole, streamed = chat_whole(answer), chat_streamed(served.post(CHAT, {**asked, "stream": True}))
    assert len(whole) == 2 and whole == streamed
    for choice in whole.values():
        every = expected(model, answer.json["prompt_token_ids"], choice["ids"])
        for row, token, place in zip(every, choice["ids"], choice["logprobs"], strict=True):
            ids = list(dict.fromkeys((token, *NAMED)))
            assert [one["token"] for one in place["top_logprobs"]] == [f"token_id:{i}" for i in ids]
            told = [one["logprob"] for one in place["top_logprobs"]]
            assert told == pytest.approx(row[ids].tolist(), abs=LIMIT) and place["logprob"] == told[0]


@pytest.mark.parametrize("top", [0, 2])
def test_completions_tell_them_by_name(served: Served, model: Any, top: int):
    """Also of an echoed prompt, whose places have the likeliest."""
    asked = {**ASKED, "prompt": "Once upon", "logprobs": top, "echo": True}
    whole, streamed = text_whole(served.post(TEXT, asked)), text_streamed(served.post(TEXT, {**asked, "stream": True}))
    assert len(whole) == 2 and whole == streamed
    for choice in whole.values():
        prompt, ids = choice["prompt_token_ids"], choice["token_ids"]
        first, *tops = choice["logprobs"]["top_logprobs"]
        assert first is None and len(tops) == len(prompt) - 1 + len(ids)
        assert all(max(1, top) <= len(each) <= top + 1 for each in tops[: len(prompt) - 1])
        every = expected(model, prompt, ids)
        for row, token, told in zip(every, ids, tops[len(prompt) - 1 :], strict=True):
            wanted = {f"token_id:{i}": row[i].item() for i in (token, *NAMED)}
            assert told == pytest.approx(wanted, abs=LIMIT)


def test_tokens_in_tokens_out(served: Served):
    """By the names of SamplingParams, `logprobs` need not be said."""
    body = {"token_ids": [9, 10], "sampling_params": {"max_tokens": 2, "logprob_token_ids": [3, 4], "seed": 1}}
    (choice,) = served.post("/inference/v1/generate", body).json["choices"]
    assert [len(place["top_logprobs"]) for place in choice["logprobs"]["content"]] == [3, 3]
