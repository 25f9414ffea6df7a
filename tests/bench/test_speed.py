"""Speeds of an engine: steps in which all sequences run, failures told, and the bytes that a step reads."""

from __future__ import annotations

import json

import pytest

from shardwise.bench.cases import bits_a_weight, cases, quantized, step_bytes
from shardwise.bench.speed import WARM, decode, prefill, prompts, room, spread
from shardwise.engine.cores import crowded
from shardwise.engine.devices import cpus
from shardwise.engine.setup import Options, resolve
from shardwise.errors import ShardwiseError, UserError
from tests.checkpoints import BASE


@pytest.mark.parametrize("batch", [1, 3])
def test_steps_are_counted(fake, batch):
    engine = fake(lambda *_: 7)
    steps = decode(engine, batch, 5, 6)
    assert len(steps) == 6 and all(step >= 0 for step in steps)
    assert prefill(engine, batch, 9) > 0
    assert len({tuple(prompt[:1]) for prompt, _ in engine.submitted[:batch]}) == batch


@pytest.mark.parametrize("fails_at", [0, 2, 2 + WARM])
def test_a_failure_is_told(fake, fails_at):
    engine = fake(lambda _prompt, _choice, number: -1 if number >= fails_at else 7)
    with pytest.raises(ShardwiseError, match="a request failed while 2 sequences were decoded"):
        decode(engine, 2, 5, 20)
    with pytest.raises(ShardwiseError, match="a prompt of 5 tokens failed"):
        prefill(fake(lambda *_: -1), 2, 5)


def test_a_sequence_has_room():
    assert room(16, 64, 24, 512) >= 64 + 24 + WARM + 3
    assert prompts(3, 4, 10) == [[3, 0, 7, 4], [4, 1, 8, 5], [5, 2, 9, 6]]
    assert spread([3.0, 1.0, 2.0, 10.0]) == {"min": 1.0, "median": 2.5, "max": 10.0}


@pytest.mark.parametrize("tied", [False, True])
def test_what_a_step_reads(tmp_path, tied):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **BASE, "tie_word_embeddings": tied}))
    for tp in (1, 3):
        setup = resolve(Options(str(tmp_path), tp=tp, dtype="bfloat16", device="cpu", load_format="dummy"))
        layout = setup.layout
        assert (layout.model.head.linear.tied is not None) == tied
        table = 0 if tied else 2 * layout.model.vocab * layout.model.hidden
        held = sum(layout.weight_bytes(rank) for rank in range(tp))
        assert step_bytes(setup, 1, 0) == held - table
        kept = sum(layout.kv_bytes_per_token(rank) for rank in range(tp))
        assert step_bytes(setup, 3, 10) == held - table + 30 * kept
        assert bits_a_weight(setup) == pytest.approx(16.0, rel=1e-3)


def test_cases_and_warnings():
    found = cases(Options("shardling"), (1, 2), ("bfloat16", "float32"), ("none",))
    assert [case.name for case in found] == ["tp 1, bfloat16", "tp 2, bfloat16", "tp 1, float32", "tp 2, float32"]
    with pytest.raises(UserError, match="int4:128"):
        quantized(Options("shardling"), "int3")
    assert crowded(1, cpus()) is None
    assert "take turns" in (crowded(cpus() + 1, 1) or "")
