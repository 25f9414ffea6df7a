"""Sums timed by size: the rows' shape, ranks as threads and as processes, and ranks that fail."""

from __future__ import annotations

import pytest

from shardwise.bench import comm_sweep
from shardwise.bench.comm_sweep import Wanted, available
from shardwise.errors import ShardwiseError, UserError
from tests.nn.kernels.paths import needs_compiled

KEYS = ["backend", "ranks", "bytes", "median_us", "p90_us", "gb_s"]


def test_threads():
    wanted = Wanted((2, 3), (4, 4096), ("threads",), 30)
    report = comm_sweep.comm_sweep(wanted)
    assert [(row["backend"], row["ranks"], row["bytes"]) for row in report.rows] == [
        ("threads", ranks, size) for ranks in (2, 3) for size in (4, 4096)
    ]
    for row in report.rows:
        assert list(row) == KEYS and 0 < row["median_us"] <= row["p90_us"]
        assert row["gb_s"] == round(row["bytes"] / row["median_us"] / 1e3, 4)
    assert report.chart is not None and set(report.chart.lines) == {"threads, 2 ranks", "threads, 3 ranks"}


@pytest.mark.slow
@needs_compiled
def test_processes():
    """Those that share memory; gloo's are in tests/cli/test_bench.py, as a user calls them."""
    (row,) = comm_sweep.comm_sweep(Wanted((2,), (4096,), ("shm",), 5)).rows
    assert (row["backend"], row["bytes"]) == ("shm", 4096) and row["median_us"] > 0


def test_ranks_that_fail_are_told_of(tmp_path):
    tmp_path.chmod(0o755)  # which others can enter: no group meets there
    order = {"folder": str(tmp_path), "backend": "gloo", "size": 1, "sizes": [4], "rounds": 1}
    with pytest.raises(ShardwiseError, match=r"gloo with 1 ranks failed: ValueError.*0700"):
        comm_sweep._processes(order, 1, str(tmp_path))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backends": ("tcp",)}, "--backends tcp: it is one of shm, gloo, threads"),
        ({"sizes": (6,), "backends": ("gloo",)}, "--sizes 6"),
        ({"ranks": (1,), "backends": ("gloo",)}, "--ranks 1"),
    ],
)
def test_what_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        Wanted(**fields)


def test_what_is_not_here_is_refused():
    assert {"gloo", "threads"} <= set(available())
    for name in set(comm_sweep.BACKENDS) - set(available()):
        with pytest.raises(UserError, match=f"{name} is not here"):
            Wanted(backends=(name,))
