"""What `/v1/embeddings` takes, and what it gives back: shapes, numbers, and what is refused, naming the field."""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Callable, Sequence
from queue import SimpleQueue

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from shardwise.engine.embed import Pooling, shortened, start_pooling
from shardwise.engine.fake import FakeEngine
from shardwise.engine.front import Front
from shardwise.engine.setup import Setup
from shardwise.engine.text import Tokenizer, open_tokenizer
from shardwise.errors import RequestError, ShardwiseError
from shardwise.sched.events import Ended, Event
from shardwise.sched.pooling import PoolingParams
from shardwise.server.embeddings import Asked, EmbeddingBody, listed_input, read, reply
from shardwise.server.fields import MAX_INPUTS
from shardwise.server.refusal import Refusal

Make = Callable[..., FakeEngine]
HIDDEN, CONTEXT = 192, 1024
"""Of the bundled model."""


def body(**fields: object) -> EmbeddingBody:
    return msgspec.convert(fields, EmbeddingBody)


def run(engine: FakeEngine, asked: Asked) -> list[Pooling]:
    """All prompts, to their ends."""
    found = []
    for prompt in asked.prompts:
        events: SimpleQueue[Event] = SimpleQueue()
        found.append(start_pooling(engine, prompt, asked.params, events.put))
        while not found[-1].ended:
            found[-1].feed(events.get(timeout=30))
    return found


def answer(engine: FakeEngine, **fields: object) -> dict:  # type: ignore[type-arg]
    """The reply as a client reads it."""
    asked = body(**fields)
    done = run(engine, read(asked, Front(engine).tokenizer, engine.setup))
    return json.loads(msgspec.json.encode(reply(asked, done, "shardling")))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def tokenizer(setup: Setup) -> Tokenizer:
    return open_tokenizer(setup.folder)


# --- what comes back --------------------------------------------------------------------------------------------------


def test_the_reply_is_openai_s(fake: Make) -> None:
    engine = fake()
    found = answer(engine, input=[[5, 7], [9]], model="x", pooling="mean", normalize=False)
    vectors = [each.pop("embedding") for each in found["data"]]
    assert found == {
        "object": "list",
        "model": "shardling",
        "data": [{"object": "embedding", "index": 0}, {"object": "embedding", "index": 1}],
        "usage": {"prompt_tokens": 3, "total_tokens": 3, "completion_tokens": 0},
    }
    assert [{n: x for n, x in enumerate(v) if x} for v in vectors] == [{0: 1.0, 5: 0.5, 7: 0.5}, {0: 1.0, 9: 1.0}]
    assert [params for _, params in engine.submitted] == [PoolingParams("mean")] * 2


@pytest.mark.parametrize(
    ("given", "count"), [("Once", 1), (["Once", "upon"], 2), ([5, 6, 7], 1), ([[5, 6], [7]], 2), (["Once", [5, 6]], 2)]
)
def test_every_kind_of_input(fake: Make, tokenizer: Tokenizer, given: object, count: int) -> None:
    engine = fake()
    assert len(answer(engine, input=given)["data"]) == count
    first = given[0] if isinstance(given, list) and not isinstance(given[0], int) else given
    wanted = tokenizer.encode(first) if isinstance(first, str) else first
    assert list(engine.submitted[0][0]) == wanted and engine.submitted[0][1] == PoolingParams("last")


@given(
    tokens=st.lists(st.integers(0, 999), min_size=1, max_size=9),
    dimensions=st.none() | st.integers(1, HIDDEN),
    normalize=st.booleans(),
    pooling=st.sampled_from(["mean", "last"]),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_base64_is_the_same_numbers(
    fake: Make, tokens: list[int], dimensions: int | None, normalize: bool, pooling: str
) -> None:
    engine = fake()
    fields = {"input": tokens, "dimensions": dimensions, "normalize": normalize, "pooling": pooling}
    [plain] = answer(engine, **fields, encoding_format="float")["data"]
    [coded] = answer(engine, **fields, encoding_format="base64")["data"]
    raw = base64.b64decode(coded["embedding"], validate=True)
    assert list(struct.unpack(f"<{len(raw) // 4}f", raw)) == plain["embedding"]
    assert len(plain["embedding"]) == (dimensions or HIDDEN)
    assert not normalize or math.hypot(*plain["embedding"]) == pytest.approx(1, abs=1e-6)
    engine.close()


@given(
    st.lists(st.floats(-(2.0**60), 2.0**60, width=32), min_size=1, max_size=50),
    st.none() | st.integers(1, 60),
    st.booleans(),
)
@example([0.0, 0.0], None, True)
@example([2.0**-100] * 2, 1, True)
def test_vectors_are_cut_then_normalised(vector: list[float], dimensions: int | None, normalize: bool) -> None:
    found = shortened(vector, normalize=normalize, dimensions=dimensions)
    cut = vector[:dimensions]
    assert len(found) == len(cut)
    length = math.hypot(*cut)
    if not normalize or length <= 1e-12:
        assert found == cut
    else:
        assert math.hypot(*found) == pytest.approx(1, abs=1e-6)
        assert found == pytest.approx([number / length for number in cut], rel=1e-6, abs=1e-30)


IDS = st.integers(0, 2**31)
KINDS = st.text() | st.lists(IDS)


@given(st.text() | st.lists(IDS, min_size=1) | st.lists(KINDS, min_size=1, max_size=5))
def test_inputs_are_taken_one_by_one(given: str | Sequence[str | int | Sequence[int]]) -> None:
    found = listed_input(given)
    one = isinstance(given, str) or isinstance(given[0], int)
    assert found == ([given] if one else given)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"input": []}, "input is empty; send at least one text"),
        ({"input": ["a"] * (MAX_INPUTS + 1)}, f"input has 2049 texts; {MAX_INPUTS} are the most"),
        ({"input": [1, "a"]}, "input[1] is no token id, but input[0] is"),
        ({"input": ["a", 1]}, "input[1] is a token id, but input[0] is not"),
        ({"input": ["a", []]}, "input[1] is empty: it needs at least one token"),
        ({"input": "", "add_special_tokens": False}, "input is empty: it needs at least one token"),
        ({"input": ["a", [1, 99999]]}, "input[1]: the prompt: token id 99999 is not in this model's vocabulary"),
        ({"input": [-1]}, "token id 0 of input is -1"),
        ({"input": [[5] * (CONTEXT + 1)]}, f"input[0]: the prompt has {CONTEXT + 1} tokens; it may have {CONTEXT}"),
        ({"input": "a", "dimensions": HIDDEN + 1}, f"dimensions is {HIDDEN + 1}; it takes a whole number from 1 to {HIDDEN}"),
        ({"input": "a", "truncate_prompt_tokens": 0}, f"truncate_prompt_tokens is 0; it takes 1 to {CONTEXT}"),
        ({"input": "a", "truncate_prompt_tokens": 2000}, f"truncate_prompt_tokens is 2000; it takes 1 to {CONTEXT}"),
    ],
)
def test_what_cannot_run_is_refused(setup: Setup, tokenizer: Tokenizer, fields: dict[str, object], message: str) -> None:
    with pytest.raises((Refusal, RequestError)) as caught:
        read(body(**fields), tokenizer, setup)
    assert message in str(caught.value) and Refusal.of(caught.value).status == 400


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"input": 5},
        {"input": [True]},
        {"input": [[["a"]]]},
        {"input": "a", "encoding_format": "int8"},
        {"input": "a", "pooling": "cls"},
        {"input": "a", "dimensions": 0},
        {"input": "a", "truncate_prompt_tokens": -2},
    ],
)
def test_what_no_body_is(fields: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        body(**fields)


def test_a_long_prompt_is_cut_where_that_is_asked_for_alone(setup: Setup, tokenizer: Tokenizer) -> None:
    ids = [n % 100 for n in range(CONTEXT + 76)]
    for asked, wanted in ((-1, ids[76:]), (5, ids[-5:]), (CONTEXT, ids[76:])):
        [prompt] = read(body(input=ids, truncate_prompt_tokens=asked), tokenizer, setup).prompts
        assert list(prompt.ids) == wanted
    [prompt] = read(body(input=[1, 2, 3], truncate_prompt_tokens=5), tokenizer, setup, tenant="t").prompts
    assert (prompt.ids, prompt.tenant) == ((1, 2, 3), "t")
    [prompt] = read(body(input=ids[:CONTEXT]), tokenizer, setup).prompts
    assert len(prompt.ids) == CONTEXT


def test_one_that_failed_has_no_reply(fake: Make, tokenizer: Tokenizer) -> None:
    engine = fake()
    asked = body(input=[[5], [6]])
    done = run(engine, read(asked, tokenizer, engine.setup))
    done[1].feed(Ended(2, error="the ranks were lost"))
    with pytest.raises(ShardwiseError, match="the ranks were lost"):
        reply(asked, done, "x")
