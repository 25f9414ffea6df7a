"""What a figure was measured on: the commit and the machine, for the results of all benchmarks."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path


def machine() -> dict[str, object]:
    """What it ran on, as far as it can be told."""
    names = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    load = round(os.getloadavg()[0], 2)
    return {"cpu": names[0] if names else platform.processor(), "cores": os.cpu_count(), "load_before": load}


def commit() -> str:
    """The commit, marked where the tree differs from it."""
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()
