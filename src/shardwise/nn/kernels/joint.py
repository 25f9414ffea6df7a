"""Products with one input, and the norm or gate before them, as one call of the compiled library: what is computed is the same,
but the input is rounded once, and Python is asked once."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from shardwise import native
from shardwise.nn.kernels.packing import BITS, Packed
from shardwise.nn.kernels.pool import Pool
from shardwise.nn.kernels.quantised import Sums
from shardwise.nn.kernels.stored import STORED

MOST = 3
"""Products of one call: queries, keys and values."""


@dataclass(frozen=True, slots=True, eq=False)
class Normed:
    """What comes before is a norm, as `Step` describes it: of `kind` "rms", with an `offset`, or "layer", with a `bias`."""

    kind: str
    weight: torch.Tensor
    bias: torch.Tensor | None
    eps: float
    offset: float


@dataclass(frozen=True, slots=True)
class Gated:
    """What comes before is silu(x) · up."""


Before = Normed | Gated | None


@dataclass(frozen=True, slots=True, eq=False)
class Term:
    """One product: with a weight [outputs, inputs] of plain numbers, or a packed one, and a bias [outputs]."""

    weight: torch.Tensor | Packed
    bias: torch.Tensor | None
    sums: Sums = Sums.NARROW

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        weight = self.weight
        return (weight.rows, weight.columns) if isinstance(weight, Packed) else (weight.shape[0], weight.shape[1])


class _Weight(ctypes.Structure):
    """`Weight` of native/joint.cpp."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("numbers", "scale", "bias")),
        *((name, ctypes.c_int64) for name in ("outputs", "bits", "stored", "bias_stored")),
    ]


class _Joint(ctypes.Structure):
    """`Joint` of native/joint.cpp."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("norm", "norm_bias")),
        *((name, ctypes.c_int64) for name in ("before", "norm_stored", "columns", "group", "sums", "count")),
        ("weights", _Weight * MOST),
        *((name, ctypes.c_float) for name in ("eps", "offset")),
    ]


class Joints:
    """Makes joint products of float32 tensors of a CPU. They share the memory in which inputs are prepared: one at a time."""

    def __init__(self, pool: Pool) -> None:
        p, n = native.POINTER, native.WHOLE
        told = ctypes.POINTER(_Joint)
        self.pool = pool
        self.call = native.function("sw_joint", p, told, p, p, n, p, p, p, p)
        self.bytes = native.function("sw_joint_bytes", told, n, result=n)
        self.scratch = torch.empty(0, dtype=torch.uint8)

    def joint(self, terms: Sequence[Term], before: Before) -> Joint | None:
        """The products as one call; None where they are not of one kind, or of no inputs."""
        groups = {term.weight.group for term in terms if isinstance(term.weight, Packed)}
        alike = len({term.sums for term in terms}) == 1 and len({term.shape[1] for term in terms}) == 1
        if not alike or len(groups) > 1 or len(terms) > MOST or not terms[0].shape[1]:
            return None
        return Joint(self, terms, before, groups.pop() if groups else 0)

    def room(self, size: int) -> int:
        """The address of so many bytes."""
        if len(self.scratch) < size:
            # Grown by halves, so that slowly growing batches do not ask anew each time.
            self.scratch = torch.empty(size + size // 2, dtype=torch.uint8)
        return self.scratch.data_ptr()


class Joint:
    """What it multiplies with is looked at once, when it is made: the tensors must stay where they are."""

    def __init__(self, of: Joints, terms: Sequence[Term], before: Before, group: int) -> None:
        self._of, self._pool, self._call = of, of.pool.handle, of.call
        # What is pointed at must outlive this.
        self._biases = [_bias(term) for term in terms]
        self._held = (terms, before)
        self._columns = terms[0].shape[1]
        self._outputs = [term.shape[0] for term in terms]
        self._dtype = torch.float64 if terms[0].sums is Sums.WIDE else torch.float32
        self._told = _Joint(columns=self._columns, group=group, sums=terms[0].sums, count=len(terms))
        for place, term, bias in zip(self._told.weights, terms, self._biases, strict=False):
            _tell(place, term, bias)
        _tell_before(self._told, before)
        self._rows, self._bytes = -1, 0

    def __call__(self, x: torch.Tensor, up: torch.Tensor | None = None) -> list[torch.Tensor]:
        """x [rows, inputs], and for a gate `up` of the same shape, to each product [rows, outputs]: new tensors."""
        x = x.contiguous()
        rows = x.shape[0]
        if rows != self._rows:
            self._rows, self._bytes = rows, self._of.bytes(self._told, rows)
        assert x.dtype is torch.float32 and x.numel() == rows * self._columns
        made = [torch.empty(rows, outputs, dtype=self._dtype) for outputs in self._outputs]
        places: list[int | None] = [y.data_ptr() for y in made]
        places += [None] * (MOST - len(places))
        other = None if up is None else up.contiguous().data_ptr()
        self._call(self._pool, self._told, x.data_ptr(), other, rows, self._of.room(self._bytes), *places)
        return made


def _bias(term: Term) -> torch.Tensor | None:
    """As the kernel reads it: beside packed weights in float32."""
    return term.bias.float() if term.bias is not None and isinstance(term.weight, Packed) else term.bias


def _tell(place: _Weight, term: Term, bias: torch.Tensor | None) -> None:
    weight = term.weight
    place.outputs = term.shape[0]
    place.bias = None if bias is None else bias.data_ptr()
    place.bias_stored = 0 if bias is None else STORED[bias.dtype]
    if isinstance(weight, Packed):
        place.numbers, place.scale, place.bits = weight.weight.data_ptr(), weight.scale.data_ptr(), BITS[weight.kind]
    else:
        assert weight.is_contiguous()
        place.numbers, place.stored = weight.data_ptr(), STORED[weight.dtype]


def _tell_before(told: _Joint, before: Before) -> None:
    if isinstance(before, Gated):
        told.before = 3
    elif before is not None:
        assert before.bias is None or before.bias.dtype == before.weight.dtype
        told.before = {"rms": 1, "layer": 2}[before.kind]
        told.norm, told.norm_stored = before.weight.data_ptr(), STORED[before.weight.dtype]
        told.norm_bias = None if before.bias is None else before.bias.data_ptr()
        told.eps, told.offset = before.eps, before.offset
