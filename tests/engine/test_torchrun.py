"""Ranks that torchrun started: the same answer as from processes of our own, and an end when one of them dies."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import psutil

from tests.processes import living

# --standalone lets torchrun choose a free port.
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3", "-m", "shardwise"]
REQUEST = ["generate", "shardling", "--prompt", "Once", "--temperature", "0", "--ignore-eos", "--dtype", "float32"]


def test_the_same_answer_as_without() -> None:
    short = [*REQUEST, "--max-tokens", "12", "--json"]
    alone = subprocess.run([sys.executable, "-m", "shardwise", *short], capture_output=True, text=True)
    ranks = subprocess.run([*TORCHRUN, *short], capture_output=True, text=True)
    assert alone.returncode == 0, alone.stderr
    assert ranks.returncode == 0, ranks.stderr
    assert json.loads(ranks.stdout)["token_ids"] == json.loads(alone.stdout)["token_ids"]


def test_a_degree_that_torchrun_did_not_start() -> None:
    done = subprocess.run([*TORCHRUN, *REQUEST, "-tp", "2"], capture_output=True, text=True)
    assert done.returncode != 0
    assert "torchrun started 3 processes for -tp 2" in done.stderr


def test_a_killed_rank_ends_the_others() -> None:
    command = [*TORCHRUN, *REQUEST, "--max-tokens", "500"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as torchrun:
        assert torchrun.stdout is not None
        torchrun.stdout.read(1)
        ranks = psutil.Process(torchrun.pid).children()
        ranks[-1].send_signal(signal.SIGKILL)
        assert not living(ranks, 30)
        torchrun.stdout.read()
    assert torchrun.returncode != 0
