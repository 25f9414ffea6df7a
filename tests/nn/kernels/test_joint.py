"""Products as one call against the same ones by themselves: the same bits, on every path, in any company."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shardwise.nn.kernels import packing
from shardwise.nn.kernels.dense import NativeDense
from shardwise.nn.kernels.joint import Before, Gated, Joints, Normed, Term
from shardwise.nn.kernels.packing import Packed
from shardwise.nn.kernels.pool import Pool
from shardwise.nn.kernels.quantised import NativeQuantised, Sums
from shardwise.nn.kernels.step import NativeStep
from tests.nn.kernels.paths import each_path, needs_compiled

pytestmark = needs_compiled
KINDS = ["int8", "int4", torch.float32, torch.bfloat16, torch.float16]


@each_path
@settings(deadline=None, max_examples=40)
@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=3),
    before=st.sampled_from(["nothing", "rms", "layer", "gate"]),
    outputs=st.lists(st.integers(0, 70), min_size=3, max_size=3),
    columns=st.integers(1, 300),
    rows=st.lists(st.integers(0, 40), min_size=1, max_size=3),
    group=st.sampled_from([16, 32, 64]),
    sums=st.sampled_from(Sums),
    threads=st.integers(1, 3),
)
def test_one_call_makes_the_bits_of_separate_ones(
    kinds: list[str | torch.dtype], before: str, outputs: list[int], columns: int, rows: list[int], group: int, sums: Sums,
    threads: int,
) -> None:  # fmt: skip
    make, pool = torch.Generator().manual_seed(columns), Pool(threads)
    sums = sums if all(isinstance(kind, str) for kind in kinds) else Sums.NARROW
    terms = [term(kind, count, columns, group, sums, make) for kind, count in zip(kinds, outputs, strict=False)]
    told: Before = Gated() if before == "gate" else None
    if before in ("rms", "layer"):
        bias = torch.randn(columns, generator=make) if before == "layer" else None
        told = Normed(before, torch.randn(columns, generator=make), bias, 1e-5, 0.5 if before == "rms" else 0.0)
    joint = Joints(pool).joint(terms, told)
    assert joint is not None
    for count in rows:  # the same one again, with more and with fewer
        x, up = torch.randn(2, count, columns, generator=make) * 3
        found = joint(x, up if before == "gate" else None)
        prepared = alone(NativeStep(pool), told, x, up)
        wanted = [multiplied(pool, one, prepared) for one in terms]
        assert len(found) == len(wanted)
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found, wanted, strict=True))


def test_products_of_several_kinds_are_not_one_call() -> None:
    make, joints = torch.Generator().manual_seed(1), Joints(Pool(1))
    terms = [term("int8", 8, 64, group, sums, make) for group, sums in ((32, Sums.NARROW), (64, Sums.NARROW), (64, Sums.WIDE))]
    assert all(joints.joint(pair, None) is None for pair in pairwise(terms))
    assert joints.joint([terms[0], term(torch.float32, 8, 63, 0, Sums.NARROW, make)], None) is None
    assert joints.joint([terms[0]] * 4, None) is None
    assert joints.joint([term(torch.float32, 8, 0, 0, Sums.NARROW, make)], None) is None


def term(kind: str | torch.dtype, outputs: int, columns: int, group: int, sums: Sums, make: torch.Generator) -> Term:
    weight = torch.randn(outputs, columns, generator=make)
    bias = torch.randn(outputs, generator=make) if outputs % 2 else None
    if not isinstance(kind, str):
        return Term(weight.to(kind), bias, sums)
    packed = packing.empty(kind, outputs, columns, group)
    packing.pack_into(weight, packed)
    return Term(packed, bias, sums)


def alone(step: NativeStep, before: Before, x: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    if isinstance(before, Gated):
        return step.gated("silu", x, up)
    if before is None:
        return x
    if before.kind == "rms":
        return step.rms_norm(x, before.weight, before.eps, before.offset)
    return step.layer_norm(x, before.weight, before.bias, before.eps)


def multiplied(pool: Pool, one: Term, x: torch.Tensor) -> torch.Tensor:
    if isinstance(one.weight, Packed):
        return NativeQuantised(pool).linear(x, one.weight, one.bias, one.sums)
    return NativeDense(pool).linear(x, one.weight, one.bias)
