"""What trials come to: the table's figures, what counts as wrong, and what JSON has of it."""

from __future__ import annotations

import json

import pytest

from shardwise.chaos.rows import HEADS, Row, described, notes, quantile, table
from shardwise.chaos.watch import named


def row(number: int, fault: str, phase: str = "decode", **given: object) -> Row:
    """A trial in which four streams were fine, but for what is given."""
    found = Row(number, fault, phase)
    found.counts["fine"] = 4
    for name, value in given.items():
        setattr(found, name, value)
    return found


ROWS = [
    row(0, "none", pauses=[0.1]),
    row(1, "kill", pauses=[0.2, 0.4], silence_s=0.2, whole_s=0.3, wanted=["rank 1"], named="rank 1", named_s=0.05, files=80),
    row(2, "kill", pauses=[0.3, 3.0], silence_s=0.5, whole_s=0.5, wanted=["rank 1"], named="rank 0", named_s=9.0, files=82),
    row(3, "parent", excused=4, gone_s=0.2),
]


def test_the_table() -> None:
    found = {(cells[0], cells[1]): dict(zip(HEADS[2:], cells[2:], strict=False)) for cells in table(ROWS)}
    assert list(found) == [("none", "decode"), ("kill", "decode"), ("parent", "decode"), ("all", "")]
    assert all(len(cells) == len(HEADS) for cells in table(ROWS))
    kill = table(ROWS)[1]
    assert kill == (
        "kill", "decode", "2", "8", "8", "0", "0", "0", "0", "0.20", "0.50", "0.50", "0.30", "3.00", "3.00", "0.30", "0.50",
        "1/2", "0.05", "0",
    )  # fmt: skip
    assert table(ROWS)[2][2:9] == ("1", "8", "4", "0", "0", "0", "4")
    assert table(ROWS)[3][2] == "3"


def test_what_is_wrong() -> None:
    assert not any(each.bad for each in ROWS)
    for kind in ("failed", "lost", "corrupt"):
        spoilt = row(4, "kill", counts={"fine": 3, "failed": 0, "lost": 0, "corrupt": 0, kind: 1}, why=["so it is"])
        assert spoilt.bad and any("trial 4 (kill, decode" in note and "so it is" in note for note in notes([*ROWS, spoilt], 7))
    assert row(4, "all", left=["process 3"]).bad and row(4, "stop", stuck=True).bad


def test_notes() -> None:
    found = "\n".join(notes([*ROWS, row(5, "spin", undone="not here", aimed=False)], 7))
    assert "nothing wrong in 4 trials: with 95 % certainty it goes wrong in at most 75.0%" in found and "seed 7" in found
    assert "trial 5: spin was not done: not here" in found and "1 of 4 faults came beside" in found
    assert "80 at first, 82 at most, 82 at last" in found


def test_as_json() -> None:
    told = json.loads(json.dumps(described(ROWS[1])))
    assert told["pauses"] == [0.2, 0.4] and told["counts"]["fine"] == 4 and told["bad"] is False and told["named_s"] == 0.05


@pytest.mark.parametrize(("part", "expected"), [(0.5, 2.0), (0.95, 4.0), (1.0, 4.0), (0.25, 1.0)])
def test_quantiles(part: float, expected: float) -> None:
    assert quantile([4.0, 1.0, 3.0, 2.0], part) == expected
    assert quantile([], part) is None


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([(1.0, "ready"), (2.5, "rank 2 of 4 on h was lost"), (3.0, "rank 1 is back")], (1.5, "rank 2")),
        ([(2.0, "process 4711 was killed by SIGKILL")], (1.0, "rank 3")),
        ([(2.0, "process 4712 was killed"), (2.1, "Rank 0 stands still")], (pytest.approx(1.1), "rank 0")),
        ([(2.0, "ranks go on")], None),
    ],
)  # fmt: skip
def test_who_was_named(lines: list[tuple[float, str]], expected: tuple[float, str] | None) -> None:
    assert named(lines, 1.0, {4711: 3}) == expected
