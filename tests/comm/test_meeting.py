"""A store in a file without a name: what torch writes to it at the end goes there, and nowhere else."""

from __future__ import annotations

import gc
import os
from pathlib import Path

from shardwise.comm import memory
from shardwise.comm.stores import file_store


def test_a_dropped_store_writes_to_no_other_file(tmp_path: Path) -> None:
    """Whoever made the file has closed it, and his descriptor is another file's by then."""
    fd = memory.anonymous()
    store = file_store(Path(f"/proc/{os.getpid()}/fd/{fd}"), 2, 0)
    store.set("key", "value")
    other = tmp_path / "other"
    other.write_bytes(b"x" * 4096)
    own = os.open(other, os.O_RDWR)
    os.dup2(own, fd)
    assert store.get("key") == b"value"
    del store
    gc.collect()
    os.close(own)
    os.close(fd)
    assert other.read_bytes() == b"x" * 4096


def test_no_more_than_two_descriptors_are_kept() -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    counts = []
    for epoch in range(6):
        fd = memory.anonymous()
        store = file_store(Path(f"/proc/{os.getpid()}/fd/{fd}"), 1, epoch)
        store.set("key", "value")
        del store
        os.close(fd)
        counts.append(descriptors())
    assert counts[2:] == [counts[2]] * 4
