"""The short version of `shardwise chaos` on the bundled model: what its clients get is what they would have got."""

from __future__ import annotations

import sys

import pytest

from shardwise.chaos.campaign import Campaign
from shardwise.chaos.plan import plan
from shardwise.chaos.server import Command

SERVE = (
    sys.executable,
    "-m",
    "shardwise",
    "serve",
    "--device",
    "cpu",
    "-tp",
    "2",
    "--port",
    "0",
    "--recovery-budget",
    "1000/60s",
)


@pytest.mark.timeout(300)
def test_ranks_are_killed_and_stopped_while_clients_stream() -> None:
    found = plan(seed=1, count=4, faults=("kill", "stop"), clients=4, tokens=40, phases=("decode", "idle"))
    rows = Campaign(found, Command(SERVE), 60.0, lambda _: None).run()
    assert not [row for row in rows if row.bad], rows
    assert sum(row.counts["fine"] for row in rows) == 4 * len(rows)
    assert all(row.named in row.wanted for row in rows[1:]), rows
    assert rows[-1].files == rows[0].files
