"""Whether there are compiled kernels, and what is said where there are none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from shardwise import native

SHOW = "from shardwise import native; print(native.available(), native.path(), native.note(), sep='|')"


def asked(value: str | None, code: str = SHOW) -> subprocess.CompletedProcess[str]:
    """Python with SHARDWISE_KERNELS set so."""
    env = {key: text for key, text in os.environ.items() if key != "SHARDWISE_KERNELS"}
    more = {} if value is None else {"SHARDWISE_KERNELS": value}
    return subprocess.run([sys.executable, "-c", code], env={**env, **more}, capture_output=True, text=True, timeout=60)


@pytest.mark.skipif(shutil.which("c++") is None, reason="this machine has no C++ compiler")
def test_with_a_compiler_there_are_kernels() -> None:
    """Built when the package was installed: a failed build is a warning for a user, and a failure here."""
    assert native.available()
    assert native.note() is None or native.path() == "scalar"


@pytest.mark.skipif(not native.available(), reason="the compiled kernels are not installed")
@pytest.mark.parametrize("path", ["scalar", None])
def test_a_path_can_be_asked_for(path: str | None) -> None:
    there, used, note = asked(path).stdout.strip().split("|")
    assert there == "True" and used in native.PATHS and note == "None"
    assert path is None or used == path


def test_torch_can_be_asked_for() -> None:
    assert asked("torch").stdout.strip() == "False|None|kernels: torch's, as SHARDWISE_KERNELS says"


@pytest.mark.skipif(not native.available(), reason="the compiled kernels are not installed")
def test_a_path_that_this_cpu_lacks_is_refused() -> None:
    best = asked(None).stdout.split("|")[1]
    for path in native.PATHS[native.PATHS.index(best) + 1 :]:
        refused = asked(path)
        assert refused.returncode == 1 and f"SHARDWISE_KERNELS={path}: this CPU has not what that needs" in refused.stderr
        assert f"it can do {best}" in refused.stderr
    # A path beyond all: what the library says of one that is beyond this CPU.
    use = native.function("sw_use", native.NUMBER, result=native.NUMBER)
    assert not use(len(native.PATHS)) and not use(-1) and native.path() == best, "and the one in use stays"


def test_what_is_none_is_refused() -> None:
    wrong = asked("sse9")
    assert wrong.returncode == 1 and "SHARDWISE_KERNELS=sse9" in wrong.stderr and wrong.stdout == ""
