"""What a benchmark found, as one line, a table and files."""

from __future__ import annotations

import json
import re

import pytest

from shardwise.bench.chart import Chart
from shardwise.bench.report import Column, Report, line, write
from shardwise.errors import UserError

REPORT = Report(
    "comm",
    "A title",
    (Column("backend", "backend"), Column("us", "us", ".1f")),
    ({"backend": "a|b", "us": 1.25, "more": None}, {"backend": "c", "us": None, "more": 3}),
    ("a note",),
    Chart("t", "x", "y", {"a": [(1.0, 2.0)]}),
)


def test_one_line():
    assert line(REPORT) == (
        '{"results": [{"backend": "a|b", "us": 1.25, "more": null}, {"backend": "c", "us": null, "more": 3}]}\n'
    )


def test_files(tmp_path):
    found = write(REPORT, tmp_path / "new", ("shardwise", "bench", "comm"))
    assert [re.sub(r"^\d{4}-\d\d-\d\d", "", path.name) for path in found] == ["-comm.json", "-comm.md", "-comm.png"]
    whole = json.loads(found[0].read_text())
    assert whole["command"] == "shardwise bench comm" and whole["notes"] == ["a note"]
    assert whole["results"] == [dict(row) for row in REPORT.rows]
    assert {"cpu", "cores", "matrix_instructions", "load_before"} <= set(whole["machine"]) and whole["commit"]
    page = found[1].read_text()
    assert "| backend | us |\n|---|---|\n| a/b | 1.2 |\n| c |  |\n\n- a note\n" in page


def test_what_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--out"):
        write(REPORT, tmp_path / "file" / "below", ("x",))
