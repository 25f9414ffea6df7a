"""`shardwise serve` as a user starts it, and plain HTTP to it."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.cli.command import COMMAND, running

START_S = 90.0
"""The longest that a start may take on a machine that does much else."""


@dataclass
class Live:
    """A server that has said where it is. `lines` are those of standard output so far, `said` those of standard error."""

    process: subprocess.Popen[bytes]
    mark: str
    lines: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    up: threading.Event = field(default_factory=threading.Event)
    ready: str = "try "

    @property
    def url(self) -> str:
        return re.search(r"http://\S+(?=/v1 )", "\n".join(self.lines))[0]  # type: ignore[index]

    def ask(self, path: str, body: object = None, *, key: str | None = None, timeout_s: float = 60) -> tuple[int, Any]:
        """(status, answer) of a GET, or of a POST of `body`; the answer as JSON."""
        with connected(self.url, timeout_s) as connection:
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            connection.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

    def wait(self, timeout_s: float = 30) -> int:
        """The exit code, with everything said read."""
        code = self.process.wait(timeout_s)
        for reader in self._readers:
            reader.join(timeout_s)
        return code

    def follow(self) -> None:
        """Reads both outputs as they come; `up` is set once it is, or has ended."""
        assert self.process.stdout is not None and self.process.stderr is not None

        def read(stream: Any, lines: list[str]) -> None:
            for line in iter(stream.readline, b""):
                lines.append(line.decode().rstrip("\n"))
                if self.ready in lines[-1]:
                    self.up.set()
            self.up.set()

        pairs = ((self.process.stdout, self.lines), (self.process.stderr, self.said))
        self._readers = [threading.Thread(target=read, args=pair, daemon=True) for pair in pairs]
        self._readers[0].start()
        self._readers[1].start()


@contextmanager
def connected(url: str, timeout_s: float = 60) -> Iterator[http.client.HTTPConnection]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_s)
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def serving(
    *args: str | Path, port: str = "0", command: Sequence[str] = tuple(COMMAND), ready: str = "try ", **env: str
) -> Iterator[Live]:
    """`shardwise serve ARGS` once it is up, which the line with `ready` says; killed at the end, unless it has ended."""
    with running("serve", "--device", "cpu", "--port", port, *args, command=command, **env) as (process, mark):
        live = Live(process, mark, ready=ready)
        live.follow()
        assert live.up.wait(START_S), live.said
        assert live.lines and ready in live.lines[-1], (live.wait(), live.said)
        yield live
