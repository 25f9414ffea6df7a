"""Children end with their parent, whatever they do; not with the thread that asked for them."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import psutil
import pytest

from shardwise import children
from tests.processes import living

GONE_S = 2.0

WAITS = [
    "-c",
    "from shardwise.bound import bound; import sys; bound(int(sys.argv[1])); print('up', flush=True); sys.stdin.read()",
]

PARENT = f"""
import os, signal, subprocess, sys
from shardwise import children
command = [sys.executable, *{WAITS!r}, str(os.getpid())]
child = children.started(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
assert child.stdout.readline() == b"up\\n"
child.send_signal(signal.SIGSTOP)
print(child.pid, flush=True)
sys.stdin.read()
"""


def test_one_that_is_stopped_ends_with_its_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        assert living([child], GONE_S) == []


def test_it_outlives_the_thread_that_asked_for_it() -> None:
    found: list[subprocess.Popen[bytes]] = []
    command = [sys.executable, *WAITS, str(psutil.Process().pid)]
    thread = threading.Thread(
        target=lambda: found.append(children.started(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
    )
    thread.start()
    thread.join()
    (child,) = found
    assert child.stdin is not None and child.stdout is not None
    assert child.stdout.readline() == b"up\n"
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.1)
    child.stdin.close()
    assert child.wait(60) == 0
    child.stdout.close()


def test_one_whose_parent_has_gone_does_not_begin() -> None:
    done = subprocess.run([sys.executable, "-m", "shardwise.bound", "1", "this"], check=False, timeout=60)
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (3, "ended with exit code 3"),
        (-signal.SIGTERM, "was killed by SIGTERM"),
        (-signal.SIGBUS, "was killed by SIGBUS (a file was cut short while it was read, or its disk failed)"),
        (-signal.SIGKILL, "was killed by SIGKILL (the kernel does that when memory runs out)"),
    ],
)
def test_how_one_ended(code: int, said: str) -> None:
    assert children.end_of(code) == said


def test_what_cannot_be_started_raises_where_it_was_asked_for() -> None:
    with pytest.raises(FileNotFoundError):
        children.started(["/nothing/here"])
