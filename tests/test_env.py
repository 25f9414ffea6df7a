"""What the environment says to ranks, and what stays the user's."""

from __future__ import annotations

import pytest

from shardwise import env


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, {"GOMP_SPINCOUNT": env.SPINS}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
        ({"HOME": "x"}, {"HOME": "x", "GOMP_SPINCOUNT": env.SPINS}),
    ],
)
def test_how_a_ranks_threads_wait_is_the_users_to_say(given: dict[str, str], wanted: dict[str, str]) -> None:
    assert env.of_a_rank(given) == {"KINETO_LOG_LEVEL": env.QUIET, **wanted}
