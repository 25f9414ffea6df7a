"""What this machine offers, asked without loading torch or a driver."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from shardwise import env


def cpus() -> int:
    """Processors that this process may run on, a cgroup's quota included."""
    allowed = len(os.sched_getaffinity(0))
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.is_file():
        limit, _, period = quota.read_text().partition(" ")
        if limit != "max":
            allowed = min(allowed, max(1, int(limit) // int(period)))
    return allowed


def gpus() -> int:
    """CUDA devices that a process started from here would see."""
    visible = env.visible_gpus()
    found = len(_gpu_memory())
    if visible is None:
        return found
    return min(found, len([part for part in visible.split(",") if part.strip() not in ("", "-1")]))


def available_bytes(device: str, tp: int) -> int:
    """Memory that each of `tp` ranks may take: of its GPU, or an equal part of what the host has free."""
    if device == "cuda":
        return int(0.9 * min(_gpu_memory()))
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and limit.read_text().strip() != "max":
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return int(0.9 * free) // tp


def _gpu_memory() -> list[int]:
    """Total bytes of every NVIDIA GPU, in order; empty where there is none or its driver does not answer."""
    tool = shutil.which("nvidia-smi")
    if not tool:
        return []
    query = [tool, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        shown = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [int(line) * 2**20 for line in shown.splitlines() if line.strip().isdigit()]
