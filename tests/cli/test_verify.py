"""The command as a user runs it: real ranks, a table or JSON, exit codes, one line for what is wrong, nothing left behind."""

from __future__ import annotations

import io
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from shardwise.cli import main
from shardwise.cli.flags import degrees
from shardwise.cli.verdicts import described, draw
from shardwise.verify.run import Report, Row
from shardwise.verify.trace import Text
from shardwise.verify.verdict import Comparison, Token, tolerance
from tests.cli.command import Done, marked, running, shardwise
from tests.cli.test_refused import refused
from tests.verify.openai_server import OpenAI

OUT_S = 2.0


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("Tensor parallelism cuts each weight matrix.\nOnce upon a time\n")
    return path


def verify(*args: str | Path, **env: str) -> Done:
    return shardwise("verify", *args, **env)


def test_two_degrees(prompts):
    done = verify("shardling", "-tp", "1,2", "--dtype", "float32", "-n", "4", "--prompts", prompts)
    assert (done.code, done.err, done.left) == (0, "", ())
    title, head, one, two, verdict = done.out.splitlines()
    assert title.startswith("shardling, float32 on cpu: 2 texts of ") and title.endswith("4 greedy tokens after each")
    assert head.split() == ["logits", "relative", "log-lik.", "tokens", "equal", "verdict"]
    assert one.split() == ["-tp", "1", "reference"]
    assert "8 of 8" in two and two.strip().endswith("same up to rounding")
    assert verdict == "same up to rounding: -tp 2 against -tp 1"


IDS = [5, 9, 77]
ANSWER = {
    "choices": [
        {"logprobs": {"tokens": [f"token_id:{n}" for n in (*IDS, 8)], "token_logprobs": [None, -30.0, -30.0, -0.1]}}
    ]
}  # fmt: skip


@pytest.fixture
def ids(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt_token_ids": IDS}))
    return path


def test_a_server_of_another_model(ids):
    """Exit code 1, everything in one line of JSON; the key comes from the environment."""
    with OpenAI(raw=(200, json.dumps(ANSWER).encode()), key="sk-good") as server:
        done = verify(
            "-tp",
            "1",
            "-n",
            "1",
            "--prompts",
            ids,
            "--against",
            server.url,
            "--json",
            "--stats",
            SHARDWISE_API_KEY="sk-good,another",
        )
    assert (done.code, done.left) == (1, ())
    times = done.err.splitlines()
    assert len(times) == 2 and times[1].startswith("-tp 1: ") and times[1].endswith(" s")
    shown = json.loads(done.out)
    assert done.out.count("\n") == 1 and shown["exit_code"] == 1
    assert [run["verdict"] for run in shown["runs"]] == ["reference", "differs"]
    run = shown["runs"][1]
    assert run["mean_log_likelihood_difference"] > 10 and run["places_with_logits"] == 0
    assert run["greedy_tokens"] == 1 and run["greedy_tokens_equal"] == 0
    assert run["first_differing_token"]["reference_token_id"] == 8 and run["first_differing_token"]["position"] == 3
    assert shown["prompts"] == [{"name": "line 1", "tokens": 3}]
    assert server.seen[-1][2]["prompt"] == IDS


def report(*rows: Row) -> Report:
    return Report(
        "tiny", "float32", "cpu", tolerance("float32", 2, routed=False), (Text("story", (1, 2)),), 4, 1, rows, ("a note",),
        {8: " the", 9: "\n"},
    )  # fmt: skip


def compared(verdict: str, first: Token | None) -> Comparison:
    reasons = ("1 of 4 greedy tokens are others",) if verdict == "differs" else ()
    return Comparison(
        verdict,
        reasons,
        5,
        0.25,
        1e-3,
        1,
        5,
        -2e-4,
        0.5,
        4,
        4 - (first is not None),
        int(first is not None and first.tie),
        first,
    )


REPORT = report(
    Row("-tp 1", 1, "reference"),
    Row("-tp 2", 2, "same up to rounding", "", compared("same up to rounding", Token(0, 3, 8, 9, 3e-6, True))),
    Row("-tp 3", 3, "differs", "why", compared("differs", Token(0, 4, 8, 11, 0.2, False))),
    Row("-tp 9", 9, "refused", "more than the heads"),
)


@pytest.mark.parametrize("terminal", [False, True])
def test_the_table_says_it_all(terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
    draw(console, REPORT)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert ("\x1b[" in shown) == terminal
    for part in ("3 of 4, 1 near tie ", "2.5e-01", "1.0e-03", "-2.0e-04", "-tp 3: why", "-tp 9: more than the heads", "a note"):
        assert part in shown
    if not terminal:
        assert "-tp 2: first differing token: story, position 3: ' the' (8) and not '\\n' (9);" in shown
        assert "3.0e-06 of the largest apart: a near tie" in shown
        assert "' the' (8) and not 11; the two best logits were 2.0e-01 of the largest apart: no near tie" in shown
        assert shown.splitlines()[-1] == "-tp 3: not the same as -tp 1; not run: -tp 9"


def test_json_says_the_same():
    shown = json.loads(json.dumps(described(REPORT)))
    assert shown["exit_code"] == 1 and shown["notes"] == ["a note"]
    assert [run["verdict"] for run in shown["runs"]] == ["reference", "same up to rounding", "differs", "refused"]
    assert shown["runs"][1]["first_differing_token"]["near_tie"] is True
    assert shown["runs"][3]["reason"] == "more than the heads"


def test_exit_codes():
    one, same, other, none = REPORT.rows
    assert [report(one, row).code for row in (same, other, none)] == [0, 1, 2]
    assert report(one, Row("-tp 2", 2, "same", "", compared("same", None))).verdict == "same: -tp 2 against -tp 1"


# --- what cannot be asked ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-tp", "0"], "0 is too small; it takes at least 1"),
        (["-tp", "-2"], "-2 is too small"),
        (["-tp", "a,b"], "'a' is not a whole number"),
        (["-tp", "1,,2"], "'' is not a whole number"),
        (["-tp", "1,2,1"], "'1,2,1' has 1 twice; give each degree once"),
        (["-tp", "1,2", "--shares", "1,2,3"], "--shares has 3 numbers, and no degree in -tp 1,2 has as many ranks"),
        (["-tp", "2", "--shares", "1,0"], "each must be positive"),
        (["-tp", "13", "--against", "http://127.0.0.1:1"], "cannot be reached"),
        (["-tp", "1,13"], "there is nothing to hold -tp 1 against: give --against, or another degree"),
        (["--against", "transfomers"], "give transformers, or an address such as http://127.0.0.1:8000"),
        (["--against", "ftp://x"], "is no address"),
        (["--api-key", "x"], "--api-key is for --against URL"),
        (["--served-model", "x", "--against", "transformers"], "--served-model is for --against URL"),
        (["--against", "http://127.0.0.1:1", "--api-key", "clé"], "must be printable ASCII"),
        (["--max-tokens", "0"], "it takes at least 1"),
        (["--max-tokens", "100000"], "leaves no room for a prompt"),
        (["--prompts", "none.txt"], "--prompts none.txt: No such file"),
        (["--dtype", "flaot32"], "--dtype 'flaot32' is not known"),
        (["--temperature", "0"], "unknown flag --temperature"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("terminated")
def test_refusals(args, message, capsys):
    """In this process, which is quicker; `test_nobody_listens` does so as a user does."""
    code = main.run(["verify", *args])
    out, err = capsys.readouterr()
    refused(Done(code, out, err, ()), message)


@pytest.fixture
def terminated() -> Iterator[None]:
    """The command has its own way with SIGTERM."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_degrees_are_numbers():
    assert degrees("1,2, 7") == (1, 2, 7)


def test_nobody_listens():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        refused(verify("--against", f"http://127.0.0.1:{taken.getsockname()[1]}"), "cannot be reached: Connection refused")


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["server", "ranks"])
def test_interrupted(phase, ids):
    """While a server thinks, and while ranks load or run: out at once, and nothing is left."""
    with OpenAI(raw=(200, json.dumps(ANSWER).encode()), hold=threading.Event()) as server:
        against = ("--against", server.url) if phase == "server" else ()
        with running("verify", "-tp", "1,2", "--prompts", ids, *against) as (process, mark):
            assert process.stderr is not None
            while not (
                any(path == "/v1/completions" for path, _, _ in server.seen)
                if phase == "server"
                else any("runtime.worker" in command for command in marked(mark))
            ):
                time.sleep(0.005)
            process.send_signal(signal.SIGINT)
            sent = time.monotonic()
            shown, code = process.stderr.read(), process.wait()
            assert (code, tuple(marked(mark)), b"Traceback" in shown) == (130, (), False)
            assert time.monotonic() - sent < OUT_S
