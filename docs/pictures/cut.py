"""Draws one cut layer as SVG, from the layout itself: `python docs/pictures/cut.py > docs/pictures/cut.svg`."""

from __future__ import annotations

import json
from pathlib import Path

from shardwise.spec.axes import Axis
from shardwise.spec.blocks import MLP, Attention, walk
from shardwise.spec.config import read_model
from shardwise.spec.layout import Layout, Shares
from shardwise.spec.mesh import Coords, Mesh

ROOT = Path(__file__).parents[2]
SHARES = (2.0, 1.0, 1.0)
COLOURS = ("#4477aa", "#ee8866", "#44aa77")
INK, SOFT = "#5b6470", "#9aa3ad"
WIDTH, HEIGHT, SIDE = 970, 330, 132


def text(x: float, y: float, words: str, size: int = 13, colour: str = INK, anchor: str = "middle") -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}" text-anchor="{anchor}">{words}</text>'


def rect(x: float, y: float, w: float, h: float, fill: str, opacity: float = 1.0) -> str:
    shape = f'x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" rx="2"'
    return f'<rect {shape} fill="{fill}" fill-opacity="{opacity}" stroke="#fff" stroke-width="1.2"/>'


def arrow(x1: float, x2: float, y: float) -> str:
    return f'<path d="M{x1} {y} H{x2 - 5}" stroke="{SOFT}" stroke-width="1.5"/><path d="M{x2} {y} l-7 -4 v8 z" fill="{SOFT}"/>'


def bands(x: float, y: float, axis: Axis, layout: Layout, upright: bool) -> list[str]:
    """A square weight, its cut axis across (columns) or down (rows), a band for each rank."""
    drawn = []
    for rank, span in enumerate(layout.spans(axis)):
        start, length = SIDE * span.start / axis.size, SIDE * len(span) / axis.size
        place = (x + start, y, length, SIDE) if upright else (x, y + start, SIDE, length)
        drawn.append(rect(*place, COLOURS[rank], 0.85))
    return drawn


def heads(x: float, y: float, attention: Attention, layout: Layout) -> list[str]:
    """A square for each query head; under them the KV heads, one row a rank, so that a doubled one shows."""
    step = SIDE / attention.heads
    group = attention.heads // attention.kv_heads
    drawn = [text(x + SIDE / 2, y - 10, f"{attention.heads} query heads", 12)]
    for rank in range(layout.mesh.tp):
        queries, kv = layout.heads(attention, Coords(tp=rank))
        drawn += [rect(x + i * step, y, step, 22, COLOURS[rank], 0.85) for i in queries]
        drawn += [rect(x + i * group * step, y + 30 + 16 * rank, group * step, 14, COLOURS[rank], 0.85) for i in kv]
    return [*drawn, text(x + SIDE / 2, y + 96, f"{attention.kv_heads} KV heads", 12)]


def total(x: float, y: float, words: str) -> list[str]:
    """The sum over ranks."""
    circle = f'<circle cx="{x}" cy="{y}" r="15" fill="#fff" stroke="{INK}" stroke-width="1.5"/>'
    return [circle, text(x, y + 5, "Σ", 17), text(x, y + 36, words, 11, SOFT)]


def picture(layout: Layout) -> str:
    """The whole picture."""
    nodes = [node for _, node in walk(layout.model.runs[0].block)]
    attention = next(n for n in nodes if isinstance(n, Attention))
    mlp = next(n for n in nodes if isinstance(n, MLP))
    top, middle = 92, 92 + SIDE / 2
    at = {"qkv": 44, "heads": 208, "o": 372, "up": 604, "down": 756}
    drawn = [text(18, middle + 5, "x", 17)]
    drawn += bands(at["qkv"], top, attention.q.out, layout, upright=True)
    drawn += heads(at["heads"], top + 26, attention, layout)
    drawn += bands(at["o"], top, attention.o.inp, layout, upright=False)
    drawn += total(550, middle, "all-reduce")
    drawn += bands(at["up"], top, mlp.up.out, layout, upright=True)
    drawn += bands(at["down"], top, mlp.down.inp, layout, upright=False)
    drawn += total(918, middle, "all-reduce")
    labels = {"qkv": "q k v: columns", "o": "o: rows", "up": "gate up: columns", "down": "down: rows"}
    drawn += [text(at[key] + SIDE / 2, top - 12, words) for key, words in labels.items()]
    gaps = ((24, 42), (178, 206), (342, 370), (506, 533), (567, 602), (738, 754), (890, 901))
    drawn += [arrow(a, b, middle) for a, b in gaps]
    drawn.append(text(18, 34, "One layer of the bundled model over three ranks, shares 2 : 1 : 1", 16, INK, "start"))
    for rank, share in enumerate(SHARES):
        queries, kv = layout.heads(attention, Coords(tp=rank))
        rows = len(layout.span(mlp.up.out, Coords(tp=rank)))
        x = 44 + 300 * rank
        drawn += [
            rect(x, 264, 16, 34, COLOURS[rank], 0.85),
            text(x + 26, 277, f"rank {rank}, share {share:g}", 13, INK, "start"),
        ]
        held = f"{len(queries)} query heads · {len(kv)} KV heads · {rows} MLP rows"
        drawn.append(text(x + 26, 295, held, 12, INK, "start"))
    style = 'font-family="system-ui, sans-serif"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {style}>'
    return "\n".join([head, f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>', *drawn, "</svg>"])


def main() -> None:
    config = json.loads((ROOT / "src/shardwise/data/shardling/config.json").read_text())
    print(picture(Layout(read_model(config), Mesh(tp=len(SHARES)), Shares.of(SHARES), "bfloat16", "bfloat16")))


if __name__ == "__main__":
    main()
