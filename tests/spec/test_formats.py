"""Formats: the tensors that published checkpoints have, and that what is packed is declared as packed."""

from __future__ import annotations

import re
from math import prod

import pytest

from shardwise.errors import ConfigError
from shardwise.spec import formats
from shardwise.spec.axes import BITS, Axis, Fused, Source
from shardwise.spec.blocks import Linear
from shardwise.spec.formats import AWQ, GPTQ, Dense, FP8Block
from tests.spec.models_by_hand import FORMATS

OUT, INP = Axis(14336, "mlp", 32), Axis(4096)


def shapes(fmt, out=OUT, inp=INP):
    return {w.name.removeprefix("up."): (w.shape, w.dtype) for w, _ in fmt.weights("up", out, inp)}


def test_tensors_of_published_checkpoints():
    # Llama-3.1-8B's up_proj, as AutoGPTQ, AutoAWQ and DeepSeek's FP8 store it.
    assert shapes(Dense()) == {"weight": ((14336, 4096), None)}
    assert shapes(Dense("float16")) == {"weight": ((14336, 4096), "float16")}
    assert shapes(GPTQ()) == {
        "qweight": ((512, 14336), "int32"),
        "qzeros": ((32, 1792), "int32"),
        "scales": ((32, 14336), "float16"),
        "g_idx": ((4096,), "int32"),
    }
    assert shapes(GPTQ(8, 32))["qweight"] == ((1024, 14336), "int32")
    assert shapes(GPTQ(8, 32))["qzeros"] == ((128, 3584), "int32")
    assert shapes(AWQ()) == {
        "qweight": ((4096, 1792), "int32"),
        "qzeros": ((32, 1792), "int32"),
        "scales": ((32, 14336), "float16"),
    }
    assert shapes(FP8Block()) == {
        "weight": ((14336, 4096), "float8_e4m3fn"),
        "weight_scale_inv": ((112, 32), "float32"),
    }


def test_a_last_block_may_be_short():
    # DeepSeek-V3's kv_a_proj_with_mqa: 576 outputs are four blocks and a half.
    assert shapes(FP8Block(), Axis(576), Axis(7168))["weight_scale_inv"] == ((5, 56), "float32")


def test_act_order_scatters_the_groups_so_every_rank_keeps_all():
    cut = {w.name: tuple(a.cut for a in w.axes) for w, _ in GPTQ(permuted=True).weights("down", Axis(4096), Axis(14336, "mlp"))}
    assert cut == {
        "down.qweight": ("mlp", None),
        "down.qzeros": (None, None),
        "down.scales": (None, None),
        "down.g_idx": ("mlp",),
    }
    assert all(w.axes[0].cut == "mlp" for w, _ in GPTQ(permuted=False).weights("down", Axis(4096), Axis(14336, "mlp"))), (
        "in order, groups are cut with the inputs"
    )


@pytest.mark.parametrize("fmt", FORMATS, ids=repr)
def test_what_is_stored_together_is_declared(fmt):
    out, inp = Axis(64, "mlp"), Axis(96)
    for weight, out_axis in fmt.weights("w", out, inp):
        for i, (axis, per) in enumerate(zip(weight.axes, weight.per or (1,) * len(weight.axes), strict=True)):
            side = "out" if i == out_axis else "in"
            assert axis.size == (64 if side == "out" else 96)
            assert per in (1, fmt.pack(side), fmt.group(side)), f"{weight.name}: {per} on {side}"
            if not weight.companion:
                assert fmt.pack(side) % per == 0, "a cut at `pack` never splits a stored element"


@pytest.mark.parametrize("fmt", FORMATS, ids=repr)
def test_one_tensor_holds_the_parameters_at_the_format_s_bits(fmt):
    own = [w for w, _ in fmt.weights("w", Axis(64), Axis(96)) if not w.companion]
    assert [w.elements for w in own] == [64 * 96]
    stored = BITS[own[0].dtype or "bfloat16"] * prod(own[0].held((range(64), range(96))))
    assert stored == 64 * 96 * {"dense": 16, "int8": 8, "fp8": 8}.get(fmt.name, getattr(fmt, "bits", 0))


@pytest.mark.parametrize("fmt", FORMATS, ids=repr)
def test_out_axis_is_the_one_that_fused_tensors_are_sliced_on(fmt):
    fused = Fused("gate_up", 64, 64, 64)
    for weight in Linear("up", Axis(64, "mlp"), Axis(96), bias=True, format=fmt, fused=fused).own_weights():
        runs_over_outputs = [a.cut == "mlp" for a in weight.axes]
        if not any(runs_over_outputs):
            assert weight.source is None, "it belongs to the inputs and is stored under its own name"
        else:
            assert weight.source is not None
            assert weight.source.tensor == f"gate_up.{weight.name.removeprefix('up.')}"
            assert (weight.source.fused, weight.source.axis) == (fused, runs_over_outputs.index(True))


def test_a_transposed_linear_turns_its_matrix_alone():
    weights = list(Linear("c_attn", Axis(8), Axis(4), bias=True, transposed=True).own_weights())
    assert [w.source for w in weights] == [Source("c_attn.weight", transposed=True), None]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"quant_method": "gptq"}, GPTQ(4, 128, False)),
        ({"quant_method": "GPTQ", "bits": 8, "group_size": 32, "desc_act": True}, GPTQ(8, 32, True)),
        ({"quant_method": "awq", "bits": 4, "group_size": 64}, AWQ(4, 64)),
        ({"quant_method": "awq", "w_bit": 8, "q_group_size": 64}, AWQ(8, 64)),
        ({"quant_method": "fp8", "weight_block_size": [128, 64]}, FP8Block(128, 64)),
    ],
)
def test_of(config, expected):
    assert formats.of(config) == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "quant_method '' is not known; known are gptq, awq, fp8"),
        ({"quant_method": "bitsandbytes"}, "quant_method 'bitsandbytes' is not known; known are gptq, awq, fp8"),
        ({"quant_method": "gptq", "bits": 3}, "bits is 3; gptq is understood with 2, 4 or 8"),
        ({"quant_method": "awq", "w_bit": "4"}, "bits is '4'; awq is understood with 2, 4 or 8"),
        ({"quant_method": "gptq", "group_size": -1}, "group_size is -1; gptq is understood with a positive group"),
        ({"quant_method": "gptq", "group_size": 0}, "group_size is 0; gptq is understood with a positive group"),
        ({"quant_method": "awq", "group_size": "128"}, "group_size is '128'; awq"),
        ({"quant_method": "fp8"}, "weight_block_size is None; fp8 is understood with blocks, as [128, 128]"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "weight_block_size is [128]"),
        ({"quant_method": "fp8", "weight_block_size": [128, 0]}, "weight_block_size is [128, 0]"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(config, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        formats.of(config)
