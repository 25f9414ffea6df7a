"""Draws a busy minute of the scheduler as SVG, made by itself: `python docs/pictures/steps.py > docs/pictures/steps.svg`."""

from __future__ import annotations

from collections import defaultdict

from shardwise.sched.events import Ended
from shardwise.sched.limits import Limits
from shardwise.sched.scheduler import Scheduler
from shardwise.sched.sequence import Request
from shardwise.sched.step import Chosen, Item, Result

COLOURS = {"prompt": "#4477aa", "token": "#44aa77", "again": "#ee8866", "wait": "#e4e8ec"}
LEGEND = {
    "prompt": "tokens of a prompt",
    "token": "the next token",
    "again": "computed again, having given way",
    "wait": "waits",
}
INK, SOFT = "#5b6470", "#9aa3ad"
BUDGET, PAGES, CELL, ROW, LEFT, TOP = 32, 18, 23, 26, 178, 74

SYSTEM = tuple(range(100, 132))
ARRIVING: list[tuple[int, str, Request]] = [
    (0, "a question", Request(1, (*SYSTEM, 1, 2, 3, 4, 5), 22)),
    (1, "a long prompt", Request(2, tuple(range(200, 296)), 10)),
    (3, "two answers", Request(3, tuple(range(300, 311)), 14, n=2)),
    (6, "the same beginning", Request(4, (*SYSTEM, 6, 7, 8), 12)),
    (9, "comes late", Request(5, tuple(range(400, 440)), 14)),
    (12, "comes last", Request(6, tuple(range(500, 509)), 8)),
]


def played() -> tuple[list[dict[tuple[int, int], tuple[str, int]]], dict[int, Ended], list[int]]:
    """What each (request, choice) does in each step, as (kind, tokens); how each request ended; tokens a step."""
    scheduler = Scheduler((PAGES + 1,), (None,), Limits(BUDGET, 8, flight=1), lambda: 0.0)
    waiting, steps, ended, filled = list(ARRIVING), [], {}, []
    lived: dict[tuple[int, int], int] = defaultdict(int)
    while waiting or scheduler.requests:
        while waiting and waiting[0][0] <= len(steps):
            scheduler.add(waiting.pop(0)[2])
        step, _ = scheduler.step()
        here: dict[tuple[int, int], tuple[str, int]] = {}
        for sequence in scheduler.waiting:
            here[sequence.request.number, sequence.choice] = ("wait", 0)
        if step is None:
            steps.append(here)
            continue
        for item in step.items:
            owner = scheduler.owner(item.sequence)
            assert owner is not None
            here[owner] = (_kind(item, lived[owner]), item.count)
            lived[owner] = max(lived[owner], item.start + item.count)
        steps.append(here)
        filled.append(step.tokens)
        results = [Result(s, (Chosen(7),)) for item in step.items for s in item.drawn]
        for event in scheduler.apply(step.number, results):
            if isinstance(event, Ended):
                ended[event.request] = event
    return steps, ended, filled


def _kind(item: Item, before: int) -> str:
    if item.start < before:
        return "again"
    return "token" if item.count == 1 else "prompt"


def text(x: float, y: float, words: str, size: int = 12, colour: str = INK, anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}" text-anchor="{anchor}">{words}</text>'


def rect(x: float, y: float, w: float, h: float, fill: str) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="2" fill="{fill}" stroke="#fff" stroke-width="1.2"/>'


def picture() -> str:
    """The whole picture: a row for each continuation, a column for each step."""
    steps, ended, filled = played()
    rows = sorted({owner for here in steps for owner in here})
    names = {request.number: name for _, name, request in ARRIVING}
    width, height = LEFT + CELL * len(steps) + 130, TOP + ROW * len(rows) + 66
    title = f"Six requests, {PAGES} pages, at most {BUDGET} tokens a step: {len(filled)} steps"
    drawn = [text(18, 28, title, 16), text(LEFT, TOP - 12, "steps, one after another", 11, SOFT)]
    for row, owner in enumerate(rows):
        y = TOP + ROW * row
        number, choice = owner
        drawn.append(text(LEFT - 12, y + 15, names[number] if choice == 0 else "its second answer", 12, anchor="end"))
        for column, here in enumerate(steps):
            if owner in here:
                kind, count = here[owner]
                drawn.append(rect(LEFT + CELL * column, y, CELL, ROW - 5, COLOURS[kind]))
                if count > 1:
                    drawn.append(text(LEFT + CELL * (column + 0.5), y + 14, str(count), 10, "#fff", "middle"))
        last = max(column for column, here in enumerate(steps) if owner in here)
        if choice == 0 and (note := _note(ended[number])):
            drawn.append(text(LEFT + CELL * (last + 1) + 6, y + 14, note, 11, SOFT))
    x = LEFT
    for kind, words in LEGEND.items():
        drawn += [rect(x, height - 40, 16, 16, COLOURS[kind]), text(x + 22, height - 28, words)]
        x += 40 + 6.4 * len(words)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="system-ui, sans-serif">'
    return "\n".join([head, f'<rect width="{width}" height="{height}" fill="#fff"/>', *drawn, "</svg>"])


def _note(ended: Ended) -> str:
    cached = f"{ended.cached} tokens were known" if ended.cached else ""
    gave = f"gave way {ended.preempted}x" if ended.preempted else ""
    return ", ".join(part for part in (cached, gave) if part)


if __name__ == "__main__":
    print(picture())
