"""How the ranks of a group talk. The same wherever it is asked, for all processes are of one installation and environment.

Without torch: who starts ranks asks it, too.
"""

from __future__ import annotations

from enum import Enum

from shardwise import env, native
from shardwise.errors import UserError


class Way(Enum):
    """Alone: with nobody. Shared: in memory. GLOO and NCCL meet in a folder."""

    ALONE = "alone"
    SHARED = "shared"
    GLOO = "gloo"
    NCCL = "nccl"

    @property
    def meets(self) -> bool:
        """Whether ranks need a folder where they meet."""
        return self in (Way.GLOO, Way.NCCL)


def way_of(device: str, size: int) -> Way:
    """How `size` ranks on devices of that kind talk: on CPUs through shared memory, or, where that is not compiled or gloo is
    asked for, over TCP. UserError where shared memory is asked for and not compiled."""
    if size == 1:
        return Way.ALONE
    if device == "cuda":
        return Way.NCCL
    asked = env.collectives()
    if asked == "shm" and not native.available():
        raise UserError(f"{env.COLLECTIVES}=shm: there is no compiled library; add a C++ compiler, and install anew")
    return Way.SHARED if asked == "shm" or (asked is None and native.available()) else Way.GLOO
