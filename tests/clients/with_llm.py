"""The command `llm`, told of the server by its extra-openai-models.yaml."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from checks import KEY, MODEL, URL, check, run

YAML = f"""\
- model_id: here
  model_name: {MODEL}
  api_base: "{URL}/v1"
  api_key_name: here
  supports_schema: true
  supports_tools: true
"""
FOLDER = Path(tempfile.mkdtemp())
(FOLDER / "extra-openai-models.yaml").write_text(YAML)
(FOLDER / "keys.json").write_text(json.dumps({"here": KEY}))


def llm(*args: str) -> str:
    """What the command prints; AssertionError where it fails."""
    command = [str(Path(sys.executable).with_name("llm")), *args]
    env = {**os.environ, "LLM_USER_PATH": str(FOLDER)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=150, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr[-500:]
    return done.stdout


PROMPT = ("-m", "here", "What is your name?", "-o", "temperature", "0", "-o", "max_tokens", "12")


@check
def models() -> None:
    assert "here" in llm("models")


@check
def streamed_and_whole() -> None:
    assert llm("prompt", *PROMPT) == llm("prompt", *PROMPT, "--no-stream") != ""


@check
def schema() -> None:
    form = {"type": "object", "properties": {"city": {"enum": ["Paris", "Oslo"]}}, "required": ["city"]}
    text = llm("prompt", *PROMPT[:-1], "60", "--schema", json.dumps(form))
    assert json.loads(text)["city"] in ("Paris", "Oslo")


@check
def conversation() -> None:
    assert llm("prompt", "-c", *PROMPT) != ""


if __name__ == "__main__":
    run()
