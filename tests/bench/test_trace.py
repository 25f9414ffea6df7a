"""Traces: both formats as they are published, scaled, and prompts that begin alike where the real ones did."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardwise.bench.trace import Arrival, Scale, read, scaled, tokens
from shardwise.errors import UserError

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
MOONCAKE = [
    {"timestamp": 2000, "input_length": 1100, "output_length": 5, "hash_ids": [0, 7, 8]},
    {"timestamp": 3500, "input_length": 1500, "output_length": 9, "hash_ids": [0, 7, 9]},
]


def test_both_formats(tmp_path):
    (tmp_path / "a.csv").write_text(AZURE)
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in MOONCAKE))
    first, second = read(tmp_path / "a.csv", 9)
    assert (first.at_s, first.prompt, first.answer) == (0.0, 374, 44)
    assert second.at_s == pytest.approx(4.314579, abs=1e-5)
    found = read(tmp_path / "m.jsonl", 9)
    assert [(each.at_s, each.prompt, each.blocks) for each in found] == [(0.0, 1100, (0, 7, 8)), (1.5, 1500, (0, 7, 9))]
    assert len(read(tmp_path / "m.jsonl", 1)) == 1
    one, two = (tokens(each, number, 1000) for number, each in enumerate(found))
    assert (len(one), len(two)) == (1100, 1500)
    assert one[:1024] == two[:1024] and one[1024:] != two[1024:1100]


def test_published_traces_are_read(data):
    for name in ("AzureLLMInferenceTrace_code.csv", "AzureLLMInferenceTrace_conv.csv", "mooncake_conversation_trace.jsonl"):
        found = read(data / "traces" / name, 400)
        assert len(found) == 400 and found[-1].at_s > 0 and all(each.prompt > 0 for each in found)


@pytest.mark.parametrize("text", ["", "TIMESTAMP,ContextTokens,GeneratedTokens\n", "a,b\n1,2\n", "\xff"])
@pytest.mark.parametrize("name", ["x.csv", "x.jsonl"])
def test_what_is_no_trace_is_refused(tmp_path, text, name):
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="--trace"):
        read(tmp_path / name, 5)


@given(
    st.lists(st.builds(Arrival, st.floats(0, 1e4), st.integers(1, 9000), st.integers(1, 9000)), max_size=20),
    st.builds(Scale, st.integers(1, 20), st.floats(0.1, 100), st.floats(0.01, 10), st.integers(2, 4096)),
)
def test_scaled_requests_fit(arrivals, scale):
    found, cut = scaled(arrivals, scale)
    assert len(found) == min(len(arrivals), scale.requests) and cut <= len(found)
    for each, before in zip(found, arrivals, strict=False):
        assert each.prompt >= 1 and each.answer >= 1 and each.prompt + each.answer <= scale.context
        assert each.at_s == before.at_s / scale.speed
        assert len(made := tokens(each, 3, 50)) == each.prompt and all(0 <= token < 50 for token in made)
