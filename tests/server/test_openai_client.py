"""OpenAI's Python package, as its users have it, against the whole server with the bundled model: what `make clients` asks of
it, on one rank in this process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shardwise.engine.engine import Engine
from shardwise.engine.setup import Options, resolve
from shardwise.server.routes import ROUTES
from tests.server.drive import serving

SCRIPT = Path(__file__).parents[1] / "clients" / "with_openai.py"
KEY = "sk-client"


@pytest.mark.timeout(300)
def test_all_that_the_package_is_made_to_do_works() -> None:
    setup = resolve(Options("shardling", tp=1, device="cpu"))
    env = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI")}
    with Engine(setup, "threads") as engine, serving(engine, ROUTES, api_keys=(KEY,)) as served:
        command = [sys.executable, SCRIPT, served.url, KEY, "shardling"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=env)
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(told) >= 12 and not [each for each in told if each["wrong"]], told
