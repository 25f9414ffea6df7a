"""Lines of a log: of one JSON object each, whatever happens in the process, or text as people read it."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from shardwise.telemetry import log

PROGRAM = """
import logging, sys, threading, warnings
from shardwise.telemetry import log
log.begin(sys.argv[1], verbose=sys.argv[2] == "verbose")
logging.getLogger("shardwise.server").info("seen %d", 1, extra={"request_id": "r1"})
logging.getLogger("other").info("never seen")
logging.getLogger("other").warning("two\\nlines")
sys.stderr.write(log.line("for people", logging.WARNING, "shardwise: "))
warnings.warn("an old way", stacklevel=1)
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
try:
    [][1]
except IndexError as error:
    log.trace(error)
raise KeyError("the end")
"""


def said(form: str, verbose: str = "") -> list[str]:
    """The lines that a process writes which warns, and fails in all ways."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, form, verbose], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stdout == ""
    return done.stderr.splitlines()


def test_all_that_a_process_says_is_json():
    began = datetime.now(UTC)
    records: list[dict[str, Any]] = [json.loads(line) for line in said("json", "verbose")]
    assert [(record["level"], record["logger"], record["message"].partition("\n")[0]) for record in records[:3]] == [
        ("INFO", "shardwise.server", "seen 1"),
        ("WARNING", "other", "two"),
        ("WARNING", "shardwise", "for people"),
    ]
    assert [record.get("request_id") for record in records] == ["r1"] + [None] * 6
    assert "an old way" in records[3]["message"] and len({record["pid"] for record in records}) == 1
    ends = [(record["message"], record["exception"].splitlines()[0]) for record in records[4:]]
    first = "Traceback (most recent call last):"
    assert ends == [
        ("ZeroDivisionError: division by zero", first),
        ("IndexError: list index out of range", first),
        ("KeyError: 'the end'", first),
    ]
    times = [datetime.fromisoformat(record["time"]) for record in records]
    assert times == sorted(times) and abs((times[0] - began).total_seconds()) < 60


def test_text_is_as_people_read_it():
    lines = said("text")
    assert lines[:3] == ["WARNING other: two", "lines", "shardwise: for people"]
    assert lines[-1] == "KeyError: 'the end'"


@settings(deadline=None)
@given(st.text(alphabet=st.characters(codec=None, exclude_categories=())), st.text(max_size=9) | st.none())
def test_a_record_is_one_line_whatever_is_in_it(text: str, request: str | None):
    record = logging.LogRecord("a", logging.ERROR, "", 0, "%s", (text,), None)
    if request is not None:
        record.request_id = request
    line = log.JsonLines().format(record)
    found = json.loads(line)
    assert line.isascii() and "\n" not in line and (found["message"], found.get("request_id")) == (text, request)


def test_what_nobody_told_otherwise_is_text():
    assert not log.in_json() and log.line("a", lead="b: ") == "b: a\n"
