"""Groups that share memory, as threads and processes: the contract, and what a late, dead or differing rank leads to."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shardwise.comm.memory import anonymous
from shardwise.comm.protocol import Comm
from shardwise.comm.shared import LETTER_BYTES, SLOT_BYTES
from shardwise.comm.shm import ShmComm, shm
from shardwise.comm.sums import rank_order_sum
from shardwise.errors import CommError
from tests.comm.comm_cases import DIFFERENT, ONES, cases, check, contract_cases, large, same_bits
from tests.comm.comm_processes import Processes
from tests.comm.shm_stress import live
from tests.comm.shm_threads import failures, run
from tests.nn.kernels.paths import each_path, needs_compiled

pytestmark = needs_compiled


@pytest.fixture(scope="module")
def trio() -> Iterator[Processes]:
    with Processes(3) as processes:
        yield processes
        assert processes.end() == [0, 0, 0]


@pytest.fixture
def memory() -> Iterator[str]:
    """A new group's memory, by a name that the processes can open."""
    fd = anonymous()
    yield f"/proc/{os.getpid()}/fd/{fd}"
    os.close(fd)


# --- the contract -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_contract_in_threads(size: int) -> None:
    @settings(max_examples=30, deadline=None, database=None)
    @given(st.lists(cases(size), min_size=1, max_size=6))
    def hold(drawn: list) -> None:
        def body(comm: Comm) -> None:
            for case in drawn:
                check(comm, case)

        run(size, body)

    hold()


def test_contract_in_processes(trio: Processes, tmp_path: Path, memory: str) -> None:
    drawn = contract_cases(3, 60)
    answers = trio.play(tmp_path / "group", "contract", cases=drawn, memory=memory)
    assert [answer.get("cases") for answer in answers] == [len(drawn)] * 3, answers


BEYOND = SLOT_BYTES * 2 + 12  # bytes: three rounds, the last one short


@pytest.mark.parametrize("op", ["all_reduce", "all_gather", "reduce_scatter", "broadcast", "message"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_what_is_larger_than_a_slot(op: str, dtype: str) -> None:
    case = large(op, dtype, BEYOND // getattr(torch, dtype).itemsize, 3)
    run(3, lambda comm: check(comm, case))


def test_rows_to_all_that_are_larger_than_a_slot() -> None:
    counts = [[1, 700, 2], [0, 3, 500], [600, 0, 0]]

    def body(comm: Comm) -> bool:
        x = torch.arange(sum(counts[comm.rank]) * 1000).view(-1, 1000) + 10**7 * comm.rank
        came = comm.all_to_all(x, counts[comm.rank], [row[comm.rank] for row in counts], site="s")
        starts = [sum(row[: comm.rank]) * 1000 + 10**7 * rank for rank, row in enumerate(counts)]
        awaited = [torch.arange(start, start + row[comm.rank] * 1000) for start, row in zip(starts, counts, strict=True)]
        return torch.equal(came.view(-1), torch.cat(awaited))

    assert LETTER_BYTES < SLOT_BYTES < 500 * 8000
    assert run(3, body) == [True] * 3


@each_path
@settings(max_examples=12, deadline=None)
@given(
    size=st.integers(2, 6),
    count=st.integers(0, 400_000),
    seed=st.integers(0, 999),
    inplace=st.booleans(),
    dtypes=st.sampled_from([("float32", "float32"), ("float64", "float64"), ("float64", "float32")]),
)
def test_sums_of_floats_have_the_bits_of_rank_order(
    size: int, count: int, seed: int, inplace: bool, dtypes: tuple[str, str]
) -> None:
    make = torch.Generator().manual_seed(seed)
    of, to = (getattr(torch, dtype) for dtype in dtypes)
    parts = [torch.randn(count, generator=make, dtype=of) for _ in range(size)]
    awaited = rank_order_sum(parts).to(to)

    def body(comm: Comm) -> bool:
        x = parts[comm.rank].clone()
        first = comm.all_reduce(x, site="s", dtype=to)  # this one is checked, those after it take the short way
        second = comm.all_reduce(x, site="s", out=x if inplace and of is to else None, dtype=to)
        return same_bits(first, awaited) and same_bits(second, awaited) and (second is x or same_bits(x, parts[comm.rank]))

    assert run(size, body) == [True] * size


@pytest.mark.parametrize("dtype", [torch.float64, torch.bool, torch.int64], ids=str)
def test_a_gather_that_was_made_before_is_the_same(dtype: torch.dtype) -> None:
    """Calls of a shape after the first one are known, and go a shorter way: with new numbers, along any dim."""
    shapes = [((1, 2), -1), ((3, 4), 1), ((3, 4), 0), ((2, 3, 2), 1), ((70_000,), 0)]

    def body(comm: Comm) -> list[torch.Tensor]:
        found = []
        for turn in range(3):
            for shape, dim in shapes:
                length = shape[dim]
                ranges = [range(rank * length, (rank + 1) * length) for rank in range(comm.size)]
                found.append(comm.all_gather(part(shape, turn, comm.rank), ranges, dim=dim, site="again"))
        return found

    def part(shape: tuple[int, ...], turn: int, rank: int) -> torch.Tensor:
        made = torch.Generator().manual_seed(10 * turn + rank)
        return torch.randint(0, 2 if dtype == torch.bool else 1000, shape, generator=made).to(dtype)

    wanted = [torch.cat([part(shape, turn, rank) for rank in range(3)], dim) for turn in range(3) for shape, dim in shapes]
    for found in run(3, body):
        assert all(torch.equal(a, b) and a.is_contiguous() for a, b in zip(found, wanted, strict=True))


def test_special_values_are_summed_as_torch_does() -> None:
    row = torch.tensor([float("inf"), float("-inf"), float("nan"), 1e-45, 3.4e38, -0.0, 1.0])
    total = run(2, lambda comm: comm.all_reduce(row if comm.rank else row.flip(0), site="s"))
    assert torch.equal(total[0].nan_to_num(7.5), (row.flip(0) + row).nan_to_num(7.5))


def test_a_result_belongs_to_its_rank_and_inference_mode_may_come_and_go() -> None:
    def body(comm: Comm) -> list[float]:
        with torch.inference_mode(bool(comm.rank)):
            first = comm.broadcast(torch.full((2,), comm.rank + 1.0), 1, site="s")
        for _ in range(4):
            comm.all_gather(torch.full((2,), 9.0), [range(2), range(2, 4)], site="s")
        return first.tolist()

    assert run(2, body) == [[2.0, 2.0]] * 2


@pytest.mark.parametrize("size", [2, 3, 7])
def test_many_calls_of_many_sizes_at_many_times(size: int) -> None:
    run(size, lambda comm: live(comm, 1200 // size, seed=size))


# --- how groups break -------------------------------------------------------------------------------------------------


def test_a_rank_that_stays_away_is_named_at_the_deadline_and_waiting_costs_nothing(
    trio: Processes, tmp_path: Path, memory: str
) -> None:
    trio.order(tmp_path / "group", "absent", deadline_s=1.0, memory=memory)
    assert [trio.hear(rank) for rank in range(3)] == ["ready"] * 3
    answers = {rank: trio.hear(rank) for rank in (0, 2)}
    for rank, answer in answers.items():
        assert (answer["rank"], answer["site"], answer["culprit"]) == (rank, "second", 1), answer
        assert "rank 1 did not come within 1.0 s" in answer["error"]
        assert answer["seconds"] < 2
        assert answer["again"][0] == "again" and answer["again"][1] < 0.1
        assert answer["cpu_s"] < 0.03
    assert max(answer["seconds"] for answer in answers.values()) > 0.9
    trio.say(1, "go on")
    assert "error" not in trio.hear(1)


def test_a_stopped_rank_is_named_and_finds_the_group_broken(trio: Processes, tmp_path: Path, memory: str) -> None:
    trio.order(tmp_path / "group", "waiting", deadline_s=1.0, memory=memory)
    assert [trio.hear(rank) for rank in range(3)] == ["ready"] * 3
    stopped = trio.processes[1]
    stopped.send_signal(signal.SIGSTOP)
    for rank in (0, 2):
        answer = trio.hear(rank)
        assert (answer["site"], answer["culprit"]) == ("second", 1) and answer["seconds"] < 2, answer
    stopped.send_signal(signal.SIGCONT)
    trio.say(1, "go on")
    answer = trio.hear(1)
    assert "rank 1 did not come within 1.0 s" in answer["error"] and answer["seconds"] < 0.5


def test_a_killed_rank_is_noticed_at_once(trio: Processes, tmp_path: Path, memory: str) -> None:
    trio.order(tmp_path / "group", "waiting", deadline_s=30.0, memory=memory)
    assert [trio.hear(rank) for rank in range(3)] == ["ready"] * 3
    trio.kill(1)
    for rank in (0, 2):
        answer = trio.hear(rank)
        assert (answer["rank"], answer["site"], answer["culprit"]) == (rank, "second", 1), answer
        assert "lost rank 1: its process has ended" in answer["error"]
        assert answer["seconds"] < 2.5
        assert answer["again"][0] == "again" and answer["again"][1] < 0.1


def test_a_rank_that_fails_by_itself_wakes_the_others(trio: Processes, tmp_path: Path, memory: str) -> None:
    answers = trio.play(tmp_path / "group", "raising", deadline_s=30.0, memory=memory)
    assert answers[1]["failed"].startswith("KeyError")
    for rank in (0, 2):
        assert (answers[rank]["rank"], answers[rank]["site"], answers[rank]["culprit"]) == (rank, "second", 1), answers
        assert answers[rank]["seconds"] < 2.5


def test_groups_form_anew_and_leave_nothing_open(trio: Processes, tmp_path: Path, memory: str) -> None:
    for answer in trio.play(tmp_path / "group", "reforming", memory=memory, deadline_s=60.0):
        assert answer["total"] == [3.0, 3.0]
        assert answer["open_more"] <= 0


def test_nothing_listens(trio: Processes, tmp_path: Path, memory: str) -> None:
    for answer in trio.play(tmp_path / "group", "listening", planted=False, memory=memory):
        assert answer["listening"] == []


@pytest.mark.parametrize("what", sorted(DIFFERENT))
def test_ranks_that_differ_are_told_so(what: str) -> None:
    started = time.monotonic()
    found = failures(3, lambda comm: DIFFERENT[what](comm, comm.rank == 1))
    assert sorted(found) == [0, 1, 2] and time.monotonic() - started < 5
    assert all("the ranks disagree" in str(error) for error in found.values())
    if what != "counts":
        assert {error.culprit for error in found.values()} == {1}
        assert all(f"rank {rank}: epoch 0" in str(error) for error in found.values() for rank in range(3))
    assert run(3, lambda comm: DIFFERENT[what](comm, False)) is not None


@pytest.mark.parametrize("wrong", ["site", "shape", "dtype"])
def test_a_message_that_was_not_expected_is_not_taken(wrong: str) -> None:
    def body(comm: Comm) -> None:
        if comm.rank == 0:
            comm.send(ONES, 1, site="s")
            comm.barrier()
        else:
            x = {"shape": torch.zeros(4), "dtype": torch.zeros(3).int()}.get(wrong, torch.zeros(3))
            comm.recv(x, 0, site="t" if wrong == "site" else "s")

    found = failures(2, body)
    assert all("the ranks disagree: rank 1" in str(found[rank]) and found[rank].culprit == 0 for rank in range(2))


def test_two_letters_are_kept_and_a_third_waits() -> None:
    def body(comm: Comm) -> int:
        sent = 0
        try:
            while comm.rank == 0 and sent < 4:
                comm.send(ONES, 1, site="s")
                sent += 1
            threading.Event().wait(0.5)
        except CommError as error:
            assert "send at 's' on rank 0: rank 1 did not come within 0.2 s" in str(error)
        return sent

    assert run(2, body, deadline_s=0.2) == [2, 0]


def test_a_letter_outlives_its_sender() -> None:
    left = threading.Event()

    def body(comm: Comm) -> list[float]:
        if comm.rank == 0:
            comm.send(ONES, 1, site="s")
            comm.close()
            left.set()
            return []
        left.wait(10)
        return comm.recv(torch.zeros(3), 0, site="s").tolist()

    assert run(2, body) == [[], [1.0, 1.0, 1.0]]


def test_a_rank_that_leaves_late_harms_nobody() -> None:
    def body(comm: Comm) -> float:
        total = comm.all_reduce(ONES, site="last")
        comm.close()
        return total.sum().item()

    assert [run(3, body) for _ in range(20)] == [[9.0] * 3] * 20


def test_who_leaves_early_is_named_and_later_calls_fail_at_once() -> None:
    def body(comm: Comm) -> CommError | None:
        if comm.rank == 0:
            return None
        with pytest.raises(CommError, match="barrier at 'barrier' on rank 1: rank 0 has left the group"):
            comm.barrier()
        with pytest.raises(CommError, match="all_reduce at 'later' on rank 1: rank 0 has left the group") as caught:
            comm.all_reduce(ONES, site="later")
        return caught.value

    error = run(2, body)[1]
    assert error is not None and error.culprit == 0


def test_an_error_within_a_call_breaks_the_group() -> None:
    class Failing(torch.Tensor):
        def detach(self) -> torch.Tensor:
            raise KeyError("planted")

    def body(comm: Comm) -> str:
        try:
            comm.broadcast(ONES.as_subclass(Failing) if comm.rank == 0 else ONES, 1, site="s")
        except (KeyError, CommError) as error:
            return str(error)
        return ""

    first, second = run(2, body)
    assert first == "'planted'" and second == "broadcast at 's' on rank 1: rank 0 stopped: KeyError: 'planted'"


# --- joining ----------------------------------------------------------------------------------------------------------


def test_a_missing_rank_is_named_when_joining() -> None:
    memory = anonymous()
    with pytest.raises(CommError, match=r"joining on rank 1: rank 0, rank 2 did not come to epoch 4 within 0\.05 s") as caught:
        shm(memory, 1, 3, deadline_s=0.05, epoch=4)
    assert (caught.value.rank, caught.value.site, caught.value.culprit) == (1, "joining", 0)
    os.close(memory)


def test_a_rank_of_an_older_epoch_is_refused_at_once() -> None:
    memory = anonymous()
    said: list[str] = []

    def join(rank: int, epoch: int) -> None:
        with pytest.raises(CommError) as caught:
            shm(memory, rank, 2, deadline_s=0.3 + epoch, epoch=epoch)
        said.append(str(caught.value))

    newer = threading.Thread(target=join, args=(0, 1))
    newer.start()
    join(1, 0)
    newer.join()
    os.close(memory)
    assert said == [
        "joining on rank 1: rank 0 (of epoch 1) did not come to epoch 0",
        "joining on rank 0: rank 1 (of epoch 0) did not come to epoch 1 within 1.3 s",
    ]


def test_nobody_can_take_a_rank_that_is_taken() -> None:
    memory = anonymous()
    first = shm(memory, 0, 1)
    with pytest.raises(CommError, match="another process is rank 0 already"):
        shm(memory, 0, 1)
    first.close()
    second = shm(memory, 0, 1, epoch=1)
    with pytest.raises(CommError, match="this rank has left the group"):
        first.barrier()
    second.close()
    os.close(memory)


def test_a_descriptor_that_was_handed_on_cannot_be_made_shorter() -> None:
    memory = anonymous()
    comm: ShmComm = shm(memory, 0, 1)
    with pytest.raises(PermissionError):
        os.ftruncate(memory, 0)
    assert comm.all_reduce(ONES, site="s").tolist() == [1.0] * 3
    comm.close()
    os.close(memory)
