"""Whole logits on their way out of the ranks: in pieces that fit a message, the same as all at once, the lead rank's alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from shardwise.runtime import wire
from shardwise.runtime.worker import rows_of
from tests.group import Group, even, layout_of


@pytest.mark.parametrize("most", [1, 4, 5, 100])
def test_pieces_are_the_whole(most: int, checkpoint: Callable[[str], Path]) -> None:
    folder = checkpoint("llama")
    with Group(layout_of(folder, even(3)), folder) as group:
        request = group.request()
        request.tokens[:] = range(3, 23)
        step = group.step(request.take())
        whole = group.each(lambda runner: runner.logits(step))[0]
        parts = group.each(lambda runner: list(runner.logits_pieces(step, most)))[2]
        assert [len(part) for part in parts] == [most] * (20 // most) + ([20 % most] if 20 % most else [])
        # Not to the last bit: a product of fewer rows may sum its columns in another order.
        torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=1e-5)
        lead, *others = group.each(lambda runner: list(rows_of(runner, step)))
    assert others == [[], []]
    assert sum(message.count for message in lead) == 20
    sent = torch.frombuffer(bytearray(b"".join(message.logits for message in lead)), dtype=torch.float32)
    assert torch.equal(sent.view(20, -1), whole)


@pytest.mark.parametrize("vocabulary", [2, 131, 151_936, 2**20, 2**23])
def test_a_piece_fits_a_message(vocabulary: int) -> None:
    rows = wire.piece_rows(vocabulary)
    assert rows >= 1 and 4 * vocabulary * rows <= max(wire.PIECE_BYTES, 4 * vocabulary) < wire.LIMIT_BYTES
    message = wire.Rows(vocabulary, bytes(4 * vocabulary * rows))
    assert message.count == rows
    assert wire.decode(wire.encode(message)) == message
