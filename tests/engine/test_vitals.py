"""What is read of processes is what they do: real ones, stopped, running, asleep, starved and gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from shardwise.engine.vitals import Vitals
from shardwise.engine.watch import Vital

WITHIN_S = 30.0


@pytest.fixture
def started() -> Iterator[Callable[[str], int]]:
    """Starts a process of some Python code; its number."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(code: str) -> int:
        code = f"import os, sys, threading, time\nos.write(1, b'.')\n{code}"
        processes.append(subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE))
        assert processes[-1].stdout and processes[-1].stdout.read(1) == b"."
        return processes[-1].pid

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def until(vitals: Vitals, ready: Callable[[Vital], bool], seat: int = 0) -> Vital:
    """The first look at a seat that is as wanted."""
    end = time.monotonic() + WITHIN_S
    while not ready(found := vitals.look(time.monotonic())[seat]):
        assert time.monotonic() < end, found
        time.sleep(0.01)
    return found


def test_states(started: Callable[[str], int]) -> None:
    pids = [started("time.sleep(600)"), started("while True: pass"), started("time.sleep(600)")]
    vitals = Vitals(pids)
    os.kill(pids[2], signal.SIGSTOP)
    until(vitals, lambda vital: vital.state == "S")
    until(vitals, lambda vital: vital.state == "R", 1)
    until(vitals, lambda vital: vital.state == "T", 2)
    assert [(vital.seat, vital.pid) for vital in vitals.look(time.monotonic())] == [(i, pid) for i, pid in enumerate(pids)]
    os.kill(pids[0], signal.SIGKILL)
    os.waitpid(pids[0], 0)
    assert until(vitals, lambda vital: vital.state == "X").pid == pids[0]
    vitals.close()
    assert vitals.look(time.monotonic()) == ()


def test_running_counts_in_all_threads(started: Callable[[str], int]) -> None:
    pid = started("def spin():\n    while True: pass\nthreading.Thread(target=spin).start()\ntime.sleep(600)")
    vitals = Vitals([pid])
    first = until(vitals, lambda vital: vital.ran_s > 0)
    assert until(vitals, lambda vital: vital.ran_s > first.ran_s + 0.2).state == "S"
    vitals.close()


def test_waiting_for_a_processor_counts_while_it_lasts(started: Callable[[str], int]) -> None:
    """One that may run on one processor alone, where one of a much better standing runs."""
    core = min(os.sched_getaffinity(0))
    poor, rich = started("while True: pass"), started("while True: pass")
    os.sched_setaffinity(poor, {core})
    os.sched_setaffinity(rich, {core})
    os.setpriority(os.PRIO_PROCESS, poor, 19)
    vitals = Vitals([poor])
    began, first = time.monotonic(), vitals.look(time.monotonic())[0]
    last = first
    while time.monotonic() < began + 1.5:
        time.sleep(0.02)
        found = vitals.look(time.monotonic())[0]
        assert found.waited_s >= last.waited_s
        last = found
    passed = time.monotonic() - began
    vitals.close()
    assert last.waited_s - first.waited_s > 0.4 * passed
    assert last.waited_s - first.waited_s + last.ran_s - first.ran_s < 1.3 * passed + 0.1


def test_without_a_main_thread(started: Callable[[str], int]) -> None:
    code = "import ctypes\nthreading.Thread(target=time.sleep, args=(600,)).start()\n"
    number = {"x86_64": 60, "aarch64": 93}[os.uname().machine]
    vitals = Vitals([started(f"{code}ctypes.CDLL(None).syscall({number}, 0)")])
    until(vitals, lambda vital: vital.state == "Z")
    vitals.close()


def test_a_process_that_never_was() -> None:
    vitals = Vitals([2**22 + 7])
    assert vitals.look(1.0) == (Vital(0, 2**22 + 7, "X", 0.0),)
    vitals.close()
