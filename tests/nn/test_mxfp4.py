"""MXFP4 against its definition, element by element in exact arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from shardwise.nn.mxfp4 import unpack_mxfp4


def element(bits: int) -> Fraction:
    """An E2M1 number: sign, two bits of exponent with bias 1, one of mantissa; exponent 0 is subnormal."""
    sign, exponent, mantissa = bits >> 3, bits >> 1 & 3, bits & 1
    size = Fraction(mantissa, 2) if exponent == 0 else (1 + Fraction(mantissa, 2)) * Fraction(2) ** (exponent - 1)
    return -size if sign else size


def reference(blocks: torch.Tensor, scales: torch.Tensor) -> list[float]:
    """[groups, bytes] and [groups], number by number."""
    found = []
    for row, scale in zip(blocks.tolist(), scales.tolist(), strict=True):
        step = Fraction(2) ** (scale - 127)
        for byte in row:
            found += [float(element(bits) * step) for bits in (byte & 15, byte >> 4)]
    return found


def test_every_byte() -> None:
    blocks = torch.arange(256, dtype=torch.uint8).view(16, 16)
    scales = torch.arange(119, 135, dtype=torch.uint8)
    found = unpack_mxfp4(blocks, scales, torch.float32)
    assert found.tolist() == reference(blocks, scales)
    assert sorted({abs(n) for n in unpack_mxfp4(blocks, torch.full((16,), 127).byte(), torch.float32).tolist()}) == [
        0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0,
    ]  # fmt: skip


@pytest.mark.parametrize("scale", [1, 2, 100, 126, 128, 160, 251, 252])
def test_every_size_of_scale(scale: int) -> None:
    blocks = torch.arange(240, 256, dtype=torch.uint8).view(1, 16)
    scales = torch.tensor([scale], dtype=torch.uint8)
    assert unpack_mxfp4(blocks, scales, torch.float32).tolist() == reference(blocks, scales)


def test_bfloat16_holds_them_exactly() -> None:
    blocks = torch.randint(0, 256, (3, 5, 2, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    scales = torch.randint(110, 140, (3, 5, 2), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    found = unpack_mxfp4(blocks, scales, torch.bfloat16)
    assert found.shape == (3, 5, 64)
    assert torch.equal(found.float(), unpack_mxfp4(blocks, scales, torch.float32))
    assert found.flatten().tolist() == reference(blocks.view(30, 16), scales.flatten())


def test_the_last_scale_is_not_a_number() -> None:
    found = unpack_mxfp4(torch.zeros(1, 16, dtype=torch.uint8), torch.tensor([255], dtype=torch.uint8), torch.float32)
    assert all(math.isnan(n) for n in found.tolist())
