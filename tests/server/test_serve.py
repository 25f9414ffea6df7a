"""`shardwise serve` as processes: what a start prints, how it ends, what is left of it. Everything is the real thing."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from shardwise.engine.hub import bundled
from tests.cli.command import marked, running, shardwise
from tests.processes import living
from tests.server.live import Live, connected, serving

LONG = {"prompt": "Once upon a time", "ignore_eos": True, "temperature": 0, "stream": True}

LEFT_S = 2.0


@contextmanager
def streams(live: Live, count: int, tokens: int = 900) -> Iterator[list[http.client.HTTPResponse]]:
    """So many answers of so many tokens, each with its first token here."""
    with connected(live.url) as first:
        connections = [first, *(http.client.HTTPConnection(first.host, first.port, timeout=60) for _ in range(count - 1))]
        answers = []
        try:
            for connection in connections:
                connection.request("POST", "/v1/completions", json.dumps({**LONG, "max_tokens": tokens}))
            for connection in connections:
                answers.append(connection.getresponse())
                assert (answers[-1].status, answers[-1].readline()[:6]) == (200, b"data: ")
            yield answers
        finally:
            for connection in connections:
                connection.close()


def rest(answer: http.client.HTTPResponse) -> list[Any]:
    """The frames that are still to come, as JSON or the word [DONE]."""
    lines = [line.removeprefix(b"data: ") for line in answer.read().splitlines() if line.startswith(b"data: ")]
    return [line.decode() if line == b"[DONE]" else json.loads(line) for line in lines]


def family(live: Live) -> list[psutil.Process]:
    """All processes of a server."""
    parent = psutil.Process(live.process.pid)
    return [parent, *parent.children(recursive=True)]


def ranks(live: Live) -> list[int]:
    return [rank["pid"] for rank in live.ask("/server_info")[1]["ranks"]]


def left(live: Live) -> tuple[str, ...]:
    until = time.monotonic() + LEFT_S
    while (found := tuple(marked(live.mark))) and time.monotonic() < until:
        time.sleep(0.02)
    return found


def test_a_server_starts_says_where_it_is_answers_and_drains() -> None:
    with serving("-tp", "2", "--served-model-name", "a,b", "--drain-timeout", "2m") as live:
        plan, ready, api, attempt = live.lines
        assert re.fullmatch(
            r"plan    shardling 4\.\d+M params · tp=2 · cpu · per rank: weights \d+ MiB \+ KV \d+ MiB \(\S+ tokens\) \+ "
            r"other \d+ MiB = \d+ MiB of \S+ [MG]iB · context 1024",
            plan,
        )
        assert re.fullmatch(r"ready   [\d.]+ s \(import [\d.]+, weights [\d.]+, ranks [\d.]+, warm-up [\d.]+\)", ready)
        assert api == f'API     {live.url}/v1   model "a", "b"      docs {live.url}/docs'
        assert attempt == f"try     shardwise chat --url {live.url}        stop   Ctrl-C"
        assert len(live.said) == 1 and "no GPU is used: 2 rank(s) on the CPU" in live.said[0]
        _answers(live)
        _clients(live)
        with streams(live, 3, 100) as answers:
            live.process.send_signal(signal.SIGTERM)
            until = time.monotonic() + 20
            while live.ask("/ready")[0] != 503 and time.monotonic() < until:
                time.sleep(0.005)
            status, refused = live.ask("/v1/completions", {"prompt": "x", "max_tokens": 1})
            assert (status, refused["error"]["code"]) == (503, "draining")
            for answer in answers:
                *_, last, done = rest(answer)
                assert done == "[DONE]" and last["choices"][0]["finish_reason"] == "length"
        assert live.wait() == 0
        assert len(live.lines) == 4 and len(live.said) == 2
        assert re.fullmatch(r"shardwise: [1-3] open requests? may finish within 120 s; .*", live.said[1])
        assert left(live) == ()


def _answers(live: Live) -> None:
    """What it says of itself, and one answer."""
    status, told = live.ask("/server_info")
    assert status == 200 and told["model"]["served_model_name"] == ["a", "b"]
    assert [rank["pid"] in [each.pid for each in family(live)] for rank in told["ranks"]] == [True, True]
    assert [rank["weight_bytes"] for rank in told["ranks"]] == [rank["weight_bytes"] for rank in told["plan"]["ranks"]]
    assert told["counters"]["running"] == 0 and told["counters"]["accepted"] == 1  # the one that warms up
    status, answer = live.ask("/v1/completions", {"prompt": "Once upon", "max_tokens": 4, "model": "b"})
    assert status == 200 and answer["usage"]["completion_tokens"] == 4
    with streams(live, 1):
        [slot] = live.ask("/slots")[1]
        assert slot["state"] == "running" and slot["prompt_tokens"] > 1 and "Once" not in json.dumps(slot)


def _clients(live: Live) -> None:
    """The commands that the last line says to try."""
    done = shardwise("complete", "Once upon", "--url", live.url, "--temperature", "0", "-n", "5")
    whole = live.ask("/v1/completions", {"prompt": "Once upon", "max_tokens": 5, "temperature": 0})[1]
    assert (done.code, done.out) == (0, whole["choices"][0]["text"] + "\n"), done.err
    said = shardwise("chat", "--url", live.url, "--temperature", "0", "-n", "8", given=b"What is your name?\n")
    messages = [{"role": "user", "content": "What is your name?"}]
    whole = live.ask("/v1/chat/completions", {"messages": messages, "max_tokens": 8, "temperature": 0})[1]
    assert (said.code, said.out) == (0, whole["choices"][0]["message"]["content"] + "\n"), said.err
    refused = shardwise("complete", "x", "--url", live.url, "--model", "c")
    assert refused.code == 2 and "'c' does not exist" in refused.err and "'a', 'b'" in refused.err


def test_a_second_signal_ends_it_at_once() -> None:
    with serving() as live, streams(live, 2):
        live.process.send_signal(signal.SIGINT)
        until = time.monotonic() + 20
        while live.ask("/ready")[0] != 503 and time.monotonic() < until:
            time.sleep(0.005)
        sent = time.monotonic()
        live.process.send_signal(signal.SIGINT)
        assert live.wait() == 128 + signal.SIGINT
        assert time.monotonic() - sent < 1.0 + LEFT_S
        assert left(live) == ()


def test_what_is_not_done_in_time_is_told_so() -> None:
    with serving("--drain-timeout", "0.1") as live, streams(live, 2) as answers:
        live.process.send_signal(signal.SIGTERM)
        frames = [rest(answer) for answer in answers]
        assert all(any("error" in frame for frame in each) for each in frames), [each[-2:] for each in frames]
        assert live.wait() == 0
        assert left(live) == ()


def test_nothing_outlives_a_killed_parent() -> None:
    with serving("-tp", "2", "--api-workers", "2", "--host", "0.0.0.0", "--api-key", "secret") as live:
        assert live.ask("/v1/models")[0] == 401
        assert live.ask("/v1/models", key="secret")[0] == 200
        told = live.ask("/server_info", key="secret")[1]
        assert told["settings"]["api_keys"] == 1 and "secret" not in json.dumps(told) + "".join(live.lines + live.said)
        processes = family(live)
        assert len(processes) >= 5  # itself, the engine, two ranks, a front
        live.process.send_signal(signal.SIGKILL)
        assert living(processes, LEFT_S) == []
        assert left(live) == ()


def test_a_lost_rank_ends_it_with_the_cause_where_that_is_asked_for() -> None:
    with serving("-tp", "2", "--on-rank-loss", "exit") as live, streams(live, 1) as [answer]:
        victim = ranks(live)[1]
        psutil.Process(victim).kill()
        assert any("error" in frame for frame in rest(answer))
        assert live.wait() == 1
        assert live.said[-1].startswith("shardwise: error: rank 1 was lost") and str(victim) in live.said[-1]
        assert "Traceback" not in "\n".join(live.said)
        assert left(live) == ()


def test_fronts_share_the_port_and_are_replaced() -> None:
    with serving("--api-workers", "2") as live:
        both = fronts(live, 2)
        [other] = both - {live.process.pid}
        psutil.Process(other).kill()
        until = time.monotonic() + 30
        while not any("it is replaced" in line for line in live.said) and time.monotonic() < until:
            time.sleep(0.01)
        assert fronts(live, 2) - both, live.said
        with streams(live, 4, 50) as answers:
            live.process.send_signal(signal.SIGTERM)
            assert all(rest(answer)[-1] == "[DONE]" for answer in answers)
        assert live.wait() == 0
        assert left(live) == ()


def fronts(live: Live, count: int) -> set[int]:
    """The processes that answer, asked until there are so many, or for half a minute."""
    found: set[int] = set()
    until = time.monotonic() + 30
    while len(found) < count and time.monotonic() < until:
        try:
            found.add(live.ask("/server_info")[1]["pid"])
        except OSError:  # a connection that was with the one that was killed
            continue
    assert len(found) == count
    return found


def test_an_interrupted_start_leaves_nothing() -> None:
    with running("serve", "--device", "cpu", "--port", "0", "-tp", "2") as (process, mark):
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline().startswith(b"plan ")
        until = time.monotonic() + 60
        while not any("runtime.worker" in command for command in marked(mark)) and time.monotonic() < until:
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        # Where it comes while a dataclass is made, Python ends by the signal itself; a shell says 130 of both.
        assert process.wait(20) in (130, -signal.SIGINT)
        assert b"Traceback" not in process.stderr.read()
        until = time.monotonic() + LEFT_S
        while marked_now := list(marked(mark)):
            assert time.monotonic() < until, marked_now
            time.sleep(0.02)


# --- what is refused before anything runs -----------------------------------------------------------------------------


def test_a_port_in_use_names_its_holder() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        done = shardwise("serve", "--device", "cpu", "--port", str(port))
    assert (done.code, done.out, done.left) == (2, "", ())
    me = psutil.Process()
    assert f"port {port} is in use by process {me.pid} (" in done.err and f"--port {port + 1}" in done.err


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The bundled model in a folder of its own, to be broken."""
    for file in bundled().iterdir():
        (tmp_path / file.name).symlink_to(file)
    return tmp_path


def write(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    path.write_text(text)


def test_a_broken_template_is_named_with_its_line(model: Path) -> None:
    write(model / "chat_template.jinja", "{% for m in messages %}\n{{ m.content }}\n{% endif %}")
    done = shardwise("serve", model, "--device", "cpu", "--port", "0")
    assert (done.code, done.left) == (2, ())
    assert str(model / "chat_template.jinja") in done.err and "line 3" in done.err and "--chat-template" in done.err
    assert "ready" not in done.out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--host", "0.0.0.0"), ("--api-key", "--insecure-no-key")),
        (("--host", "256.1.1.1"), ("256.1.1.1", "127.0.0.1")),
        (("--host", "192.0.2.7", "--api-key", "k"), ("192.0.2.7", "no such address")),
        (("--max-model-len", "5000"), ("--max-model-len 5000", "1 to 1024")),
        (("--memory", "10MiB"), ("needs", "--memory allows")),
        (("--api-key", "a b"), ("printable",)),
        (("--served-model-name", "a,a"), ("twice",)),
        (("--chat-template", "nowhere.jinja"), ("nowhere.jinja", "No such file")),
        (("--gpu-memory-utilization", "0.5"), ("--memory SIZE",)),
    ],
)
def test_what_cannot_work_is_refused(args: tuple[str, ...], words: tuple[str, ...]) -> None:
    done = shardwise("serve", "--device", "cpu", "--port", "0", *args)
    assert (done.code, done.left) == (2, ()), done.err
    assert done.err.count("\n") <= 1 + ("chat-template" in args[0])
    for word in words:
        assert word in done.err
