"""Contestants as processes: one line of JSON for each order, one for each answer, and patience that ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from shardwise.errors import ShardwiseError

SCRIPT = Path(__file__).with_name("peer_process.py")
SHOWN = 300
"""Characters that are shown of what went wrong."""


class Contestant:
    """A started process. ShardwiseError where it does not load its model within `patience_s`; it is ended then."""

    def __init__(
        self, python: str | None, order: Mapping[str, Any], complaints: Path, environ: Mapping[str, str], patience_s: float
    ) -> None:
        """`python` is a peer's interpreter; None is this engine. What it says besides answers goes to `complaints`."""
        script = ["-m", "shardwise.bench.own_process"] if python is None else [str(SCRIPT)]
        self._complaints, self._patience_s, self._stops = complaints, patience_s, python is not None
        self._answers: SimpleQueue[str | None] = SimpleQueue()
        with complaints.open("w") as errors:
            try:
                self._process = subprocess.Popen(
                    [python or sys.executable, *script, json.dumps(order)],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environ, process_group=0,
                )  # fmt: skip
            except OSError as error:
                raise ShardwiseError(f"{python} cannot be started: {error.strerror}") from None
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            found = self._answer()
        except BaseException:
            self.close()
            raise
        self.version: str = found["version"]
        self.start_s: float = found["start_s"]

    def ask(self, do: str, **given: Any) -> dict[str, Any]:
        """The answer to an order. ShardwiseError where it fails, ends or is late."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **given}) + "\n")
            self._process.stdin.flush()
        except (OSError, ValueError):  # it has ended, or was closed
            raise ShardwiseError(self._ended()) from None
        return self._answer()

    def rest(self) -> None:
        """It takes no more of the machine's time until `wake`: all its processes are stopped. This engine's only wait, which
        takes next to nothing; they would take a stop for a failure."""
        if self._stops:
            self._signal(signal.SIGSTOP)

    def wake(self) -> None:
        """It goes on after `rest`."""
        if self._stops:
            self._signal(signal.SIGCONT)

    def close(self) -> None:
        """Nothing of it is left. It is let end by itself first."""
        self.wake()
        for pipe in (self._process.stdin,):
            if pipe is not None and not pipe.closed:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue  # it has ended already
        try:
            self._process.wait(10.0)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()
        self._signal(signal.SIGKILL)  # ranks that outlive the one that led them

    def _signal(self, number: int) -> None:
        """To all processes of its group."""
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return  # none is left

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._answers.put(line)
        self._answers.put(None)

    def _answer(self) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=self._patience_s)
        except Empty:
            raise ShardwiseError(f"it did not answer within {self._patience_s:g} s") from None
        if line is None:
            raise ShardwiseError(self._ended())
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise ShardwiseError(" ".join(str(found["error"]).split())[:SHOWN])
        return found

    def _ended(self) -> str:
        """How it came to its end, in its own last words."""
        code = self._process.wait()
        said = [line.strip() for line in self._complaints.read_text(errors="replace").splitlines() if line.strip()]
        how = f"exit code {code}" if code >= 0 else f"signal {-code} ({signal.strsignal(-code)})"
        return f"it ended with {how}: {(said or ['it said nothing'])[-1][:SHOWN]}"
