"""What this machine offers, asked without loading torch or a driver."""

from __future__ import annotations

import importlib.util
import math
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from shardwise import env
from shardwise.engine import cgroup

SPARE = 0.9
"""The share of free memory that ranks may plan with: other programs live too."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One NVIDIA GPU as its driver names it."""

    index: str
    uuid: str
    free_bytes: int
    total_bytes: int


def cpus() -> int:
    """Processors that this process may use: those that it may run on, or fewer where its control groups give it less time."""
    return usable(len(os.sched_getaffinity(0)), cgroup.left().cpus)


def usable(allowed: int, time: float | None) -> int:
    """Whole processors of `allowed` where there is `time` of so many; one at the least."""
    return allowed if time is None else max(1, min(allowed, math.floor(time)))


def gpus() -> int:
    """CUDA devices that a process started from here would see."""
    return len(_visible())


def torch_is_for_cuda() -> bool:
    """Whether the installed torch is a CUDA build, read from its version file: importing it takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    version = Path(spec.origin).with_name("version.py")
    return version.is_file() and re.search(r"^cuda\b.*=\s*['\"]", version.read_text(), re.MULTILINE) is not None


def available_bytes(device: str, tp: int) -> int:
    """Memory that each of `tp` ranks may take: of its GPU, or an equal part of what the host has free."""
    if device == "cuda":
        return int(SPARE * min((gpu.free_bytes for gpu in _visible()[:tp]), default=0))
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    limit = cgroup.left().memory
    return int(SPARE * (free if limit is None else min(free, limit))) // tp


def gpu_bytes(tp: int) -> int:
    """All memory of the smallest of the first `tp` GPUs; 0 where there is none."""
    return min((gpu.total_bytes for gpu in _visible()[:tp]), default=0)


def _visible() -> list[Gpu]:
    """The GPUs that CUDA would show to a process started from here, in its order."""
    found = _gpus()
    listed = env.visible_gpus()
    if listed is None:
        return found
    shown: list[Gpu] = []
    for name in (part.strip() for part in listed.split(",")):
        match = next((gpu for gpu in found if name and (name == gpu.index or gpu.uuid.startswith(name))), None)
        if match is None:
            break  # CUDA too stops at the first name that it does not know
        shown.append(match)
    return shown


def _gpus() -> list[Gpu]:
    """Every NVIDIA GPU of the machine; none where its driver does not answer."""
    tool = shutil.which("nvidia-smi")
    if not tool:
        return []
    query = [tool, "--query-gpu=index,uuid,memory.free,memory.total", "--format=csv,noheader,nounits"]
    try:
        shown = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in shown.splitlines()]
    whole = [row for row in rows if len(row) == 4 and row[2].isdigit() and row[3].isdigit()]
    return [Gpu(row[0], row[1], int(row[2]) * 2**20, int(row[3]) * 2**20) for row in whole]
