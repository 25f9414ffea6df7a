"""Each stream against its oracle, the same request on the same server before any fault: fine, failed, lost or corrupt. Pure.

Failed: it ended with an explicit error. Lost: it had no end, or its connection broke. Corrupt: what came is not what should
have come; that is the worst, and said first, of what failed or was lost afterwards too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from shardwise.chaos.heard import Choice, Heard, Told

Kind = Literal["fine", "failed", "lost", "corrupt"]
KINDS: tuple[Kind, ...] = ("fine", "failed", "lost", "corrupt")

ERRORS = ("error", "abort")
"""Finish reasons by which a server says that it failed."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one stream, and why."""

    kind: Kind
    why: str = ""


def judge(heard: Heard, told: Told, truth: Told, *, exact: bool = True) -> Verdict:
    """`exact` False: what tokens they are is not compared, only how many; for servers that answer otherwise in company."""
    wrong = [*told.flaws, *_strays(told, truth)]
    ended = told.error is not None or heard.status != 200
    complete = not ended and heard.end == "closed" and told.dones == 1
    failed = any(reason in ERRORS for choice in told.choices.values() for reason in choice.reasons)
    for index in sorted(truth.choices):
        ours = told.choices.get(index, Choice())
        # A choice that has its finish reason has to be whole, whatever became of the stream behind it.
        whole = (complete and not failed) or (bool(ours.reasons) and ours.reasons[0] not in ERRORS)
        wrong += [f"choice {index}: {each}" for each in _compared(ours, truth.choices[index], whole, exact)]
    if complete and not failed:
        wrong += _counted(told, truth, exact)
    if wrong:
        return Verdict("corrupt", "; ".join(wrong[:3]))
    if heard.status is None and heard.end == "unreachable":
        return Verdict("failed", f"no connection: {heard.why}")
    if ended and heard.status is not None:
        return Verdict("failed", told.error or f"status {heard.status}")
    if failed:
        return Verdict("failed", "finish reason error")
    if not complete:
        return Verdict("lost", _loss(heard, told))
    return Verdict("fine")


def _loss(heard: Heard, told: Told) -> str:
    where = "before its headers" if heard.status is None else f"after {len(told.times)} events with tokens"
    if heard.end == "late":
        return f"no end in time, {where}, {heard.ended_s - max([heard.sent_s, *told.times]):.1f} s after the last"
    return f"the connection broke {where} ({heard.why})" if heard.end == "cut" else f"it ends without an end, {where}"


def _strays(told: Told, truth: Told) -> list[str]:
    return [f"there is a choice {index}, which nobody asked for" for index in told.choices if index not in truth.choices]


def _compared(ours: Choice, truth: Choice, complete: bool, exact: bool) -> list[str]:
    """What is wrong with a choice that is complete, or with the beginning of one."""
    found = []
    if truth.ids and exact and (said := difference(ours.ids, truth.ids, complete)):
        found.append(said)
    for name in {**truth.texts, **ours.texts} if exact and not found else ():
        mine, right = ours.texts.get(name, ""), truth.texts.get(name, "")
        if not (mine == right if complete else right.startswith(mine)):
            place = next((i for i, (a, b) in enumerate(zip(mine, right, strict=False)) if a != b), min(len(mine), len(right)))
            found.append(
                f"another {name} from character {place} on: {mine[place : place + 20]!r}, not {right[place : place + 20]!r}"
            )
    if complete and not ours.reasons:
        found.append("no finish reason before [DONE]: an error was swallowed")
    elif ours.reasons and ours.reasons[0] not in ERRORS and ours.reasons[0] != truth.reasons[0] and exact:
        found.append(f"finish reason {ours.reasons[0]!r}, not {truth.reasons[0]!r}")
    return found


def difference(ours: Sequence[int], truth: Sequence[int], complete: bool) -> str | None:
    """How `ours` is not `truth`, or not its beginning: which token, and in what way."""
    place = next((i for i, (a, b) in enumerate(zip(ours, truth, strict=False)) if a != b), min(len(ours), len(truth)))
    if place == len(ours) and (place == len(truth) or not complete):
        return None
    if place == len(truth):
        return f"{len(ours) - place} tokens too many"
    if place == len(ours):
        return f"{len(truth) - place} tokens are missing at the end"
    # Compared a few tokens on: a difference of one place shows in what follows.
    tail, right = list(ours[place : place + 6]), list(truth[place : place + 8])
    if tail and _alike(tail, right[1:]):
        return f"token {place} is missing"
    if place and ours[place] == truth[place - 1] and _alike(tail[1:], right):
        return f"token {place - 1} comes twice"
    if len(tail) > 1 and tail[:2] == right[1::-1]:
        return f"tokens {place} and {place + 1} are swapped"
    return f"token {place} is {ours[place]}, not {truth[place]}"


def _alike(some: Sequence[int], others: Sequence[int]) -> bool:
    count = min(len(some), len(others))
    return count > 0 and list(some[:count]) == list(others[:count])


def _counted(told: Told, truth: Told, exact: bool) -> list[str]:
    """What is wrong with the usage of a complete stream."""
    if len(told.usages) != len(truth.usages):
        return [f"{len(told.usages)} times usage, not {len(truth.usages)}"]
    if exact and told.usages != truth.usages:
        return [f"usage {told.usages[0]}, not {truth.usages[0]}"]
    ids = sum(len(choice.ids) for choice in told.choices.values())
    if ids and told.usages and told.usages[0][1] != ids:
        return [f"usage counts {told.usages[0][1]} tokens written, and {ids} came"]
    return []
