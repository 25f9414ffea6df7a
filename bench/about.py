"""What a figure was measured on: the commit and the machine, for the results of all benchmarks."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

MATRIX = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
"""What a CPU may have that makes products several times faster: figures of two machines differ by it more than by clocks."""


def machine() -> dict[str, object]:
    """What it ran on, as far as it can be told."""
    names = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "cpu": names[0] if names else platform.processor(),
        "matrix_instructions": [flag for flag in MATRIX if flags and flag in flags[1].split()],
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def commit() -> str:
    """The commit, marked where the tree differs from it."""
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()
