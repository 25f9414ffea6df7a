"""Ctrl-C at any moment: out within two seconds, exit code 130, no traceback, nothing left running."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.cli.command import marked, running

OUT_S = 2.0
ENDLESS = ("generate", "shardling", "-tp", "2", "--prompt", "Once", "--ignore-eos", "--max-tokens", "900")


def interrupted(phase: str) -> tuple[int, float, bytes, tuple[str, ...]]:
    """(exit code, seconds until it was out, standard error, what is left) of a run that is interrupted in a phase."""
    with running(*ENDLESS) as (process, mark):
        assert process.stdout is not None and process.stderr is not None
        if phase == "ranks start":
            while not any("runtime.worker" in command for command in marked(mark)):
                time.sleep(0.005)
        elif phase == "generate":
            assert os.read(process.stdout.fileno(), 1)
        process.send_signal(signal.SIGINT)
        sent = time.monotonic()
        process.stdout.read()
        shown = process.stderr.read()
        code = process.wait()
        return code, time.monotonic() - sent, shown, tuple(marked(mark))


@pytest.mark.parametrize("phase", ["ranks start", "generate"])
def test_out_and_nothing_left(phase: str) -> None:
    code, seconds, shown, left = interrupted(phase)
    assert code == 130
    assert left == ()
    assert b"Traceback" not in shown
    assert seconds < OUT_S
