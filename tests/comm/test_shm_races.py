"""Threads on the library's shared memory and on its pool, under ThreadSanitizer: no access that is not in order."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "native"
FLAGS = ["-std=c++17", "-O1", "-g", "-pthread", "-fsanitize=thread", "-Wno-maybe-uninitialized", "-Wno-uninitialized"]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    made = tmp_path_factory.mktemp("races") / "races"
    library = [str(NATIVE / name) for name in ("shm.cpp", "pool.cpp", "cpu.cpp")]
    # All kernels: whichever path this CPU takes is the one that is watched.
    kernels = [str(path) for path in sorted((NATIVE / "isa").glob("*.cpp"))]
    subprocess.run([compiler, *FLAGS, "-o", str(made), str(ROOT / "tests/comm/shm_races.cpp"), *library, *kernels], check=True)
    return made


def said(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=900)


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "calls"), [(2, 600), (3, 300), (5, 120)])
def test_nothing_is_accessed_out_of_order(program: Path, ranks: int, calls: int) -> None:
    done = said(program, ranks, calls)
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr[:4000]


@pytest.mark.slow
def test_a_planted_race_is_seen(program: Path) -> None:
    assert "WARNING: ThreadSanitizer: data race" in said(program, 3, 6, "fault").stderr
