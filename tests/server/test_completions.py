"""Completions: prompts of every kind, the older log-probabilities, scoring, the best of many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from shardwise.sched.step import Chosen
from shardwise.server.call import Call
from shardwise.server.routes import ROUTES
from shardwise.server.turn import tenant
from tests.server.drive import Served, serving
from tests.server.engines import ServingFake
from tests.server.saying import says, says_texts, text_streamed, text_whole

PATH = "/v1/completions"


@pytest.fixture
def served(engine: ServingFake) -> Iterator[Served]:
    with serving(engine, ROUTES) as made:
        yield made


def test_an_answer(served: Served, engine: ServingFake):
    says_texts(engine, served.service.front.tokenizer, " upon a time")
    answer = served.post(PATH, {"prompt": "Once"}).json
    assert answer["object"] == "text_completion" and answer["id"].startswith("cmpl-")
    assert answer["choices"] == [
        {"index": 0, "text": " upon a time", "logprobs": None, "finish_reason": "stop", "stop_reason": None}
    ]
    assert answer["usage"]["completion_tokens"] == 4


def test_sixteen_tokens_by_themselves(served: Served, engine: ServingFake):
    says(engine, [300] * 99)
    answer = served.post(PATH, {"prompt": "Once"}).json
    assert answer["usage"]["completion_tokens"] == 16 and answer["choices"][0]["finish_reason"] == "length"


def test_a_long_prompt_is_told_as_a_short_one_is(served: Served, engine: ServingFake):
    """Off the loop, and from scores that came in several steps."""
    says(engine, [300] * 3)
    ids = [20 + n % 50 for n in range(engine.setup.limits.tokens + 150)]
    asked = {"prompt": ids, "echo": True, "logprobs": 2, "n": 2, "max_tokens": 3, "return_token_ids": True}
    whole, streamed = (
        read(served.post(PATH, {**asked, "stream": bool(n)})) for n, read in enumerate((text_whole, text_streamed))
    )
    assert whole == streamed
    text = served.service.front.tokenizer.decode([*ids, 300, 300, 300])
    for choice in whole.values():
        assert choice["text"] == text and choice["prompt_token_ids"] == ids
        assert choice["logprobs"]["token_logprobs"] == [None, *[-0.5] * (len(ids) + 2)]
        assert choice["logprobs"]["text_offset"] == sorted(choice["logprobs"]["text_offset"])


def test_many_prompts_in_their_order(served: Served, engine: ServingFake):
    """Texts and ids, n of each; the answer to prompt i, choice j, is number i * n + j."""
    engine.answer = lambda prompt, choice, place: 6 if place else 1000 + 100 * choice + len(prompt)
    prompts = ["Once upon", [9, 10], "Once"]
    asked = {"prompt": prompts, "n": 2, "return_token_ids": True, "max_tokens": 4}
    for read, stream in ((text_whole, False), (text_streamed, True)):
        found = read(served.post(PATH, {**asked, "stream": stream}))
        lengths = [len(found[2 * n]["prompt_token_ids"]) for n in range(3)]
        assert lengths == [4, 2, 3]
        assert [found[n]["token_ids"][0] for n in range(6)] == [1000 + 100 * (n % 2) + lengths[n // 2] for n in range(6)]


def test_one_prompt_of_ids_gets_nothing_added(served: Served, engine: ServingFake):
    assert served.post(PATH, {"prompt": [9, 10, 11], "max_tokens": 1}).status == 200
    assert engine.submitted[-1][0] == (9, 10, 11)
    served.post(PATH, {"prompt": "Once", "max_tokens": 1, "add_special_tokens": False})
    assert engine.submitted[-1][0] == tuple(served.service.front.tokenizer.encode("Once", add_special_tokens=False))
    served.post(PATH, {"prompt": [9, 10, 11], "max_tokens": 1, "truncate_prompt_tokens": 2})
    assert engine.submitted[-1][0] == (10, 11)


@pytest.mark.parametrize("most", [0, 1])
def test_scoring(served: Served, engine: ServingFake, most: int):
    """As evaluation tools do it: the prompt comes back with the log-probabilities of its tokens."""
    says(engine, [300])
    asked = {"prompt": "Once upon", "max_tokens": most, "echo": True, "logprobs": 1, "temperature": 0}
    (choice,) = served.post(PATH, asked).json["choices"]
    logprobs = choice["logprobs"]
    assert logprobs["tokens"][:4] == ["<|bos|>", "On", "ce", " upon"] and len(logprobs["tokens"]) == 4 + most
    assert logprobs["token_logprobs"] == [None, *[-0.5] * (3 + most)] and logprobs["text_offset"][:4] == [0, 0, 2, 4]
    assert logprobs["top_logprobs"][1] == {"On": -0.5} and logprobs["top_logprobs"][0] is None
    assert choice["text"].startswith("Once upon") and choice["finish_reason"] == "length"


def test_echo_of_ids(served: Served, engine: ServingFake):
    says(engine, [])
    ids = served.service.front.tokenizer.encode("Zürich 日本")
    (choice,) = served.post(PATH, {"prompt": ids, "echo": True, "logprobs": 0}).json["choices"]
    assert choice["text"] == "Zürich 日本" and choice["logprobs"]["top_logprobs"] is None
    assert any(token.startswith("bytes:\\x") for token in choice["logprobs"]["tokens"])
    assert "�" not in "".join(choice["logprobs"]["tokens"])


class Scoring(ServingFake):
    """Later choices are likelier."""

    def _chosen(self, token: int, logprobs: int | None) -> Chosen:
        return Chosen(token, -9.0 + token / 1000, 1, ()) if logprobs is not None else Chosen(token)


def test_best_of(engine: ServingFake):
    with Scoring(engine.setup) as scoring, serving(scoring, ROUTES) as served:
        # By the mean: that of choice 1 is the highest, though its sum is the lowest.
        says(scoring, [1000, 1000], [3000] * 6, [2000, 2000])
        answer = served.post(PATH, {"prompt": "Once", "n": 2, "best_of": 3, "return_token_ids": True}).json
    assert [choice["token_ids"][0] for choice in answer["choices"]] == [3000, 2000]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert answer["choices"][0]["logprobs"] is None and answer["usage"]["completion_tokens"] == 13


def test_stops(served: Served, engine: ServingFake):
    says_texts(engine, served.service.front.tokenizer, "one two three")
    asked: dict[str, object] = {"prompt": "Count", "stop": "two"}
    (choice,) = served.post(PATH, asked).json["choices"]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("one ", "stop", "two")
    (choice,) = served.post(PATH, {**asked, "include_stop_str_in_output": True}).json["choices"]
    assert choice["text"] == "one two"


def told(engine: ServingFake) -> Sequence[object]:
    params = engine.submitted[-1][1]
    return params.temperature, params.top_p, params.logit_bias


def test_the_checkpoint_says_what_nobody_else_does(served: Served, engine: ServingFake):
    """The bundled model's generation_config.json asks for the likeliest token."""
    served.post(PATH, {"prompt": "Once", "max_tokens": 1, "temperature": None})
    assert told(engine) == (0.0, 1.0, None)
    served.post(PATH, {"prompt": "Once", "max_tokens": 1, "temperature": 0.7, "top_p": 0.5, "logit_bias": {"50": -100}})
    assert told(engine) == (0.7, 0.5, {50: -100.0})


def test_salts_keep_caches_apart():
    """Of requests with another salt, and of those with another key."""

    calls = [Call("id", key, 0.0, PATH) for key in ("", "a", "b")]
    found = {tenant(call, salt) for call in calls for salt in ("", "x", "y", "|x")}
    assert len(found) == 12 and tenant(calls[1], None) == "a"
