"""What `verify` found, as a table of text and as plain values for JSON. Computes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from shardwise.verify.run import Report, Row

if TYPE_CHECKING:
    from rich.console import Console

COLOURS = {"same": "green", "same up to rounding": "green", "differs": "red", "failed": "red", "refused": "yellow"}
HEADS = ("", "logits", "relative", "log-lik.", "tokens equal", "verdict")
"""The largest difference of a logit, and as a part of the largest one at its place; of the mean log-likelihood of a token."""


def draw(console: Console, report: Report) -> None:
    """A table, a row for each run; then whatever needs words. Plain text where the console is no terminal."""
    from rich.table import Table
    from rich.text import Text

    if not console.is_terminal:
        console.width = 200  # nobody's window: lines are not broken
    say = Text("\n").join
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="")
    for head in HEADS:
        table.add_column(head, justify="left" if head in ("", "verdict") else "right", no_wrap=head != "")
    for row in report.rows:
        table.add_row(*map(Text, cells(row)), Text(row.outcome, COLOURS.get(row.outcome, "")))
    console.print(Text(title(report)))
    console.print(table)
    if found := [Text(line) for line in words(report)]:
        console.print(say(found), soft_wrap=True)
    console.print(Text(report.verdict, "red" if report.code == 1 else "bold"), soft_wrap=True)


def title(report: Report) -> str:
    """What was compared, and on what."""
    tokens = sum(len(text.ids) for text in report.texts)
    return (
        f"{report.model}, {report.dtype} on {report.device}: {len(report.texts)} texts of {tokens} tokens, "
        f"{report.limit} greedy tokens after each"
    )


def cells(row: Row) -> Iterator[str]:
    """A row's cells but for the last."""
    yield row.name
    found = row.comparison
    if found is None:
        yield from ("", "", "", "")
        return
    yield _number(found.worst_abs)
    yield _number(found.worst_rel)
    yield _number(found.mean, "+.1e")
    ties = f", {found.ties} near tie{'s' * (found.ties > 1)}" if found.ties else ""
    yield f"{found.equal} of {found.tokens}{ties}"


def words(report: Report) -> Iterator[str]:
    """Reasons, first differing tokens, notes."""
    for row in report.rows:
        if row.reason:
            yield f"{row.name}: {row.reason}"
        token = row.comparison.first if row.comparison else None
        if token is not None:
            kind = "a near tie" if token.tie else "no near tie" + (", and all logits are out there" if token.stray else "")
            yield (
                f"{row.name}: first differing token: {report.texts[token.text].name}, position {token.position}: "
                f"{_spelled(report, token.ours)} and not {_spelled(report, token.theirs)}; the two best logits were "
                f"{token.gap:.1e} of the largest apart: {kind}"
            )
    yield from report.notes


def described(report: Report) -> dict[str, Any]:
    """The same as the table, for programs."""
    return {
        "model": report.model,
        "dtype": report.dtype,
        "device": report.device,
        "max_tokens": report.limit,
        "prompts": [{"name": text.name, "tokens": len(text.ids)} for text in report.texts],
        "tolerance": asdict(report.tolerance),
        "logits_compared_one_place_in": report.stride,
        "runs": [_described(report, row) for row in report.rows],
        "notes": list(report.notes),
        "verdict": report.verdict,
        "exit_code": report.code,
    }


def _described(report: Report, row: Row) -> dict[str, Any]:
    found = row.comparison
    shown: dict[str, Any] = {
        "name": row.name,
        "tensor_parallel_size": row.degree,
        "verdict": row.outcome,
        "reason": row.reason or None,
        "seconds": round(row.seconds, 3),
    }
    if found is None:
        return shown
    first = found.first
    return shown | {
        "places_with_logits": found.rows,
        "logits_absolute": found.worst_abs,
        "logits_relative": found.worst_rel,
        "places_out": found.strays,
        "scored_tokens": found.scored,
        "mean_log_likelihood_difference": found.mean,
        "worst_log_likelihood_difference": found.worst_logprob,
        "greedy_tokens": found.tokens,
        "greedy_tokens_equal": found.equal,
        "greedy_tokens_near_ties": found.ties,
        "first_differing_token": None
        if first is None
        else {
            "prompt": report.texts[first.text].name,
            "position": first.position,
            "token_id": first.ours,
            "token": report.spelled.get(first.ours),
            "reference_token_id": first.theirs,
            "reference_token": report.spelled.get(first.theirs),
            "gap": first.gap,
            "near_tie": first.tie,
            "logits_out": first.stray,
        },
    }


def _number(value: float | None, form: str = ".1e") -> str:
    return "" if value is None else "0" if value == 0 else format(value, form)


def _spelled(report: Report, token: int) -> str:
    text = report.spelled.get(token)
    return f"{token}" if text is None else f"{text!r} ({token})"
