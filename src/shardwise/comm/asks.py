"""One checked call: the argument checks of all backends, what peers must agree on, and the bytes a call is worth.

Each backend turns its arguments into an `Ask` first, so a wrong argument is the same `ValueError` everywhere and nothing
has been sent when it is raised. Knows nothing of how a call is carried out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from shardwise.comm.protocol import Comm
from shardwise.errors import CommError
from shardwise.spec.traffic import Call

SUMMED = (
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float64,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
)
ROUNDED = (torch.float32, torch.bfloat16, torch.float16)
"""What a sum of float64 can be rounded to."""
CARRIED = (*SUMMED, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2)

DISAGREE = "the ranks disagree"


@dataclass(frozen=True, slots=True, eq=False)
class Ask:
    """What one rank asks of its group. `x` is its input, of recv the tensor to fill, of a barrier nothing.

    `result` is the shape that this rank receives, `counted` the shape that a `Call` states, `agreed` what else than op,
    site, epoch and dtype must be equal on every rank. `counts` are the lengths along `dim` that go to and come from
    each rank, in elements of that dim; `peer` is the root, the receiver or the sender; `dtype` is what a sum is rounded to.
    """

    op: str
    site: str
    rank: int
    size: int
    epoch: int
    x: Tensor
    out: Tensor | None
    result: tuple[int, ...]
    counted: tuple[int, ...]
    agreed: tuple[object, ...]
    dim: int = 0
    send_counts: tuple[int, ...] = ()
    recv_counts: tuple[int, ...] = ()
    peer: int = -1
    dtype: torch.dtype | None = None

    @property
    def call(self) -> Call:
        """What this call is worth, for a recorder and a planner."""
        if self.op == "barrier":
            return Call(self.op, self.site, (), "")
        return Call(self.op, self.site, self.counted, dtype_name(self.x.dtype))

    def agrees(self, other: Ask) -> bool:
        """Whether two ranks make the same call. A send and its recv agree if all but the op does."""
        return (
            self._kind == other._kind
            and self.site == other.site
            and self.epoch == other.epoch
            and self.x.dtype == other.x.dtype
            and self.agreed == other.agreed
        )

    def said(self, sender: int, receiver: int) -> str:
        """What the message from one rank to the other is; both ends say the same, or they disagree."""
        if self.op != "all_to_all":
            return str(self)
        count = self.send_counts[receiver] if sender == self.rank else self.recv_counts[sender]
        return f"{self}, {count} from rank {sender} to rank {receiver}"

    def __str__(self) -> str:
        what = " ".join(str(part) for part in self.agreed)
        return f"epoch {self.epoch} {self._kind} at {self.site!r} of {dtype_name(self.x.dtype)} {what}".rstrip()

    @property
    def _kind(self) -> str:
        return "message" if self.op in ("send", "recv") else self.op


def failure(ask: Ask, reason: str, culprit: int | None = None) -> CommError:
    """The error of a call that failed on this rank."""
    text = f"{ask.op} at {ask.site!r} on rank {ask.rank}: {reason}"
    return CommError(text, rank=ask.rank, site=ask.site, culprit=culprit)


def dtype_name(dtype: torch.dtype) -> str:
    """ "bfloat16" for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")


def all_reduce(comm: Comm, x: Tensor, site: str, out: Tensor | None, dtype: torch.dtype | None = None) -> Ask:
    """Checks an all_reduce: what is rounded is a sum of float64."""
    op = "all_reduce"
    shape = _shape(comm, op, x, site, SUMMED)
    dtype = None if dtype == x.dtype else dtype
    if dtype is not None and (x.dtype != torch.float64 or dtype not in ROUNDED):
        _refuse(comm, op, site, f"a sum of {x.dtype} is not rounded to {dtype}; one of float64 is, to a narrower float")
    _check_out(comm, op, x, site, out, shape, dtype)
    agreed: tuple[object, ...] = (shape,) if dtype is None else (shape, f"rounded to {dtype_name(dtype)}")
    return Ask(op, site, comm.rank, comm.size, comm.epoch, x, out, shape, shape, agreed, dtype=dtype)


def all_gather(comm: Comm, x: Tensor, ranges: Sequence[range], dim: int, site: str, out: Tensor | None) -> Ask:
    """Checks an all_gather: x.shape[dim] == len(ranges[rank])."""
    op = "all_gather"
    shape = _shape(comm, op, x, site, CARRIED)
    dim = _dim(comm, op, x, dim, site)
    counts = _counts_of(comm, op, ranges, site)
    if shape[dim] != counts[comm.rank]:
        _refuse(comm, op, site, f"dim {dim} of x has {shape[dim]} elements, {ranges[comm.rank]} has {counts[comm.rank]}")
    whole = (*shape[:dim], sum(counts), *shape[dim + 1 :])
    _check_out(comm, op, x, site, out, whole)
    agreed = (whole, f"dim {dim}", counts)
    sent = (shape[dim],) * comm.size
    return Ask(op, site, comm.rank, comm.size, comm.epoch, x, out, whole, whole, agreed, dim, sent, counts)


def reduce_scatter(comm: Comm, x: Tensor, ranges: Sequence[range], dim: int, site: str, out: Tensor | None) -> Ask:
    """Checks a reduce_scatter: the ranges cover x.shape[dim]."""
    op = "reduce_scatter"
    shape = _shape(comm, op, x, site, SUMMED)
    dim = _dim(comm, op, x, dim, site)
    counts = _counts_of(comm, op, ranges, site)
    if shape[dim] != sum(counts):
        _refuse(comm, op, site, f"dim {dim} of x has {shape[dim]} elements, the ranges cover {sum(counts)}")
    part = (*shape[:dim], counts[comm.rank], *shape[dim + 1 :])
    _check_out(comm, op, x, site, out, part)
    agreed = (shape, f"dim {dim}", counts)
    received = (counts[comm.rank],) * comm.size
    return Ask(op, site, comm.rank, comm.size, comm.epoch, x, out, part, shape, agreed, dim, counts, received)


def all_to_all(
    comm: Comm, x: Tensor, send_counts: Sequence[int], recv_counts: Sequence[int], site: str, out: Tensor | None
) -> Ask:
    """Checks an all_to_all: len(x) == sum(send_counts), and what a rank keeps for itself is counted alike twice."""
    op = "all_to_all"
    shape = _shape(comm, op, x, site, CARRIED)
    _dim(comm, op, x, 0, site)
    for name, counts in (("send_counts", send_counts), ("recv_counts", recv_counts)):
        if len(counts) != comm.size or any(count < 0 for count in counts):
            _refuse(comm, op, site, f"{name} {list(counts)} must be {comm.size} numbers of 0 or more, one a rank")
    if shape[0] != sum(send_counts):
        _refuse(comm, op, site, f"x has {shape[0]} rows, send_counts {list(send_counts)} add up to {sum(send_counts)}")
    if send_counts[comm.rank] != recv_counts[comm.rank]:
        kept = f"{send_counts[comm.rank]} rows are sent to this rank itself and {recv_counts[comm.rank]} expected from it"
        _refuse(comm, op, site, kept)
    result = (sum(recv_counts), *shape[1:])
    _check_out(comm, op, x, site, out, result)
    agreed = ("rows of", shape[1:])
    sent, received = tuple(send_counts), tuple(recv_counts)
    return Ask(op, site, comm.rank, comm.size, comm.epoch, x, out, result, result, agreed, 0, sent, received)


def broadcast(comm: Comm, x: Tensor, root: int, site: str, out: Tensor | None) -> Ask:
    """Checks a broadcast."""
    shape = _shape(comm, "broadcast", x, site, CARRIED)
    if not 0 <= root < comm.size:
        _refuse(comm, "broadcast", site, f"root {root} is not a rank of a group of {comm.size}")
    _check_out(comm, "broadcast", x, site, out, shape)
    agreed = (shape, f"from rank {root}")
    return Ask("broadcast", site, comm.rank, comm.size, comm.epoch, x, out, shape, shape, agreed, peer=root)


def message(comm: Comm, op: str, x: Tensor, peer: int, site: str) -> Ask:
    """Checks a send or a recv: the peer is another rank of the group."""
    shape = _shape(comm, op, x, site, CARRIED)
    if not 0 <= peer < comm.size or peer == comm.rank:
        _refuse(comm, op, site, f"rank {peer} is not another rank of a group of {comm.size}")
    return Ask(op, site, comm.rank, comm.size, comm.epoch, x, None, shape, shape, (shape,), peer=peer)


def barrier(comm: Comm, site: str) -> Ask:
    """A barrier, which has no arguments to check."""
    return Ask("barrier", site, comm.rank, comm.size, comm.epoch, _NOTHING, None, (0,), (), ())


_NOTHING = torch.empty(0, dtype=torch.uint8)


def _refuse(comm: Comm, op: str, site: str, reason: str) -> NoReturn:
    raise ValueError(f"{op} at {site!r} on rank {comm.rank}: {reason}")


def _shape(comm: Comm, op: str, x: Tensor, site: str, dtypes: tuple[torch.dtype, ...]) -> tuple[int, ...]:
    if x.dtype not in dtypes:
        _refuse(comm, op, site, f"{x.dtype} is not one of {', '.join(dtype_name(dtype) for dtype in dtypes)}")
    if comm.size > 1 and x.requires_grad and torch.is_grad_enabled():
        _refuse(comm, op, site, "x wants a gradient, which would be lost here; call under torch.no_grad()")
    return tuple(x.shape)


def _dim(comm: Comm, op: str, x: Tensor, dim: int, site: str) -> int:
    if not -x.ndim <= dim < x.ndim:
        _refuse(comm, op, site, f"x of shape {tuple(x.shape)} has no dim {dim}")
    return dim % x.ndim


def _counts_of(comm: Comm, op: str, ranges: Sequence[range], site: str) -> tuple[int, ...]:
    if len(ranges) != comm.size:
        _refuse(comm, op, site, f"{len(ranges)} ranges for {comm.size} ranks")
    end = 0
    for part in ranges:
        if part.start != end or part.step != 1 or part.stop < part.start:
            _refuse(comm, op, site, f"ranges {list(ranges)} must follow each other from 0; {part} does not start at {end}")
        end = part.stop
    return tuple(len(part) for part in ranges)


def _check_out(
    comm: Comm, op: str, x: Tensor, site: str, out: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype | None = None
) -> None:
    if out is None:
        return
    dtype = dtype or x.dtype
    if tuple(out.shape) != shape or out.dtype != dtype or out.device != x.device:
        has = f"{tuple(out.shape)} {out.dtype} on {out.device}"
        _refuse(comm, op, site, f"out is {has}; the result is {shape} {dtype} on {x.device}")
