"""Memory that was freed is there again without the kernel, once a rank has said so."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

ROUNDS, MIB = 10, 10
COUNT = f"""
import resource
from shardwise.runtime import heap

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range({ROUNDS}):
        held = [bytearray({MIB} << 20) for _ in range(3)]
        del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first = faults()
heap.keep()
faults()
print(first, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_what_was_freed_is_kept() -> None:
    said = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True).stdout
    before, after = map(int, said.split())
    assert after < before // 8
