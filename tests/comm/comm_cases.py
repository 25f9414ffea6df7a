"""A contract case as a plain value: what to call, with which inputs, and what every rank must get, bit by bit."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from shardwise.comm.protocol import Comm

SUMMED = ["float32", "bfloat16", "float16", "float64", "int64", "int32", "int16", "int8", "uint8"]
ROUNDED = ["", "float64", "float32", "bfloat16", "float16"]
CARRIED = [*SUMMED, "bool", "float8_e4m3fn"]
ONES = torch.ones(3)
OPS = ["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "message", "barrier"]


@dataclass(frozen=True)
class Case:
    """`counts` are the ranks' parts of `dim`, of all_to_all the rows from each rank (first) to each; root is a rank."""

    op: str
    dtype: str
    shape: tuple[int, ...]
    dim: int
    counts: tuple[tuple[int, ...], ...]
    root: int
    seed: int
    strided: bool
    out: str  # "none", "fresh", "strided"
    rounded: str = ""  # what a sum of float64 is asked for as

    @property
    def ranges(self) -> list[range]:
        """The cut of `dim`."""
        ends = [0, *itertools.accumulate(self.counts[0])]
        return [range(a, b) for a, b in itertools.pairwise(ends)]

    @classmethod
    def of(cls, plain: dict) -> Case:
        """From what JSON made of `dataclasses.asdict`."""
        counts = tuple(tuple(row) for row in plain["counts"])
        return cls(**{**plain, "shape": tuple(plain["shape"]), "counts": counts})


@st.composite
def cases(draw: st.DrawFn, size: int) -> Case:
    """Any case for a group of `size`."""
    op = draw(st.sampled_from(OPS if size > 1 else [op for op in OPS if op != "message"]))
    dtype = draw(st.sampled_from(SUMMED if op in ("all_reduce", "reduce_scatter") else CARRIED))
    ndim = draw(st.integers(0 if op in ("all_reduce", "broadcast", "message") else 1, 3))
    shape = draw(st.lists(st.integers(0, 6), min_size=ndim, max_size=ndim).map(tuple))
    dim = draw(st.integers(-ndim, ndim - 1)) if ndim else 0
    row = st.lists(st.integers(0, 5), min_size=size, max_size=size).map(tuple)
    counts = draw(st.lists(row, min_size=size, max_size=size).map(tuple))
    root, seed = draw(st.integers(0, size - 1)), draw(st.integers(0, 9999))
    rounded = draw(st.sampled_from(ROUNDED)) if (op, dtype) == ("all_reduce", "float64") else ""
    return Case(op, dtype, shape, dim, counts, root, seed, draw(st.booleans()), draw(st.sampled_from(_OUTS)), rounded)


_OUTS = ["none", "fresh", "strided"]


def large(op: str, dtype: str, elements: int, size: int) -> Case:
    """A case above the size at which a backend may change its way of doing it."""
    return Case(
        op, dtype, (elements,), 0, (tuple(elements // size + (r < elements % size) for r in range(size)),), 0, 1, False, "none"
    )


def contract_cases(size: int, count: int) -> list[dict]:
    """Cases from the same strategy as the other backends', drawn here and sent to the processes as plain values."""
    drawn: list[Case] = []

    @settings(
        max_examples=count,
        phases=[Phase.generate],
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(cases(size))
    def draw(case: Case) -> None:
        drawn.append(case)

    draw()
    for op in ("all_reduce", "all_gather", "reduce_scatter", "broadcast", "message"):
        drawn += [large(op, "bfloat16", 100_003, size), large(op, "float32", 200_001, size)]
    for rounded in ROUNDED:
        drawn.append(dataclasses.replace(large("all_reduce", "float64", 200_001, size), rounded=rounded))
    return [dataclasses.asdict(case) for case in drawn]


def input_of(case: Case, rank: int) -> Tensor:
    """What one rank passes in."""
    shape = list(case.shape)
    if case.op == "all_gather":
        shape[case.dim] = case.counts[0][rank]
    elif case.op == "reduce_scatter":
        shape[case.dim] = sum(case.counts[0])
    elif case.op == "all_to_all":
        shape[0] = sum(case.counts[rank])
    generator = torch.Generator().manual_seed(case.seed * 101 + rank)
    dtype = getattr(torch, case.dtype)
    if dtype == torch.bool or not dtype.is_floating_point:
        bits = torch.iinfo(dtype) if dtype != torch.bool else None
        low, high = (0, 2) if bits is None else (max(bits.min, -(2**60)), min(bits.max, 2**60) + 1)
        return torch.randint(low, high, shape, generator=generator).to(dtype)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * 3).to(dtype)


def expected_of(case: Case, rank: int, size: int) -> Tensor | None:
    """What one rank must get: computed in one process, from all inputs."""
    inputs = [input_of(case, other) for other in range(size)]
    match case.op:
        case "all_reduce":
            return _sum(inputs).to(getattr(torch, case.rounded or case.dtype))
        case "all_gather":
            return torch.cat([x.view(torch.uint8) if x.dtype.itemsize == 1 else x for x in inputs], case.dim).view(
                inputs[0].dtype
            )
        case "reduce_scatter":
            span = case.ranges[rank]
            return _sum(inputs).narrow(case.dim, span.start, len(span))
        case "all_to_all":
            starts = [sum(case.counts[other][:rank]) for other in range(size)]
            return torch.cat([x[s : s + case.counts[r][rank]] for r, (x, s) in enumerate(zip(inputs, starts, strict=True))])
        case "broadcast":
            return inputs[case.root]
        case "message":
            return inputs[(rank - 1) % size]
    return None


def _sum(inputs: list[Tensor]) -> Tensor:
    """In rank order; 16-bit floats in float32, rounded once."""
    half = inputs[0].dtype in (torch.bfloat16, torch.float16)
    total = inputs[0].float() if half else inputs[0]
    for x in inputs[1:]:
        total = total + (x.float() if half else x)
    return total.to(inputs[0].dtype)


def strided(x: Tensor) -> Tensor:
    """The same values, with other elements between them."""
    if x.ndim == 0:
        return x
    wide = torch.zeros((*x.shape[:-1], 2 * x.shape[-1]), dtype=x.dtype)
    wide[..., ::2] = x
    return wide[..., ::2]


def check(comm: Comm, case: Case) -> None:
    """Makes the call on this rank and compares everything the protocol promises about it."""
    x = input_of(case, comm.rank)
    before = x.clone()
    x = strided(x) if case.strided else x
    expected = expected_of(case, comm.rank, comm.size)
    out = None
    if case.out != "none" and expected is not None and case.op != "message":
        out = torch.zeros(expected.shape, dtype=expected.dtype)
        out = strided(out) if case.out == "strided" else out
    result = perform(comm, case, x, out)
    assert same_bits(x, before), f"rank {comm.rank} finds its input changed by {case}"
    if expected is None:
        return
    assert result is not None
    assert result.dtype == expected.dtype, f"rank {comm.rank} got {result.dtype} from {case}"
    assert result.shape == expected.shape, f"rank {comm.rank} got {tuple(result.shape)} from {case}"
    assert same_bits(result, expected), f"rank {comm.rank} got {result}, not {expected}, from {case}"
    assert out is None or result is out, f"rank {comm.rank} did not get its out back from {case}"
    if comm.size > 1 and out is None and result.numel():
        assert result.data_ptr() != x.data_ptr(), f"rank {comm.rank} got its own input back from {case}"


def perform(comm: Comm, case: Case, x: Tensor, out: Tensor | None) -> Tensor | None:
    """The call itself."""
    match case.op:
        case "all_reduce":
            return comm.all_reduce(x, site="case", out=out, dtype=getattr(torch, case.rounded) if case.rounded else None)
        case "all_gather":
            return comm.all_gather(x, case.ranges, dim=case.dim, site="case", out=out)
        case "reduce_scatter":
            return comm.reduce_scatter(x, case.ranges, dim=case.dim, site="case", out=out)
        case "all_to_all":
            column = [row[comm.rank] for row in case.counts]
            return comm.all_to_all(x, case.counts[comm.rank], column, site="case", out=out)
        case "broadcast":
            return comm.broadcast(x, case.root, site="case", out=out)
        case "barrier":
            return comm.barrier(site="case")
    # A message around the ring, which rank 0 starts.
    came = torch.zeros(x.shape, dtype=x.dtype)
    came = strided(came) if case.out == "strided" else came
    if comm.rank == 0:
        comm.send(x, 1, site="case")
    comm.recv(came, (comm.rank - 1) % comm.size, site="case")
    if comm.rank:
        comm.send(x, (comm.rank + 1) % comm.size, site="case")
    return came


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one dtype hold the same bytes."""
    first, second = (x.contiguous().as_strided((x.numel(),), (1,)).view(torch.uint8) for x in (a, b))
    return torch.equal(first, second)


# Each is a call of one rank, and what it is on the rank that is the odd one out.
DIFFERENT: dict[str, Callable[[Comm, bool], object]] = {
    "op": lambda comm, odd: comm.broadcast(ONES, 0, site="s") if odd else comm.all_reduce(ONES, site="s"),
    "site": lambda comm, odd: comm.all_reduce(ONES, site="t" if odd else "s"),
    "shape": lambda comm, odd: comm.all_reduce(torch.ones(4 if odd else 3), site="s"),
    "dtype": lambda comm, odd: comm.all_reduce(ONES.half() if odd else ONES, site="s"),
    "rounding": lambda comm, odd: comm.all_reduce(ONES.double(), site="s", dtype=None if odd else torch.float32),
    "root": lambda comm, odd: comm.broadcast(ONES, 1 if odd else 0, site="s"),
    "dim": lambda comm, odd: comm.reduce_scatter(torch.ones(3, 3), [range(1), range(1, 2), range(2, 3)], dim=odd, site="s"),
    "ranges": lambda comm, odd: comm.reduce_scatter(
        ONES, [range(1), range(1, 2), range(2, 3)] if odd else [range(2), range(2, 2), range(2, 3)], site="s"
    ),
    "rows": lambda comm, odd: comm.all_to_all(torch.ones(3, 2 if odd else 1), [1, 1, 1], [1, 1, 1], site="s"),
    "counts": lambda comm, odd: comm.all_to_all(ONES, [1, 1, 1], [2, 1, 1] if odd else [1, 1, 1], site="s"),
}
