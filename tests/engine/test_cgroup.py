"""What control groups leave a process, read from folders that look like the kernel's."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardwise.engine.cgroup import Left, left
from shardwise.engine.devices import usable

GIB = 2**30


def laid_out(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return folder


V2_OWN = "0::/user/app"
V1_OWN = "12:cpuset:/\n4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n0::/"
NO_LIMIT = str(2**63 - 4096)

CASES: list[tuple[str, str, dict[str, str], Left]] = [
    ("nothing is limited", V2_OWN, {"user/app/cpu.max": "max 100000", "user/app/memory.max": "max"}, Left(None, None)),
    ("no groups at all", "", {}, Left(None, None)),
    (
        "the group above is tighter",
        V2_OWN,
        {"user/cpu.max": "150000 100000", "user/app/cpu.max": "400000 100000", "user/app/memory.max": str(GIB),
         "user/app/memory.current": str(GIB // 2), "user/app/memory.stat": f"anon 5\ninactive_file {GIB // 4}\nactive_file 7"},
        Left(1.5, GIB // 2 + GIB // 4),
    ),
    (
        "a container: its own group is the root of what is mounted",
        "0::/kubepods/pod1/c",
        {"cpu.max": "200000 100000", "memory.max": str(4 * GIB), "memory.high": str(3 * GIB), "memory.current": str(GIB)},
        Left(2.0, 2 * GIB),
    ),
    ("a group outside of what is mounted", "0::/../x", {"cpu.max": "50000 100000", "x/cpu.max": "1 100000"}, Left(0.5, None)),
    ("used up", "0::/", {"memory.max": "1000", "memory.current": "2000"}, Left(None, 0)),
    (
        "version 1, in folders of one controller each and of two",
        V1_OWN,
        {"cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "300000", "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000",
         "memory/docker/abc/memory.limit_in_bytes": str(2 * GIB), "memory/docker/abc/memory.usage_in_bytes": str(GIB),
         "memory/docker/abc/memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB // 8}",
         "memory/memory.limit_in_bytes": NO_LIMIT, "memory/memory.usage_in_bytes": "1"},
        Left(3.0, GIB + GIB // 8),
    ),
    (
        "version 1 without a quota, as a container sees it",
        V1_OWN,
        {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000", "memory/memory.limit_in_bytes": str(GIB),
         "memory/memory.usage_in_bytes": "0"},
        Left(None, GIB),
    ),
    ("both versions at once", V1_OWN, {"unified/cpu.max": "100000 100000", "memory/x": ""}, Left(1.0, None)),
    ("files that say nothing", V2_OWN, {"cpu.max": "many few", "memory.max": "", "memory.current": "x"}, Left(None, None)),
]  # fmt: skip


@pytest.mark.parametrize(("own", "files", "wanted"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_the_tightest_of_all_groups_counts(own: str, files: dict[str, str], wanted: Left, tmp_path: Path) -> None:
    (tmp_path / "own").write_text(own)
    assert left(laid_out(tmp_path / "mounted", files), tmp_path / "own") == wanted


@pytest.mark.parametrize(("allowed", "time", "wanted"), [(8, None, 8), (8, 2.5, 2), (8, 0.5, 1), (2, 16.0, 2)])
def test_time_for_fewer_processors_than_are_allowed_is_fewer_processors(allowed: int, time: float | None, wanted: int) -> None:
    assert usable(allowed, time) == wanted
