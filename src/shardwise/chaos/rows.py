"""What became of each trial as a value, and what all of them come to: a table, and whether anything is wrong. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from shardwise.chaos.judge import KINDS
from shardwise.chaos.plan import FAULTS, PHASES


@dataclass(slots=True)
class Row:
    """One trial. Counts are of streams, and of starts that failed; `excused` are streams that the fault itself cut, with the
    process that it took. Seconds count from the fault, and `start_s` from a start.

    `pauses`: the longest silence of each stream; `silence_s`: that of all together, how long nobody got a token. `stood`: where
    the victim was, by its pulse. `named_s`: when the log first named a rank, `named`: which; it should have been
    one of `wanted`. `unwell_s`: when /health first said so; `whole_s`: when all ranks ran again; `gone_s`: when no process was
    left; `stuck`: neither became true. `files` are open ones, of all processes of a quiet server; `corrupt` are the requests
    that were. `undone`: why the fault was not done."""

    number: int
    fault: str
    phase: str
    aimed: bool = True
    victims: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    excused: int = 0
    pauses: list[float] = field(default_factory=list)
    silence_s: float | None = None
    stood: str | None = None
    wanted: list[str] = field(default_factory=list)
    named: str | None = None
    named_s: float | None = None
    unwell_s: float | None = None
    unwell: str | None = None
    whole_s: float | None = None
    exit_code: int | None = None
    gone_s: float | None = None
    stuck: bool = False
    left: list[str] = field(default_factory=list)
    start_s: float | None = None
    files: int | None = None
    load: float = 0.0
    undone: str | None = None
    corrupt: list[int] = field(default_factory=list)
    why: list[str] = field(default_factory=list)

    @property
    def bad(self) -> bool:
        """Something is wrong that the fault does not excuse."""
        return self.stuck or bool(self.counts["lost"] + self.counts["corrupt"] + self.counts["failed"] + len(self.left))


def described(row: Row) -> dict[str, Any]:
    """The row as JSON has it."""
    found = asdict(row)
    found["pauses"] = [round(pause, 4) for pause in row.pauses]
    for name in ("silence_s", "named_s", "unwell_s", "whole_s", "gone_s", "start_s", "load"):
        found[name] = None if found[name] is None else round(found[name], 4)
    return {**found, "bad": row.bad}


HEADS = (
    "fault", "phase", "trials", "streams", "fine", "failed", "lost", "corrupt", "cut",
    "silence p50", "p95", "max", "pause p50", "p95", "max", "whole p50", "max", "named", "in s", "left",
)  # fmt: skip
"""`cut`: streams that the fault itself ended. `silence`: of all streams together; `pause`: of each. `named`: trials in which
the log named the right rank first."""


def table(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Cells by fault and phase, in the order of both, and the sum of all faults at the end."""
    found = []
    for fault in FAULTS:
        for phase in PHASES:
            if some := [row for row in rows if (row.fault, row.phase) == (fault, phase)]:
                found.append((fault, phase, *_cells(some)))
    if faults := [row for row in rows if row.fault != "none"]:
        found.append(("all", "", *_cells(faults)))
    return found


def _cells(rows: Sequence[Row]) -> tuple[str, ...]:
    counts = {kind: sum(row.counts[kind] for row in rows) for kind in KINDS}
    cut = sum(row.excused for row in rows)
    pauses = [pause for row in rows for pause in row.pauses]
    silences = [row.silence_s for row in rows if row.silence_s is not None]
    wholes = [row.whole_s for row in rows if row.whole_s is not None]
    asked = [row for row in rows if row.wanted]
    right = [row for row in asked if row.named in row.wanted]
    late = max((row.named_s for row in right if row.named_s is not None), default=None)
    return (
        str(len(rows)), str(sum(counts.values()) + cut), *(str(counts[kind]) for kind in ("fine", "failed", "lost", "corrupt")),
        str(cut), *(_seconds(quantile(silences, part)) for part in (0.5, 0.95, 1.0)),
        *(_seconds(quantile(pauses, part)) for part in (0.5, 0.95, 1.0)),
        *(_seconds(quantile(wholes, part)) for part in (0.5, 1.0)),
        f"{len(right)}/{len(asked)}" if asked else "", _seconds(late), str(sum(len(row.left) for row in rows)),
    )  # fmt: skip


def quantile(values: Iterable[float], part: float) -> float | None:
    """The smallest value that so large a part of them does not exceed; None of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)] if ordered else None


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def notes(rows: Sequence[Row], seed: int) -> list[str]:
    """Lines below the table: what is wrong, what was not done, and how little a zero says."""
    found = []
    faults = [row for row in rows if row.fault != "none"]
    bad = [row for row in rows if row.bad]
    for row in bad[:10]:
        said = "; ".join([*row.why[:2], *row.left[:2]]) or "neither well again nor at its end"
        found.append(f"trial {row.number} ({row.fault}, {row.phase}, {', '.join(row.victims)}): {said}")
    if len(bad) > 10:
        found.append(f"... and {len(bad) - 10} more trials")
    found += [f"trial {row.number}: {row.fault} was not done: {row.undone}" for row in rows if row.undone]
    if (missed := sum(not row.aimed for row in faults)) > 0:
        found.append(f"{missed} of {len(faults)} faults came beside their phase: it was over, or did not come in time")
    if faults and not bad:
        found.append(
            f"nothing wrong in {len(faults)} trials: with 95 % certainty it goes wrong in at most {3 / len(faults):.1%}"
        )
    if len(files := [row.files for row in rows if row.files]) > 1:
        found.append(f"open files of the quiet server: {files[0]} at first, {max(files)} at most, {files[-1]} at last")
    found.append(f"seed {seed}")
    return found
