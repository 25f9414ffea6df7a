"""The engine's process is killed while clients read: their streams go on as if nothing had happened, at every front."""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest

from tests.cli.command import marked
from tests.server.live import Live, connected, serving

BACK_S = 60.0

ASKED: list[dict[str, Any]] = [
    {"prompt": "Once upon a time", "temperature": 0},
    {"prompt": "Once upon a time", "seed": 5, "n": 3},
    {"prompt": "Hello there " * 20, "seed": 6, "logprobs": 2, "presence_penalty": 1.0, "repetition_penalty": 1.2},
    {"prompt": "A number:", "seed": 7, "structured_outputs": {"regex": "[0-9 ]{130}"}, "ignore_eos": False},
    {"prompt": "Tell me", "seed": 8, "stop": ["the"], "min_tokens": 60},
    {"prompt": "Echo me", "seed": 9, "echo": True, "logprobs": 1},
]


@dataclass
class Read:
    """What one client read. `times` are those of its tokens."""

    texts: dict[int, str] = field(default_factory=dict)
    finishes: dict[int, list[str]] = field(default_factory=dict)
    logprobs: list[Any] = field(default_factory=list)
    usage: Any = None
    errors: list[Any] = field(default_factory=list)
    done: bool = False
    times: list[float] = field(default_factory=list, compare=False)


def read(url: str, body: dict[str, Any], tokens: int) -> Read:
    """One stream to its end."""
    found = Read()
    asked = {"max_tokens": tokens, "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}, **body}
    with connected(url, 2 * BACK_S) as connection:
        connection.request("POST", "/v1/completions", json.dumps(asked))
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        for line in answer:
            if line.startswith(b"data: "):
                assert not found.done
                note(found, line[6:].strip().decode())
    return found


def note(found: Read, data: str) -> None:
    if data == "[DONE]":
        found.done = True
        return
    frame = json.loads(data)
    if "error" in frame:
        found.errors.append(frame)
        return
    for choice in frame["choices"]:
        found.times.append(time.monotonic())
        found.texts[choice["index"]] = found.texts.get(choice["index"], "") + choice["text"]
        found.finishes.setdefault(choice["index"], []).extend(filter(None, [choice["finish_reason"]]))
        found.logprobs += (choice.get("logprobs") or {}).get("token_logprobs", [])
    found.usage = frame.get("usage") or found.usage


def engine(live: Live) -> psutil.Process:
    """The engine's process that there is now."""
    (found,) = (each for each in psutil.Process(live.process.pid).children() if "shardwise.engine.host" in each.cmdline())
    return found


def killed(live: Live, wanted: list[Read], tokens: int, after_s: float) -> list[float]:
    """The engine is killed while all read: how long each waited for its next token."""
    found: list[Read | None] = [None] * len(ASKED)

    def client(index: int) -> None:
        found[index] = read(live.url, ASKED[index], tokens)

    threads = [threading.Thread(target=client, args=(index,)) for index in range(len(ASKED))]
    for thread in threads:
        thread.start()
    time.sleep(after_s)
    victim = engine(live)
    victim.kill()
    at = time.monotonic()
    for thread in threads:
        thread.join(2 * BACK_S)
    assert found == wanted
    later = ([t - at for t in each.times if t > at] for each in found if each is not None)
    return [times[0] for times in later if times]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("fronts", [1, 3])
def test_streams_go_on(figures: Callable[..., None], fronts: int) -> None:
    with serving("-tp", "2", "--api-workers", str(fronts), "--drain-timeout", "1m") as live:
        for body in ASKED:  # prefixes are then found in both runs, or in none
            read(live.url, body, 150)
        wanted = [read(live.url, body, 150) for body in ASKED]
        assert all(each.done and not each.errors for each in wanted)
        gaps = killed(live, wanted, 150, 0.15)
        assert gaps, "all had ended before the kill"
        assert [line for line in live.said if "was killed by SIGKILL" in line and "another one is started" in line]
        assert live.ask("/health")[0] == 200
        assert read(live.url, ASKED[0], 150) == wanted[0]
        figures("engine killed", fronts=fronts, streams=len(gaps), longest_gap_s=max(gaps))
        if fronts == 1:
            waits(live, wanted[0])
        live.process.send_signal(signal.SIGTERM)
        assert live.wait(60) == 0
        assert not list(marked(live.mark))


def waits(live: Live, wanted: Read) -> None:
    """While there is no engine, that is said with its reason, and requests wait for the next one."""
    engine(live).kill()
    until = time.monotonic() + BACK_S
    while (told := live.ask("/health"))[0] == 200 or "was killed by SIGKILL" not in told[1]["error"]["message"]:
        assert time.monotonic() < until
    assert told[0] == 503 and told[1]["error"]["code"] == "engine_away"
    assert read(live.url, ASKED[0], 150) == wanted


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kills_at_random_times(figures: Callable[..., None]) -> None:
    chance = random.Random(7)
    with serving("-tp", "2", "--api-workers", "2", "--recovery-budget", "100/60s") as live:
        for body in ASKED:
            read(live.url, body, 150)
        wanted = [read(live.url, body, 300) for body in ASKED]
        gaps = []
        for _ in range(50):
            gaps += killed(live, wanted, 300, chance.uniform(0, 1.0))
        figures("engine killed at random", streams=len(gaps), longest_gap_s=max(gaps))
