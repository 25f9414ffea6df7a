"""A server that is quick to start and wrong on purpose: `fake_server.py PORT MODE RANKS`. Its ranks only live.

It knows nothing of shardwise; each token takes some milliseconds and a living, running rank each.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TOKEN_S = 0.004
MEND_S = 0.15


class State:
    """What the handlers share: ranks, how often one was lost, and what is wrong with this server."""

    def __init__(self, mode: str, ranks: int) -> None:
        self.mode = mode
        self.losses = 0
        self.ranks = [rank(n, mode) for n in range(ranks)]
        self.whole = threading.Event()
        self.whole.set()
        threading.Thread(target=self.mend, daemon=True).start()

    def mend(self) -> None:
        while True:
            time.sleep(0.005)
            for n, process in enumerate(self.ranks):
                if process.poll() is None:
                    continue
                self.whole.clear()
                print(f"rank {n} was lost: process {process.pid} was killed", file=sys.stderr, flush=True)
                if self.mode == "dies":
                    os._exit(3)
                self.losses += 1
                if self.mode != "hangs":
                    time.sleep(MEND_S)
                    self.ranks[n] = rank(n, self.mode)
                    self.whole.set()


def rank(number: int, mode: str) -> subprocess.Popen[bytes]:
    """Ends with this process by the end of its standard input, unless it is to be an orphan."""
    wait = "import time; time.sleep(20)" if mode == "orphans" else "import sys; sys.stdin.read()"
    return subprocess.Popen([sys.executable, "-S", "-c", wait, f"fake-rank-{number}"], stdin=subprocess.PIPE)


class Answer(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    state: State

    def log_message(self, *_: Any) -> None:
        return

    def do_GET(self) -> None:
        well = self.state.whole.is_set() or self.state.mode == "hangs"
        body = {"data": [{"id": "fake"}]} if self.path == "/v1/models" else {"status": "ok" if well else "mending"}
        self.whole(200 if well or self.path == "/v1/models" else 503, body)

    def whole(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.state.mode == "plain" and asked.keys() & {"return_token_ids", "ignore_eos", "cache_salt"}:
            self.whole(400, {"error": {"message": "unknown field"}})
            return
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for event in self.events(asked):
            data = b"data: " + (event if isinstance(event, str) else json.dumps(event)).encode() + b"\n\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.write(b"0\r\n\r\n")

    def events(self, asked: dict[str, Any]) -> Any:
        mode, begun = self.state.mode, self.state.losses
        ids = random.Random(json.dumps({**asked, "cache_salt": None}, sort_keys=True)).choices(
            range(9000), k=asked["max_tokens"]
        )
        if mode == "moody" and asked.get("cache_salt") != "quiet":
            ids[3] += 1  # a server whose tokens depend on company, without any fault
        for n, number in enumerate(ids):
            time.sleep(TOKEN_S)
            self.state.whole.wait()
            lost = self.state.losses > begun
            if lost and mode == "fails":
                yield {"error": {"message": "the engine is lost"}}
                yield "[DONE]"
                return
            if lost and mode == "swallows":
                break
            if lost and mode == "doubles":
                begun = self.state.losses
                yield self.event(asked, [ids[n - 1]], None)
            yield self.event(asked, [number], "length" if n == len(ids) - 1 else None)
        written = asked["n"] * len(ids)
        yield {
            "id": "1",
            "choices": [],
            "usage": {"prompt_tokens": 5, "completion_tokens": written, "total_tokens": 5 + written},
        }
        yield "[DONE]"

    def event(self, asked: dict[str, Any], ids: list[int], reason: str | None) -> dict[str, Any]:
        text = "".join(f" {number}" for number in ids)
        body: dict[str, Any] = {"delta": {"content": text}} if "messages" in asked else {"text": text}
        if asked.get("return_token_ids"):
            body["token_ids"] = ids
        return {"id": "1", "choices": [{"index": index, **body, "finish_reason": reason} for index in range(asked["n"])]}


def main() -> None:
    """Until it is killed."""
    Answer.state = State(sys.argv[2], int(sys.argv[3]))
    if sys.argv[2] == "litters":
        (Path(os.environ["TMPDIR"]) / "left.sock").touch()
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Answer)
    server.serve_forever()


if __name__ == "__main__":
    main()
