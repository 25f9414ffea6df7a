"""Processes that a test did not start itself, and so cannot reap."""

from __future__ import annotations

import time
from collections.abc import Sequence

import psutil


def living(processes: Sequence[psutil.Process], within_s: float) -> list[psutil.Process]:
    """Those that have not ended within a time. One that has ended but was not reaped has: an orphan's reaping is the business
    of the machine's first process, which may take its time or leave it."""
    until = time.monotonic() + within_s
    while (left := [process for process in processes if not _ended(process)]) and time.monotonic() < until:
        psutil.wait_procs(left, timeout=0.02)
    return left


def _ended(process: psutil.Process) -> bool:
    try:
        return process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return True
