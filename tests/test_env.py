"""What the environment says to ranks, and what stays the user's."""

from __future__ import annotations

import pytest

from shardwise import env
from shardwise.errors import UserError


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


def test_how_ranks_talk_is_left_to_us_or_one_of_two() -> None:
    asked = [env.collectives({} if value is None else {env.COLLECTIVES: value}) for value in (None, "", "shm", "gloo")]
    assert asked == [None, None, "shm", "gloo"]
    with pytest.raises(UserError, match="SHARDWISE_COLLECTIVES=mpi: it is shm or gloo"):
        env.collectives({env.COLLECTIVES: "mpi"})
