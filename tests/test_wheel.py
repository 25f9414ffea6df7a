"""The wheel, in an environment that has never seen the sources: it installs, and serves."""

from __future__ import annotations

import os
import site
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.server.live import serving

ROOT = Path(__file__).parents[1]


def run(*command: str | Path, cwd: Path | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_wheel_installs_and_serves(tmp_path: Path) -> None:
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, ROOT)
    [wheel] = tmp_path.glob("shardwise-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "shardwise/data/shardling/model.safetensors" in names
    assert all(name.startswith(("shardwise/", "shardwise-")) for name in names)

    home = tmp_path / "env"
    run(sys.executable, "-m", "venv", "--without-pip", home)
    python = home / "bin" / "python"
    run(*pip, "--python", python, "install", "--quiet", "--no-deps", wheel)
    # The dependencies are those of this environment, by path: only files that are named there count, no editable install.
    [packages] = home.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    where = "import shardwise, sys; print(shardwise.__file__)"
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    found = subprocess.run([python, "-c", where], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert found.stdout.startswith(str(packages)), found

    with serving("-tp", "2", command=[str(home / "bin" / "shardwise")], PYTHONPATH="") as server:
        assert server.ask("/v1/completions", {"prompt": "Once", "max_tokens": 3})[1]["usage"]["completion_tokens"] == 3
        server.process.terminate()
        assert server.wait() == 0
