"""`python -m shardwise.bound PARENT MODULE ARGS`: runs a module in a process that ends with process PARENT, which started it.

Before all else, and so it imports next to nothing: a process that is stopped before this has happened is left behind.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import sys
from contextlib import suppress

_PR_SET_PDEATHSIG, _SIGKILL = 1, 9


def bound(parent: int) -> None:
    """Has this process end with the one that started it, whose number is `parent`; at once, where that one has ended already.

    Where the kernel does not do that, nothing happens: each of our processes also ends when its connection closes.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


if __name__ == "__main__":
    _, of, module, *rest = sys.argv
    bound(int(of))
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
