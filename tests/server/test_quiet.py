"""A loop gets its turns beside a thread that computes: often where the interpreter was told to, seldom where it was not."""

from __future__ import annotations

import subprocess
import sys

import pytest

TURNS = """
import gc, sys, threading, time
from shardwise.server.quiet import settle
if {settled}:
    settle()
assert bool(gc.get_freeze_count()) == {settled}
def work():
    until = time.thread_time() + 0.5
    while time.thread_time() < until:
        sum(range(100))
thread, turns = threading.Thread(target=work), 0
thread.start()
while thread.is_alive():
    time.sleep(0)
    turns += 1
print(turns)
"""


@pytest.mark.parametrize("settled", [False, True])
def test_a_loop_gets_its_turns(settled: bool) -> None:
    """In half a second of another thread's work: a turn each five milliseconds is 100, one each half a millisecond 1000."""
    command = [sys.executable, "-c", TURNS.format(settled=settled)]
    turns = int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)
    assert (turns > 250) == settled, turns
