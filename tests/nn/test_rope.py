"""The rotation by complex numbers, and angles that each token's own request decides."""

from __future__ import annotations

import pytest
import torch

from shardwise.nn.batch import Batch
from shardwise.nn.kernels.turning import rotate
from shardwise.nn.norm import Norm
from shardwise.nn.rope import Rope
from shardwise.spec import blocks
from tests.checkpoints import FAMILIES
from tests.group import even, layout_of
from tests.nn.pieces import CPU, each, noise

STEPS = (1.0, 0.5, 0.1)


def batch(positions: list[int], known: list[int]) -> Batch:
    none = torch.empty(0, dtype=torch.long)
    return Batch(torch.tensor(positions), torch.tensor(known), none, none, none, (), ())


@pytest.mark.parametrize("halves", [True, False])
@pytest.mark.parametrize("rest", [0, 2])
def test_pairs_turn_as_complex_numbers(halves: bool, rest: int) -> None:
    """Element i with i + dim / 2, or with its neighbour; what is beyond dim passes through."""
    block = blocks.Rope(6, STEPS, scale=1.5, halves=halves)
    positions = [0, 1, 7, 400]
    x = noise(4, 2, 6 + rest)
    found = rotate(x, Rope(block, CPU)(batch(positions, positions), torch.float32), halves)
    first, second = (x[..., :3], x[..., 3:6]) if halves else (x[..., 0:6:2], x[..., 1:6:2])
    angles = torch.tensor(positions).double()[:, None] * torch.tensor(STEPS).double()
    turned = torch.complex(first.double(), second.double()) * torch.polar(torch.full_like(angles, 1.5), angles)[:, None]
    pairs = (turned.real, turned.imag)
    want = torch.cat(pairs, -1) if halves else torch.stack(pairs, -1).flatten(-2)
    assert torch.allclose(found[..., :6].double(), want, atol=1e-4)
    assert torch.equal(found[..., 6:], x[..., 6:])


def test_scores_depend_on_distance_alone() -> None:
    block = blocks.Rope(6, STEPS)
    q, k = noise(1, 1, 6), noise(1, 1, 6) + 1
    scores = []
    for shift in (0, 3, 50):
        turned = rotate(torch.cat((q, k)), Rope(block, CPU)(batch([9 + shift, 4 + shift], [60, 60]), torch.float32), True)
        scores.append((turned[0] * turned[1]).sum())
    assert torch.stack(scores).std() < 1e-4


def test_long_and_short_requests_in_one_batch() -> None:
    """The angle of a token follows from how many tokens its own request has, not its neighbour's."""
    block = blocks.Rope(6, STEPS, scale=1.1, long=(0.3, 0.2, 0.05), long_scale=1.3, boundary=8)
    rope = Rope(block, CPU)
    cos, _ = rope(batch([3, 3, 8, 2], [8, 9, 9, 4]), torch.float32)
    for row, (position, steps, scale) in enumerate(
        [(3, STEPS, 1.1), (3, block.long, 1.3), (8, block.long, 1.3), (2, STEPS, 1.1)]
    ):
        want = (torch.tensor(steps or ()) * position).cos() * scale
        assert torch.allclose(cos[row, 0], torch.cat((want, want)))


def test_dynamic_grows_with_every_token_past_the_boundary() -> None:
    block = blocks.Rope(6, STEPS, dynamic=(10000.0, 2.0), boundary=8)
    rope = Rope(block, CPU)
    for known in (8, 9, 30):
        cos, _ = rope(batch([5], [known]), torch.float32)
        base = 10000.0 * (2.0 * known / 8 - 1.0) ** (6 / 4)
        want = torch.tensor([base ** (-2 * i / 6) for i in range(3)]) if known > 8 else torch.tensor(STEPS)
        assert torch.allclose(cos[0, 0, :3], (want * 5).cos(), atol=1e-6)


# --- norms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_norms(kind: str, dtype: torch.dtype) -> None:
    """Also of numbers whose squares a 16-bit float cannot hold."""
    layout = layout_of(FAMILIES["llama"], even(1))
    block = blocks.Norm("norm", 32, 1e-5, "rms" if kind == "rms" else "layer", bias=kind == "layer")
    tensors = {"norm.weight": noise(32).to(dtype), "norm.bias": noise(32).to(dtype)}
    [norm] = each(layout, lambda rank: Norm(block, "norm", rank, tensors))
    x = (noise(5, 3, 32) * 300).to(dtype)
    wide, weight, bias = x.double(), tensors["norm.weight"].double(), tensors["norm.bias"].double()
    if kind == "layer":
        centred = wide - wide.mean(-1, keepdim=True)
        want = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias
    else:
        want = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight
    found = norm(x)
    assert found.dtype == dtype and found.shape == x.shape
    assert torch.allclose(found.double(), want, rtol=torch.finfo(dtype).eps * 4, atol=torch.finfo(dtype).eps * 4)
