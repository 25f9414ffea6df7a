"""`complete` and `chat --url` against servers of all kinds, most of them canned: what is sent, shown, and said of failures."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.cli.command import running, shardwise

Answer = Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]


@dataclass
class Canned:
    """A server that answers every POST alike. `asked` are the bodies that came, `keys` the Authorization headers."""

    url: str
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    gone: threading.Event = field(default_factory=threading.Event)


@contextmanager
def canned(answer: Answer) -> Iterator[Canned]:
    class Door(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            told.keys.append(self.headers.get("Authorization"))
            whole(self, 200, {"data": [{"id": "first"}, {"id": "second"}]})

        def do_POST(self) -> None:
            told.keys.append(self.headers.get("Authorization"))
            told.asked.append({"path": self.path, **json.loads(self.rfile.read(int(self.headers["Content-Length"])))})
            try:
                answer(self, told.asked[-1])
            except OSError:
                told.gone.set()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Door) as server:
        told = Canned(f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            yield told
        finally:
            server.shutdown()


def whole(door: BaseHTTPRequestHandler, status: int, body: object, **headers: str) -> None:
    data = json.dumps(body).encode()
    door.send_response(status)
    for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
        door.send_header(name.replace("_", "-"), value)
    door.end_headers()
    door.wfile.write(data)


def streamed(door: BaseHTTPRequestHandler, *frames: object, done: bool = True) -> None:
    door.send_response(200)
    door.send_header("Content-Type", "text/event-stream; charset=utf-8")
    door.end_headers()
    door.wfile.write(b": keep-alive\r\n\r\n")
    for frame in frames:
        door.wfile.write(b"data: " + (frame if isinstance(frame, bytes) else json.dumps(frame).encode()) + b"\n\n")
    door.wfile.write(b"data: [DONE]\n\n" if done else b"")


def texts(*parts: str) -> list[dict[str, object]]:
    return [{"choices": [{"index": 0, "text": part, "finish_reason": None}]} for part in parts]


def deltas(*parts: str) -> list[dict[str, object]]:
    first = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
    rest = [{"choices": [{"index": 0, "delta": {"content": part}, "finish_reason": None}]} for part in parts]
    return [first, *rest, {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}]


def test_a_completion_comes_as_it_is_streamed() -> None:
    usage = {"choices": [], "usage": {"completion_tokens": 7}}
    with canned(lambda door, _: streamed(door, *texts("one ", "zwö"), usage)) as server:
        done = shardwise(
            "complete",
            "Once",
            "--url",
            server.url + "/v1/",
            "--temperature",
            "0",
            "--stop",
            "x",
            "--stats",
            SHARDWISE_API_KEY="k,l",
        )
    assert (done.code, done.out) == (0, "one zwö\n"), done.err
    assert "7 tokens" in done.err
    [asked] = server.asked
    assert asked == {
        "path": "/v1/completions", "model": "first", "prompt": "Once", "max_tokens": 256, "temperature": 0.0, "stop": ["x"],
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    assert server.keys == ["Bearer k"] * 2


SERVES = {"tp": 2, "shares": [3.0, 1.0], "max_model_len": 512, "max_num_seqs": 8, "kv_pages": [33], "status": "serving"}


@pytest.mark.parametrize(
    ("flags", "body", "said"),
    [
        (
            ("-tp", "2", "--shares", "3,1"),
            {"tp": 2, "shares": [3.0, 1.0]},
            "2 ranks serve, 3:1: requests of up to 512",
        ),
        (("-tp", "2", "--json"), {"tp": 2}, json.dumps(SERVES)),
    ],
)
def test_other_ranks_are_asked_for(flags: tuple[str, ...], body: dict[str, Any], said: str) -> None:
    with canned(lambda door, _: whole(door, 200, SERVES)) as server:
        done = shardwise("reshard", "--url", server.url, "--api-key", "k", *flags)
    assert (done.code, done.err) == (0, "") and done.out.startswith(said)
    assert (server.asked, server.keys) == ([{"path": "/v1/admin/reshard", **body}], ["Bearer k"])


def test_a_server_that_cannot_be_cut_like_that_says_why() -> None:
    error = {"error": {"message": "the largest that works is -tp 4"}}
    with canned(lambda door, _: whole(door, 400, error)) as server:
        done = shardwise("reshard", "--url", server.url, "-tp", "9")
    assert done.code == 2 and "answered 400: the largest that works is -tp 4" in done.err
    assert "say how many ranks" in shardwise("reshard").err


def test_a_server_that_does_not_stream_and_a_prompt_from_standard_input() -> None:
    with canned(lambda door, _: whole(door, 200, *texts("all at once"))) as server:
        done = shardwise("complete", "--url", server.url, "--model", "m", "-n", "5", given="Grüße\n".encode())
    assert (done.code, done.out, done.err) == (0, "all at once\n", "")
    assert (server.asked[0]["prompt"], server.asked[0]["model"], server.asked[0]["max_tokens"]) == ("Grüße", "m", 5)


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        (lambda d, _: whole(d, 400, {"error": {"message": "the prompt\nis long"}}), 2, ("answered 400: the prompt is long",)),
        (lambda d, _: whole(d, 401, {"error": {"message": "no key"}}), 2, ("401", "--api-key")),
        (lambda d, _: whole(d, 404, {"detail": "no such model"}), 2, ("404: no such model",)),
        (lambda d, _: whole(d, 429, {"error": {"message": "full"}}, Retry_After="7"), 1, ("full", "try again in 7 s")),
        (lambda d, _: whole(d, 503, "down"), 1, ("503: down",)),
        (lambda d, _: whole(d, 200, {"error": {"message": "not today"}}), 1, ("failed: not today",)),
        (lambda d, _: streamed(d, *texts("a"), {"error": {"message": "the engine is lost"}}), 1, ("the engine is lost",)),
        (lambda d, _: streamed(d, b"{not json"), 1, ("OpenAI",)),
        (lambda d, _: streamed(d, *texts("a"), done=False), 1, ("broke off before the end",)),
        (lambda d, _: d.wfile.write(b"SSH-2.0-OpenSSH\r\n"), 1, ("broke off",)),
        (lambda d, _: d.connection.shutdown(socket.SHUT_RDWR), 1, ("broke off",)),
    ],
)
def test_failures_are_one_readable_line(answer: Answer, code: int, words: tuple[str, ...]) -> None:
    with canned(answer) as server:
        done = shardwise("complete", "x", "--url", server.url)
    assert done.code == code
    assert done.err.count("\n") == 1 and done.err.startswith("shardwise: error: http://"), done.err
    for word in words:
        assert word in done.err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("complete", "x", "--url", "localhost:8000"), ("--url", "did you mean http://localhost:8000?")),
        (("complete", "x", "--url", "ftp://localhost"), ("--url", "is no address")),
        (("complete", ""), ("the argument", "is empty", "--prompt-file")),
        (("complete", "x", "--url", "http://u:p@localhost"), ("--api-key",)),
        (("complete", "x", "--temperature", "-1"), ("temperature",)),
        (("chat", "--url", "http://127.0.0.1:1", "-tp", "2"), ("--tensor-parallel-size", "leave it out")),
        (("chat", "--url", "http://127.0.0.1:1"), ("cannot be reached", "shardwise serve")),
    ],
)
def test_what_cannot_be_asked(args: tuple[str, ...], words: tuple[str, ...]) -> None:
    done = shardwise(*args)
    assert (done.code, done.err.count("\n")) == (2, 1)
    for word in words:
        assert word in done.err


def test_the_oldest_turns_make_way_where_the_context_is_full() -> None:
    def answer(door: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        if len("".join(each["content"] for each in body["messages"])) > 12:
            said = "This model's maximum context length is 12 tokens"
            whole(door, 400, {"error": {"message": said, "code": "context_length_exceeded"}})
        else:
            streamed(door, *deltas("ok"))

    with canned(answer) as server:
        done = shardwise("chat", "--url", server.url, given=b"one\ntwo\nfour\n" + b"x" * 20 + b"\nsix\n")
    assert (done.code, done.out) == (1, "ok\nok\nok\n\nok\n"), done.err
    assert done.err.count("the oldest turn was dropped") == 2 and done.err.count("maximum context length") == 1
    taken = [[each["content"] for each in body["messages"]] for body in server.asked]
    assert taken[2:4] == [["one", "ok", "two", "ok", "four"], ["two", "ok", "four"]]
    assert taken[-2:] == [["two", "ok", "four", "ok", "six"], ["four", "ok", "six"]]


def test_a_dialogue_tells_all_that_was_said_and_outlives_a_refusal() -> None:
    def answer(door: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        last = body["messages"][-1]["content"]
        if last == "bad":
            whole(door, 400, {"error": {"message": "too bad"}})
        elif last == "half":
            streamed(door, *deltas("HA")[:2], done=False)
        else:
            streamed(door, *deltas(last.upper(), "!"))

    with canned(answer) as server:
        said = "one\nbad\n/system Be brief\ntwo\n/reset\nthree\n/exit\nnever\n"
        done = shardwise("chat", "--url", server.url, "--seed", "5", given=said.encode())
        half = shardwise("chat", "--url", server.url, given=b"half\n")
        fine = shardwise("chat", "--url", server.url, given=b"four\n/exit\n")
    assert (done.code, done.out.split("\n")) == (1, ["ONE!", "", "TWO!", "THREE!", ""]), done.err
    assert "error: " in done.err and "too bad" in done.err and done.err.count("[cut at") == 3
    assert (half.code, half.out) == (1, "HA\n") and "broke off" in half.err
    assert (fine.code, fine.out) == (0, "FOUR!\n"), fine.err
    first, _, second, third = (body["messages"] for body in server.asked[:4])
    user, answer_, system = ({"role": role, "content": text} for role, text in
                             (("user", "one"), ("assistant", "ONE!"), ("system", "Be brief")))  # fmt: skip
    assert first == [user]
    assert second == [system, user, answer_, {"role": "user", "content": "two"}]
    assert third == [system, {"role": "user", "content": "three"}]
    assert all(body["seed"] == 5 and body["stream"] for body in server.asked[:4])


def test_a_server_without_tls_is_asked_over_http() -> None:
    with canned(lambda door, _: streamed(door)) as server:
        done = shardwise("complete", "x", "--url", server.url.replace("http:", "https:"))
    assert done.code == 2 and "use http://" in done.err


def test_ctrl_c_ends_the_request() -> None:
    def endless(door: BaseHTTPRequestHandler, _body: dict[str, Any]) -> None:
        streamed(door, *texts("a"), done=False)
        until = time.monotonic() + 60
        while time.monotonic() < until:  # until nobody reads any more
            door.wfile.write(b": keep-alive\n\n")
            time.sleep(0.01)

    with canned(endless) as server, running("complete", "x", "--url", server.url) as (process, _):
        assert process.stdout is not None and process.stderr is not None
        assert os.read(process.stdout.fileno(), 1) == b"a"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert b"Traceback" not in process.stderr.read()
        assert server.gone.wait(20)
