"""Gloo groups of real processes: the contract, and what happens when a rank is late, dead, wrong or of another epoch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shardwise.comm.torch import file_store, gloo, nccl
from shardwise.errors import CommError
from tests.comm.comm_cases import cases, check, contract_cases
from tests.comm.comm_processes import Processes

LOOPBACK = {"0100007F"}


@pytest.fixture(scope="module")
def pair() -> Iterator[Processes]:
    with Processes(2) as processes:
        yield processes
        assert processes.end() == [0, 0]


@pytest.fixture(scope="module")
def trio() -> Iterator[Processes]:
    with Processes(3) as processes:
        yield processes
        assert processes.end() == [0, 0, 0]


@pytest.mark.parametrize("checked", [False, True])
def test_contract_of_two(pair: Processes, tmp_path: Path, checked: bool) -> None:
    drawn = contract_cases(2, 20 if checked else 80)
    answers = pair.play(tmp_path / "group", "contract", cases=drawn, checked=checked)
    assert [answer.get("cases") for answer in answers] == [len(drawn)] * 2, answers


@pytest.mark.parametrize("checked", [False, True])
def test_contract_of_three(trio: Processes, tmp_path: Path, checked: bool) -> None:
    drawn = contract_cases(3, 20 if checked else 80)
    answers = trio.play(tmp_path / "group", "contract", cases=drawn, checked=checked)
    assert [answer.get("cases") for answer in answers] == [len(drawn)] * 3, answers


def test_a_rank_that_stays_away_is_named_at_the_deadline(trio: Processes, tmp_path: Path) -> None:
    trio.order(tmp_path / "group", "absent", deadline_s=1.0)
    assert [trio.hear(rank) for rank in range(3)] == ["ready"] * 3
    for rank in (0, 2):
        answer = trio.hear(rank)
        assert (answer["rank"], answer["site"], answer["culprit"]) == (rank, "second", 1), answer
        assert "rank 1" in answer["error"]
        assert 0.9 < answer["seconds"] < 2
        assert answer["again"][0] == "again" and answer["again"][1] < 0.1
    trio.say(1, "go on")
    assert "error" not in trio.hear(1)


def test_a_killed_rank_is_noticed_at_once(trio: Processes, tmp_path: Path) -> None:
    trio.order(tmp_path / "group", "waiting", deadline_s=30.0)
    assert [trio.hear(rank) for rank in range(3)] == ["ready"] * 3
    trio.kill(1)
    for rank in (0, 2):
        answer = trio.hear(rank)
        assert (answer["rank"], answer["site"], answer["culprit"]) == (rank, "second", 1), answer
        assert answer["seconds"] < 2.5
        assert answer["again"][0] == "again" and answer["again"][1] < 0.1


def test_a_rank_that_fails_by_itself_wakes_the_others(trio: Processes, tmp_path: Path) -> None:
    answers = trio.play(tmp_path / "group", "raising", deadline_s=30.0)
    assert answers[1]["failed"].startswith("KeyError")
    for rank in (0, 2):
        assert (answers[rank]["rank"], answers[rank]["site"], answers[rank]["culprit"]) == (rank, "second", 1), answers
        assert answers[rank]["seconds"] < 2.5


DIFFERENCES = ["shape", "dtype", "site", "op", "counts"]


@pytest.mark.parametrize("differing", DIFFERENCES)
def test_ranks_that_differ_never_take_each_others_bytes(pair: Processes, tmp_path: Path, differing: str) -> None:
    answers = pair.play(tmp_path / "group", "differing", differing=differing, deadline_s=0.5)
    failed = [answer for answer in answers if "error" in answer]
    assert failed and all(answer["seconds"] < 1.5 for answer in answers), answers
    if differing != "counts":
        assert len(failed) == 2
        assert all("the ranks disagree" in answer["error"] for answer in answers), answers


@pytest.mark.parametrize("differing", DIFFERENCES)
def test_checked_groups_notice_differences_at_once(pair: Processes, tmp_path: Path, differing: str) -> None:
    answers = pair.play(tmp_path / "group", "differing", differing=differing, deadline_s=30.0, checked=True)
    assert all("the ranks disagree" in answer.get("error", "") for answer in answers), answers
    assert all(answer["seconds"] < 5 for answer in answers)


def test_ranks_that_agree_pass_the_same_check(pair: Processes, tmp_path: Path) -> None:
    answers = pair.play(tmp_path / "group", "differing", differing="nothing", checked=True)
    assert [list(answer) for answer in answers] == [["seconds", "cpu_s"]] * 2


def test_a_peer_of_another_epoch_is_an_error(pair: Processes, tmp_path: Path) -> None:
    answers = pair.play(tmp_path / "group", "contract", cases=[], epoch=(1, 0), one_file=True, deadline_s=0.5)
    for rank, epoch in ((0, 1), (1, 0)):
        assert answers[rank]["culprit"] == 1 - rank
        assert f"rank {1 - rank} (of epoch {1 - epoch}) did not come to epoch {epoch}" in answers[rank]["error"]
        assert answers[rank]["seconds"] < 1.5


def test_groups_form_anew_and_leave_nothing_open(pair: Processes, tmp_path: Path) -> None:
    for answer in pair.play(tmp_path / "group", "reforming"):
        assert answer["total"] == [2.0, 2.0]
        assert answer["open_more"] <= 0


def test_it_listens_on_loopback_only(pair: Processes, tmp_path: Path) -> None:
    for answer in pair.play(tmp_path / "group", "listening", planted=False):
        assert set(answer["listening"]) == LOOPBACK


def test_the_listening_check_sees_an_open_listener(pair: Processes, tmp_path: Path) -> None:
    for answer in pair.play(tmp_path / "group", "listening", planted=True):
        assert not set(answer["listening"]) <= LOOPBACK


def test_a_missing_rank_is_named_when_joining(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with pytest.raises(CommError, match=r"rank 0, rank 2 did not come to epoch 4 within 0\.1 s") as caught:
        gloo(file_store(tmp_path, 3, 4), 1, 3, deadline_s=0.1, epoch=4)
    assert (caught.value.rank, caught.value.site, caught.value.culprit) == (1, "joining", 0)


def test_a_group_of_one_needs_nobody(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    comm = gloo(file_store(tmp_path, 1, 0), 0, 1, deadline_s=2)

    @settings(max_examples=30, database=None)
    @given(st.data())
    def hold(data: st.DataObject) -> None:
        check(comm, data.draw(cases(1)))

    hold()
    comm.close()
    with pytest.raises(CommError, match="left the group"):
        comm.barrier()


def test_a_folder_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    with pytest.raises(ValueError, match="mode 0700"):
        file_store(tmp_path, 2, 0)


def test_a_rank_of_an_older_epoch_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    newer = file_store(tmp_path, 2, 3)
    newer.set("any", "thing")
    with pytest.raises(CommError, match="of epoch 2, the group has formed anew as epoch 3"):
        file_store(tmp_path, 2, 2)


def test_nccl_says_what_it_needs(tmp_path: Path) -> None:
    if torch.cuda.is_available() and torch.distributed.is_nccl_available():
        return  # then the next test runs
    tmp_path.chmod(0o700)
    with pytest.raises(ValueError, match="on CPUs use gloo"):
        nccl(file_store(tmp_path, 1, 0), 0, 1, device=torch.device("cuda", 0))


@pytest.mark.gpu
def test_nccl_alone_on_a_gpu(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    comm = nccl(file_store(tmp_path, 1, 0), 0, 1, device=torch.device("cuda", 0), deadline_s=20)
    x = torch.ones(4, 3, device="cuda:0", dtype=torch.bfloat16)
    assert torch.equal(comm.all_reduce(x, site="x"), x)
    assert torch.equal(comm.all_gather(x, [range(3)], site="x"), x)
    assert torch.equal(comm.reduce_scatter(x, [range(4)], dim=0, site="x"), x)
    assert torch.equal(comm.all_to_all(x, [4], [4], site="x"), x)
    assert torch.equal(comm.broadcast(x, 0, site="x"), x)
    comm.barrier()
    comm.close()
