"""Ranks that are lost, in simulation: thousands of lives that a seed decides, every interleaving of a small group, and bugs
that both must find."""

from __future__ import annotations

import pytest

from shardwise.engine.supervise import GiveUp, Policy, Supervisor
from tests.engine.recovery.finding import found
from tests.engine.recovery.model import explore
from tests.engine.recovery.plant import Plant
from tests.engine.recovery.plants import PLANTS
from tests.engine.recovery.simulation import live, simulate

SEEDS = 250
"""How many lives of each planted bug."""


def test_lives_with_losses_are_token_exact():
    report = simulate(0, 250)
    assert report.served > 100
    assert report.losses > 250
    assert report.ends["complete"] > 300


def test_a_seed_tells_one_life():
    assert [live(seed).cluster.trace for seed in (3, 7, 8)] == [live(seed).cluster.trace for seed in (3, 7, 8)]


def test_ranks_that_die_together_are_one_loss():
    rules = Supervisor(Policy("restart", losses=1), 8)
    rules.start()
    for process in range(8):
        actions = rules.ended(process, "killed", 1.0 + process / 1000)
        assert not any(isinstance(action, GiveUp) for action in actions)
    assert rules.seats == tuple(range(8, 16))
    for process in rules.seats:
        rules.ready(process, rules.epoch, 1.5)
    assert rules.serving
    last = rules.ended(rules.seats[0], "killed", 2.0)[-1]
    assert isinstance(last, GiveUp) and last.spent


@pytest.mark.parametrize("on_loss", ["restart", "shrink"])
def test_no_interleaving_of_one_loss_is_wrong(on_loss: str):
    assert explore(2, 1, steps=2, on_loss=on_loss).states > 1000


@pytest.mark.slow
@pytest.mark.parametrize(("size", "faults", "steps"), [(2, 2, 1), (3, 1, 1), (1, 3, 1)])
@pytest.mark.parametrize("on_loss", ["restart", "shrink"])
def test_no_interleaving_is_wrong(size: int, faults: int, steps: int, on_loss: str):
    assert explore(size, faults, steps, on_loss=on_loss).states > 1000


@pytest.mark.slow
def test_many_lives():
    assert simulate(10_000, 10_000).served > 5000


@pytest.mark.parametrize("plant", PLANTS[::5], ids=lambda plant: plant.name)
def test_some_planted_bugs_are_found(plant: Plant):
    assert found(plant, SEEDS) is not None


@pytest.mark.slow
@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)
def test_planted_bugs_are_found(plant: Plant):
    assert found(plant, 4 * SEEDS) is not None
