"""The anonymous file that the ranks of one host share: made by who starts them, before they know what they will compute."""

from __future__ import annotations

import fcntl
import os


def anonymous() -> int:
    """A new file without a name, for one engine's ranks. The caller closes it; it is gone with the last that has it open.

    OSError where the system has no room for one.
    """
    fd = os.memfd_create("shardwise", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)  # what one rank has mapped, no other can take away
    return fd
