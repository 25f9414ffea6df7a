"""What became of a lost rank, as a value for people: who, where, why, what was done. It travels as it is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Incident:
    """Rank `rank` of `before` ranks, process `pid` on `host`, was lost at `at` (seconds since 1970) from the group of `epoch`
    for `reason`; `where`: what it was at, as far as is known. `done`: what followed. `pause_s`: how long nothing was computed,
    and `ranks` that went on; None and 0 until they do."""

    at: float
    epoch: int
    rank: int
    pid: int
    host: str
    reason: str
    where: str
    before: int
    done: str = ""
    ranks: int = 0
    pause_s: float | None = None

    def __str__(self) -> str:
        place = f" at {self.where}" if self.where else ""
        lost = f"rank {self.rank} of {self.before} on {self.host} was lost{place}: {self.reason}"
        if self.pause_s is None:
            return lost
        return f"{lost}; {self.done}, and {self.ranks} ranks go on after {self.pause_s:.2f} s (epoch {self.epoch + 1})"
