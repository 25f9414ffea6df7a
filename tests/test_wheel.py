"""The wheel, in an environment that has never seen the sources: it installs, and serves."""

from __future__ import annotations

import json
import os
import re
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


def health_check() -> list[str]:
    """The Dockerfile's, as Docker reads it: lines are joined, the command is JSON."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", "")
    [found] = re.findall(r"^HEALTHCHECK .* CMD (\[.*\])$", text, re.MULTILINE)
    command: list[str] = json.loads(found)
    return command


def test_what_the_image_is_made_of() -> None:
    """Only files that reach Docker are copied; nobody's container runs as root, or listens beyond itself unasked."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", "")
    sent = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {name for line in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE) for name in line.split()}
    assert copied == sent and all((ROOT / name).exists() for name in copied)
    final = text.rpartition("\nFROM ")[2]
    assert "\nUSER shardwise\n" in final and 'ENTRYPOINT ["shardwise", "serve", "--host", "0.0.0.0"]' in final


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
        _, *words = health_check()
        port = server.url.rpartition(":")[2]
        proxy = {**env, "http_proxy": "http://127.0.0.1:1", "SHARDWISE_PORT": port}
        assert subprocess.run([python, *words], env=proxy, timeout=60).returncode == 0
        server.process.terminate()
        assert server.wait() == 0
        assert subprocess.run([python, *words], env=proxy, capture_output=True, timeout=60).returncode == 1
