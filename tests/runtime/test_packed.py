"""Experts stored in MXFP4 are loaded as their dense twin is, at any cut, from groups of this rank's alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from shardwise.errors import CheckpointError, ConfigError
from shardwise.runtime import load
from shardwise.spec.binding import bind
from shardwise.spec.checkpoint import open_checkpoint, read_json
from shardwise.spec.config import read_model
from tests.checkpoints import BASE, build
from tests.group import even, layout_of

CPU = torch.device("cpu")
CONFIG = {
    **BASE, "model_type": "gpt_oss", "num_local_experts": 3, "num_experts_per_tok": 2, "hidden_size": 96, "head_dim": 8,
    "intermediate_size": 160, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}  # fmt: skip
KEPT = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
QUANTIZATION = {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": KEPT}}
NUMBERS = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint of random MXFP4 experts, and the same with their numbers written out in bfloat16."""
    dense, packed = tmp_path_factory.mktemp("dense"), tmp_path_factory.mktemp("packed")
    build(CONFIG, dense, dtype=torch.bfloat16)
    tensors = load_file(dense / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    stored = dict(tensors)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors[name].shape
        digits = torch.randint(0, 16, (experts, outputs, inputs // 32, 32), generator=generator)
        scales = torch.randint(118, 125, (experts, outputs, inputs // 32), generator=generator)
        # The first of two neighbours is in the low half of their byte.
        stored[f"{name}_blocks"] = (digits[..., ::2] + 16 * digits[..., 1::2]).to(torch.uint8)
        stored[f"{name}_scales"] = scales.to(torch.uint8)
        del stored[name]
        numbers = torch.tensor(NUMBERS)[digits] * 2.0 ** (scales - 127)[..., None]
        tensors[name] = numbers.flatten(-2).transpose(1, 2).contiguous().bfloat16()
    save_file(tensors, dense / "model.safetensors")
    save_file(stored, packed / "model.safetensors")
    (packed / "config.json").write_text(json.dumps({**read_json(dense / "config.json"), **QUANTIZATION}))
    return dense, packed


@pytest.mark.parametrize("expert_parallel", [False, True])
@pytest.mark.parametrize("shares", [even(1), even(2), (3.0, 1.0, 1.0), even(7)], ids=str)
def test_as_the_dense_twin(twins: tuple[Path, Path], shares: tuple[float, ...], expert_parallel: bool) -> None:
    dense, packed = twins
    layout = layout_of(packed, shares, "bfloat16", expert_parallel=expert_parallel)
    assert layout.model.dtype == "bfloat16"
    places = bind(layout.model, open_checkpoint(packed))
    # The same cut, its weights bound to the dense tensors: only where they stand differs.
    plain = bind(read_model(read_json(dense / "config.json")), open_checkpoint(dense))
    assert places.keys() == plain.keys()
    for rank in range(len(shares)):
        _, ours = load.arena(layout, rank, CPU)
        _, theirs = load.arena(layout, rank, CPU)
        load.fill(ours, layout.slices(rank), places, lambda _: None)
        load.fill(theirs, layout.slices(rank), plain, lambda _: None)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert any("experts" in name and tensor.numel() for name, tensor in ours.items()) or len(shares) == 7


def test_cuts_keep_groups_together(twins: tuple[Path, Path]) -> None:
    layout = layout_of(twins[1], even(3), "bfloat16")
    down = next(w for w in layout.weights(0) if w.name.endswith("experts.down_proj.weight"))
    spans = layout.spans(down.axes[2])
    assert [span.start % 32 for span in spans] == [0, 0, 0]
    assert sum(map(len, spans)) == 160


def test_what_is_not_packed_is_refused_where_it_should_be() -> None:
    config = {**CONFIG, "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": []}}
    with pytest.raises(ConfigError, match="mxfp4 is implemented for experts that share a tensor, and 'q_proj' is none"):
        read_model(config)


def test_blocks_of_another_shape_are_refused(twins: tuple[Path, Path], tmp_path: Path) -> None:
    tensors = load_file(twins[1] / "model.safetensors")
    name = "model.layers.1.mlp.experts.down_proj_scales"
    save_file({**tensors, name: tensors[name][..., :-1].contiguous()}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"_scales has shape \[3, 96, 4\], but config.json makes it \[3, 96, 5\]"):
        bind(read_model(read_json(twins[1] / "config.json")), open_checkpoint(tmp_path))
