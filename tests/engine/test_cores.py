"""Which processors ranks are kept to: dealt out by memory node, never outside of what is allowed, and truly so in processes."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardwise.engine.cores import bound, crowded, dealt, nodes, parsed, threads_of
from shardwise.engine.devices import cpus
from shardwise.engine.process_ranks import ProcessRanks
from shardwise.engine.setup import Options, resolve
from shardwise.errors import UserError

ALLOWED = sorted(os.sched_getaffinity(0))


def machine(folder: Path, by_node: dict[int, str], siblings: dict[int, str]) -> Path:
    for node, listed in by_node.items():
        path = folder / f"node/node{node}"
        path.mkdir(parents=True)
        (path / "cpulist").write_text(f"{listed}\n")
    for cpu, text in siblings.items():
        path = folder / f"cpu/cpu{cpu}/topology"
        path.mkdir(parents=True)
        (path / "thread_siblings_list").write_text(f"{text}\n")
    return folder


def test_processors_by_node_and_each_core_before_its_second_thread(tmp_path: Path) -> None:
    # Two nodes, two threads a core: 0 and 4 are one core, 1 and 5, ...; processor 9 is of no node.
    pairs = {cpu: f"{cpu % 4},{cpu % 4 + 4}" for cpu in range(8)}
    system = machine(tmp_path, {0: "0-1,4-5", 1: "2-3,6-7"}, pairs)
    assert nodes(range(8), system) == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert nodes({1, 4, 5, 9}, system) == [[1, 4, 5], [9]], "the second thread of a core whose first is not allowed is a core"
    assert nodes({3, 1}, tmp_path / "missing") == [[1, 3]]


def test_each_rank_gets_one_node_where_it_fits() -> None:
    two = [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert dealt(two, 2, 2) == ((0, 1), (2, 3))
    assert dealt(two, 4, 2) == ((0, 1), (2, 3), (4, 5), (6, 7))
    assert dealt(two, 1, 6) == ((0, 1, 2, 3, 4, 5),)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.data())
def test_no_processor_is_given_twice(sizes: list[int], data: st.DataObject) -> None:
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    found = [list(range(start, start + size)) for start, size in zip(starts, sizes, strict=True)]
    ranks = data.draw(st.integers(1, sum(sizes)))
    threads = data.draw(st.integers(1, sum(sizes) // ranks))
    places = dealt(found, ranks, threads)
    assert [len(own) for own in places] == [threads] * ranks
    assert max(Counter(cpu for own in places for cpu in own).values()) == 1
    assert {cpu for own in places for cpu in own} <= set(range(sum(sizes)))


def test_ranks_are_kept_apart_by_themselves_only_where_memory_has_several_nodes(tmp_path: Path) -> None:
    first, *others = ALLOWED
    one = machine(tmp_path / "one", {0: ",".join(map(str, ALLOWED))}, {})
    assert bound("auto", 1, None, one) == () == bound("none", 1, None, one) == bound("nobind", 1, 1, one)
    assert bound("auto", len(ALLOWED) + 1, None, one) == ()
    assert bound("cores", 1, 1, one) == ((first,),)
    if others:
        two = machine(tmp_path / "two", {0: str(first), 1: ",".join(map(str, others))}, {})
        assert sorted(bound("auto", 2, 1, two)) == sorted(((first,), (others[0],)))
        assert bound("auto", len(ALLOWED) + 1, None, two) == (), "fewer processors than ranks"


def test_what_the_user_says() -> None:
    first = ALLOWED[0]
    assert bound(f"{first}|{first}", 2, None) == ((first,), (first,))
    assert bound(f"{first}", 3, None) == ((first,),) * 3, "three ranks that take turns"
    assert [threads_of(((0, 1),) * ranks, ranks) for ranks in (1, 2, 3)] == [min(2, cpus()), 1, 1]
    assert parsed("5,0-2") == [0, 1, 2, 5] and parsed("") == [] == parsed("3-1")


@pytest.mark.parametrize(
    ("asked", "ranks", "says"),
    [
        ("all", 1, r"give auto, none, cores, processors for each rank as 0-3\|4-7"),
        ("3-1", 1, "give auto, none, cores"),
        ("0-9999999", 1, "give auto, none, cores"),
        (f"{ALLOWED[0]}|{ALLOWED[0]}", 3, "these are 2 lists for 3 ranks"),
        ("99999", 1, "this process may not run on 99999; it may on "),
        ("cores", len(ALLOWED) + 1, f"need {len(ALLOWED) + 1} processors, and there are {len(ALLOWED)}"),
    ],
)
def test_what_cannot_be_is_refused(asked: str, ranks: int, says: str) -> None:
    with pytest.raises(UserError, match=says):
        bound(asked, ranks, None)


def test_a_warning_says_how_slow_it_will_be() -> None:
    assert crowded(2, 2, 4) is None
    assert crowded(6, 1, 2) == (
        "6 ranks on 2 cores take turns: expect 0.33 of the speed that as many cores would have, or less; "
        "here 2 in all are fastest"
    )
    assert "2 ranks of 3 threads on 1 core take turns: expect 0.17" in (crowded(2, 3, 1) or "")


def test_rank_processes_run_where_they_are_kept_and_elsewhere_not() -> None:
    cpu = ALLOWED[-1]
    setup = resolve(Options("shardling", tp=2, device="cpu", threads=2, max_model_len=64, cores=f"{cpu}|{cpu}"))
    assert setup.crowded is not None and setup.threads == 2
    ranks = ProcessRanks(setup)
    try:
        for process in ranks.processes:
            tasks = {
                int(task.name): os.sched_getaffinity(int(task.name)) for task in Path(f"/proc/{process.pid}/task").iterdir()
            }
            kept = [task for task, cpus in tasks.items() if cpus == {cpu}]
            # All that computes: the main thread and the pool's; the one that listens was there before.
            assert process.pid in kept and len(kept) >= 2, tasks
    finally:
        ranks.close()
