"""How the C library keeps memory that a rank has freed. Knows nothing of what it is used for."""

from __future__ import annotations

import contextlib
import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # as in glibc's malloc.h
_LARGEST_BYTES = 32 * 2**20
_KEPT_BYTES = 64 * 2**20


def keep() -> None:
    """Has freed memory kept for the next step, in this process and from now on: some 64 MiB.

    A step over a prompt makes tensors of some MiB, and frees them. glibc gives such back to the kernel; every page of the next
    one is a fault then, and zeros that nobody wanted: 3 % of a prompt's time. What is larger than 32 MiB still comes and goes
    by itself. Other C libraries stay as they are.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(_MMAP_THRESHOLD, _LARGEST_BYTES)
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
