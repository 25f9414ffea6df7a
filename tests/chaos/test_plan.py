"""Plans: the same for the same seed, even over faults and phases, and the same again from a file."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from shardwise.chaos.asked import requests
from shardwise.chaos.plan import FAULTS, PHASES, described, plan, replayed
from shardwise.errors import UserError


def test_a_seed_makes_one_plan() -> None:
    first, again, other = (plan(seed, 40, ("kill", "stop"), 16, 100) for seed in (7, 7, 8))
    assert first == again != other
    assert [trial.number for trial in first.trials] == list(range(41))


def test_this_very_plan() -> None:
    """A replay by seed is one only while the same seed makes the same draws."""
    found = [(t.fault, t.phase, t.victim % 4, t.delay) for t in plan(7, 4, ("kill", "stop"), 16, 100).trials]
    assert found == [
        ("none", "decode", 3, 0.8213),
        ("stop", "decode", 3, 0.2147),
        ("stop", "prefill", 0, 0.0907),
        ("kill", "prefill", 2, 0.6306),
        ("kill", "decode", 3, 0.3967),
    ]


def test_faults_and_phases_come_evenly() -> None:
    found = plan(3, 120, ("kill", "stop"), 16, 100)
    counts = Counter((trial.fault, trial.phase) for trial in found.trials[1:])
    assert {phase: counts["kill", phase] for phase in FAULTS["kill"].phases} == dict.fromkeys(FAULTS["kill"].phases, 10)
    assert {phase: counts["stop", phase] for phase in FAULTS["stop"].phases} == dict.fromkeys(FAULTS["stop"].phases, 15)
    assert found.trials[0].fault == "none"
    victims = Counter(trial.victim % 4 for trial in plan(3, 400, ("kill",), 16, 100).trials)
    assert set(victims) == {0, 1, 2, 3} and min(victims.values()) > 60
    assert all(0 <= trial.delay < 1 and 0 <= trial.gap_s <= 0.5 for trial in found.trials)


def test_phases_restrict() -> None:
    found = plan(3, 10, ("kill", "stop", "front"), 16, 100, ("idle",)).trials[1:]
    assert {(trial.fault, trial.phase) for trial in found} == {("kill", "idle"), ("stop", "idle")}
    with pytest.raises(UserError, match="none of front has a phase of idle"):
        plan(3, 10, ("front",), 16, 100, ("idle",))


def test_every_phase_is_said() -> None:
    assert {phase for fault in FAULTS.values() for phase in fault.phases} == set(PHASES)


@pytest.mark.parametrize("name", ["kil", "", "decode"])
def test_unknown_faults_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="is no fault; there are none, kill"):
        plan(3, 10, ("kill", name), 16, 100)


def test_a_file_repeats_a_plan() -> None:
    found = plan(7, 30, tuple(FAULTS), 5, 80)
    assert replayed(json.dumps(described(found)), "a file") == found
    assert replayed(json.dumps({"plan": described(found), "trials": [1]}), "a file") == found


@pytest.mark.parametrize(
    "spoilt",
    [
        "",
        "[]",
        "{}",
        '{"plan": 3}',
        json.dumps({**described(plan(7, 1, ("kill",), 5, 80)), "clients": 0}),
        json.dumps({**described(plan(7, 1, ("kill",), 5, 80)), "trials": []}),
        json.dumps(described(plan(7, 1, ("kill",), 5, 80))).replace('"kill"', '"kil"'),
        json.dumps(described(plan(7, 1, ("kill",), 5, 80))).replace('"victim": ', '"victim": -'),
        json.dumps(described(plan(7, 1, ("kill",), 5, 80))).replace('"delay": ', '"delay": "x", "d": '),
    ],
)
def test_what_is_no_plan_is_refused(spoilt: str) -> None:
    with pytest.raises(UserError, match="F"):
        replayed(spoilt, "F")


def test_requests_are_a_mix() -> None:
    found = requests(7, 32, 100)
    assert found == requests(7, 32, 100) != requests(8, 32, 100)
    assert len({json.dumps(asked.body) for asked in found}) == 32
    kinds = {(asked.path, asked.body["temperature"] > 0, asked.body["n"]) for asked in found}
    assert {path for path, _, _ in kinds} == {"completions", "chat/completions"}
    assert {("completions", False, 1), ("chat/completions", True, 2), ("completions", True, 2)} <= kinds
    assert all(asked.body["max_tokens"] <= 100 and ("seed" in asked.body) == (asked.body["temperature"] > 0) for asked in found)
    assert sum("ignore_eos" in asked.extras for asked in found) == 24


def test_a_body_is_plain_for_servers_that_know_no_more() -> None:
    asked = requests(7, 1, 100)[0]
    assert set(json.loads(asked.encoded("m", plain=True, salt="s"))) == {"model", *asked.body}
    assert json.loads(asked.encoded("m", plain=False, salt="s"))["cache_salt"] == "s"
