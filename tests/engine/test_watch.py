"""The watch blames no rank that only waits, and names each that stands: in simulated hours, of any ranks on any machine."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardwise.comm.ticking import place_of
from shardwise.engine import watch
from shardwise.engine.watch import FIRST_S, SLOW_S, Finding, Vital, Watch
from shardwise.runtime.pulse import State, Where
from tests.engine.watch_world import EPOCH, Fault, Looks, Plan, World, faulty, healthy, wrong

BUSY_BOX = Plan(
    layers=4,
    tokens=(2048,),
    tick_s=0.05,
    token_s=0.0004,
    choosing_s=0.02,
    speeds=(1.0, 1.3, 1.0, 1.7),
    shares=tuple((0.0, seat, 0.45) for seat in range(4)),
    disks=((6.0, 1, 2.0), (15.0, 3, 2.0)),
    until_s=120.0,
)
"""4 ranks on 2 cores that prefill long prompts while memory is short."""

DECODE = Plan(layers=16, tokens=(1,), tick_s=0.001, token_s=0.0, choosing_s=0.001, speeds=(1.0, 1.0), until_s=14.0)


UNEVEN = replace(
    DECODE, tokens=(2, 300, 1, 1), layers=2, tick_s=0.01, token_s=0.003, speeds=(1.0, 1.0, 1.0, 12.0), until_s=90.0
)
"""One rank has many times the work, and a long prompt comes after short ones."""

APART = replace(DECODE, layers=60, apart=60, tick_s=0.1, speeds=(1.0, 4.0), until_s=60.0)
"""Ranks meet rarely, so that one waits long for another, which goes from layer to layer."""

COPYING = replace(DECODE, layers=2, post_s=0.2, shares=((20.0, 0, 0.0), (32.0, 0, 1.0)), until_s=40.0)
"""One rank gets no processor for seconds while all are in one collective."""


@settings(max_examples=60, deadline=None, database=None)
@given(st.integers(0, 2**32))
def test_who_only_waits_is_not_blamed(seed: int) -> None:
    assert wrong(healthy(random.Random(seed)), Watch()) is None


@settings(max_examples=60, deadline=None, database=None)
@given(st.integers(0, 2**32))
def test_who_stands_is_named_in_time(seed: int) -> None:
    assert wrong(faulty(random.Random(seed)), Watch()) is None


def test_a_busy_box_is_no_fault() -> None:
    assert wrong(BUSY_BOX, Watch()) is None


@pytest.mark.parametrize("kind", ["sleep", "spin"])
def test_a_stall_of_two_and_a_half_seconds_is_caught(kind: str) -> None:
    for at_s in range(20):
        found = World(replace(DECODE, fault=Fault(at_s % 2, kind, 6.0 + at_s * 0.0137))).run(Watch())
        assert found is not None
        assert found[1].seat == at_s % 2
        assert found[0] - 6.0 - at_s * 0.0137 < 2.5


def test_a_rank_without_a_processor_is_never_at_fault() -> None:
    assert wrong(replace(DECODE, shares=((5.0, 1, 0.0),), until_s=300.0), Watch()) is None


SLEPT = replace(
    DECODE,
    naps=((6.0, 1, 0.9), (9.0, 1, 1.95)),
    asleep=((4.0, 3600.0), (6.4, 1.85), (9.7, 86400.0)),
)


def test_a_machine_that_slept_is_no_fault() -> None:
    assert wrong(SLEPT, Watch()) is None


# --- single looks -------------------------------------------------------------------------------------------------------


def looked(seen: Looks, wheres: list[Where], states: str, for_s: float, *, busy: bool = True, run: str = "") -> Finding | None:
    """The same, looked at every 0.1 s for a while. With an "r" in `run` a rank runs meanwhile, with a "w" it waits to."""
    for look in range(round(for_s * 10) + 1):
        vitals = [
            Vital(i, 40 + i, state, look * 0.1 * (run[i : i + 1] == "w"), look * 0.1 * (run[i : i + 1] == "r"))
            for i, state in enumerate(states)
        ]
        if (found := seen.look(500 + look * 0.1, busy, wheres, vitals)) is not None:
            return found
    return None


def at(state: State, step: int = 7, layer: int = 2, calls: int = 9, tick: int = 0) -> Where:
    return Where(EPOCH, step, layer, place_of("all_reduce", "mlp_down"), calls, state, tick, 1)


def warm(seats: int, build: Callable[[], Looks] = Watch) -> Looks:
    """A watch that knows how fast its ranks are."""
    seen = build()
    for step in range(5):
        wheres = [at(State.COMPUTING, step, 2, 2 * step, step * 100_000_000) for _ in range(seats)]
        assert seen.look(400 + step * 0.1, True, wheres, [Vital(i, 40 + i, "S", 0, 0) for i in range(seats)]) is None
    return seen


def test_a_finding_names_rank_reason_and_place() -> None:
    inside = at(State.IN_COLLECTIVE, calls=10)
    found = looked(warm(2), [inside, at(State.COMPUTING)], "SS", 5)
    assert found is not None
    assert str(found) == "rank 1 makes no progress for 2.0 s: process 41 sleeps (step 7, layer 2)"
    found = looked(warm(2), [inside, replace(inside, calls=9)], "SR", 5, run=" r")
    assert found is not None
    assert str(found) == "rank 1 makes no progress for 2.0 s: process 41 runs (step 7, layer 2, all_reduce of mlp_down)"


@pytest.mark.parametrize("state", [State.IDLE, State.COMPUTING, State.IN_COLLECTIVE, State.LOADING, State.JOINING, State.NONE])
def test_stopped_whatever_it_was_about(state: State) -> None:
    found = looked(warm(2), [at(state), at(state)], "TS", 0.8, busy=False)
    assert found is not None
    assert (found.seat, found.reason) == (0, "is stopped: process 40, state T, for 0.5 s")


def test_without_its_main_thread() -> None:
    found = looked(warm(2), [at(State.IDLE), at(State.IDLE)], "SZ", 0.8, busy=False)
    assert found is not None
    assert found.reason.startswith("has lost its main thread: process 41")


def waits_long(seen: Looks) -> Finding | None:
    """Rank 0 waits in a collective, half a minute long, for rank 1, which goes from layer to layer."""
    inside = at(State.IN_COLLECTIVE, calls=10)
    for look in range(300):
        ranks = [inside, at(State.COMPUTING, layer=look, tick=look)]
        vitals = [Vital(0, 40, "S", 0, 0), Vital(1, 41, "R", 0, look * 0.1)]
        if (found := seen.look(500 + look * 0.1, True, ranks, vitals)) is not None:
            return found
    return None


def test_who_waits_for_one_that_moves_may_wait_for_long() -> None:
    assert waits_long(warm(2)) is None


def test_stopped_for_a_moment() -> None:
    seen, ranks = warm(1), [at(State.IDLE)]
    assert looked(seen, ranks, "T", 0.4, busy=False) is None
    assert seen.look(501, False, ranks, [Vital(0, 40, "S", 0, 0)]) is None
    assert looked(seen, ranks, "S", 9, busy=False) is None


def test_idle_ranks_may_be_so_for_ever() -> None:
    assert looked(warm(2), [at(State.IDLE), at(State.IDLE)], "SS", 100, busy=False) is None


def test_idle_while_there_is_something_to_do() -> None:
    found = looked(warm(2), [at(State.IDLE), at(State.IDLE)], "SS", 3, busy=True)
    assert found is not None
    assert found.seat == 0
    # Who has begun says that there was something to do; who is done waits for the other.
    behind = looked(warm(2), [at(State.IN_COLLECTIVE, 8, 0, 10), at(State.IDLE)], "SS", 3, busy=False)
    assert behind is not None
    assert behind.seat == 1
    ahead = looked(warm(2), [at(State.COMPUTING), at(State.IDLE)], "SS", 3, busy=True)
    assert ahead is not None
    assert ahead.seat == 0


def test_all_wait_in_one_collective_for_one_that_has_no_processor() -> None:
    inside = at(State.IN_COLLECTIVE)
    assert looked(warm(3), [inside] * 3, "SRS", 30, run=" w ") is None
    assert looked(warm(3), [inside] * 3, "SDS", SLOW_S - 1) is None
    found = looked(warm(3), [inside] * 3, "SRS", 3, run=" r ")
    assert found is not None
    assert found.seat == 1


def test_the_first_steps_may_take_long() -> None:
    seen, ranks = Watch(), [at(State.COMPUTING, 0, 0, 1)]
    assert looked(seen, ranks, "R", FIRST_S - 1, run="r") is None
    assert looked(Watch(), ranks, "R", FIRST_S + 1, run="r") is not None


def test_loading_may_take_as_long_as_it_runs() -> None:
    assert looked(Watch(), [at(State.LOADING)], "R", 300, run="r") is None
    assert looked(Watch(), [at(State.LOADING)], "D", SLOW_S - 1) is None
    found = looked(Watch(), [at(State.LOADING), at(State.JOINING)], "SS", SLOW_S + 1)
    assert found is not None
    assert found.seat == 1  # the other would not load if it had not come
    found = looked(Watch(), [at(State.LOADING), at(State.LOADING)], "SR", SLOW_S + 1, run=" r")
    assert found is not None
    assert found.seat == 0


def test_who_does_not_come_to_the_new_epoch() -> None:
    old = replace(at(State.LEFT), epoch=EPOCH - 1)
    found = looked(Watch(), [at(State.JOINING), old], "SS", SLOW_S + 1, busy=False)
    assert found is not None
    assert (found.seat, found.reason) == (1, f"has not come to epoch {EPOCH} for 30.0 s: process 41 sleeps")


def test_who_has_left_is_the_engines_to_deal_with() -> None:
    assert looked(warm(2), [at(State.LEFT), at(State.IDLE)], "SS", 100, busy=False) is None


# --- planted bugs -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bug:
    """`new` instead of `old` in a copy of `module`."""

    name: str
    module: str
    old: str
    new: str

    def text(self, module: str) -> str:
        text = (Path(watch.__file__).parent / f"{module}.py").read_text(encoding="utf-8")
        if module == self.module:
            assert text.count(self.old) == 1, f"{self.name}: {self.old!r} occurs {text.count(self.old)} times"
            text = text.replace(self.old, self.new)
        return text.replace("shardwise.engine.pace", "planted_watch.pace")


BUGS = [
    Bug("the one that has come farthest is blamed", "watch", "seat, reason = min(guilty)", "seat, reason = max(guilty)"),
    Bug(
        "who waits in a collective is charged",
        "watch",
        "                return seat in look.least\n",
        "                return True\n",
    ),
    Bug("waiting for a processor counts", "watch", "look.gap_s - (vital.waited_s - account.vital.waited_s)", "look.gap_s"),
    Bug("waiting for a disk counts", "watch", '        if vital.state == "D":\n', '        if vital.state == "d":\n'),
    Bug("a late look counts in full", "watch", "min(added_s, look.s))", "min(added_s, look.gap_s))"),
    Bug("a machine that slept is held against ranks", "watch", "if gap_s > self.least_s or", "if"),
    Bug("nobody has ever moved", "watch", "            account.begin()\n            return\n", "            return\n"),
    Bug("the state alone says how far a rank is", "watch", "2 * where.calls - inside, where.step", "-inside, where.step"),
    Bug("idle ranks always should move", "watch", " and (look.busy or seat in look.behind)", ""),
    Bug("idle ranks never should", "watch", "seat in look.least and (look.busy or seat in look.behind)", "False"),
    Bug("stopped ranks are not seen", "watch", 'vital.state in "TZ"', 'vital.state in "Z"'),
    Bug("a main thread's end is not seen", "watch", 'vital.state in "TZ"', 'vital.state in "T"'),
    Bug(
        "only what runs counts",
        "watch",
        "        if self._patient(where):\n            added_s -=",
        "        if True:\n            added_s -=",
    ),
    Bug("steps of all sizes are equally fast", "pace", "where.tokens.bit_length()", "0"),
    Bug("steps that were not seen take no longer", "pace", "known[other] * 2 ** (size - other)", "known[other]"),
    Bug("a part of a layer says what it takes", "pace", "if _kind(before) in self._longest:", "if True:"),
    Bug("nothing is learned", "pace", "        recent.append((where.step, took_s))\n", "        pass\n"),
    Bug("each rank is charged for all in a collective", "watch", "if len(inside) > 1 and", "if False and"),
]


def found(build: Callable[[], Looks], plans: Sequence[Plan]) -> str | None:
    """The first thing that a watch says wrongly, or fails at."""
    try:
        return str(waits_long(warm(2, build)) or next((said for plan in plans if (said := wrong(plan, build()))), "")) or None
    except Exception as error:  # whatever a broken one does: it is found
        return f"{type(error).__name__}: {error}"


@contextmanager
def planted(bug: Bug) -> Iterator[Callable[[], Looks]]:
    """The class Watch of a copy with the bug."""
    modules = {name: ModuleType(name) for name in ("planted_watch", "planted_watch.pace", "planted_watch.watch")}
    sys.modules |= modules
    try:
        for name in ("pace", "watch"):
            exec(compile(bug.text(name), f"{name}.py with {bug.name}", "exec"), modules[f"planted_watch.{name}"].__dict__)
        yield modules["planted_watch.watch"].Watch
    finally:
        for name in modules:
            del sys.modules[name]


PLANS = [BUSY_BOX, SLEPT, UNEVEN, COPYING, APART]
PLANS += [replace(DECODE, fault=Fault(1, kind, 6.0037)) for kind in ("sleep", "spin", "stop", "end")]
PLANS += [make(random.Random(seed)) for seed in range(10) for make in (healthy, faulty)]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_found(bug: Bug) -> None:
    with planted(bug) as build:
        assert found(build, PLANS) is not None


def test_without_a_planted_bug_nothing_is_found() -> None:
    assert found(Watch, PLANS) is None
