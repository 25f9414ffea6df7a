"""The file that ranks share: what is wanted is seen by all, and what old groups took is given back."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator

import pytest

from shardwise.comm import memory
from shardwise.comm.memory import begins

SIZE = 1 << 20


@pytest.fixture
def shared() -> Iterator[int]:
    fd = memory.anonymous()
    yield fd
    os.close(fd)


def test_the_epoch_that_is_wanted(shared: int) -> None:
    assert memory.wanted(shared) == -1
    for epoch in (0, 1, 7, 2**40):
        memory.want(shared, epoch)
        assert memory.wanted(shared) == epoch


def test_memory_of_old_groups_is_given_back_and_of_no_other(shared: int) -> None:
    os.ftruncate(shared, begins(3) + SIZE)
    maps = [mmap.mmap(shared, SIZE, offset=begins(epoch)) for epoch in range(4)]
    for each in maps:
        each.write(b"x" * SIZE)
    memory.want(shared, 2)
    held = os.fstat(shared).st_blocks * 512
    memory.give_back(shared, 2)
    assert held - os.fstat(shared).st_blocks * 512 == 2 * SIZE
    assert [each[:1] + each[-1:] for each in maps] == [b"\0\0", b"\0\0", b"xx", b"xx"]
    assert memory.wanted(shared) == 2 and os.fstat(shared).st_size == begins(3) + SIZE
    memory.give_back(shared, 0)
    assert maps[2][:1] == b"x"
    for each in maps:
        each.close()
