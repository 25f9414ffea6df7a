"""A server is killed at any time, and two seconds later nothing of it is left: no process, no memory, no file, no socket."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

import psutil
import pytest

from tests.cli.command import COMMAND, environment, marked
from tests.server.live import START_S, Live, connected, serving

LEFT_S = 2.0

FLAGS = ("-tp", "2", "--api-workers", "2")

WAYS = ("group", "parent", "stopped rank", "stopped engine", "stopped front")
"""Who is killed: the process group; the first process alone; that one while another one is stopped, and sees nothing of it."""


YOUNG_S = 0.5
"""The interpreter starts within this, and then the process is bound."""


def tree(pid: int) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def kill(pid: int, way: str) -> None:
    """Kills as `way` says; what it would stop is perhaps not there yet, or too young to be bound to its parent."""
    module = {"stopped rank": "runtime.worker", "stopped engine": "engine.host", "stopped front": "server.worker"}.get(way)
    for process in tree(pid) if module else ():
        with suppress(psutil.NoSuchProcess):
            if f"shardwise.{module}" in process.cmdline() and process.create_time() < time.time() - YOUNG_S:
                process.send_signal(signal.SIGSTOP)
    if way == "group":
        os.killpg(pid, signal.SIGKILL)
    else:
        os.kill(pid, signal.SIGKILL)


def shared() -> set[str]:
    """Files in memory and sockets with names."""
    names = {line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines() if "shardwise" in line}
    return names | {name for name in map(str, Path("/dev/shm").iterdir()) if "shardwise" in name or "torch" in name}


def nothing_is_left(mark: str, folder: Path, before: set[str]) -> float:
    """The seconds after which that is so."""
    begun = time.monotonic()
    while left := list(marked(mark)):
        assert time.monotonic() - begun < LEFT_S, left
        time.sleep(0.01)
    assert not list(folder.iterdir()) and not shared() - before
    return time.monotonic() - begun


def asking(live: Live) -> None:
    """Some clients, each with a long answer, until they are cut off."""

    def ask() -> None:
        with suppress(OSError, HTTPException), connected(live.url) as connection:
            body = {"prompt": "Once upon a time " * 30, "max_tokens": 700, "ignore_eos": True, "stream": True}
            connection.request("POST", "/v1/completions", json.dumps(body))
            connection.getresponse().read()

    for _ in range(4):
        threading.Thread(target=ask, daemon=True).start()


def trial(way: str, after_s: float, folder: Path, **env: str) -> float:
    """Started, killed so long after its start, or after that it was up where that is below 0: how long until all was gone."""
    folder.mkdir()
    before = shared()
    given = ("serve", "--device", "cpu", "--port", "0", *FLAGS)
    mark = uuid.uuid4().hex
    told = environment(mark, TMPDIR=str(folder), **env)
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*COMMAND, *given], env=told, bufsize=0, process_group=0, **pipes) as process:
        live = Live(process, mark)
        live.follow()
        if after_s < 0:
            assert live.up.wait(START_S), live.said
            asking(live)
        time.sleep(abs(after_s))
        kill(process.pid, way)
        return nothing_is_left(mark, folder, before)


@pytest.mark.parametrize(
    ("way", "after_s", "collectives"),
    [("parent", 0.2, "shm"), ("group", 1.0, "gloo"), ("stopped rank", 2.0, "gloo"), ("stopped engine", -0.3, "shm")],
)
def test_nothing_is_left(tmp_path: Path, figures: Callable[..., None], way: str, after_s: float, collectives: str) -> None:
    gone_s = trial(way, after_s, tmp_path / "temporary", SHARDWISE_COLLECTIVES=collectives)
    figures("killed servers", gone_s=gone_s)


@pytest.mark.slow
@pytest.mark.timeout(4000)
@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_left_whenever_it_comes(tmp_path: Path, figures: Callable[..., None], way: str) -> None:
    """200 of each, from the first moment of a start to the midst of answers; and the next start works each time."""
    chance = random.Random(way)
    gone = []
    for number in range(200):
        collectives = chance.choice(("shm", "gloo"))
        after_s = chance.uniform(0, 4) if number % 2 else -chance.uniform(0, 1)
        gone.append(trial(way, after_s, tmp_path / str(number), SHARDWISE_COLLECTIVES=collectives))
        if number % 20 == 0:
            with serving(*FLAGS, SHARDWISE_COLLECTIVES=collectives) as live:
                assert live.ask("/health")[0] == 200
    figures(f"killed servers: {way}", trials=len(gone), median_s=sorted(gone)[len(gone) // 2], longest_s=max(gone))
