"""Memory for weights: huge pages where enough are free, and as good without."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from shardwise.runtime.memory import BUDDIES, HUGE_PAGE, allocated

CPU = torch.device("cpu")
LINE = "Node 0, zone   Normal   8157   6437   7613   4517   4998   4300   3206   2289   1610 {huge} {most}\n"
"""Blocks of 4 KiB, 8 KiB, ... 2 MiB, 4 MiB that are free."""


def mapped_anew(block: torch.Tensor) -> bool:
    """Whether the block is a mapping of its own, which begins with a page; an allocator's block has its size before it."""
    return block.data_ptr() % 4096 == 0


@pytest.mark.skipif(sys.platform != "linux", reason="huge pages are asked for on Linux alone")
@pytest.mark.parametrize(("huge", "most", "asked"), [(16, 0, True), (0, 8, True), (15, 0, False), (7, 4, False), (8, 4, True)])
def test_four_times_the_size_has_to_be_free(tmp_path: Path, huge: int, most: int, asked: bool) -> None:
    buddies = tmp_path / "buddyinfo"
    buddies.write_text("Node 0, zone      DMA      0      0\n" + LINE.format(huge=huge, most=most))
    block = allocated(4 * HUGE_PAGE, CPU, buddies)
    assert (len(block), mapped_anew(block)) == (4 * HUGE_PAGE, asked)
    block.fill_(7)
    assert int(block.sum()) == 7 * len(block)


@pytest.mark.parametrize("text", ["", "what is this\n", "Node 0, zone\n"])
def test_a_kernel_that_does_not_say(tmp_path: Path, text: str) -> None:
    buddies = tmp_path / "buddyinfo"
    if text:
        buddies.write_text(text)
    assert not mapped_anew(allocated(4 * HUGE_PAGE, CPU, buddies))


def test_little_is_allocated_as_ever() -> None:
    assert len(allocated(0, CPU)) == 0
    assert not mapped_anew(allocated(HUGE_PAGE - 1, CPU, BUDDIES))
