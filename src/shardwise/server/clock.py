"""How long this process has run: what whoever started it has waited."""

from __future__ import annotations

import os
import time
from pathlib import Path


def process_age_s() -> float:
    """How long ago this process began, to a hundredth of a second; the interpreter's own start is in it."""
    # The 22nd field, in ticks since the machine's start; the name before it, in brackets, may hold spaces.
    stat = Path("/proc/self/stat").read_text()
    ticks = int(stat.rpartition(")")[2].split()[19])
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
