"""The anonymous file that the ranks of one host share: made by who starts them, before they know what they will compute.

Its first 64 KiB are of no group: for each rank the epoch that it came to last, plus 1; then the epoch that is wanted, plus 1;
from the middle on each rank's pulse. What the group of an epoch says lies in a stretch of its own behind that. Without torch.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from contextlib import suppress

CONTROL_BYTES = 1 << 16
"""Before the groups."""
STRIDE_BYTES = 1 << 36
"""From one epoch's group to the next one's: only addresses, no memory."""
PULSE_AT = CONTROL_BYTES // 2
WANTED_AT = PULSE_AT - 64
"""A line of its own: it is read by all."""

_WORD = struct.Struct("<Q")
_PUNCH_HOLE = 0x01 | 0x02  # with FALLOC_FL_KEEP_SIZE, as in linux/falloc.h


def anonymous() -> int:
    """A new file without a name, for one engine's ranks. The caller closes it; it is gone with the last that has it open.

    OSError where the system has no room for one.
    """
    fd = os.memfd_create("shardwise", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)  # what one rank has mapped, no other can take away
    return fd


def begins(epoch: int) -> int:
    """Where in the file the group of an epoch begins."""
    return CONTROL_BYTES + epoch * STRIDE_BYTES


def want(fd: int, epoch: int) -> None:
    """Says that the ranks of the file behind `fd` are to form the group of `epoch`: who waits to join an older one gives up."""
    os.pwrite(fd, _WORD.pack(epoch + 1), WANTED_AT)


def wanted(fd: int) -> int:
    """The epoch that is wanted; -1 where nobody has said."""
    word = os.pread(fd, _WORD.size, WANTED_AT)
    return int(_WORD.unpack(word)[0]) - 1 if len(word) == _WORD.size else -1


def give_back(fd: int, before: int) -> None:
    """Gives the memory of all groups of epochs below `before` back to the system. Who still looks at it finds zeros there.
    Does nothing where the system has no such call."""
    with suppress(AttributeError):
        fallocate = ctypes.CDLL(None).fallocate
        fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
        if before > 0:
            fallocate(fd, _PUNCH_HOLE, CONTROL_BYTES, begins(before) - CONTROL_BYTES)
