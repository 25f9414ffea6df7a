"""Where a rank stands, as eight words in the memory that all ranks of a host and their engine share.

The rank writes plain numbers and waits for nobody; who reads may see half of a tick, which the next look mends. Nothing of it
is needed to compute. Imports no torch.
"""

from __future__ import annotations

import mmap
import os
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from time import monotonic_ns

from shardwise.comm.memory import CONTROL_BYTES, PULSE_AT
from shardwise.comm.ticking import CHOOSING, HEAD, Silent, Ticks, place_name

PULSE_BYTES = 64
RANKS = (CONTROL_BYTES - PULSE_AT) // PULSE_BYTES
"""How many ranks have room; others are silent."""

# The words. What counts from 0 and may be missing is written plus 1: the file begins as zeros.
_EPOCH, _STEP, _LAYER, _PLACE, _CALLS, _STATE, _TICK, _TOKENS = range(8)


class State(IntEnum):
    """What a rank is about. ASIDE: something that is no step, such as writing a recording. LEFT: it is of no group, or of a
    later one, whose place is another."""

    NONE = 0
    JOINING = 1
    LOADING = 2
    IDLE = 3
    COMPUTING = 4
    IN_COLLECTIVE = 5
    ASIDE = 6
    LEFT = 7


# As plain numbers: an attribute of an enum costs as much as a tick.
_LOADING, _IDLE, _COMPUTING, _INSIDE, _ASIDE, _LEFT = map(int, list(State)[2:])


@dataclass(frozen=True, slots=True)
class Where:
    """Where a rank stood when its words were read. -1: there was no `epoch`, `step` or `layer` yet.

    `layer` may be `HEAD` or `CHOOSING`; `place` is the last collective, see `place_name`; `calls` counts those entered in this
    epoch; `tokens` are those of the step; `tick_ns` is of the monotonic clock, and does not tick around collectives.
    """

    epoch: int = -1
    step: int = -1
    layer: int = -1
    place: int = 0
    calls: int = 0
    state: State = State.NONE
    tick_ns: int = 0
    tokens: int = 0

    def __str__(self) -> str:
        return describe(self)


class Pulse:
    """One rank's words, of one epoch; see `Ticks` for the methods."""

    def __init__(self, words: memoryview, epoch: int) -> None:
        self._words, self._epoch, self._calls = words, epoch + 1, 0
        words[_STATE] = State.NONE
        for word in (_STEP, _LAYER, _PLACE, _CALLS, _TOKENS):
            words[word] = 0
        words[_TICK] = monotonic_ns()
        words[_EPOCH] = self._epoch
        words[_STATE] = State.JOINING

    def loading(self) -> None:
        words = self._words
        words[_STATE], words[_TICK] = _LOADING, monotonic_ns()

    def step(self, number: int, tokens: int) -> None:
        words = self._words
        words[_TOKENS], words[_LAYER], words[_STEP] = tokens, 0, number + 1
        words[_STATE], words[_TICK] = _COMPUTING, monotonic_ns()

    def layer(self, index: int) -> None:
        words = self._words
        words[_LAYER], words[_STATE], words[_TICK] = index + 1, _COMPUTING, monotonic_ns()

    def enter(self, place: int) -> None:
        self._calls = calls = self._calls + 1
        words = self._words
        words[_PLACE], words[_CALLS], words[_STATE] = place, calls, _INSIDE

    def leave(self) -> None:
        self._words[_STATE] = _COMPUTING

    def idle(self) -> None:
        words = self._words
        words[_STATE], words[_TICK] = _IDLE, monotonic_ns()

    def aside(self) -> None:
        words = self._words
        words[_STATE], words[_TICK] = _ASIDE, monotonic_ns()

    def left(self) -> None:
        """Not where the place is another rank's by now: of a later group."""
        words = self._words
        if words[_EPOCH] == self._epoch:
            words[_STATE], words[_TICK] = _LEFT, monotonic_ns()


def open_pulse(fd: int, rank: int, epoch: int) -> Ticks:
    """The pulse of a rank that is about to join its group, in the memory behind `fd`. Silent where there is no room."""
    if rank >= RANKS:
        return Silent()
    with control(fd) as words:
        first = (PULSE_AT + PULSE_BYTES * rank) // 8
        return Pulse(words[first : first + PULSE_BYTES // 8], epoch)


def control(fd: int) -> memoryview:
    """The words of all ranks behind `fd`: mapped until the last view of them is gone. OSError where there is no room."""
    with suppress(PermissionError):  # it is longer already
        if os.fstat(fd).st_size < CONTROL_BYTES:
            os.ftruncate(fd, CONTROL_BYTES)
    return memoryview(mmap.mmap(fd, CONTROL_BYTES)).cast("Q")


def read_pulse(words: memoryview, rank: int) -> Where:
    """Where a rank stands, by what `control` gave."""
    first = (PULSE_AT + PULSE_BYTES * rank) // 8
    epoch, step, layer, place, calls, state, tick, tokens = words[first : first + 8]
    return Where(epoch - 1, step - 1, layer - 1, place, calls, State(state), tick, tokens)


def describe(where: Where) -> str:
    """For people: "step 812, layer 3, all_reduce of mlp_down", or "idle after step 812"."""
    step = "before any step" if where.step < 0 else f"step {where.step}"
    match where.state:
        case State.NONE:
            return "not begun"
        case State.JOINING:
            return f"joining epoch {where.epoch}"
        case State.LOADING:
            return "loading weights"
        case State.IDLE:
            return "idle" if where.step < 0 else f"idle after {step}"
        case State.ASIDE:
            return f"writing a recording after {step}"
        case State.LEFT:
            return f"left its group in {step}" if where.step >= 0 else "left its group"
    said = [step]
    if where.step >= 0 and where.layer >= 0:
        said += ["after the layers" if where.layer == HEAD else "choosing tokens" if where.layer == CHOOSING else ""]
        said[-1] = said[-1] or f"layer {where.layer}"
    if where.state == State.IN_COLLECTIVE:
        said += [place_name(where.place)]
    return ", ".join(said)
