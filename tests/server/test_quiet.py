"""What a front asks of the interpreter is in force afterwards. What it does for others' tokens, `bench/neighbours.py` shows."""

from __future__ import annotations

import subprocess
import sys

SETTLED = """
import gc, sys
from shardwise.server.quiet import settle
assert sys.getswitchinterval() == 0.005 and not gc.get_freeze_count()
settle()
print(sys.getswitchinterval(), gc.get_freeze_count(), gc.isenabled())
"""


def test_threads_take_short_turns_and_what_stays_is_collected_no_more() -> None:
    done = subprocess.run([sys.executable, "-c", SETTLED], capture_output=True, text=True, check=True, timeout=60)
    interval, frozen, enabled = done.stdout.split()
    assert float(interval) <= 0.001 and int(frozen) > 1000 and enabled == "True"
