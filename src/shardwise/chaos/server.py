"""A server under test: started by its command line, in a temporary folder of its own, listened to, asked how it is, ended.

Ours says where it listens and which processes its ranks are; one of other people is given a port, and its ranks are known by
their titles.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any

from shardwise.chaos.client import get
from shardwise.chaos.leftovers import Before, leftovers
from shardwise.chaos.processes import MARK, Herd
from shardwise.chaos.strike import state
from shardwise.errors import ShardwiseError

GONE_S = 2.0
"""So long after its end, nothing may be left of a server."""

POLL_S = 0.02
PORT = "{port}"


@dataclass(frozen=True, slots=True)
class Command:
    """How a server is started. `foreign`: it is not ours; "{port}" in its words is a free one. `ranks` finds the titles of its
    rank processes. `start_s`: the longest that it may take until it answers."""

    words: Sequence[str]
    foreign: bool = False
    ranks: str | None = None
    start_s: float = 120.0
    key: str | None = None


class Server:
    """One that was started; it may not be up yet. Everything of it ends with `close`."""

    def __init__(self, command: Command) -> None:
        """ShardwiseError where it cannot be started."""
        self.command = command
        self._folder = Path(tempfile.mkdtemp(prefix="chaos-"))
        self.before = Before.now(self._folder)
        mark = uuid.uuid4().hex
        self.herd = Herd(mark, command.ranks)
        self.url: str | None = None
        words = list(command.words)
        if command.foreign:
            port = _free()
            words = [word.replace(PORT, str(port)) for word in words]
            self.url = f"http://127.0.0.1:{port}"
        self.begun_s = time.monotonic()
        self.lines: list[tuple[float, str]] = []
        try:
            self.process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0,
                env={**os.environ, MARK: mark, "TMPDIR": str(self._folder), "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip
        except OSError as error:
            rmtree(self._folder, ignore_errors=True)
            raise ShardwiseError(f"{words[0]} cannot be started: {error.strerror}") from None
        self.herd.root = self.process.pid
        self.model = ""
        for stream in (self.process.stdout, self.process.stderr):
            threading.Thread(target=self._listen, args=(stream,), daemon=True).start()

    @property
    def ended(self) -> bool:
        """The process that was started runs no more."""
        return self.process.poll() is not None

    def up(self) -> float | None:
        """Seconds from its start until it answers; None where it ends before, or takes too long."""
        until = self.begun_s + self.command.start_s
        while time.monotonic() < until and not self.ended:
            if self.url is not None and (found := get(self.url, "/v1/models", 1.0, self.command.key)) and found[0] == 200:
                self.model = str(json.loads(found[1])["data"][0]["id"])
                return time.monotonic() - self.begun_s
            time.sleep(POLL_S)
        return None

    def up_now(self) -> bool:
        """Whether it answers already."""
        found = get(self.url, "/v1/models", 1.0, self.command.key) if self.url else None
        return found is not None and found[0] == 200

    def health(self) -> tuple[int, str] | None:
        """What /health says; None where nobody answers."""
        found = get(self.url, "/health", 1.0) if self.url else None
        return None if found is None else (found[0], found[1].decode("utf-8", "replace"))

    def information(self) -> dict[str, Any]:
        """/server_info, of ours; nothing where it does not answer."""
        found = None if self.command.foreign or not self.url else get(self.url, "/server_info", 1.0, self.command.key)
        if found is None or found[0] != 200:
            return {}
        given: dict[str, Any] = json.loads(found[1])
        return given

    def ranks(self) -> list[int]:
        """The processes of its ranks, in their order; those of other people's servers by their titles."""
        if told := self.information().get("ranks"):
            return [each["pid"] for each in told]
        return [process.pid for process in sorted(self.herd.of("rank"), key=lambda each: (each.title, each.pid))]

    def running(self) -> bool:
        """All its ranks live, and none is stopped."""
        pids = self.ranks()
        return bool(pids) and all(state(pid) not in (None, "Z", "X", "T", "t") for pid in pids)

    def said(self, since: float) -> list[tuple[float, str]]:
        """Lines that it wrote since then, with their times."""
        return [line for line in tuple(self.lines) if line[0] >= since]

    def last_words(self) -> str:
        """The last line that it wrote."""
        return next((text for _, text in reversed(self.lines) if text.strip()), "it said nothing")[:300]

    def gone(self, since: float) -> tuple[float | None, list[str]]:
        """(seconds since then until no process was left, what is left 2 s after it); None where processes are left."""
        found = None
        while time.monotonic() < since + GONE_S:
            if not self.herd.look():
                found = time.monotonic() - since
                break
            time.sleep(POLL_S)
        return found, leftovers(self.before, self.herd)

    def stop(self, within_s: float = 20.0) -> float:
        """Ends it as users do, by SIGTERM; when that was done, by time.monotonic."""
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(within_s)
        return time.monotonic()

    def close(self) -> None:
        """Nothing of it is left."""
        self.herd.kill()
        self.process.wait()
        rmtree(self._folder, ignore_errors=True)

    def _listen(self, stream: Any) -> None:
        with stream:
            for data in iter(stream.readline, b""):
                text = data.decode("utf-8", "replace").rstrip("\n")
                self.lines.append((time.monotonic(), text))
                if self.url is None and (found := re.search(r"http://\S+?(?=/v1\b)", text)):
                    self.url = found[0]


def _free() -> int:
    """A port that is free now; nothing keeps it so, but a server of other people takes no socket."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
