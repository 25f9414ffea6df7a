"""What a rank says of where it stands is what others read, in words and as text."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from shardwise.comm.memory import CONTROL_BYTES, PULSE_AT, WANTED_AT, anonymous, want, wanted
from shardwise.comm.ticking import CHOOSING, HEAD, Silent, place_of
from shardwise.runtime.pulse import PULSE_BYTES, RANKS, State, Where, control, describe, open_pulse, read_pulse


@pytest.fixture
def shared() -> Iterator[int]:
    fd = anonymous()
    yield fd
    os.close(fd)


def test_before_anything_was_said(shared: int) -> None:
    words = control(shared)
    assert [read_pulse(words, rank) for rank in (0, RANKS - 1)] == [Where(), Where()]
    assert describe(Where()) == "not begun"
    assert os.fstat(shared).st_size == CONTROL_BYTES


def test_a_life(shared: int) -> None:
    words, pulse = control(shared), open_pulse(shared, 2, 5)

    def now() -> str:
        where = read_pulse(words, 2)
        assert where.epoch == 5
        assert str(where) == describe(where)
        return describe(where)

    ticks = [read_pulse(words, 2).tick_ns]
    assert now() == "joining epoch 5"
    pulse.loading()
    assert now() == "loading weights"
    pulse.idle()
    assert now() == "idle"
    pulse.step(812, 40)
    assert (now(), read_pulse(words, 2).tokens) == ("step 812", 40)
    pulse.layer(3)
    assert now() == "step 812, layer 3"
    pulse.enter(place_of("all_reduce", "mlp_down"))
    assert now() == "step 812, layer 3, all_reduce of mlp_down"
    assert read_pulse(words, 2).calls == 1
    pulse.leave()
    assert now() == "step 812, layer 3"
    pulse.enter(place_of("barrier", "somewhere new"))
    assert now() == "step 812, layer 3, barrier"
    pulse.leave()
    pulse.layer(HEAD)
    assert now() == "step 812, after the layers"
    pulse.layer(CHOOSING)
    assert now() == "step 812, choosing tokens"
    pulse.idle()
    assert now() == "idle after step 812"
    ticks.append(read_pulse(words, 2).tick_ns)
    pulse.aside()
    assert now() == "writing a recording after step 812"
    pulse.left()
    assert now() == "left its group in step 812"
    assert ticks == sorted(ticks)
    assert len(set(ticks)) == 2
    assert [read_pulse(words, rank) for rank in (1, 3)] == [Where(), Where()]


def test_another_epoch_begins_anew_and_the_old_one_is_silent(shared: int) -> None:
    words, old = control(shared), open_pulse(shared, 0, 1)
    old.step(7, 1)
    old.enter(1)
    new = open_pulse(shared, 0, 2)
    found = read_pulse(words, 0)
    assert (found.epoch, found.step, found.calls, found.state) == (2, -1, 0, State.JOINING)
    old.left()
    assert read_pulse(words, 0) == found
    new.left()
    assert describe(read_pulse(words, 0)) == "left its group"


def test_no_other_word_of_the_memory_is_touched(shared: int) -> None:
    want(shared, 9)
    for rank in (0, RANKS - 1):
        pulse = open_pulse(shared, rank, 1)
        pulse.step(2**40, 2**30)
        pulse.enter(3)
    assert wanted(shared) == 9
    words = control(shared).cast("B")
    assert not any(words[:WANTED_AT])
    assert not any(words[PULSE_AT + PULSE_BYTES : PULSE_AT + PULSE_BYTES * (RANKS - 1)])
    assert isinstance(open_pulse(shared, RANKS, 1), Silent)


def test_reading_needs_no_torch() -> None:
    code = "import sys, shardwise.runtime.pulse, shardwise.engine.vitals; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
