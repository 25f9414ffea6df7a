"""What shardwise quantises to: which linears, in which groups, where cuts then fall, and how many bytes that is."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardwise.errors import UserError
from shardwise.spec.axes import BITS, Axis, Weight
from shardwise.spec.blocks import Linear, walk
from shardwise.spec.config import read_model
from shardwise.spec.formats import GROUPS, KINDS, Dense, Grouped
from shardwise.spec.layout import Layout, Shares
from shardwise.spec.mesh import Mesh
from shardwise.spec.model import Model, model_weights, parameters
from shardwise.spec.requantised import DEFAULT_GROUPS, left_dense, quantised, requantised
from tests.checkpoints import FAMILIES

LLAMA_1B = {
    "model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 8192, "vocab_size": 32000, "max_position_embeddings": 4096, "tie_word_embeddings": True,
}  # fmt: skip


def linears(model: Model) -> dict[str, Linear]:
    """The linears of a model by the ends of their names."""
    blocks = [*(run.block for run in model.runs), model.head]
    return {node.name: node for block in blocks for _, node in walk(block) if isinstance(node, Linear)}


def lay(model: Model, shares: tuple[float, ...]) -> Layout:
    return Layout(model, Mesh(tp=len(shares)), Shares.of(shares), "bfloat16", "bfloat16")


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(list(KINDS)), st.sampled_from(GROUPS), st.integers(0, 70), st.integers(0, 5), st.integers(0, 300))
def test_what_a_rank_holds_has_the_shapes_that_are_packed(kind: str, group: int, rows: int, start: int, columns: int) -> None:
    weights = [w for w, _ in Grouped(kind, group).weights("up", Axis(4000), Axis(4000))]
    first = start * group
    box = range(7, 7 + rows), range(first, first + columns)
    tiles, groups = -(-rows // 16), -(-columns // group)
    assert [weight.held(box) for weight in weights] == [(tiles, groups, 2 * group * KINDS[kind]), (tiles, groups, 16)]
    assert [(weight.name, weight.dtype, weight.made) for weight in weights] == [
        ("up.weight", "uint8", False),
        ("up.weight_scale", "float16", True),
    ]


@pytest.mark.parametrize(("kind", "group", "bits"), [("int8", 64, 8.25), ("int4", 32, 4.5)])
def test_a_1b_llama_takes_the_bits_that_it_says(kind: str, group: int, bits: float) -> None:
    dense = read_model(LLAMA_1B)
    model = requantised(dense, kind, group)
    assert parameters(model) == parameters(dense) and quantised(model) and not quantised(dense) and left_dense(model) == ()
    assert f"({bits:g} bits a weight)" in Grouped(kind, group).title
    norms = sum(2 * weight.elements for weight in model_weights(model) if len(weight.axes) == 1)
    matrices = sum(weight.elements for weight in model_weights(dense) if len(weight.axes) == 2)
    assert lay(model, (1.0,)).weight_bytes(0) == norms + matrices * bits / 8
    # A tied table is held once, packed.
    assert model.embed.tokens.format == model.head.linear.format == Grouped(kind, group)


@pytest.mark.parametrize("shares", [(1.0,), (1.0, 1.0), (3.0, 1.0, 1.0), (1.0,) * 5])
@pytest.mark.parametrize(("kind", "group"), [("int8", 16), ("int8", 128), ("int4", 32)])
def test_no_cut_falls_within_a_group_and_bytes_add_up(kind: str, group: int, shares: tuple[float, ...]) -> None:
    for config in FAMILIES.values():
        if "quantization_config" in config:
            continue
        model = requantised(read_model(config), kind, group)
        layout = lay(model, shares) if model.heads >= len(shares) else lay(model, (1.0,))
        for rank in range(layout.mesh.size):
            slices = layout.slices(rank)
            assert sum(part.bytes for part in slices) == layout.weight_bytes(rank)
            for part in slices:
                assert part.bytes == prod(part.shape) * BITS[part.dtype] // 8
                if part.weight.tile and part.ranges[-1]:
                    columns, whole = part.ranges[-1], part.weight.axes[-1].size
                    size = part.weight.tile.columns
                    assert columns.start % size == 0 and (columns.stop % size == 0 or columns.stop == whole), part.weight.name


def test_which_linears_and_in_which_groups() -> None:
    found = linears(requantised(read_model(LLAMA_1B | {"head_dim": 48}), "int4", 128))
    assert found["q_proj"].format == found["gate_proj"].format == found["lm_head"].format == Grouped("int4", 128)
    # Heads of 48 stay whole, so their inputs are cut between groups of 16; inner rows have none, and move with the group.
    assert found["o_proj"].format == Grouped("int4", 16)
    assert found["down_proj"].inp.grain == found["up_proj"].out.grain == found["gate_proj"].out.grain == 128
    assert found["down_proj"].format == Grouped("int4", 128)
    latent = linears(requantised(read_model(FAMILIES["deepseek-v2"]), "int8", 16))
    assert latent["kv_b_proj"].format == Dense() and latent["kv_a_proj_with_mqa"].format == Grouped("int8", 16)
    mixed = requantised(read_model(FAMILIES["qwen2-moe"]), "int8", 32)
    stacked = [node for run in mixed.runs for _, node in walk(run.block) if isinstance(node, Linear) and node.experts]
    assert stacked and all(node.format == Grouped("int8", 32) for node in stacked)
    assert linears(mixed)["shared_expert_gate"].format == Dense()
    assert not any(path.endswith(("gate", "kv_b_proj")) for path in left_dense(mixed))


def test_what_cannot_be_grouped_stays_dense_and_is_named() -> None:
    model = requantised(read_model(LLAMA_1B | {"head_dim": 24}), "int8", 64)
    assert linears(model)["o_proj"].format == Dense()
    assert left_dense(model) == ("model.layers.0.self_attn.o_proj",)


def test_the_group_is_a_property_of_the_linear_not_of_the_degree() -> None:
    model = requantised(read_model(LLAMA_1B), "int8", DEFAULT_GROUPS["int8"])
    for shares in ((1.0,), (1.0, 2.0), (1.0,) * 7):
        tiles = {w.name: w.tile for rank in range(len(shares)) for w in (p.weight for p in lay(model, shares).slices(rank))}
        assert {tile.columns for tile in tiles.values() if tile} == {64}


@pytest.mark.parametrize(
    "stored",
    [
        {"quant_method": "gptq", "bits": 4, "group_size": 128},
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
    ],
)
def test_what_is_quantised_already_is_refused(stored: dict[str, object]) -> None:
    model = read_model(LLAMA_1B | {"quantization_config": stored})
    with pytest.raises(UserError, match=r"quantised already \(model\.layers\.0\.self_attn\.q_proj is stored as (gptq|fp8)\)"):
        requantised(model, "int8", 64)


def test_mxfp4_is_refused_too() -> None:
    kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router"]
    stored = {**FAMILIES["gpt-oss"], "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": kept}}
    stored |= {"head_dim": 32, "intermediate_size": 64}
    with pytest.raises(UserError, match="is stored as mxfp4"):
        requantised(read_model(stored), "int4", 32)


def test_a_whole_dense_weight_is_what_a_checkpoint_has() -> None:
    [weight, _] = (w for w, _ in Grouped("int4", 32).weights("up", Axis(100), Axis(70)))
    assert weight.shape == (100, 70) and replace(weight, tile=None).held((range(100), range(70))) == (100, 70)
    assert weight.elements == Weight("up.weight", (Axis(100), Axis(70))).elements
