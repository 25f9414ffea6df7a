"""Other engines beside this one: whoever does not start is reported, and the others go on by turns.

The peers here are a script that speaks their line: what it is to say is known, so that what is made of it can be checked. The
real ones are run by hand: docs/log.md.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from shardwise.bench import peers
from shardwise.bench.contest import Contestant
from shardwise.bench.peer_process import serve
from shardwise.bench.peers import Wanted
from shardwise.errors import ShardwiseError, UserError

SCRIPT = """\
#!{python}
# Stands for an interpreter: it converts, or loads and answers, whatever it is given to run.
import json, sys
from pathlib import Path
if sys.argv[1].endswith("gguf_export.py"):
    if sys.argv[4] == "Q8_0":
        sys.exit("SystemExit: no such type")
    Path(sys.argv[3]).write_bytes(bytes(1000))
    sys.exit()
order = json.loads(sys.argv[2])
tell = lambda answer: print(json.dumps(answer), flush=True)
if order["kind"] == "vllm":
    print("words before the end", file=sys.stderr)
    sys.exit(3)
tell({{"version": "fake 1", "start_s": 0.5}})
for line in sys.stdin:
    given = json.loads(line)
    if given["do"] == "logits":
        tell({{"told": False}})
    elif given["do"] == "decode" and given["batch"] == 2:
        tell({{"error": "RuntimeError: two are too many"}})
    else:
        tell({{"seconds": 100.0}})
"""


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "python"
    path.write_text(SCRIPT.format(python=sys.executable))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def bundled(folder: Path) -> Path:
    import shardwise

    return Path(shutil.copytree(Path(shardwise.__file__).parent / "data" / "shardling", folder / "shardling"))


@pytest.mark.slow
def test_those_who_fail_are_told_of_and_the_others_go_on(tmp_path, script):
    wanted = Wanted(
        bundled(tmp_path), tmp_path / "made", ("llama.cpp", "transformers", "vllm", "vllm-tp"), ("bf16",), (1,),
        context=8, steps=3, prompt=16, rounds=2, threads=1, tp=1, patience_s=90.0,
        interpreters={"llama.cpp": script, "vllm": script},
    )  # fmt: skip
    report = peers.peers(wanted)
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in report.rows:
        found.setdefault((row["peer"], row["format"]), []).append(dict(row))
    ours = found["shardwise", "bf16"]
    assert [(row["measure"], row["batch"]) for row in ours] == [("decode", 1), ("prefill", 1)]
    assert all(row["tokens_per_s"] > 0 and row["ratio_median"] == 1.0 and row["error"] is None for row in ours)
    assert 0 < ours[0]["logit_error"] < 0.1 and ours[0]["bits_a_weight"] == pytest.approx(16.0, rel=0.01)
    decode, prefill = found["llama.cpp", "BF16"]
    assert (decode["version"], decode["start_s"], decode["tokens_per_s"]) == ("fake 1", 0.5, 0.01)
    assert prefill["tokens_per_s"] == 0.16 and decode["ratio_min"] <= decode["ratio_median"] <= decode["ratio_max"]
    assert decode["ratio_median"] == pytest.approx(ours[0]["tokens_per_s"] / 0.01, rel=0.5)
    assert decode["logit_error"] is None and decode["bits_a_weight"] < 1
    errors = {key: rows[0]["error"] for key, rows in found.items() if rows[0]["error"]}
    assert "--install" in errors["transformers", "bf16"]
    assert errors["vllm", "bf16"] == "it ended with exit code 3: words before the end"
    assert ("vllm-tp", "bf16") in errors
    assert sum("failed:" in note for note in report.notes) == len(errors)


def test_a_conversion_that_fails_is_told_of(tmp_path, script):
    wanted = Wanted(bundled(tmp_path), tmp_path, interpreters={"llama.cpp": script})
    with pytest.raises(ShardwiseError, match="the conversion to GGUF: SystemExit: no such type"):
        peers._weights(wanted, peers.Entry("llama.cpp", "int8"), script)


def test_one_that_fails_later_keeps_what_it_said(tmp_path, script):
    asked = Contestant(script, {"kind": "llama.cpp"}, tmp_path / "log", os.environ, 60.0)
    assert asked.ask("decode", batch=1) == {"seconds": 100.0}
    with pytest.raises(ShardwiseError, match="two are too many"):
        asked.ask("decode", batch=2)
    assert asked.ask("prefill", tokens=3) == {"seconds": 100.0}
    asked.close()
    with pytest.raises(ShardwiseError, match="ended with exit code 0"):
        asked.ask("prefill", tokens=3)


def test_patience_ends_and_nothing_is_left(tmp_path):
    stuck = tmp_path / "stuck"
    stuck.write_text(f"#!{sys.executable}\nimport os, time\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
                     "import sys\nsys.stdin.read()\n")  # fmt: skip
    stuck.chmod(0o755)
    with pytest.raises(ShardwiseError, match=r"did not answer within 1\.5 s"):
        Contestant(str(stuck), {}, tmp_path / "log", os.environ, 1.5)
    if (tmp_path / "pid").exists():
        assert not Path(f"/proc/{(tmp_path / 'pid').read_text()}").exists()
    with pytest.raises(ShardwiseError, match="cannot be started"):
        Contestant(str(tmp_path / "none"), {}, tmp_path / "log", os.environ, 1.0)


def test_one_that_crashes_is_told_of_by_its_signal(tmp_path):
    crash = tmp_path / "crash"
    crash.write_text(f"#!{sys.executable}\nimport os, signal, sys\nprint('loading tiles', file=sys.stderr, flush=True)\n"
                     "os.kill(os.getpid(), signal.SIGSEGV)\n")  # fmt: skip
    crash.chmod(0o755)
    with pytest.raises(ShardwiseError, match=r"ended with signal 11 \(Segmentation fault\): loading tiles"):
        Contestant(str(crash), {}, tmp_path / "log", os.environ, 60.0)


LED = """\
#!{python}
# Two processes, as a peer that cuts has: the second says where it is, and works until it is killed.
import json, subprocess, sys
other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
print(json.dumps({{"version": str(other.pid), "start_s": 0.0}}), flush=True)
for line in sys.stdin:
    print(json.dumps({{"seconds": 1.0}}), flush=True)
"""


def test_who_rests_takes_no_time_and_leaves_nothing(tmp_path):
    path = tmp_path / "python"
    path.write_text(LED.format(python=sys.executable))
    path.chmod(0o755)
    asked = Contestant(str(path), {}, tmp_path / "log", os.environ, 60.0)
    other = psutil.Process(int(asked.version))
    asked.rest()
    deadline = time.monotonic() + 30
    while other.status() != psutil.STATUS_STOPPED:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    asked.wake()
    assert asked.ask("prefill", tokens=1) == {"seconds": 1.0}
    asked.rest()
    asked.close()  # though it rests
    while other.is_running() and other.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Loaded:
    """A model that is easily loaded."""

    version = "loaded 2"

    def decode(self, batch: int, context: int, steps: int) -> float:
        return batch + context / 10 + steps / 100

    def prefill(self, tokens: int) -> float:
        raise MemoryError("no room")

    def logits(self, tokens: Any, path: Path) -> bool:
        return path.name == "x"


def test_the_line_of_a_contestant():
    """What a peer's process answers: its orders in turn, errors among them, whatever comes."""
    orders = [
        {"do": "decode", "batch": 1, "context": 2, "steps": 3},
        {"do": "prefill", "tokens": 4},
        {"do": "dance"},
        {"do": "logits", "tokens": [1], "path": "x"},
    ]
    told: list[dict[str, Any]] = []
    serve(Loaded, iter([*map(json.dumps, orders), "no JSON"]), told.append)  # type: ignore[arg-type]
    assert told[0]["version"] == "loaded 2"
    assert told[1] == {"seconds": 1.23}
    assert [next(iter(answer)) for answer in told[2:]] == ["error", "error", "told", "error"]
    assert told[2] == {"error": "MemoryError: no room"}
    told.clear()
    serve(lambda: 1 // 0, iter([]), told.append)  # type: ignore[arg-type, return-value]
    assert told == [{"error": "ZeroDivisionError: integer division or modulo by zero"}]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peers": ("ollama",)}, "--peers ollama: it is one of llama.cpp"),
        ({"forms": ("int2",)}, "--formats int2"),
        ({"interpreters": {"x": "y"}}, "--with x="),
    ],
)
def test_what_is_refused(tmp_path, fields, message):
    with pytest.raises(UserError, match=message):
        Wanted(tmp_path, tmp_path, **fields)
