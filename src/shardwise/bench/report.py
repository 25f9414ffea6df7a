"""What a benchmark found, as values, and how it is kept: a line of JSON, a table, a folder of files. Measures nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from shardwise.bench.about import commit, machine
from shardwise.bench.chart import Chart, png
from shardwise.errors import UserError

Row = Mapping[str, Any]
"""One measurement: JSON values by name."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table: the row's value `key`, under `head`, in the format `form`."""

    key: str
    head: str
    form: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """`rows` are what was measured; `columns` those parts of them that people are shown; `notes` whatever needs words."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    chart: Chart | None = None


def line(report: Report) -> str:
    """All rows as one line of JSON. ASCII: one line for every reader, whatever it takes for a line end."""
    return json.dumps({"results": [dict(row) for row in report.rows]}) + "\n"


def cells(report: Report) -> Iterator[list[str]]:
    """The table's rows as text."""
    for row in report.rows:
        yield [_cell(row.get(column.key), column.form) for column in report.columns]


def markdown(report: Report, about: Mapping[str, Any]) -> str:
    """The same as a page."""
    heads = [column.head for column in report.columns]
    lines = [f"# {report.title}", "", f"`{about['command']}`, {about['date']}, commit {about['commit']}.", ""]
    lines += [", ".join(f"{key.replace('_', ' ')}: {_plain(value)}" for key, value in about["machine"].items()) + ".", ""]
    lines += [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in cells(report)]
    lines += ["", *(f"- {note}" for note in report.notes)] if report.notes else []
    return "\n".join(lines) + "\n"


def write(report: Report, folder: Path, command: Sequence[str]) -> list[Path]:
    """DATE-NAME.json, .md and, where there is a chart, .png in `folder`, which is made; those written. UserError where they
    cannot be."""
    about = {"command": " ".join(command), "date": str(date.today()), "commit": commit(), "machine": machine()}
    whole = {"title": report.title, **about, "notes": report.notes, "results": [dict(row) for row in report.rows]}
    files = {".json": (json.dumps(whole, indent=2) + "\n").encode(), ".md": markdown(report, about).encode()}
    if report.chart is not None:
        files[".png"] = png(report.chart)
    stem = folder / f"{about['date']}-{report.name}"
    for end, data in files.items():
        put(stem.with_name(stem.name + end), data, "--out")
    return [stem.with_name(stem.name + end) for end in files]


def put(path: Path, data: bytes, flag: str) -> None:
    """Writes a file in a folder that is made where it is missing. UserError where that cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise UserError(f"{flag} {path}: {error.strerror}; give a place that can be written to") from None


def _cell(value: object, form: str) -> str:
    if value is None:
        return ""
    return format(value, form) if form and isinstance(value, int | float) else str(value)


def _plain(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
