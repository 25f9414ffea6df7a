"""An OpenAI-compatible server on this machine whose answers come from transformers' own logits, in the manners of several.

Ports are chosen by the system. `manner` says what it gives: "vllm" echoes prompts of ids and names tokens by id; "llama.cpp"
refuses `echo` and gives ids of new tokens; "silent" leaves `echo` out without a word; "plain" takes text alone and names no
ids, as OpenAI's own did; "begin" puts a token before every prompt.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

Logits = Callable[[Sequence[int]], torch.Tensor]
"""The logits [places, vocabulary] of a sequence of ids."""

KEY = "sk-good"


@dataclass
class OpenAI(AbstractContextManager["OpenAI"]):
    """`raw`, where given, is what /v1/completions sends instead: (status, body). `seen`: what was asked for, with headers."""

    logits: Logits | None = None
    manner: str = "vllm"
    encode: Callable[[str], list[int]] | None = None
    models: Sequence[str] = ("tiny",)
    key: str | None = None
    raw: tuple[int, bytes] | None = None
    hold: threading.Event | None = None
    seen: list[tuple[str, str | None, dict[str, Any]]] = field(default_factory=list)

    def __enter__(self) -> OpenAI:
        self._server = _Server(("127.0.0.1", 0), type("Answer", (_Answer,), {"here": self}))
        self._server.daemon_threads = True
        self._server.block_on_close = False
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.hold is not None:
            self.hold.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def complete(self, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """(status, answer) to a request."""
        prompt = asked["prompt"]
        if self.manner == "plain":
            unknown = set(asked) - {"model", "prompt", "max_tokens", "temperature", "logprobs", "stream", "echo"}
            if unknown or not isinstance(prompt, str):
                return 400, {"error": {"message": f"not supported: {sorted(unknown) or 'prompts of ids'}"}}
        if self.manner == "llama.cpp" and asked.get("echo"):
            return 500, {"error": {"message": "Only no echo is supported", "code": 500}}
        ids = self.encode(prompt) if isinstance(prompt, str) and self.encode is not None else list(prompt)
        if self.manner == "begin":
            ids = [1, *ids]
        tokens, scores = self._greedy(ids, asked["max_tokens"])
        choice: dict[str, Any] = {"index": 0, "text": "…", "finish_reason": "length"}
        if self.manner in ("llama.cpp", "silent"):
            new = zip(tokens[len(ids) :], scores[len(ids) :], strict=True)
            choice["logprobs"] = {"content": [{"id": t, "token": "x", "bytes": [120], "logprob": s} for t, s in new]}
        else:
            first = 0 if asked.get("echo") else len(ids)
            named = [f"token_id:{t}" if asked.get("return_tokens_as_token_ids") else f"<{t}>" for t in tokens]
            choice["logprobs"] = {"tokens": named[first:], "token_logprobs": scores[first:], "top_logprobs": None}
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(tokens) - len(ids), "total_tokens": len(tokens)}
        return 200, {"object": "text_completion", "model": asked["model"], "choices": [choice], "usage": usage}

    def _greedy(self, ids: list[int], count: int) -> tuple[list[int], list[float | None]]:
        assert self.logits is not None
        tokens = list(ids)
        for _ in range(count):
            tokens.append(int(self.logits(tokens)[-1].argmax()))
        table = self.logits(tokens).double().log_softmax(-1)
        return tokens, [None, *(float(table[i, token]) for i, token in enumerate(tokens[1:]))]


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has left is no fault: it may have had enough."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Answer(BaseHTTPRequestHandler):
    here: OpenAI
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.here.seen.append((self.path, self.headers["Authorization"], {}))
        if self.here.key and self.headers["Authorization"] != f"Bearer {self.here.key}":
            self.send(401, b'{"error": {"message": "no such key"}}')
        else:
            self.send(200, json.dumps({"object": "list", "data": [{"id": name} for name in self.here.models]}).encode())

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.here.seen.append((self.path, self.headers["Authorization"], asked))
        if self.here.hold is not None:
            self.here.hold.wait(60)
        if self.here.raw is not None:
            self.send(*self.here.raw)
        else:
            status, answer = self.here.complete(asked)
            self.send(status, json.dumps(answer).encode())

    def send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if status == 302:
            self.send_header("Location", "http://127.0.0.1:1/elsewhere")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: `seen` is the log."""
