"""When a fault comes: waits until requests are where the plan aims at, as far as that can be seen from outside."""

from __future__ import annotations

import time
from collections.abc import Sequence

from shardwise.chaos.client import Call
from shardwise.chaos.plan import Trial
from shardwise.chaos.processes import sleeps
from shardwise.chaos.standing import standing
from shardwise.runtime.pulse import State

PREFILL_S = 0.1
"""From the last request on; shorter where a token comes."""

TOKENS = 16
"""Of half of the streams at most, when a fault comes in the middle of decoding."""

WAIT_S = 20.0
COLLECTIVE_S = 0.3
STEP_S = 0.0005


def reached(trial: Trial, calls: Sequence[Call], victim: tuple[int, int] | None) -> bool:
    """Waits for the moment; whether it came. `victim` is the (rank, process) whose wait for others is aimed at."""
    if trial.phase == "prefill":
        return _prefill(trial, calls)
    if not _decoding(trial, calls):
        return False
    if trial.phase == "collective":
        return victim is not None and _in_collective(*victim)
    return True


def _in_collective(rank: int, pid: int) -> bool:
    """By its pulse; where it has none, by what it waits for."""
    until = time.monotonic() + COLLECTIVE_S
    with standing(pid, rank) as where:
        while time.monotonic() < until:
            found = where()
            if (found.state is State.IN_COLLECTIVE) if found is not None else sleeps(pid):
                return True
            time.sleep(STEP_S / 10)
    return False


def _prefill(trial: Trial, calls: Sequence[Call]) -> bool:
    while not all(call.port or call.over for call in calls):
        time.sleep(STEP_S)
    until = time.monotonic() + trial.delay * PREFILL_S
    while time.monotonic() < until and not any(call.events for call in calls):
        time.sleep(STEP_S)
    return not any(call.events for call in calls)


def _decoding(trial: Trial, calls: Sequence[Call]) -> bool:
    tokens, until = 2 + int(trial.delay * TOKENS), time.monotonic() + WAIT_S
    while time.monotonic() < until:
        far = sum(call.events >= tokens or call.over for call in calls)
        if 2 * far >= len(calls):
            return not all(call.over for call in calls)
        time.sleep(STEP_S)
    return False
