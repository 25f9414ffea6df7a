"""The Python in the README runs as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

BLOCKS = re.findall(
    r"^```python\n(.*?)^```", (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8"), re.M | re.S
)


def test_there_are_some():
    assert len(BLOCKS) == 2


@pytest.mark.parametrize("number", range(2))
def test_it_runs(number: int, tmp_path: Path):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", BLOCKS[number]]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=100)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout.strip()
