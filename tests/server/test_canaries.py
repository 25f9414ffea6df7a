"""What clients say stays between them and the server: not in its output, whatever becomes of them, its own death too."""

from __future__ import annotations

import json
import os
import signal
import time
from http.client import HTTPException
from typing import Any

from tests.hostile.answers import LEAKS
from tests.server.live import Live, connected, serving

CANARY = "zyzzyva-canary"


def sent(live: Live, path: str, data: bytes) -> bytes:
    """All of the answer; what came of it, where the server ends meanwhile."""
    with connected(live.url) as connection:
        try:
            connection.request("POST", path, data, {"X-Request-Id": "plain"})
            return connection.getresponse().read()
        except (OSError, HTTPException):
            return b""


def bodies() -> list[tuple[str, bytes]]:
    said = {"messages": [{"role": "user", "content": CANARY}], "max_tokens": 2}
    asked: list[tuple[str, dict[str, Any]]] = [
        ("/v1/chat/completions", said),
        ("/v1/chat/completions", {**said, "stream": True}),
        ("/v1/chat/completions", {**said, "model": CANARY}),
        ("/v1/chat/completions", {**said, "tools": [{"type": "function", "function": {"name": CANARY, "parameters": 5}}]}),
        ("/v1/completions", {"prompt": CANARY * 2000}),
        ("/v1/completions", {"prompt": "a", "regex": f"({CANARY}"}),
        ("/v1/completions", {"prompt": "a", "guided_json": {"$ref": f"#/{CANARY}"}}),
        ("/v1/messages", {**said, "system": 5, "metadata": {"user_id": CANARY}}),
        ("/v1/responses", {"input": CANARY, "max_output_tokens": 2, "user": CANARY}),
        ("/tokenize", {"prompt": CANARY}),
        ("/generate", {"inputs": CANARY, "parameters": {"max_new_tokens": 0}}),
    ]
    whole = [(path, json.dumps(body).encode()) for path, body in asked]
    return [*whole, ("/v1/completions", f'{{"prompt": "{CANARY}'.encode()), ("/v1/completions", CANARY.encode() + b"\xff")]


def test_prompts_are_nowhere_but_in_answers():
    with serving("--max-model-len", "256", "--threads", "1", "--stats", "--on-rank-loss", "exit") as live:
        answers = [sent(live, path, data) for path, data in bodies()]
        assert all(answers) and not any(LEAKS.search(answer) for answer in answers)
        with connected(live.url) as connection:  # a client that goes away while its stream runs
            asked = {"prompt": CANARY, "max_tokens": 200, "stream": True, "ignore_eos": True}
            connection.request("POST", "/v1/completions", json.dumps(asked))
            assert connection.getresponse().read(1)
        pid = live.ask("/server_info")[1]["ranks"][0]["pid"]
        with connected(live.url) as connection:  # and one that is there when the engine is lost
            connection.request("POST", "/v1/completions", json.dumps(asked))
            answer = connection.getresponse()
            answer.read(1)
            os.kill(pid, signal.SIGKILL)
            try:
                rest = answer.read()
            except HTTPException as error:
                rest = getattr(error, "partial", b"")
            assert not LEAKS.search(rest), rest
        began = time.monotonic()
        assert live.wait(60) != 0, "it ended without its engine"
        assert time.monotonic() - began < 60
        said = "\n".join((*live.lines, *live.said))
    assert CANARY not in said, said
    assert "Traceback" not in said and said
