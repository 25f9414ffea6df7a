"""Weights for others: a checkpoint that holds what random weights are, and rows as ggml rotates them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from shardwise.bench.export import checkpoint
from shardwise.bench.gguf_export import once, renamed, tensors, turned
from shardwise.engine.setup import Options, resolve
from shardwise.errors import ShardwiseError
from shardwise.runtime.load import arena, fill_dummy
from tests.checkpoints import BASE


def test_the_same_weights(tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"model_type": "llama", **BASE, "torch_dtype": "bfloat16", "tie_word_embeddings": True}))
    made = checkpoint(config, tmp_path / "made")
    layout = resolve(Options(str(made), device="cpu")).layout  # which reads every name and shape
    _, expected = arena(layout, 0, torch.device("cpu"))
    fill_dummy(expected, layout.slices(0), lambda _: None)
    found = dict(tensors(made, np))
    assert set(found) == set(expected)
    for name, values in found.items():
        assert np.array_equal(values, expected[name].float().numpy()), name
        assert renamed(name) == "output.weight" or renamed(name)[-7:] == ".weight"
    before = (made / "model.safetensors").stat().st_mtime_ns
    assert checkpoint(config, made) == made and (made / "model.safetensors").stat().st_mtime_ns == before


def test_what_others_cannot_read_is_refused(tmp_path):
    config = tmp_path / "config.json"
    shape = {key: value for key, value in BASE.items() if key != "num_key_value_heads"}
    config.write_text(json.dumps({"model_type": "phi3", **shape, "torch_dtype": "float32"}))
    with pytest.raises(ShardwiseError, match="cannot be written for others"):
        checkpoint(config, tmp_path / "made")
    assert not (tmp_path / "made" / "model.safetensors").exists()


def test_rows_are_turned():
    """A head of 6 rows, halves (0 1 2 | 3 4 5), becomes pairs: 0 3 1 4 2 5."""
    rows = np.arange(12, dtype=np.float32)[:, None]
    assert turned(rows, 2)[:, 0].tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


@pytest.mark.parametrize("stored", [("lm_head",), ("model.embed_tokens",), ("lm_head", "model.embed_tokens")])
def test_a_tied_table_is_written_once(stored):
    """TinyStories-656K, for one, stores it as the head alone."""
    weights = [(f"{name}.weight", place) for place, name in enumerate(("model.norm", *stored))]
    assert list(once(iter(weights), tied=True)) == [("model.norm.weight", 0), ("model.embed_tokens.weight", 1)]
    assert list(once(iter(weights), tied=False)) == weights
