"""Whole runs against servers that are wrong on purpose, each in its own way, and one that is right: detectors have controls."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from shardwise.chaos.campaign import Campaign
from shardwise.chaos.plan import plan
from shardwise.chaos.rows import Row
from shardwise.chaos.server import Command
from shardwise.cli import chaos
from shardwise.errors import ShardwiseError, UserError

FAKE = str(Path(__file__).with_name("fake_server.py"))
RANKS = "fake-rank"
TITLE = r"^\S+ -S -c .*fake-rank"


def ran(mode: str, faults: Sequence[str], trials: int, phases: Sequence[str] = (), patience_s: float = 10.0) -> list[Row]:
    words = (sys.executable, "-S", FAKE, "{port}", mode, "3")
    command = Command(words, foreign=True, ranks=TITLE, start_s=30.0)
    found = plan(3, trials, faults, clients=2, tokens=40, phases=phases)
    return Campaign(found, command, patience_s, lambda _: None).run()


def total(rows: Sequence[Row], kind: str) -> int:
    return sum(row.counts[kind] for row in rows)


@pytest.mark.parametrize(
    ("trials", "phases"),
    [(3, ("decode", "idle")), pytest.param(8, ("decode", "idle", "start", "recovery"), marks=pytest.mark.slow)],
)
def test_a_server_that_survives(trials: int, phases: tuple[str, ...]) -> None:
    rows = ran("survives", ("kill", "double"), trials, phases)
    assert not [row for row in rows if row.bad], rows
    assert total(rows, "fine") == 2 * (trials + 1)
    live = [row for row in rows[1:] if row.phase != "start"]
    assert len(live) >= trials - 1 and all(row.whole_s is not None and row.named in row.wanted for row in live), live
    decoding = [row for row in rows if row.phase == "decode" and row.fault == "kill"]
    assert decoding and all(max(row.pauses) >= 0.1 for row in decoding), decoding


@pytest.mark.parametrize(
    ("mode", "kind", "words"),
    [
        ("fails", "failed", "the engine is lost"),
        ("swallows", "corrupt", "missing"),
        ("doubles", "corrupt", "comes twice"),
        ("dies", "lost", "the connection broke"),
    ],
)  # fmt: skip
def test_a_server_that_does_not(mode: str, kind: str, words: str) -> None:
    calm, row = ran(mode, ("kill",), 1, ("decode",))
    assert not calm.bad and row.bad
    assert row.counts[kind] > 0 and words in " ".join(row.why), row
    if mode == "dies":
        assert row.exit_code == 3 and row.start_s is not None and row.gone_s is not None


def test_a_server_that_hangs_is_neither_well_nor_at_its_end() -> None:
    row = ran("hangs", ("kill",), 1, ("decode",), patience_s=1.0)[1]
    assert row.counts["lost"] == 2 and row.stuck and "no end in time" in row.why[0]


def test_a_stopped_rank_that_nobody_notices() -> None:
    """The streams of this server do not need it: what is wrong is that it stands for ever."""
    row = ran("survives", ("stop",), 1, ("decode",), patience_s=1.0)[1]
    assert row.counts["fine"] == 2 and row.stuck and row.bad and row.named is None


def test_what_is_left() -> None:
    clean = ran("survives", ("parent", "all", "group"), 3, ("decode",))
    assert not [row for row in clean if row.bad], clean
    assert all(row.excused and row.gone_s is not None and row.start_s is not None for row in clean[1:])
    orphaned = ran("orphans", ("parent",), 1, ("decode",))[1]
    ends = [each.startswith("after an orderly end: process") for each in orphaned.left if "(rank" in each]
    assert sorted(ends) == 3 * [False] + 3 * [True] and orphaned.gone_s is None and orphaned.bad
    littered = ran("litters", ("all",), 1, ("idle",))[1]
    assert littered.left[0] == "in the temporary folder: left.sock" and littered.bad


@pytest.mark.slow
def test_a_stall_passes() -> None:
    _, row = ran("survives", ("stall",), 1, ("decode",))
    assert not row.bad and row.whole_s is not None and row.whole_s > 2


def test_what_cannot_be_done_is_said() -> None:
    row = ran("survives", ("engine",), 1, ("decode",))[1]
    assert row.undone == "the server has no process that is an engine" and not row.bad


def test_a_server_that_answers_otherwise_in_company() -> None:
    rows = ran("moody", ("kill",), 1, ("decode",))
    assert not rows[0].bad and len(rows[0].corrupt) == 2
    assert set(rows[1].corrupt).isdisjoint(rows[0].corrupt)


def test_a_server_that_knows_openai_s_fields_alone() -> None:
    assert not [row for row in ran("plain", ("kill",), 1, ("decode",)) if row.bad]


def test_a_server_that_does_not_start() -> None:
    command = Command((sys.executable, "-c", "raise SystemExit('no room')"), foreign=True, start_s=30.0)
    with pytest.raises(ShardwiseError, match="ended with exit code 1: no room"):
        Campaign(plan(3, 1, ("kill",), 2, 10), command, 1.0, lambda _: None).run()
    with pytest.raises(ShardwiseError, match="cannot be started"):
        Campaign(plan(3, 1, ("kill",), 2, 10), Command(("/no/such/server",)), 1.0, lambda _: None).run()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, again = tmp_path / "a.json", tmp_path / "b.json"
    line = shlex.join([sys.executable, "-S", FAKE]) + " {port} survives 3"
    flags = ["--command", line, "--rank-processes", TITLE, "--phases", "decode", "--clients", "3", "--tokens", "40"]
    assert chaos.run([*flags, "--faults", "kill", "--trials", "1", "--seed", "5", "--json", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "kill" in shown and "1/1" in shown and "seed 5" in shown
    told = json.loads(file.read_text())
    assert told["commit"] and told["machine"]["cores"] and [row["fault"] for row in told["rows"]] == ["none", "kill"]
    worse = line.replace("survives", "swallows")
    flags[1] = worse
    assert chaos.run([*flags, "--replay", str(file), "--json", str(again)]) == 1
    assert json.loads(again.read_text())["plan"] == told["plan"]
    assert "corrupt" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--faults", "kil"], "'kil' is no fault"),
        (["--phases", "noon"], "'noon' is no phase"),
        (["--trials", "0"], "at least 1"),
        (["--replay", "/no/such/file"], "No such file"),
        (["--rank-processes", "x"], "is for --command"),
        (["--command", "serve"], "has no {port}"),
        (["--command", "serve ' {port}"], "No closing quotation"),
        (["--command", "serve {port}", "MODEL"], "unexpected 'MODEL'"),
        (["-tp", "two"], "invalid int value"),
        (["--max-quue", "3"], "nearest: --max-queue"),
    ],
)  # fmt: skip
def test_what_is_refused(flags: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words.replace("{", r"\{")):
        chaos.run(flags)
