"""What holds of every backend: arguments are refused alike, calls are counted alike, and the contract check can fail."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from shardwise import native
from shardwise.comm.memory import anonymous
from shardwise.comm.protocol import Comm
from shardwise.comm.shm import shm
from shardwise.comm.solo import Recording, Solo
from shardwise.comm.sums import rank_order_sum
from shardwise.comm.threads import ThreadComm, run, threads
from shardwise.comm.torch import file_store, gloo
from shardwise.errors import CommError
from shardwise.spec.traffic import Call
from tests.comm.comm_cases import Case, cases, check, same_bits

X = torch.ones(2, 3)
D = X.double()


@settings(max_examples=150, deadline=None, database=None)
@given(cases(1))
def test_contract_of_solo(case: Case) -> None:
    check(Solo(), case)
    check(Recording(Solo()), case)


def test_a_closed_solo_raises() -> None:
    comm = Solo(epoch=4)
    assert (comm.rank, comm.size, comm.epoch) == (0, 1, 4)
    comm.close()
    with pytest.raises(CommError, match="all_reduce at 's' on rank 0"):
        comm.all_reduce(X, site="s")


def test_every_backend_is_a_comm() -> None:
    ends: list[Comm] = [Solo(), Recording(Solo()), *threads(2)]  # mypy checks the rest
    assert [end.enter(X, site="s") is X for end in ends] == [True] * 4


def test_importing_the_package_and_the_protocol_loads_no_torch() -> None:
    code = "import sys, shardwise.comm, shardwise.comm.protocol; print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "False\n"


# --- arguments --------------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Callable[[Comm], object], str]] = {
    "sum of booleans": (lambda c: c.all_reduce(X.bool(), site="s"), "torch.bool is not one of"),
    "complex": (lambda c: c.broadcast(X.to(torch.complex64), 0, site="s"), "complex64 is not one of"),
    "out of another shape": (lambda c: c.all_reduce(X, site="s", out=torch.ones(3, 2)), r"out is \(3, 2\)"),
    "out of another dtype": (lambda c: c.all_reduce(X, site="s", out=X.bfloat16()), r"out is \(2, 3\) torch.bfloat16"),
    "a sum of floats rounded": (lambda c: c.all_reduce(X, site="s", dtype=torch.bfloat16), "is not rounded to torch.bfloat16"),
    "a sum that grows": (lambda c: c.all_reduce(D, site="s", dtype=torch.int64), "is not rounded to torch.int64"),
    "out before it is rounded": (
        lambda c: c.all_reduce(D, site="s", out=D, dtype=torch.float32),
        "the result is .* torch.float32",
    ),
    "out of the wrong part": (lambda c: c.reduce_scatter(X, cut(c, 3), site="s", out=torch.ones(2, 9)), "out is"),
    "no such dim": (lambda c: c.all_gather(X, cut(c, 3), dim=2, site="s"), "has no dim 2"),
    "no dim": (lambda c: c.all_gather(torch.ones(()), cut(c, 1), site="s"), "has no dim -1"),
    "too few ranges": (lambda c: c.all_gather(X, cut(c, 3)[1:], site="s"), "ranges for"),
    "a gap": (lambda c: c.reduce_scatter(X, [range(1, 1), *cut(c, 3)[1:]], site="s"), "must follow each other"),
    "a step": (lambda c: c.reduce_scatter(X, [range(0, 3, 2), *cut(c, 3)[1:]], site="s"), "must follow each other"),
    "backwards": (lambda c: c.reduce_scatter(X, [range(-1), *cut(c, 3)[1:]], site="s"), "must follow each other"),
    "ranges that cover less": (lambda c: c.reduce_scatter(X, cut(c, 2), site="s"), "the ranges cover 2"),
    "a part of another length": (lambda c: c.all_gather(torch.ones(9), cut(c, 4), site="s"), "has 9 elements"),
    "a root outside": (lambda c: c.broadcast(X, c.size, site="s"), "root . is not a rank"),
    "a root below": (lambda c: c.broadcast(X, -1, site="s"), "root -1 is not a rank"),
    "counts of too few": (lambda c: c.all_to_all(X, [2] * (c.size + 1), [2] * c.size, site="s"), "send_counts"),
    "a count below 0": (lambda c: c.all_to_all(X, own(c, 2), [-1] * c.size, site="s"), "recv_counts"),
    "counts of other rows": (lambda c: c.all_to_all(X, own(c, 3), own(c, 3), site="s"), "x has 2 rows"),
    "rows lost at home": (lambda c: c.all_to_all(X, own(c, 2), own(c, 1), site="s"), "2 rows are sent to this rank itself"),
    "a message to itself": (lambda c: c.send(X, c.rank, site="s"), "is not another rank"),
    "a message from nobody": (lambda c: c.recv(X, 9, site="s"), "rank 9 is not another rank"),
}


def cut(comm: Comm, length: int) -> list[range]:
    """All of the length on the first rank."""
    return [range(length), *[range(length, length)] * (comm.size - 1)]


def own(comm: Comm, rows: int) -> list[int]:
    """All rows stay on this rank."""
    return [rows if rank == comm.rank else 0 for rank in range(comm.size)]


@pytest.mark.parametrize("why", REFUSED)
def test_wrong_arguments_are_refused_alike_before_anything_is_sent(why: str, tmp_path: Path) -> None:
    call, message = REFUSED[why]
    tmp_path.chmod(0o700)
    # The other ends do nothing: had anything been sent, the call would wait, and fail otherwise.
    ends: list[Comm] = [Solo(), Recording(Solo()), threads(3, deadline_s=0.2)[1], Recording(threads(3, deadline_s=0.2)[1])]
    ends.append(gloo(file_store(tmp_path, 1, 0), 0, 1, deadline_s=0.2))
    if native.available():
        memory = anonymous()
        ends.append(shm(memory, 0, 1, deadline_s=0.2))
        os.close(memory)
    for end in ends:
        with pytest.raises(ValueError, match=rf"at 's' on rank {end.rank}: .*{message}"):
            call(end)
        end.close()


def test_the_same_calls_with_right_arguments_are_not_refused() -> None:
    def body(comm: Comm) -> None:
        comm.reduce_scatter(X, cut(comm, 3), site="s", out=torch.ones(2, 0 if comm.rank else 3))
        comm.all_to_all(X, own(comm, 2), own(comm, 2), site="s", out=torch.ones(2, 3))
        comm.broadcast(X, comm.size - 1, site="s")

    run(3, body)
    body(Solo())


# --- counting ---------------------------------------------------------------------------------------------------------


def test_recorded_calls_say_what_a_planner_predicts() -> None:
    def body(comm: Comm) -> list[Call]:
        recording = Recording(comm)
        spans = [range(1), range(1, 4)]
        recording.all_reduce(torch.ones(5, 4, dtype=torch.bfloat16), site="down")
        recording.all_gather(torch.ones(5, len(spans[comm.rank])), spans, site="logits")
        recording.reduce_scatter(torch.ones(5, 4), spans, site="down")
        recording.all_to_all(torch.ones(3, 2), *(([1, 2], [1, 0]) if comm.rank == 0 else ([0, 3], [2, 3])), site="experts")
        recording.broadcast(torch.ones(7, dtype=torch.int64), 0, site="ids")
        recording.enter(X, site="in")
        recording.barrier()
        if comm.rank == 0:
            recording.send(X, 1, site="stage")
        else:
            recording.recv(X.clone(), 0, site="stage")
        return recording.calls

    first, second = run(2, body)
    assert first == [
        Call("all_reduce", "down", (5, 4), "bfloat16"),
        Call("all_gather", "logits", (5, 4), "float32"),
        Call("reduce_scatter", "down", (5, 4), "float32"),
        Call("all_to_all", "experts", (1, 2), "float32"),
        Call("broadcast", "ids", (7,), "int64"),
        Call("barrier", "barrier", (), ""),
        Call("send", "stage", (2, 3), "float32"),
    ]
    assert [call.bytes for call in first] == [40, 80, 80, 8, 56, 0, 24]
    assert second[3] == Call("all_to_all", "experts", (5, 2), "float32")
    assert second[-1] == Call("recv", "stage", (2, 3), "float32")
    assert [call for i, call in enumerate(second) if i not in (3, 6)] == [first[i] for i in (0, 1, 2, 4, 5)]


def test_a_failed_call_is_not_recorded() -> None:
    recording = Recording(threads(2, deadline_s=0.05)[0])
    with pytest.raises(CommError):
        recording.all_reduce(X, site="s")
    assert recording.calls == []


# --- the sum ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [2, 3, 7])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_16_bit_sum_is_rounded_once(dtype: torch.dtype, ranks: int) -> None:
    parts = list(torch.randn(ranks, 4000, generator=torch.Generator().manual_seed(0)).to(dtype))
    exact = sum(part.double() for part in parts)
    once = (rank_order_sum(parts).double() - exact).abs().max()
    assert once <= (exact.to(dtype).double() - exact).abs().max() * 1.01
    assert same_bits(rank_order_sum(parts), sum(part.float() for part in parts).to(dtype))


# --- planted faults: what the contract check must see ------------------------------------------------------------------


class Faulty(ThreadComm):
    """A backend with one fault."""

    fault = ""

    def all_reduce(self, x: Tensor, *, site: str, out: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
        match self.fault:
            case "a bit on one rank":
                total = super().all_reduce(x, site=site, out=out)
                if self.rank == 1:
                    total.view(-1)[:1] += 1
                return total
            case "a rank left out":
                return super().all_reduce(torch.zeros_like(x) if self.rank == 2 else x, site=site, out=out)
            case "another order":
                parts = super().all_gather(x.reshape(-1), self._equal(x.numel()), site=site).chunk(self.size)
                return rank_order_sum(parts[::-1]).view(x.shape)
            case "a wider dtype":
                return super().all_reduce(x, site=site, out=out).double()
            case "the input":
                return x.copy_(super().all_reduce(x, site=site))
            case "no out":
                return super().all_reduce(x, site=site)
        return super().all_reduce(x, site=site, out=out)

    def _equal(self, length: int) -> Sequence[range]:
        return [range(rank * length, (rank + 1) * length) for rank in range(self.size)]


def _check_faulty(fault: str, out: str) -> None:
    case = Case("all_reduce", "float32", (50,), 0, ((0, 0, 0),), 0, 3, False, out)

    def body(comm: Comm) -> None:
        assert isinstance(comm, ThreadComm)
        faulty = Faulty(comm._meeting, comm.rank)
        faulty.fault = fault
        check(faulty, case)

    run(3, body)


@pytest.mark.parametrize(
    ("fault", "out", "said"),
    [
        ("a bit on one rank", "none", "rank 1 got tensor"),
        ("a rank left out", "none", "got tensor"),
        ("another order", "none", "got tensor"),
        ("a wider dtype", "none", "got torch.float64"),
        ("the input", "none", "finds its input changed"),
        ("no out", "fresh", "did not get its out back"),
    ],
)
def test_the_contract_check_sees_planted_faults(fault: str, out: str, said: str) -> None:
    _check_faulty("", out)
    with pytest.raises(AssertionError, match=said):
        _check_faulty(fault, out)
