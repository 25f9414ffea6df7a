"""What a figure was measured on: the commit and the machine, for the results of all benchmarks."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

MATRIX = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
"""What a CPU may have that makes products several times faster: figures of two machines differ by it more than by clocks."""


def machine() -> dict[str, object]:
    """What it ran on, as far as it can be told."""
    cpus = Path("/proc/cpuinfo")
    text = cpus.read_text() if cpus.exists() else ""
    name = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    flags = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    return {
        "cpu": name[1].strip() if name else platform.processor(),
        "matrix_instructions": [flag for flag in MATRIX if flags and flag in flags[1].split()],
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def commit() -> str:
    """The commit, marked where the tree differs from it; of an installed package its version."""
    here = Path(__file__).parent
    # From a checkout alone: an environment may lie within somebody else's repository.
    if (here.parents[2] / ".git").exists():
        command = ["git", "describe", "--always", "--dirty"]
        found = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False).stdout.strip()
        if found:
            return found
    try:
        return f"shardwise {version('shardwise')}"
    except PackageNotFoundError:
        return "unknown"
