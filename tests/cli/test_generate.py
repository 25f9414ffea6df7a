"""`shardwise generate` with the bundled model: the same text however it is shown and however the model is cut."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from shardwise.engine.cores import crowded
from shardwise.engine.devices import cpus
from shardwise.sched.request import SEEDS
from tests.cli.command import COMMAND, Done, environment, marked, running, shardwise

PROMPT = "Once upon a time"
SAMPLED = ("-p", PROMPT, "-n", "24", "--temp", "0.8", "--seed", "7")
GREEDY = ("-p", PROMPT, "-n", "24", "--temp", "0", "--ignore-eos")


@cache
def generate(*args: str | Path, given: bytes = b"", **env: str) -> Done:
    done = shardwise("generate", "--dtype", "float32", *args, given=given, **env)
    assert done.code == 0, done.err
    assert done.left == ()
    return done


@cache
def answer(*args: str | Path, given: bytes = b"") -> dict[str, Any]:
    """What `--json` prints: one line, and nothing on standard error."""
    done = generate("--json", *args, given=given)
    assert done.err == ""
    assert done.out.count("\n") == 1 and done.out.endswith("\n")
    found: dict[str, Any] = json.loads(done.out)
    return found


def test_json_says_all_and_nothing_else():
    found = answer("-p", PROMPT, "-n", "8", "--temp", "0")
    assert list(found) == ["text", "token_ids", "finish_reason", "logprobs", "usage", "seed"]
    assert found["logprobs"] is None and 0 <= found["seed"] < SEEDS
    assert len(found["token_ids"]) == found["usage"]["completion_tokens"] <= 8
    assert found["usage"]["total_tokens"] == found["usage"]["prompt_tokens"] + found["usage"]["completion_tokens"]


def test_torch_gives_the_same_answer_and_says_that_it_computes():
    done = generate("--json", *GREEDY, SHARDWISE_KERNELS="torch")
    assert json.loads(done.out)["token_ids"] == answer(*GREEDY)["token_ids"]
    assert done.err == "shardwise: kernels: torch's, as SHARDWISE_KERNELS says\n"


def test_the_same_answer_at_any_degree():
    """Also where there are more ranks than cores: then a line says what to expect."""
    one, others = answer(*SAMPLED, "-tp", "1"), {tp: generate("--json", *SAMPLED, "-tp", str(tp)) for tp in (2, 3)}
    assert [json.loads(done.out) for done in others.values()] == [one, one]
    warned = {tp: crowded(tp, max(1, cpus() // tp)) for tp in others}
    assert {tp: done.err for tp, done in others.items()} == {
        tp: "" if line is None else f"shardwise: {line}\n" for tp, line in warned.items()
    }
    assert answer(*SAMPLED, "--shares", "3,1") == one


def test_streaming_shows_the_same_text():
    done = generate(*SAMPLED)
    assert (done.out, done.err) == (answer(*SAMPLED, "-tp", "1")["text"] + "\n", "")


def test_a_run_is_repeated_by_the_seed_that_it_prints():
    first = generate("-p", PROMPT, "-n", "12", "--temp", "1")
    seed = first.err.strip().removeprefix("seed ")
    assert generate("-p", PROMPT, "-n", "12", "--temp", "1", "--seed", seed).out == first.out


def test_prompts_from_anywhere(tmp_path):
    args = ("-n", "6", "--temp", "0", "--seed", "1")
    (tmp_path / "prompt.txt").write_text(PROMPT + "\n")
    one = answer(*args, "-p", PROMPT)
    assert answer(*args, "-f", tmp_path / "prompt.txt") == one
    assert answer(*args, "-p", "-", given=PROMPT.encode() + b"\r\n") == one


def test_stop_strings_end_the_text_before_them():
    whole = answer(*GREEDY)["text"]
    stop = whole[10:14]
    found = answer(*GREEDY, "--stop", "never to be seen", "--stop", stop)
    assert found["text"] == whole[: whole.index(stop)]
    assert found["finish_reason"] == "stop"


def test_min_tokens_put_off_stop_strings():
    whole = answer(*GREEDY)
    found = answer(*GREEDY, "--stop", whole["text"][:2], "--min-tokens", "24")
    assert (found["text"], found["finish_reason"]) == (whole["text"], "length")


def test_logprobs_name_tokens():
    found = answer("-p", PROMPT, "-n", "5", "--temp", "0", "--logprobs", "3", "--ignore-eos")
    assert [place["token_id"] for place in found["logprobs"]] == found["token_ids"]
    for place in found["logprobs"]:
        assert len(place["top"]) == 3
        assert place["top"][0]["token_id"] == place["token_id"] and place["logprob"] <= 0
    assert "".join(place["token"] for place in found["logprobs"]) == found["text"]


def test_chat_asks_by_the_template():
    asked = answer("--chat", "-p", "What is your name?", "-n", "30", "--temp", "0")
    plain = answer("-p", "What is your name?", "-n", "30", "--temp", "0")
    assert asked["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"]


def test_the_default_limit_gives_way_to_the_context():
    found = answer("-p", PROMPT, "--max-model-len", "24", "--ignore-eos", "--temp", "0")
    assert found["usage"]["total_tokens"] == 24 and found["finish_reason"] == "length"


def test_random_weights_need_no_checkpoint():
    found = answer("-p", PROMPT, "--load-format", "dummy", "-n", "3", "--ignore-eos")
    assert found["usage"]["completion_tokens"] == 3


def test_stats_and_the_cut_go_to_standard_error():
    done = generate("-p", PROMPT, "-n", "4", "--temp", "0", "--ignore-eos", "--stats", "--show-cut", "-tp", "2")
    for part in ("cut evenly over 2 ranks", "rank 0", "rank 1", "query heads", "first token", "4 tokens", "ms/token"):
        assert part in done.err
    assert "rank" not in done.out


# --- ends -------------------------------------------------------------------------------------------------------------

ENDLESS = ("generate", "-p", PROMPT, "-n", "900", "--ignore-eos", "--temp", "0", "-tp", "2")


def test_ctrl_c_ends_quietly():
    with running(*ENDLESS) as (process, mark):
        process.stdout.read(8)
        assert len(list(marked(mark))) == 3
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, b"")
    assert list(marked(mark)) == []


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_loading_leaves_nothing(sign, tmp_path):
    with running(*ENDLESS, TMPDIR=str(tmp_path)) as (process, mark):
        while len(list(marked(mark))) < 3 and process.poll() is None:
            pass
        process.send_signal(sign)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (128 + sign, b"", b"")
    assert list(marked(mark)) == [] and list(tmp_path.iterdir()) == []


def test_a_reader_that_goes_away_is_no_error():
    with running(*ENDLESS) as (process, mark):
        process.stdout.read(8)
        process.stdout.close()
        assert process.wait(30) == 141
        assert process.stderr.read() == b""
    assert list(marked(mark)) == []


def test_a_lost_rank_is_one_line_and_exit_code_1():
    with running(*ENDLESS) as (process, mark):
        process.stdout.read(8)
        ranks = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and worker(p, process.pid)]
        os.kill(max(ranks), signal.SIGKILL)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.startswith(b"shardwise: error: rank ") and b"SIGKILL" in err and err.count(b"\n") == 1
    assert list(marked(mark)) == []


def worker(folder: Path, parent: int) -> bool:
    """Whether the process in this folder of /proc is a rank of `parent`."""
    try:
        return f"PPid:\t{parent}\n" in (folder / "status").read_text()
    except OSError:
        return False


def test_progress_bars_are_for_terminals():
    args = ("generate", "-p", PROMPT, "-n", "2", "--temp", "0", "-tp", "2", "--device", "cpu")
    for env, coloured in (({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False)):
        shown = on_terminal(args, **env)
        assert b"rank 0" in shown and b"rank 1" in shown
        assert (b"\x1b[38" in shown or b"\x1b[3" in shown) is coloured


def on_terminal(args: tuple[str, ...], **env: str) -> bytes:
    """What a run writes to standard error where that is a terminal."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=theirs, env=environment("x", **env)
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            shown += part
        assert process.wait(60) == 0
    os.close(ours)
    return shown
