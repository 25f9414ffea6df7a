"""The machine's limits: every float is read, every byte copied, by any number of threads; and the rows that come of it."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from shardwise import native
from shardwise.bench.limits import TYPES, Wanted, limits
from shardwise.errors import UserError
from shardwise.nn.kernels.pool import Pool
from tests.nn.kernels.paths import each_path, needs_compiled


@needs_compiled
@each_path
def test_all_is_read_and_copied():
    p, n = native.POINTER, native.WHOLE
    read = native.function("sw_stream", p, p, n, result=native.REAL)
    move = native.function("sw_copy", p, p, p, n)
    for threads, size in product((1, 3), (0, 1, 127, 128, 1000, 3 * 2**20 + 5)):
        pool = Pool(threads)
        # Whole numbers below 2^24 in all sums, so that any order of them gives the same.
        x = torch.randint(-4, 5, (size,)).float()
        assert read(pool.handle, x.data_ptr(), size) == x.double().sum().item()
        y = torch.full((4 * size + 8,), 9, dtype=torch.uint8)
        move(pool.handle, x.data_ptr(), y.data_ptr(), 4 * size)
        assert torch.equal(y[: 4 * size].view(torch.float32), x) and (y[4 * size :] == 9).all()


def test_rows():
    told: list[str] = []
    wanted = Wanted((1, 2), 2**20, ("float32", "int8"), (8, 32, 16), 2)
    found = limits(wanted, told.append)
    assert [(row["what"], row["type"], row["threads"]) for row in found.rows[:4]] == [
        ("stream read", "float32", 1),
        ("memcpy, read and write", "bytes", 1),
        ("product", "float32", 1),
        ("product", "int8", 1),
    ]
    assert all(0 < row["worst"] <= row["best"] for row in found.rows)
    assert len(found.rows) == len(told) == wanted.parts == 8


def test_what_is_refused():
    with pytest.raises(UserError, match=r"--types float8.*" + ", ".join(TYPES)):
        Wanted((1,), types=("float8",))
    with pytest.raises(UserError, match="--size 10"):
        Wanted((1,), size=10)
