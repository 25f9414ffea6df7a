"""Groups of threads: the contract at several sizes, and every way a group can break, each within its time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shardwise.comm.protocol import Comm
from shardwise.comm.solo import Recording
from shardwise.comm.threads import Meeting, ThreadComm, run, threads
from shardwise.errors import CommError
from tests.comm.comm_cases import DIFFERENT, ONES, cases, check, large


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_contract(size: int, recorded: bool) -> None:
    @settings(max_examples=60, deadline=None, database=None)
    @given(st.lists(cases(size), min_size=1, max_size=4))
    def hold(drawn: list) -> None:
        def body(comm: Comm) -> None:
            comm = Recording(comm) if recorded else comm
            for case in drawn:
                check(comm, case)

        run(size, body, deadline_s=20)

    hold()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_large_sums(dtype: str) -> None:
    run(4, lambda comm: check(comm, large("all_reduce", dtype, 300_007, 4)))


def test_results_share_no_memory() -> None:
    totals = run(3, lambda comm: comm.all_reduce(ONES, site="s"))
    assert len({total.data_ptr() for total in totals}) == 3


def test_a_result_of_another_rank_survives_what_its_owner_does_next() -> None:
    def body(comm: Comm) -> list[float]:
        x = torch.full((3,), float(comm.rank))
        gathered = comm.all_gather(x, [range(3), range(3, 6)], site="s")
        x.fill_(99)
        comm.barrier()
        return gathered.tolist()

    assert run(2, body) == [[0, 0, 0, 1, 1, 1]] * 2


def test_out_may_be_the_input() -> None:
    def body(comm: Comm) -> list[list[float]]:
        x, y = torch.full((2,), comm.rank + 1.0), torch.full((2,), comm.rank + 1.0)
        return [comm.all_reduce(x, site="s", out=x).tolist(), comm.broadcast(y, 1, site="s", out=y).tolist(), x.tolist()]

    assert run(2, body) == [[[3.0, 3.0], [2.0, 2.0], [3.0, 3.0]]] * 2


def test_an_interrupted_rank_breaks_the_group() -> None:
    class Interrupting(torch.Tensor):
        @property
        def is_cuda(self) -> bool:  # read just before the ranks meet
            raise KeyboardInterrupt

    left, right = threads(2, deadline_s=30)
    with pytest.raises(KeyboardInterrupt):
        left.all_reduce(ONES.as_subclass(Interrupting), site="s")
    with pytest.raises(CommError, match="rank 0 stopped: KeyboardInterrupt"):
        right.all_reduce(ONES, site="s")


# --- how groups break -------------------------------------------------------------------------------------------------


def failures(size: int, body: Callable[[Comm], object], *, deadline_s: float = 20.0) -> dict[int, tuple[CommError, float]]:
    """The CommError of each rank that had one, and how long that rank's body took."""
    found: dict[int, tuple[CommError, float]] = {}

    def guarded(comm: Comm) -> None:
        started = time.monotonic()
        try:
            body(comm)
        except CommError as error:
            found[comm.rank] = error, time.monotonic() - started
            raise

    with pytest.raises(Exception):  # noqa: B017 - which one it is has tests of its own
        run(size, guarded, deadline_s=deadline_s)
    return found


def test_a_rank_that_stays_away_is_named_at_the_deadline() -> None:
    gone = threading.Event()

    def body(comm: Comm) -> None:
        if comm.rank == 1:
            gone.wait(10)
            return
        try:
            comm.all_reduce(ONES, site="mlp")
        finally:
            gone.set()

    found = failures(3, body, deadline_s=0.3)
    assert sorted(found) == [0, 2]
    for rank, (error, seconds) in found.items():
        assert (error.rank, error.site, error.culprit) == (rank, "mlp", 1)
        assert "rank 1 did not come within 0.3 s" in str(error)
        assert seconds < 1.3
    assert any(seconds > 0.29 for _, seconds in found.values())


def test_all_missing_ranks_are_named() -> None:
    first, *_ = threads(3, deadline_s=0.05)
    with pytest.raises(CommError, match="rank 1, rank 2 did not come"):
        first.barrier()
    with pytest.raises(CommError, match="rank 1, rank 2 did not come"):
        first.all_reduce(ONES, site="later")


def test_nothing_fails_where_all_arrive() -> None:
    assert run(3, lambda comm: comm.all_reduce(ONES, site="mlp").tolist(), deadline_s=5) == [[3.0] * 3] * 3


def test_a_raising_rank_wakes_the_others_and_is_what_the_caller_sees() -> None:
    found: dict[int, CommError] = {}

    def body(comm: Comm) -> None:
        if comm.rank == 1:
            raise KeyError("planted")
        try:
            comm.all_reduce(ONES, site="mlp")
        except CommError as error:
            found[comm.rank] = error
            raise

    started = time.monotonic()
    with pytest.raises(KeyError, match="planted"):
        run(3, body, deadline_s=30)
    assert time.monotonic() - started < 2
    assert {rank: (error.culprit, error.site) for rank, error in found.items()} == {0: (1, "mlp"), 2: (1, "mlp")}
    assert all("rank 1 stopped: KeyError: 'planted'" in str(error) for error in found.values())


def test_a_rank_that_leaves_early_wakes_the_others() -> None:
    found = failures(2, lambda comm: comm.barrier() if comm.rank else None, deadline_s=30)
    error, seconds = found[1]
    assert (error.culprit, str(error)) == (0, "barrier at 'barrier' on rank 1: rank 0 has left the group")
    assert seconds < 2


def test_a_rank_that_leaves_late_harms_nobody() -> None:
    def body(comm: Comm) -> float:
        total = comm.all_reduce(ONES, site="last")
        comm.close()
        return total.sum().item()

    assert [run(3, body) for _ in range(20)] == [[9.0] * 3] * 20


def test_after_an_error_every_call_raises_at_once() -> None:
    left, right = threads(2, deadline_s=30)
    right.abort(RuntimeError("planted"))
    for call in (left.barrier, right.barrier, lambda: left.send(ONES, 1, site="s"), lambda: left.recv(ONES, 1, site="s")):
        with pytest.raises(CommError, match="rank 1 stopped: RuntimeError: planted"):
            call()


def test_a_message_nobody_takes_fails_at_the_deadline() -> None:
    found = failures(2, lambda comm: comm.send(ONES, 1 - comm.rank, site="crossing"), deadline_s=0.1)
    assert "did not come within 0.1 s" in str(found[0][0])


@pytest.mark.parametrize("what", sorted(DIFFERENT))
def test_ranks_that_differ_are_told_so(what: str) -> None:
    found = failures(3, lambda comm: DIFFERENT[what](comm, comm.rank == 1))
    assert sorted(found) == [0, 1, 2]
    assert all("the ranks disagree" in str(error) for error, _ in found.values())
    if what != "counts":  # there each of two ranks could be the one that is wrong
        assert all(error.culprit == 1 for error, _ in found.values())


@pytest.mark.parametrize("what", sorted(DIFFERENT))
def test_ranks_that_do_not_differ_pass_the_same_calls(what: str) -> None:
    run(3, lambda comm: DIFFERENT[what](comm, False))


@pytest.mark.parametrize("wrong", ["site", "shape", "dtype"])
def test_messages_that_differ_are_told_so(wrong: str) -> None:
    def body(comm: Comm) -> None:
        if comm.rank == 0:
            comm.send(ONES, 1, site="s")
        else:
            x = {"shape": torch.zeros(4), "dtype": torch.zeros(3).int()}.get(wrong, torch.zeros(3))
            comm.recv(x, 0, site="t" if wrong == "site" else "s")

    found = failures(2, body)
    assert sorted(found) == [0, 1]
    assert all("the ranks disagree" in str(error) for error, _ in found.values())


def test_a_peer_of_another_epoch_is_an_error() -> None:
    meeting = Meeting(2, deadline_s=30)
    found: list[CommError] = []

    def body(rank: int) -> None:
        with pytest.raises(CommError) as caught:
            ThreadComm(meeting, rank, epoch=rank).barrier()
        found.append(caught.value)

    both = [threading.Thread(target=body, args=(rank,)) for rank in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(found) == 2
    assert all("epoch 0 barrier" in str(error) and "epoch 1 barrier" in str(error) for error in found)


# --- run --------------------------------------------------------------------------------------------------------------


def test_run_leaves_no_thread_behind_and_inherits_the_grad_mode() -> None:
    before = threading.active_count()
    with torch.inference_mode():
        assert run(3, lambda comm: (comm.rank, torch.is_inference_mode_enabled())) == [(0, True), (1, True), (2, True)]
    assert run(2, lambda _: torch.is_grad_enabled()) == [True, True]
    with torch.no_grad():
        assert run(2, lambda _: torch.is_grad_enabled()) == [False, False]
    assert threading.active_count() == before


def test_run_does_not_wait_for_ever_for_a_stuck_rank() -> None:
    free = threading.Event()
    with pytest.raises(CommError, match="rank 1 did not come"):
        run(2, lambda comm: free.wait(10) if comm.rank else comm.barrier(), deadline_s=0.1)
    free.set()


def test_a_gradient_is_not_lost_in_silence() -> None:
    x = torch.ones(3, requires_grad=True)
    with pytest.raises(ValueError, match="wants a gradient"):
        run(2, lambda comm: comm.all_reduce(x, site="s"))
    with torch.no_grad():
        assert run(2, lambda comm: comm.all_reduce(x, site="s").tolist()) == [[2.0] * 3] * 2


@pytest.mark.gpu
def test_tensors_of_different_devices_meet() -> None:
    def body(comm: Comm) -> tuple[str, list[float]]:
        device = "cuda:0" if comm.rank else "cpu"
        total = comm.all_reduce(torch.full((2,), comm.rank + 1.0, device=device), site="s")
        return total.device.type, total.tolist()

    assert run(3, body) == [("cpu", [6.0, 6.0]), ("cuda", [6.0, 6.0]), ("cuda", [6.0, 6.0])]
