"""A stream tells what an answer at once tells, whatever the model says: any tokens, calls, stop strings, choices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardwise.engine.setup import Setup
from shardwise.engine.text import Tokenizer, open_tokenizer
from shardwise.server.routes import ROUTES
from tests.server.drive import Served, serving
from tests.server.engines import ServingFake
from tests.server.saying import END, chat_streamed, chat_whole, says, text_streamed, text_whole

TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {"a": {}}}}}
    for name in ("f", "g")
]
PARTS = (
    '<tool_call>{"name": "f", "arguments": {"a": "Zürich \\"日本\\""}}</tool_call>',
    '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>',
    '<tool_call>{"name": "nobody", "arguments": {}}</tool_call>',
    "<tool_call>{", "</tool_call>", "<", "tool", "stop here", "日本語", "😀", " and so on", "\n\n",
)  # fmt: skip
STOPS = ("stop", "日", "n", '"f"')


@pytest.fixture(scope="module")
def tokenizer(setup: Setup) -> Tokenizer:
    return open_tokenizer(setup.folder)


@pytest.fixture(scope="module")
def spoken(setup: Setup) -> Iterator[tuple[ServingFake, Served]]:
    with ServingFake(setup) as engine, serving(engine, ROUTES) as served:
        yield engine, served


def tokens(tokenizer: Tokenizer) -> st.SearchStrategy[list[int]]:
    """What a model may say: of whole texts, and of any tokens."""
    ids = [tuple(tokenizer.encode(part, add_special_tokens=False)) for part in PARTS]
    part = st.one_of(*[st.sampled_from(ids)] * 4, st.integers(8, 4095).map(lambda token: (token,)), st.just((END,)))
    return st.lists(part, max_size=8).map(lambda parts: [token for each in parts for token in each])


def quick(examples: int) -> settings:
    return settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))


@quick(120)
@given(data=st.data())
def test_chat(data: st.DataObject, spoken: tuple[ServingFake, Served], tokenizer: Tokenizer):
    engine, served = spoken
    n = data.draw(st.integers(1, 3))
    says(engine, *(data.draw(tokens(tokenizer)) for _ in range(n)))
    body = {
        "messages": [{"role": "user", "content": "hi"}], "n": n, "max_tokens": data.draw(st.sampled_from([1, 7, 30, 120])),
        "stop": data.draw(st.lists(st.sampled_from(STOPS), max_size=2)), "return_token_ids": True,
        "skip_special_tokens": data.draw(st.booleans()),
    }  # fmt: skip
    if data.draw(st.booleans()):
        body |= {"tools": TOOLS, "parallel_tool_calls": data.draw(st.sampled_from([None, True, False]))}
    if data.draw(st.booleans()):
        body |= {"logprobs": True, "top_logprobs": data.draw(st.integers(0, 3))}
    whole = chat_whole(served.post("/v1/chat/completions", body))
    usage = data.draw(st.sampled_from([None, {"include_usage": True}, {"include_usage": True, "continuous_usage_stats": True}]))
    answer = served.post("/v1/chat/completions", {**body, "stream": True, "stream_options": usage})
    assert chat_streamed(answer) == whole
    assert set(whole) == set(range(n))
    for choice in whole.values():
        assert bool(choice["calls"]) or choice["finish"] != "tool_calls"
        assert choice["logprobs"] is None or len(choice["logprobs"]) == len(choice["ids"])
    chunks = [chunk for chunk in answer.events if chunk != "[DONE]"]
    ids = sum(len(choice["ids"]) for choice in whole.values())
    if usage:
        last = chunks.pop()
        assert last["choices"] == [] and last["usage"]["completion_tokens"] == ids
    told = [chunk.get("usage", "absent") for chunk in chunks]
    if usage and len(usage) == 2:
        assert all(isinstance(each, dict) for each in told)
    else:
        assert set(told) == {None if usage else "absent"}
    assert all(chunk["choices"] for chunk in chunks)


@quick(60)
@given(data=st.data())
def test_completions(data: st.DataObject, spoken: tuple[ServingFake, Served], tokenizer: Tokenizer):
    engine, served = spoken
    n, prompts = data.draw(st.integers(1, 2)), data.draw(st.sampled_from(["Once", ["Once", [9, 300, 3000]], [[4000]]]))
    says(engine, *(data.draw(tokens(tokenizer)) for _ in range(n)))
    stop = data.draw(st.lists(st.sampled_from(STOPS), max_size=2))
    body = {
        "prompt": prompts, "n": n, "max_tokens": data.draw(st.integers(1, 60)), "stop": stop,
        "echo": data.draw(st.booleans()), "return_token_ids": True, "logprobs": data.draw(st.sampled_from([None, 0, 2])),
    }  # fmt: skip
    whole = text_whole(served.post("/v1/completions", body))
    assert text_streamed(served.post("/v1/completions", {**body, "stream": True})) == whole
    assert sorted(whole) == list(range(n * (1 if isinstance(prompts, str) else len(prompts))))
    for choice in whole.values():
        if not stop:
            assert choice["text"] == continued(tokenizer, choice, echo=bool(body["echo"]))
        check_offsets(choice, body)


def continued(tokenizer: Tokenizer, choice: dict[str, object], *, echo: bool) -> str:
    """The text by the tokenizer alone. An end token is no text."""
    prompt, ids = choice["prompt_token_ids"], choice["token_ids"]
    assert isinstance(prompt, list) and isinstance(ids, list)
    text = tokenizer.decode([*prompt, *ids])
    return text if echo else text.removeprefix(tokenizer.decode(prompt))


def check_offsets(choice: dict[str, object], body: dict[str, object]) -> None:
    """The older shape's lists are of one length, its offsets those of characters."""
    logprobs = choice["logprobs"]
    if body["logprobs"] is None:
        assert logprobs is None
        return
    assert isinstance(logprobs, dict) and isinstance(choice["text"], str)
    ids: Sequence[int] = choice["token_ids"]  # type: ignore[assignment]
    shown = [*choice["prompt_token_ids"], *ids] if body["echo"] else ids  # type: ignore[misc]
    offsets = logprobs["text_offset"]
    assert len(logprobs["tokens"]) == len(logprobs["token_logprobs"]) == len(offsets) == len(shown)
    assert offsets == sorted(offsets) and (logprobs["top_logprobs"] is None) == (body["logprobs"] == 0)
    for token, at, after in zip(logprobs["tokens"], offsets, offsets[1:], strict=False):
        if not token.startswith(("bytes:", "<|")) and after - at == len(token):
            assert choice["text"][at:after] in (token, "") or body["stop"]
