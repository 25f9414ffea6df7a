"""Rank processes: real ones, killed with real signals at every phase. Nothing may be left, and the cause must be named."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from shardwise import env, native
from shardwise.engine.engine import Engine
from shardwise.engine.process_ranks import ProcessRanks
from shardwise.engine.rank_processes import RankProcesses
from shardwise.engine.setup import Options, Setup, resolve
from shardwise.errors import RankLost, UserError
from shardwise.sched.request import SamplingParams
from tests.checkpoints import FAMILIES, build
from tests.processes import living

OUT_S = 2.0
"""A failure is reported, and everything has ended, within this time."""

PROMPT = [1, 5, 9, 2, 7]


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    folder = build(FAMILIES["llama"], tmp_path_factory.mktemp("llama"))
    return resolve(Options(str(folder), tp=3, dtype="float32", device="cpu", threads=1))


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No child, no folder of a rendezvous, no shared memory survives a test."""
    before = leftovers()
    yield
    assert leftovers() == before


def leftovers() -> tuple[set[str], set[str]]:
    """(children, folders) of this process; other tests may run beside it."""
    children = {f"{child.pid} {child.name()}" for child in psutil.Process().children(recursive=True)}
    return children, folders(os.getpid())


def folders(pid: int) -> set[str]:
    """Where the ranks of engine process `pid` were to meet, and what has a name in shared memory."""
    places = (Path(tempfile.gettempdir()), Path("/dev/shm"))
    return {path.name for place in places for path in place.glob(f"*shardwise-{pid}-*")}


def workers() -> list[psutil.Process]:
    """This process's rank processes, in rank order."""
    found = [p for p in psutil.Process().children() if "shardwise.runtime.worker" in " ".join(p.cmdline())]
    return sorted(found, key=lambda p: p.pid)


def greedy(count: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_killed_while_generating(setup: Setup, rank: int) -> None:
    with Engine(setup, "processes") as engine:
        tokens = engine.generate(PROMPT, greedy(100))
        next(tokens)
        victim = workers()[rank]
        victim.kill()
        killed = time.monotonic()
        with pytest.raises(
            RankLost, match=rf"rank {rank} was lost during generate: process {victim.pid} was killed by SIGKILL"
        ):
            for _ in tokens:
                pass
    assert time.monotonic() - killed < OUT_S


def test_killed_while_idle(setup: Setup) -> None:
    with Engine(setup, "processes") as engine:
        assert len(list(engine.generate(PROMPT, greedy(2)))) == 2
        workers()[1].kill()
        with pytest.raises(RankLost, match=r"rank 1 was lost during generate: .* was killed by SIGKILL"):
            list(engine.generate(PROMPT, greedy(2)))


def test_idle_ranks_end_with_the_first_of_them(setup: Setup) -> None:
    with Engine(setup, "processes") as engine:
        # Not psutil's wait: that would take the exit code, which the engine is to name.
        others = [os.pidfd_open(workers()[rank].pid) for rank in (0, 2)]
        workers()[1].kill()
        for other in others:
            assert select.select([other], [], [], OUT_S)[0]
            os.close(other)
        with pytest.raises(RankLost, match=r"rank 1 was lost during generate: .* was killed by SIGKILL"):
            engine.submit(PROMPT, greedy(2), lambda _: None)


def test_killed_while_somebody_has_an_order(setup: Setup) -> None:
    """What wakes the engine is not taken for a rank's report while the others' are awaited."""
    ranks = ProcessRanks(setup)
    wake = os.eventfd(1)
    try:
        ranks.processes[1].kill()
        ranks.processes[1].wait()
        with pytest.raises(RankLost, match=r"rank 1 was lost during generate: .* was killed by SIGKILL"):
            ranks.wait(wake)
    finally:
        ranks.close()
        os.close(wake)


@pytest.mark.parametrize("rank", [0, 2])
def test_killed_while_loading(setup: Setup, rank: int) -> None:
    killed = []

    def kill(_rank: int, _count: int) -> None:
        if not killed:
            killed.append(time.monotonic())
            workers()[rank].kill()

    with pytest.raises(RankLost, match=rf"rank {rank} was lost during load: .* was killed by SIGKILL"):
        ProcessRanks(setup, kill)
    assert time.monotonic() - killed[0] < OUT_S


@pytest.mark.parametrize("started", [0, 1, 3])
def test_those_that_run_already_are_taken_and_the_others_started(setup: Setup, started: int) -> None:
    processes = RankProcesses()
    processes.reach(started)
    before = [process.pid for process in processes.processes]
    ranks = ProcessRanks(setup, None, processes)
    try:
        pids = [process.pid for process in ranks.processes]
        assert pids[:started] == before and len(pids) == 3
        assert [ready.pid for ready in ranks.ready] == pids
    finally:
        ranks.close()


def test_interrupted_while_loading(setup: Setup) -> None:
    with pytest.raises(KeyboardInterrupt):
        ProcessRanks(setup, lambda _rank, _count: signal.raise_signal(signal.SIGINT))


@pytest.mark.parametrize("rank", [0, 2])
def test_killed_while_starting(setup: Setup, rank: int) -> None:
    killed = []

    def kill_once_started() -> None:
        while len(found := workers()) < 3:
            time.sleep(0.001)
        found[rank].kill()
        killed.append(time.monotonic())

    thread = threading.Thread(target=kill_once_started)
    thread.start()
    with pytest.raises(RankLost, match=rf"rank {rank} was lost during (start|load): .* was killed by SIGKILL"):
        ProcessRanks(setup)
    thread.join()
    assert time.monotonic() - killed[0] < OUT_S


def test_stopped_rank_does_not_hold_up_the_end(setup: Setup) -> None:
    with Engine(setup, "processes") as engine:
        next(engine.generate(PROMPT, greedy(5)))
        os.kill(workers()[1].pid, signal.SIGSTOP)
        left = time.monotonic()
    assert time.monotonic() - left < OUT_S


ENGINE = """
import sys
from shardwise.engine.engine import Engine
from shardwise.engine.setup import Options, resolve
from shardwise.sched.request import SamplingParams
with Engine(resolve(Options(sys.argv[1], tp=2, dtype="float32", device="cpu", threads=1))) as engine:
    for token in engine.generate([1, 5, 9], SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)):
        print(token.chosen.token, flush=True)
    input()
"""


@pytest.mark.parametrize(("phase", "collectives"), [("start", ""), ("generate", "gloo")])
def test_killed_engine_leaves_no_orphan(setup: Setup, phase: str, collectives: str) -> None:
    command = [sys.executable, "-c", ENGINE, str(setup.folder)]
    environment = {**os.environ, env.COLLECTIVES: collectives}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, env=environment) as engine:
        assert engine.stdout is not None
        if phase == "generate":
            engine.stdout.readline()
        parent = psutil.Process(engine.pid)
        children: list[psutil.Process] = []
        while len(children) < 2:
            children = parent.children()
        engine.kill()
        alive = living(children, OUT_S)
    assert not alive
    assert not folders(engine.pid)


def test_nothing_listens_beyond_loopback(setup: Setup) -> None:
    """Ranks that share memory have no connection at all; those that cannot meet on loopback."""
    with Engine(setup, "processes"):
        for worker in workers():
            found = worker.net_connections(kind="inet")
            assert not found or not native.available(), found
            assert all(connection.laddr.ip in ("127.0.0.1", "::1") for connection in found), found


def test_rank_that_refuses_is_heard(setup: Setup, tmp_path: Path) -> None:
    """The file is damaged after the engine has checked it: the ranks' own message reaches the user, as the user's to mend."""
    copy = tmp_path / "model"
    copy.mkdir()
    for file in setup.folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    plan = resolve(Options(str(copy), tp=3, dtype="float32", device="cpu", threads=1))
    (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:-8])
    with pytest.raises(UserError, match=r"model\.safetensors"):
        ProcessRanks(plan)
