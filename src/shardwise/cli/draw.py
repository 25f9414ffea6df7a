"""The cut on a terminal, in 80 to 100 columns: one layer as a picture, the tree of blocks, a table a rank, the totals.

Only lines of text with a colour a rank; what is shown is `cut`'s. Terminals without Unicode get ASCII.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from shardwise.cli.cut import Branch, Part, Sizes, Totals, parts, precision, sizes, totals, tree, uniform
from shardwise.spec.layout import Layout
from shardwise.spec.requantised import left_dense, quantised

COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red")
DIM = "bright_black"
BAR_CELLS = 8


@dataclass(frozen=True, slots=True)
class Glyphs:
    """The characters to draw with: a full cell, its left and right half, an empty one; eighths of a bar; signs."""

    full: str = "█"
    left: str = "▌"
    right: str = "▐"
    empty: str = "·"
    eighths: str = "▏▎▍▌▋▊▉█"
    to: str = "→"
    times: str = "×"
    dash: str = "–"
    dot: str = "·"


ASCII = Glyphs("#", "#", "#", ".", "#", "->", "x", "-", "|")


def glyphs(console: Console) -> Glyphs:
    """What the console's encoding can write."""
    try:
        "".join(getattr(Glyphs(), name) for name in Glyphs.__slots__).encode(console.encoding)
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return Glyphs()


def draw_cut(console: Console, name: str, layout: Layout) -> None:
    """The picture alone: who computes which heads, MLP rows and words, and how many bytes of weights that is."""
    g = glyphs(console)
    say(console, title(name, layout))
    say(console)
    for line in picture(parts(layout), sizes(layout.model), width(console), g):
        say(console, line)
    say(console)


def draw_all(console: Console, name: str, layout: Layout) -> None:
    """All there is to say about a layout."""
    g = glyphs(console)
    ranks, whole = parts(layout), sizes(layout.model)
    sums = totals(layout, ranks)
    sections: list[Iterator[Text]] = [
        iter([title(name, layout)]),
        blocks(list(tree(layout)), g),
        picture(ranks, whole, width(console), g),
        table(ranks, whole, width(console), g),
        summary(layout, sums, ranks, g),
    ]
    for section in sections:
        for line in section:
            say(console, line)
        say(console)


def say(console: Console, line: Text | str = "") -> None:
    # As it is: rich would wrap long lines, and take [brackets] for markup.
    if isinstance(line, Text):
        line.rstrip()
    console.print(line, soft_wrap=True, markup=False, highlight=False)


def width(console: Console) -> int:
    """Columns to draw in; without a terminal to ask, what fits most pages."""
    return max(80, min(console.width, 100)) if console.is_terminal else 96


# --- sections -------------------------------------------------------------------------------------------------------------


def title(name: str, layout: Layout) -> Text:
    model, shares = layout.model, layout.shares.attention
    how = "evenly" if len(set(shares)) == 1 else ":".join(f"{share:g}" for share in shares)
    ranks = "on 1 rank" if len(shares) == 1 else f"cut {how} over {len(shares)} ranks"
    rest = f"  {model.architecture}, {model.layers} layers, {precision(model, layout.dtype)}, {ranks}"
    return Text.assemble((name, "bold"), rest)


def blocks(branches: Sequence[Branch], g: Glyphs) -> Iterator[Text]:
    """The tree: names, shapes, how each linear is cut, and where ranks must speak to each other."""
    names = [2 * b.depth + len(b.name) for b in branches]
    first, second = max(names) + 2, max(len(b.shape) for b in branches) + 2
    for branch, used in zip(branches, names, strict=True):
        shape = branch.shape.replace("->", g.to).replace(" x ", f" {g.times} ")
        line = Text("  " * branch.depth)
        line.append(branch.name, "bold" if branch.depth == 0 else "")
        line.append(" " * (first - used))
        line.append(shape.ljust(second) if branch.how else shape)
        line.append(branch.how.ljust(24) if branch.collective else branch.how, "" if "by" in branch.how else DIM)
        if branch.collective:
            line.append(f"  {g.to} {branch.collective}", "bold")
        yield line


def picture(ranks: Sequence[Part], whole: Sizes, columns: int, g: Glyphs) -> Iterator[Text]:
    """A line a rank; in each family of axes, the columns that it holds. Equal columns in two lines are held twice."""
    label = len(f"rank {ranks[-1].rank}")
    room = columns - label - 5 * 2 - BAR_CELLS - len(" 99.9 GiB")
    inner = _inner(ranks, whole)
    families = [
        ("query heads", whole.heads, _cells(whole.heads, room * 35 // 100), [part.q for part in ranks]),
        ("KV heads", whole.kv_heads, _cells(whole.kv_heads, room * 18 // 100), [part.kv for part in ranks]),
        *((name, size, cells, spans) for name, size, spans in inner if (cells := room * 25 // 100 // len(inner))),
        ("vocabulary", whole.vocab, room * 22 // 100, [part.vocab for part in ranks]),
    ]
    families = [family for family in families if family[1]]
    head = " " * label
    widths = [max(cells, len(name), len(str(size))) for name, size, cells, _ in families]
    for (name, _, _, _), wide in zip(families, widths, strict=True):
        head += "  " + name.ljust(wide)
    yield Text(head + "  weights", DIM)
    yield Text(" " * label + "".join(f"  {size:<{wide}}" for (_, size, _, _), wide in zip(families, widths, strict=True)), DIM)
    most = max(part.weight_bytes for part in ranks)
    for part in ranks:
        colour = COLOURS[part.rank % len(COLOURS)]
        line = Text(f"rank {part.rank}".ljust(label), colour)
        for (_, size, cells, spans), wide in zip(families, widths, strict=True):
            line.append("  ")
            line.append_text(_strip(spans[part.rank], size, cells, colour, g))
            line.append(" " * (wide - cells))
        line.append("  " + _bar(part.weight_bytes / most, BAR_CELLS, g), colour)
        line.append(f" {size_of(part.weight_bytes)}")
        yield line


def table(ranks: Sequence[Part], whole: Sizes, columns: int, g: Glyphs) -> Iterator[Text]:
    """The same in numbers."""
    held = sum(part.weight_bytes for part in ranks)
    inner = _inner(ranks, whole)
    rows = [("rank", "query heads", "KV heads", *(name for name, *_ in inner), "vocabulary", "weights", "share", "KV/token")]
    for part in ranks:
        rows.append(
            (
                str(part.rank),
                _counted(part.q, g),
                _counted(part.kv, g) + ("*" if part.shared else ""),
                *(_span(spans[part.rank], g) for *_, spans in inner),
                _span(part.vocab, g),
                size_of(part.weight_bytes),
                f"{100 * part.weight_bytes / held:.1f}%",
                size_of(part.kv_token_bytes),
            )
        )
    wide = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    gap = "  " if sum(wide) + 2 * len(wide) - 2 <= columns else " "
    for n, row in enumerate(rows):
        text = gap.join(cell.rjust(w) for cell, w in zip(row, wide, strict=True))
        yield Text(text, DIM) if n == 0 else Text.assemble((text[: wide[0]], COLOURS[(n - 1) % len(COLOURS)]), text[wide[0] :])
    if any(part.shared for part in ranks):
        yield Text("* some of these KV heads are on another rank too: its query heads read them as well", DIM)


def summary(layout: Layout, sums: Totals, ranks: Sequence[Part], g: Glyphs) -> Iterator[Text]:
    """Parameters, bytes, balance, what is held twice, what travels."""

    def line(name: str, text: str) -> Text:
        return Text.assemble((name.ljust(12), DIM), text)

    if dense := left_dense(layout.model) if quantised(layout.model) else ():
        names = ", ".join(dense[:3]) + (f" and {len(dense) - 3} more" if len(dense) > 3 else "")
        yield line("left dense", f"{names} (fewer than 16 outputs, or heads that no group divides)")
    latent = any(group.kept.kind == "latent" for group in layout.cache)
    yield line("parameters", f"{sums.parameters:,} ({short(sums.parameters)})".replace(",", " "))
    yield line("weights", f"{size_of(sums.whole_bytes)}, held by the ranks together: {size_of(sums.held_bytes)}")
    if layout.mesh.tp > 1:
        again = sums.held_bytes - sums.whole_bytes
        yield line("held again", f"{size_of(again)}, {100 * again / sums.whole_bytes:.2g}% of the model")
        uncut = "norms, routers, position tables, biases after a row cut" + (", what makes latents" if latent else "")
        yield line("", f"{size_of(sums.uncut_bytes):>10}  whole on every rank: {uncut}")
        if sums.shared_bytes:
            why = (
                "KV heads that query heads of several ranks read"
                if any(p.shared for p in ranks)
                else "scales of groups between ranks, rows that fill up tiles"
            )
            yield line("", f"{size_of(sums.shared_bytes):>10}  {why}")
        yield line("balance", f"the heaviest rank holds {sums.imbalance:.3f} {g.times} the mean")
    heaviest = max(part.kv_token_bytes for part in ranks)
    cache = f", at most {size_of(heaviest)} of it on a rank" if layout.mesh.tp > 1 else ""
    if latent:
        cache += " (latents, which all heads read)"
    yield line("KV cache", f"{size_of(sums.kv_token_bytes)} a token{cache}; context {layout.model.context}")
    calls = sum(count for *_, count in sums.collectives)
    if calls:
        yield line("traffic", f"{calls} collectives, {size_of(sums.collective_bytes)} a token")
        for op, site, shape, count in sums.collectives:
            yield line("", f"{count:>4} {g.times} {op.replace('_', '-')} of {g.times.join(map(str, shape[1:]))}  ({site})")
    else:
        yield line("traffic", "none: one rank holds everything")
    if not uniform(layout.model):
        yield Text("Layers differ in heads or MLP rows: picture and table show the first; bytes are of all.", DIM)


def _inner(ranks: Sequence[Part], whole: Sizes) -> list[tuple[str, int, list[range]]]:
    """Name, size and ranges of what is inside of the layers' MLPs and mixtures; of a mixture, that which is divided."""
    dealt = any(len(part.experts) < whole.experts for part in ranks)
    found = [
        ("MLP rows", whole.mlp, [part.mlp for part in ranks]),
        ("expert rows", 0 if dealt else whole.expert_rows, [part.expert_rows for part in ranks]),
        ("experts", whole.experts if dealt else 0, [part.experts for part in ranks]),
    ]
    return [family for family in found if family[1]]


# --- pieces ---------------------------------------------------------------------------------------------------------------


def _cells(units: int, most: int) -> int:
    """Columns for `units` heads: as many for each as there is room for, or the whole room."""
    return units * (most // units) if 0 < units <= most else most


def _strip(span: range, size: int, cells: int, colour: str, g: Glyphs) -> Text:
    """A range as the columns that it covers, to half a column; what is not empty shows at least that."""
    low, high = (round(2 * cells * edge / size) for edge in (span.start, span.stop))
    if span and low == high:
        low, high = (low - 1, high) if low == 2 * cells else (low, high + 1)
    text = Text()
    for cell in range(cells):
        left, right = (low <= half < high for half in (2 * cell, 2 * cell + 1))
        glyph = g.full if left and right else g.left if left else g.right if right else g.empty
        text.append(glyph, colour if left or right else DIM)
    return text


def _bar(part: float, cells: int, g: Glyphs) -> str:
    steps = len(g.eighths)
    filled = round(part * cells * steps)
    rest = g.eighths[filled % steps - 1] if filled % steps else ""
    return (g.eighths[-1] * (filled // steps) + rest).ljust(cells)


def _span(span: range, g: Glyphs) -> str:
    return f"{span.start}{g.dash}{span.stop - 1}" if len(span) > 1 else str(span.start) if span else "none"


def _counted(span: range, g: Glyphs) -> str:
    return f"{_span(span, g)} ({len(span)})" if span else "none"


def size_of(size: int) -> str:
    """Bytes as people read them, three digits or so."""
    value, unit = float(size), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1000 or unit == "TiB":
            break
        value /= 1024
    digits = 0 if value == int(value) or value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {unit}"


def short(number: int) -> str:
    """A count of parameters as people say it."""
    for scale, name in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= scale:
            return f"{number / scale:.3g} {name}"
    return str(number)
