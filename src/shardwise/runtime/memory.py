"""Memory for what is read from end to end for each token: in huge pages where that costs nothing."""

from __future__ import annotations

import mmap
import sys
from contextlib import suppress
from pathlib import Path

import torch

HUGE_PAGE = 1 << 21
BUDDIES = Path("/proc/buddyinfo")


def allocated(size: int, device: torch.device, buddies: Path = BUDDIES) -> torch.Tensor:
    """`size` bytes that are not set, on `device`. On a CPU in huge pages, if enough are free: looking up where every 4 KiB of
    weights lie costs up to a fifth of reading them. Where the kernel would have to move other memory together first, a start
    would take seconds longer."""
    # Other ranks may ask at the same time.
    if device.type != "cpu" or sys.platform != "linux" or size < HUGE_PAGE or _free(buddies) < 4 * size:
        return torch.empty(size, dtype=torch.uint8, device=device)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel that knows no huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)


def _free(buddies: Path) -> int:
    """Bytes of free memory that lie together by HUGE_PAGE or more, 0 where nobody says: proc_buddyinfo(5) counts blocks of
    2^0, 2^1, ... pages."""
    free = 0
    with suppress(OSError), buddies.open() as lines:
        for line in lines:
            blocks = [int(count) << order for order, count in enumerate(line.partition("zone")[2].split()[1:])]
            free += sum(blocks[(HUGE_PAGE // mmap.PAGESIZE).bit_length() - 1 :]) * mmap.PAGESIZE
    return free
