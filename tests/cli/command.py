"""Runs the real command as a user would, and finds whatever it leaves behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MARK = "CLI_TEST_RUN"
"""A variable that every process of a run inherits, so that those left behind can be told from all others."""

FOUND = shutil.which("shardwise", path=str(Path(sys.executable).parent))
COMMAND = [FOUND] if FOUND else [sys.executable, "-m", "shardwise"]


@dataclass(frozen=True)
class Done:
    """How a run ended. `left` are the command lines of processes that it left behind."""

    code: int
    out: str
    err: str
    left: tuple[str, ...]


def environment(mark: str, **changes: str) -> dict[str, str]:
    """This process's, without what would change the output, and without GPUs: tests are the same everywhere."""
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "SHARDWISE_DEBUG")}
    return {**kept, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", MARK: mark, **changes}


def shardwise(*args: str | bytes | Path, given: bytes = b"", **env: str) -> Done:
    """Runs `shardwise ARGS` to its end with `given` on standard input."""
    mark = uuid.uuid4().hex
    done = subprocess.run([*COMMAND, *args], input=given, capture_output=True, env=environment(mark, **env), timeout=100)
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode(), tuple(marked(mark)))


@contextmanager
def running(
    *args: str | Path, command: Sequence[str] = tuple(COMMAND), **env: str
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """(`shardwise ARGS` with pipes, its mark), killed at the end if it has not ended by then."""
    mark = uuid.uuid4().hex
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*command, *args], env=environment(mark, **env), bufsize=0, **pipes) as process:
        try:
            yield process, mark
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)


def marked(mark: str) -> Iterator[str]:
    """Command lines of the processes that carry the mark and still run."""
    needle = f"{MARK}={mark}".encode()
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and needle in (folder / "environ").read_bytes().split(b"\0"):
                yield (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue  # it ended meanwhile, or is somebody else's
