"""How a linear's numbers are stored: which tensors, of which dtype, at how many logical elements per stored one.

A format is a property of each linear, not of the model: a GPTQ checkpoint leaves `lm_head` dense. Here it is described, so
that bytes and slices are right for loader and planner alike; what multiplies by it is `nn`'s affair.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from shardwise.errors import ConfigError
from shardwise.spec.axes import Axis, Fused, Packed, Source, Tile, Weight


class Format(Protocol):
    """What a linear of `out` × `inp` stores, and what a cut must keep together on either side."""

    @property
    def name(self) -> str: ...

    def weights(self, name: str, out: Axis, inp: Axis) -> Iterator[tuple[Weight, int]]:
        """The stored tensors, each with the index of its axis that runs over outputs (fused tensors are sliced there)."""
        ...

    def pack(self, side: str) -> int:
        """Elements on `side` ("out" or "in") that share a stored word: a cut must never fall between them."""
        ...

    def group(self, side: str) -> int:
        """Elements on `side` that share a scale: a cut had better not fall between them, but may."""
        ...


MXFP4 = Packed("mxfp4", size=32, per_byte=2, blocks="_blocks", scales="_scales")
"""OCP microscaling FP4, as gpt-oss stores its experts: 32 E2M1 numbers along the inputs share an E8M0 scale.
Source: OCP Microscaling Formats (MX) Specification 1.0."""


@dataclass(frozen=True, slots=True)
class Dense:
    """Plain numbers; `dtype` None is the dtype the model runs in. `packed`: so in memory, unpacked while it is loaded."""

    name = "dense"
    dtype: str | None = None
    packed: Packed | None = None

    def weights(self, name: str, out: Axis, inp: Axis) -> Iterator[tuple[Weight, int]]:
        source = Source(f"{name}.weight", packed=self.packed) if self.packed else None
        yield Weight(f"{name}.weight", (out, inp), self.dtype, source=source), 0

    def pack(self, side: str) -> int:
        return self.packed.per_byte if self.packed and side == "in" else 1

    def group(self, side: str) -> int:
        return self.packed.size if self.packed and side == "in" else 1


TILE_ROWS = 16
"""Outputs of a linear whose quantised numbers stand side by side: one vector of kernels."""

KINDS = {"int8": 8, "int4": 4}
"""What shardwise quantises to, with the bits of a number."""

GROUPS = (16, 32, 64, 128)
"""How many inputs may share a scale."""


@dataclass(frozen=True, slots=True)
class Grouped:
    """What shardwise itself quantises to while it loads: `kind` numbers, `size` inputs of an output share a float16 scale.

    The numbers are bytes in tiles (nn/kernels/packing.py), and the scales stand in the same order.
    """

    kind: str
    size: int

    @property
    def name(self) -> str:
        return self.kind

    @property
    def bits(self) -> int:
        return KINDS[self.kind]

    @property
    def title(self) -> str:
        """What people read, with the bits that a weight and its part of a scale take."""
        return f"{self.kind} in groups of {self.size} ({self.bits + 16 / self.size:g} bits a weight)"

    def weights(self, name: str, out: Axis, inp: Axis) -> Iterator[tuple[Weight, int]]:
        numbers = Tile(self.kind, TILE_ROWS, self.size, TILE_ROWS * self.size * self.bits // 8)
        scales = Tile(self.kind, TILE_ROWS, self.size, TILE_ROWS)
        yield Weight(f"{name}.weight", (out, inp), "uint8", tile=numbers), 0
        yield Weight(f"{name}.weight_scale", (out, inp), "float16", companion=True, tile=scales), 0

    def pack(self, side: str) -> int:
        return self.size if side == "in" else 1

    def group(self, side: str) -> int:
        return self.size if side == "in" else 1


@dataclass(frozen=True, slots=True)
class GPTQ:
    """GPTQ (AutoGPTQ, GPTQModel): int32 words pack 32 // `bits` *inputs* of a column; scales and zeros per group of inputs.

    With act-order (`permuted`) the inputs of a group are scattered, so no rank can take a range of scales: each keeps all.
    """

    name = "gptq"
    bits: int = 4
    size: int = 128
    permuted: bool = False

    def weights(self, name: str, out: Axis, inp: Axis) -> Iterator[tuple[Weight, int]]:
        word = 32 // self.bits
        grouped = replace(inp, cut=None) if self.permuted else inp
        yield Weight(f"{name}.qweight", (inp, out), "int32", (word, 1)), 1
        yield Weight(f"{name}.qzeros", (grouped, out), "int32", (self.size, word), companion=True), 1
        yield Weight(f"{name}.scales", (grouped, out), "float16", (self.size, 1), companion=True), 1
        yield Weight(f"{name}.g_idx", (inp,), "int32", companion=True), -1

    def pack(self, side: str) -> int:
        return 32 // self.bits

    def group(self, side: str) -> int:
        return self.size if side == "in" else 1


@dataclass(frozen=True, slots=True)
class AWQ:
    """AWQ (AutoAWQ gemm): int32 words pack 32 // `bits` *outputs* of a row, in the order 0 2 4 6 1 3 5 7."""

    name = "awq"
    bits: int = 4
    size: int = 128

    def weights(self, name: str, out: Axis, inp: Axis) -> Iterator[tuple[Weight, int]]:
        word = 32 // self.bits
        yield Weight(f"{name}.qweight", (inp, out), "int32", (1, word)), 1
        yield Weight(f"{name}.qzeros", (inp, out), "int32", (self.size, word), companion=True), 1
        yield Weight(f"{name}.scales", (inp, out), "float16", (self.size, 1), companion=True), 1

    def pack(self, side: str) -> int:
        return 32 // self.bits if side == "out" else 1

    def group(self, side: str) -> int:
        return self.size if side == "in" else 1


@dataclass(frozen=True, slots=True)
class FP8Block:
    """DeepSeek's FP8: E4M3 bytes, one float32 scale for each block of `out` × `inp` elements."""

    name = "fp8"
    out: int = 128
    inp: int = 128

    def weights(self, name: str, out: Axis, inp: Axis) -> Iterator[tuple[Weight, int]]:
        yield Weight(f"{name}.weight", (out, inp), "float8_e4m3fn"), 0
        yield Weight(f"{name}.weight_scale_inv", (out, inp), "float32", (self.out, self.inp), companion=True), 0

    def pack(self, side: str) -> int:
        return 1

    def group(self, side: str) -> int:
        return self.out if side == "out" else self.inp


def fused_source(weight: Weight, out_axis: int, name: str, fused: Fused) -> Source:
    """The source of one tensor of a linear `name` that is stored inside `fused`: its suffix stays, its rows move."""
    return Source(f"{fused.name}{weight.name.removeprefix(name)}", fused=fused, axis=out_axis)


def stacked(weight: Weight, experts: Axis, out_axis: int, name: str, fused: Fused | None, transposed: bool) -> Weight:
    """The same tensor of a linear `name`, for all experts. A `*` in the name: each is stored apart, or all inside `fused`.

    One tensor of all experts is called as `fused` is, and that of their biases has `_bias` behind. Packed tensors are rows of
    outputs, whichever way the dense ones stand.
    """
    stack = replace(weight, axes=(experts, *weight.axes), per=weight.per and (1, *weight.per))
    ends = {f"{name}.weight": "", f"{name}.bias": "_bias"}
    if fused is None or weight.name not in ends:
        return stack
    packed = weight.source.packed if weight.source else None
    source = Source(fused.name + ends[weight.name], transposed and not packed, fused, out_axis + 1, packed)
    return replace(stack, also=source) if "*" in name else replace(stack, source=source)


def of(quantization: Mapping[str, Any]) -> Format:
    """The format that a config's `quantization_config` names."""
    method = str(quantization.get("quant_method", "")).lower()
    bits = quantization.get("bits", quantization.get("w_bit", 4))
    size = quantization.get("group_size", quantization.get("q_group_size", 128))
    if method in ("gptq", "awq"):
        if bits not in (2, 4, 8):
            raise ConfigError(f"quantization_config.bits is {bits!r}; {method} is understood with 2, 4 or 8")
        if not isinstance(size, int) or size <= 0:
            raise ConfigError(f"quantization_config.group_size is {size!r}; {method} is understood with a positive group")
        if method == "gptq":
            return GPTQ(bits, size, bool(quantization.get("desc_act", False)))
        return AWQ(bits, size)
    if method == "mxfp4":
        return Dense(packed=MXFP4)
    if method == "fp8":
        block = quantization.get("weight_block_size")
        if not (isinstance(block, list) and len(block) == 2 and all(isinstance(b, int) and b > 0 for b in block)):
            raise ConfigError(
                f"quantization_config.weight_block_size is {block!r}; fp8 is understood with blocks, as [128, 128]"
            )
        return FP8Block(*block)
    raise ConfigError(f"quantization_config.quant_method {method!r} is not known; known are gptq, awq, fp8 (blocks), mxfp4")
