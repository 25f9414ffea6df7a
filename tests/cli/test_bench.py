"""`shardwise bench` as users call it: one line of JSON, files, warnings, and what is refused."""

from __future__ import annotations

import json
import os

import pytest

from shardwise.cli import bench
from shardwise.errors import UserError
from tests.cli.command import shardwise

KEYS = {"backend", "ranks", "bytes", "median_us", "p90_us", "gb_s"}


def test_comm_is_one_line_of_json(tmp_path):
    sizes = ["--sizes", "4KiB,64KiB", "--backends", "gloo", "--rounds", "5"]
    done = shardwise("bench", "comm", "--ranks", "2", *sizes, "--json", "--plot", tmp_path / "a" / "b.png")
    assert (done.code, done.left) == (0, ())
    assert done.out.count("\n") == 1
    found = json.loads(done.out)
    assert list(found) == ["results"] and [set(row) for row in found["results"]] == [KEYS, KEYS]
    assert [(row["backend"], row["ranks"], row["bytes"]) for row in found["results"]] == [("gloo", 2, 4096), ("gloo", 2, 65536)]
    assert (tmp_path / "a" / "b.png").read_bytes().startswith(b"\x89PNG")


def test_more_ranks_than_cores_work_and_warn(capsys):
    ranks = len(os.sched_getaffinity(0)) + 1
    bench.run(["comm", "--ranks", str(ranks), "--sizes", "4KiB", "--backends", "threads", "--rounds", "3", "--json"])
    out, err = capsys.readouterr()
    assert json.loads(out)["results"][0]["ranks"] == ranks
    assert f"{ranks} ranks on" in err and "take turns" in err


def test_a_model_is_measured_and_kept(tmp_path, capsys):
    flags = ["--batches", "1,2", "--contexts", "8", "--steps", "3", "--rounds", "1", "-t", "1"]
    flags += ["--out", str(tmp_path), "--name", "small"]
    bench.run(["decode", "shardling", "-tp", "1", *flags])
    out, err = capsys.readouterr()
    assert "Decode of shardling" in out and err.count("wrote ") == 3
    rows = json.loads(next(tmp_path.glob("*-small.json")).read_text())["results"]
    assert [(row["tp"], row["batch"], row["context"], row["dtype"]) for row in rows] == [
        (1, 1, 8, "bfloat16"),
        (1, 2, 8, "bfloat16"),
    ]
    for row in rows:
        assert row["share"] == pytest.approx(row["step_bytes"] / 1e6 / row["step_ms"] / row["limit_gb_s"], rel=0.01)
        assert row["min"] <= row["tokens_per_s"] <= row["max"]
        assert row["degree_ratio"] == 1.0, "the only degree is the first"
    one, two = rows
    assert one["step_ratio"] == 1.0 and two["step_ratio"] == pytest.approx(two["step_ms"] / one["step_ms"], rel=0.01)


@pytest.mark.slow
def test_scaling(capsys):
    bench.run(["scaling", "shardling", "-tp", "1,2", "--steps", "3", "--context", "8", "--rounds", "1", "--json"])
    one, two = json.loads(capsys.readouterr().out)["results"]
    assert (one["speedup"], one["efficiency"], one["comm_calls"], one["comm_share"]) == (1.0, 1.0, 0, 0.0)
    assert two["efficiency"] == pytest.approx(two["speedup"] / 2, abs=1e-3)
    assert two["comm_calls"] == 13 and two["comm_us"] > 0


def test_prefill(capsys):
    bench.run(["prefill", "shardling", "-tp", "1", "--lengths", "8,16", "--rounds", "1", "-t", "1", "--json"])
    rows = json.loads(capsys.readouterr().out)["results"]
    assert [(row["tokens"], row["batch"]) for row in rows] == [(8, 1), (16, 1)]


def test_a_trace_is_replayed(tmp_path, capsys):
    trace = tmp_path / "t.csv"
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "2023-11-16 18:15:46.6805900,37,4\n" * 3)
    bench.run(["throughput", "shardling", "--trace", str(trace), "--requests", "2", "-t", "1", "--json"])
    (row,) = json.loads(capsys.readouterr().out)["results"]
    assert (row["requests"], row["failed"], row["prompt_tokens"], row["tokens"]) == (2, 0, 74, 8)
    assert 0 < row["ttft_p50_ms"] <= row["ttft_p99_ms"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["speed"], "bench 'speed' is not known; it measures limits, comm, decode"),
        (["comm", "--backends", "tcp"], "--backends tcp: it is one of shm, gloo, threads"),
        (["comm", "--sizes", "4KiB,x"], "--sizes: 'x' is not a size"),
        (["comm", "--ranks", "1"], "--ranks 1"),
        (["comm", "--plot", "a.svg"], "ends in .png"),
        (["limits", "--types", "int3"], "--types int3"),
        (["decode", "shardling", "--quantization", "int3"], "--quantization int3"),
        (["decode", "shardling", "--dtype", "float12"], "--dtype 'float12' is not known"),
        (["decode", "--load-format", "auto"], "give a MODEL"),
        (["decode", "shardling", "-tp", "99"], "99"),
        (["scaling", "shardling", "-tp", "2,3"], "begin with 1"),
        (["throughput", "shardling"], "--trace"),
        (["throughput", "shardling", "--trace", "none.csv"], "none.csv"),
        (["throughput", "--trace", "x", "--speed", "0"], "--speed: 0 is out of range"),
        (["peers", "--with", "vllm"], "give NAME=PYTHON"),
        (["decode", "shardling", "--name", "a/b"], "use letters, digits, - and _"),
        (["peers", "--peers", "ollama"], "--peers ollama"),
    ],
)
def test_what_is_refused(argv, message):
    with pytest.raises(UserError) as told:
        bench.run(argv)
    assert message in str(told.value)


@pytest.mark.parametrize("what", bench.WHAT)
def test_everything_has_help(what, capsys):
    with pytest.raises(SystemExit) as end:
        bench.run([what, "--help"])
    assert end.value.code == 0 and "--json" in capsys.readouterr().out
