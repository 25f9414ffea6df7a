"""Files of requests by way of the command: flags, pipes, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.cli.command import Done, marked, running, shardwise
from tests.cli.test_batch import LINES, jsonl, lines_of


def command(*args: str | Path, given: bytes = b"", code: int = 0) -> Done:
    done = shardwise("generate", "--dtype", "float32", *args, given=given)
    assert done.code == code, done.err
    assert done.left == () and "Traceback" not in done.err
    return done


def refused(message: str, *args: str | Path) -> None:
    done = command(*args, code=2)
    assert done.err.startswith("shardwise: error: ") and done.err.count("\n") == 1 and done.out == ""
    assert message in done.err


def test_flags_that_do_not_go_together(tmp_path: Path):
    (tmp_path / "in.jsonl").write_bytes(LINES)
    (tmp_path / "out.jsonl").touch()
    source, there, new = tmp_path / "in.jsonl", tmp_path / "out.jsonl", tmp_path / "new.jsonl"
    refused("--input needs --output FILE", "--input", source)
    refused("--output is for requests from a file; add --input", "--output", new, "-p", "x")
    refused("--resume is for requests from a file; add --input", "--resume", "-p", "x")
    refused("--prompt and --input are both given", "--input", source, "--output", new, "-p", "x")
    refused("--json is for one prompt", "--input", source, "--output", new, "--json")
    refused("--system is a part of a conversation", "--input", source, "--output", new, "--system", "x")
    refused("exists; add --resume", "--input", source, "--output", there)
    refused("exists; add --resume", "--input", "-", "--output", there)
    refused("No such file", "--input", tmp_path / "none.jsonl", "--output", new)
    refused("Is a directory", "--input", tmp_path, "--output", new)
    refused("--resume needs an input and an output that are files", "--input", "-", "--output", new, "--resume")
    refused("temperature is -1", "--input", source, "--output", new, "--temperature", "-1")
    refused("presence_penalty is 3", "--input", source, "--output", new, "--presence-penalty", "3")
    assert not new.exists()


def test_a_file_through_the_command(tmp_path: Path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(LINES)
    flags = ("--input", source, "--output", output, "--temp", "0", "-tp", "2")
    done = command(*flags, code=1)
    assert "22 answered, 2 of them with an error" in done.err and done.out == ""
    lines = lines_of(output)
    assert [line["id"] for line in lines] == [*(f"n{n}" for n in range(20)), 21, "n0"]
    alone = shardwise("generate", "--dtype", "float32", "-p", "number 3", "-n", "2", "--temp", "0", "--json")
    assert lines[3]["outputs"][0]["token_ids"] == json.loads(alone.out)["token_ids"]
    before = output.read_bytes()
    assert "2 of them with an error" in command(*flags, "--resume", code=1).err
    assert output.read_bytes() == before


def test_through_pipes():
    done = command("--input", "-", "--output", "-", "--temp", "0", given=jsonl({"id": "a", "prompt": "Once", "max_tokens": 2}))
    assert json.loads(done.out)["id"] == "a" and done.out.count("\n") == 1


def test_ctrl_c_leaves_a_file_to_go_on_with(tmp_path: Path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(jsonl(*({"prompt": f"number {n}", "max_tokens": n * 20 + 1, "ignore_eos": True} for n in range(8))))
    flags = ("generate", "--dtype", "float32", "--input", source, "--output", output, "--temp", "0", "--max-num-seqs", "2")
    with running(*flags) as (process, mark):
        until = time.monotonic() + 60
        while time.monotonic() < until and process.poll() is None and not (output.exists() and output.stat().st_size):
            os.sched_yield()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, b"")
    assert list(marked(mark)) == []
    before = len(lines_of(output))
    assert 1 <= before < 8
    done = shardwise(*flags, "--resume")
    assert done.code == 0, done.err
    assert [line["line"] for line in lines_of(output)] == list(range(1, 9))


def test_ctrl_c_in_the_middle_of_a_batch(tmp_path: Path):
    """The same without a model: a fake engine in a process of its own."""
    script = tmp_path / "script.py"
    script.write_text(
        "import itertools, json, sys\n"
        "from shardwise.cli.batch import Batch\nfrom shardwise.cli.lines import Defaults, Line\n"
        "from shardwise.cli.results import Results\nfrom shardwise.engine.fake import FakeEngine\n"
        "from shardwise.engine.front import Front\nfrom shardwise.engine.setup import Options, resolve\n"
        "with FakeEngine(resolve(Options('shardling', device='cpu'))) as engine, Results().writing(sys.argv[1]) as sink:\n"
        "    lines = (Line(n, 'x', json.dumps({'prompt': str(n)}).encode()) for n in itertools.count(1))\n"
        "    for _ in Batch(Front(engine), Defaults('m', {}), sink).run(lines): pass\n"
    )
    output = tmp_path / "out.jsonl"
    with subprocess.Popen([sys.executable, script, output], stderr=subprocess.PIPE) as process:
        until = time.monotonic() + 60
        while time.monotonic() < until and process.poll() is None and not (output.exists() and output.stat().st_size):
            os.sched_yield()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT and b"KeyboardInterrupt" in err
    assert len(lines_of(output)) >= 1 and output.read_bytes().endswith(b"\n")
