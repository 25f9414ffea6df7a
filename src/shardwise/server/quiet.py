"""What a front asks of the interpreter, so that nobody's tokens wait long for somebody else's request."""

from __future__ import annotations

import gc
import sys

SWITCH_S = 0.0005
"""How long one thread may keep the others from running: reading a large body is not to hold up the loop, which needs its turn
several times for the tokens of one step."""


def settle() -> None:
    """To be called once, when all is there that stays: the collector does not look at that any more.

    How often it looks is left as it is: errors make cycles, and what they hold may be large.
    """
    sys.setswitchinterval(SWITCH_S)
    gc.collect()
    gc.freeze()
