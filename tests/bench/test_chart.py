"""Pictures without a library: whole PNG files, points where they belong, ticks that hold every value."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardwise.bench import chart
from shardwise.bench.chart import COLOURS, TALL, WIDTH, Chart, png
from shardwise.bench.glyphs import LETTERS, columns


def pixels(data: bytes) -> np.ndarray:
    """A PNG as [rows, columns, 3], read by the specification: every chunk's sum is checked."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, found = 8, {}
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + size]
        assert struct.unpack(">I", data[at + 8 + size : at + 12 + size])[0] == zlib.crc32(kind + body)
        found[kind], at = body, at + 12 + size
    width, height, depth, colours = struct.unpack(">IIBB", found[b"IHDR"][:10])
    assert (width, height, depth, colours) == (WIDTH, TALL, 8, 2)
    lines = np.frombuffer(zlib.decompress(found[b"IDAT"]), np.uint8).reshape(height, 1 + 3 * width)
    assert not lines[:, 0].any()
    return lines[:, 1:].reshape(height, width, 3)


def test_points_are_where_they_belong():
    sheet = pixels(png(Chart("a title", "x", "y", {"up": [(1, 1), (3, 3)], "flat": [(1, 2), (3, 2)]})))
    for colour, at in ((COLOURS[0], 0.0), (COLOURS[0], 1.0), (COLOURS[1], 2 / 3)):
        x = 0.0 if at == 0.0 else 1.0
        level = 1 / 3 if at == 0.0 else at  # the axis begins at 0 and ends at 3
        left, top = chart._place(x, level)
        assert tuple(sheet[round(top), round(left)]) == colour
    assert (sheet[:60] < 120).any(), "the title is written"


@pytest.mark.parametrize("lines", [{}, {"none": []}, {"one": [(5, 5)]}, {"nothing": [(1, 0), (2, 0)]}])
@pytest.mark.parametrize("log", [False, True])
def test_little_is_drawn_too(lines, log):
    kept = {name: [point for point in points if point[1] > 0 or not log] for name, points in lines.items()}
    assert pixels(png(Chart("t", "x", "y", kept, log, log, log))).any()


@settings(deadline=None, max_examples=200)
@given(st.lists(st.floats(1e-3, 1e9), min_size=1, max_size=9), st.booleans(), st.booleans())
def test_ticks_hold_every_value(values, log, binary):
    axis = chart._axis(values, log, binary, from_zero=not log)
    assert 2 <= len(axis.ticks) <= 11 and list(axis.ticks) == sorted(set(axis.ticks))
    assert all(-1e-6 <= axis.at(value) <= 1 + 1e-6 for value in values)


def test_letters_differ():
    assert len({columns(letter).tobytes() for letter in LETTERS}) == len(LETTERS)
    assert columns("tok/s").shape == (8, 30)
    assert (columns("ü") == columns("€")).all(), "letters that are not known are boxes"
