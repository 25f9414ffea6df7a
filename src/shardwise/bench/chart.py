"""Lines over numbers as a PNG, drawn by itself: no plotting library is needed. Knows no benchmark."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from shardwise.bench.glyphs import HEIGHT, columns

Points = Sequence[tuple[float, float]]
Pixels = np.ndarray

WIDTH, TALL = 1200, 760
LEFT, RIGHT, TOP, BOTTOM = 130, 250, 80, 90
INK, SOFT, GRID = (60, 66, 76), (122, 130, 140), (228, 231, 235)
COLOURS = (
    (68, 119, 170), (238, 102, 119), (34, 136, 51), (204, 187, 68), (102, 204, 238), (170, 51, 119), (110, 110, 110),
    (0, 0, 0), (68, 187, 153), (255, 170, 187), (136, 34, 85), (119, 170, 221),
)  # fmt: skip
"""Paul Tol's "bright" scheme, which can be told apart without seeing red or green, and some of his others for the rest."""

UNITS = ((2**30, "Gi"), (2**20, "Mi"), (2**10, "Ki"))


@dataclass(frozen=True, slots=True)
class Chart:
    """Named lines. `x` and `y` say what the axes are; `x_log` and `y_log` draw powers alike; `x_binary` counts in Ki and Mi."""

    title: str
    x: str
    y: str
    lines: Mapping[str, Points]
    x_log: bool = False
    y_log: bool = False
    x_binary: bool = False


@dataclass(frozen=True, slots=True)
class _Axis:
    """Where a number lies, from 0 to 1, and the numbers that are written beside the axis."""

    low: float
    high: float
    log: bool
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return (value - low) / (high - low)


def png(chart: Chart) -> bytes:
    """The picture, 1200 x 760 points."""
    sheet = np.full((TALL, WIDTH, 3), 255, np.uint8)
    points = [point for line in chart.lines.values() for point in line]
    xs, ys = ([point[i] for point in points] for i in (0, 1))
    across, up = _axis(xs, chart.x_log, chart.x_binary, from_zero=False), _axis(ys, chart.y_log, False, from_zero=True)
    _frame(sheet, chart, across, up)
    for number, (name, line) in enumerate(chart.lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        places = [_place(across.at(x), up.at(y)) for x, y in line]
        for begin, end in pairwise(places):
            _stroke(sheet, begin, end, 2.0, colour)
        for place in places:
            _stroke(sheet, place, place, 5.0, colour)
        y = TOP + 14 + 30 * number
        _stroke(sheet, (WIDTH - RIGHT + 24, y), (WIDTH - RIGHT + 54, y), 2.0, colour)
        _write(sheet, name, WIDTH - RIGHT + 64, y - HEIGHT, INK)
    return _encoded(sheet)


def _frame(sheet: Pixels, chart: Chart, across: _Axis, up: _Axis) -> None:
    """The title, the grid and its numbers, and what the axes are."""
    _write(sheet, chart.title, LEFT, 24, INK)
    for tick in across.ticks:
        x, _ = _place(across.at(tick), 0)
        _stroke(sheet, (x, TOP), (x, TALL - BOTTOM), 0.5, GRID)
        text = _number(tick, chart.x_binary)
        _write(sheet, text, int(x) - _wide(text) // 2, TALL - BOTTOM + 14, SOFT)
    for tick in up.ticks:
        _, y = _place(0, up.at(tick))
        _stroke(sheet, (LEFT, y), (WIDTH - RIGHT, y), 0.5, GRID)
        text = _number(tick, False)
        _write(sheet, text, LEFT - 12 - _wide(text), int(y) - HEIGHT, SOFT)
    _write(sheet, chart.x, (LEFT + WIDTH - RIGHT - _wide(chart.x)) // 2, TALL - 38, INK)
    _write(sheet, chart.y, LEFT, TOP - 26, INK)


def _axis(values: Sequence[float], log: bool, binary: bool, *, from_zero: bool) -> _Axis:
    """An axis on which all values lie, and its ticks. Of no values, or of one, the axis is made wider."""
    kept = [value for value in values if math.isfinite(value) and (value > 0 or not log)] or [1.0]
    low, high = min(kept), max(kept)
    if log:
        power = 2.0 if binary else 10.0
        first, last = math.floor(math.log(low, power) + 1e-9), math.ceil(math.log(high, power) - 1e-9)
        last = max(last, first + 1)
        step = max(1, -(-(last - first) // 8))
        return _Axis(power**first, power**last, True, tuple(power**n for n in range(first, last + 1, step)))
    low = min(0.0, low) if from_zero else low
    high = high if high > low else low + 1.0
    size = 10 ** math.floor(math.log10((high - low) / 4))
    step = next(n * size for n in (1, 2, 5, 10) if (high - low) / (n * size) <= 8)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return _Axis(first * step, last * step, False, tuple(n * step for n in range(first, last + 1)))


def _place(x: float, y: float) -> tuple[float, float]:
    return LEFT + x * (WIDTH - LEFT - RIGHT), TALL - BOTTOM - y * (TALL - TOP - BOTTOM)


def _stroke(sheet: Pixels, begin: tuple[float, float], end: tuple[float, float], half: float, colour: Sequence[int]) -> None:
    """A line of round ends, `half` points to each side, its edges softened by how far a point lies outside."""
    (x0, y0), (x1, y1) = begin, end
    reach = half + 1
    left, right = (int(v) for v in (max(0, min(x0, x1) - reach), min(WIDTH, max(x0, x1) + reach + 1)))
    top, bottom = (int(v) for v in (max(0, min(y0, y1) - reach), min(TALL, max(y0, y1) + reach + 1)))
    ys, xs = np.mgrid[top:bottom, left:right].astype(np.float64)
    along = (x1 - x0) ** 2 + (y1 - y0) ** 2
    part = np.clip(((xs - x0) * (x1 - x0) + (ys - y0) * (y1 - y0)) / along, 0, 1) if along else np.zeros_like(xs)
    away = np.hypot(xs - x0 - part * (x1 - x0), ys - y0 - part * (y1 - y0))
    cover = np.clip(half + 0.5 - away, 0, 1)[:, :, None]
    under = sheet[top:bottom, left:right]
    sheet[top:bottom, left:right] = (under * (1 - cover) + np.array(colour) * cover).round().astype(np.uint8)


def _write(sheet: Pixels, text: str, x: int, y: int, colour: Sequence[int]) -> None:
    """Letters of 12 x 16 points; what goes beyond the edge is cut off."""
    bits = np.kron(columns(text), np.ones((2, 2), bool))[:, : max(0, WIDTH - x)]
    area = sheet[y : y + bits.shape[0], x : x + bits.shape[1]]
    area[bits[: area.shape[0]]] = colour


def _wide(text: str) -> int:
    return 12 * len(text)


def _number(value: float, binary: bool) -> str:
    for size, unit in UNITS if binary else ():
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:.4g}"


def _encoded(sheet: Pixels) -> bytes:
    """As the PNG specification (ISO/IEC 15948) has it: 8 bits of red, green and blue, each line unfiltered."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    lines = np.concatenate([np.zeros((TALL, 1), np.uint8), sheet.reshape(TALL, -1)], axis=1)
    head = struct.pack(">IIBBBBB", WIDTH, TALL, 8, 2, 0, 0, 0)
    body = zlib.compress(lines.tobytes(), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
